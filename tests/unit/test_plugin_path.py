"""The plugin path imports little: each call starts an interpreter, and imports are most of that.

See docs/decisions/0001-standard-library-on-the-plugin-path.md for the figures behind the lists.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
ROOMS = ("spec", "plan", "kernel", "steps", "state", "sdk", "plugins")
# For the authors of plugins, never loaded by one that runs.
APART = tuple(SRC / "pycni/sdk" / name for name in ("testing.py", "new_plugin.py", "template"))
MODULES = sorted(
    path
    for room in ROOMS
    for path in (SRC / "pycni" / room).rglob("*.py")
    if not any(path.is_relative_to(apart) for apart in APART)
)
PLUGINS = sorted(
    "pycni.plugins" if path.stem == "__init__" else f"pycni.plugins.{path.stem}"
    for path in (SRC / "pycni/plugins").glob("*.py")
)

# Standard, but too slow to import when a plugin starts.
SLOW = {
    "argparse", "asyncio", "collections", "contextlib", "ctypes", "dataclasses", "enum",
    "functools", "hashlib", "importlib", "inspect", "ipaddress", "json", "logging", "os", "pathlib",
    "random", "re", "shutil", "socket", "stat", "struct", "subprocess", "tempfile", "threading",
    "traceback", "typing", "urllib", "uuid",
}  # fmt: skip

# Standard in one of the supported versions, under another name in the one that runs.
RENAMED = {"_sha2", "_sha512"}

# Libraries of the optional extras, which functions may import when a config asks for them.
OPTIONAL = {"jeepney", "pyroute2"}

# What a started plugin may have loaded besides pycni: modules in C, and an empty one.
LOADED = {
    "__future__", "_ctypes", "_json", "_sha2", "_sha512", "_socket", "_stat", "_struct", "errno",
    "fcntl", "gc", "select", "time",
}  # fmt: skip


def imports(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """Each import that is executed: its line, the top-level module, and whether in a function."""
    yield from _imports(tree, inside=False)


def _imports(node: ast.AST, inside: bool) -> Iterator[tuple[int, str, bool]]:
    match node:
        case ast.Import(names=names):
            for alias in names:
                yield node.lineno, alias.name.partition(".")[0], inside
        case ast.ImportFrom(module=str(module), level=0):
            yield node.lineno, module.partition(".")[0], inside
        case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=rest):
            for child in rest:
                yield from _imports(child, inside)
        case _:
            inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from _imports(child, inside)


def complaints(source: str) -> list[str]:
    found = []
    for line, module, inside in imports(ast.parse(source)):
        standard = module in sys.stdlib_module_names | RENAMED | {"pycni"}
        if module in SLOW and not inside:
            found.append(f"line {line}: {module} is slow to import; see CONTRIBUTING.md")
        elif not standard and not (inside and module in OPTIONAL):
            found.append(f"line {line}: {module} is not in the standard library")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_module_imports_little(path: Path) -> None:
    assert complaints(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import posix, _struct", 0),
        ("import os", 1),
        ("import json", 1),
        ("from collections.abc import Iterator", 1),
        ("try:\n    import re\nexcept ImportError:\n    pass", 1),
        ("class A:\n    import enum", 1),
        ("def f():\n    import hashlib", 0),
        ("if TYPE_CHECKING:\n    from typing import Any", 0),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import typing", 1),
        ("import pyroute2", 1),
        ("def f():\n    import jeepney", 0),
        ("def f():\n    import pydantic", 1),
        ("from pycni.spec import record\nfrom . import record", 0),
    ],
)
def test_rule_itself(source: str, count: int) -> None:
    assert len(complaints(source)) == count


def loaded_by(statement: str) -> set[str]:
    """The modules that an interpreter as plugins use it loads for a statement."""
    program = (
        f"import sys; sys.path.insert(0, {str(SRC)!r}); before = set(sys.modules)\n"
        f"{statement}\n"
        "print(*set(sys.modules) - before)"
    )
    argv = [sys.executable, "-I", "-S", "-c", program]
    return set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugin_loads_little(plugin: str) -> None:
    loaded = loaded_by(f"import {plugin}")
    assert plugin in loaded
    ours = {name for name in loaded if name == "pycni" or name.startswith("pycni.")}
    assert loaded - ours - LOADED == set()


def test_package_loads_nothing_but_itself() -> None:
    assert loaded_by("import pycni") == {"pycni"}
