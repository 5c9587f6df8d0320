"""Each kind of step has a module with the verbs of `pycni.steps.handler`, of the same types."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from pycni.plan import steps
from pycni.steps import executor
from pycni.steps import handler as interface
from pycni.steps.handler import OPTIONAL

KINDS = {
    one.kind: one
    for one in vars(steps).values()
    if isinstance(one, type) and issubclass(one, steps.Step) and one.kind
}
SOURCE = ast.parse(Path(interface.__file__).read_text())
(INTERFACE,) = [node for node in ast.walk(SOURCE) if isinstance(node, ast.ClassDef)]
VERBS = {node.name: ast.unparse(node) for node in INTERFACE.body if hasattr(node, "args")}


def modules() -> dict[str, ModuleType]:
    return {kind: import_module(f"pycni.steps.{kind}") for kind in KINDS}


def test_the_interface_has_each_verb_that_the_package_describes() -> None:
    documentation = import_module("pycni.steps").__doc__ or ""
    assert sorted(VERBS) == sorted(verb for verb in VERBS if f"    {verb}(" in documentation)
    assert set(OPTIONAL) < VERBS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_what_the_executor_calls(kind: str) -> None:
    found = executor.handler(kind)
    step = KINDS[kind]
    for verb in VERBS.keys() - set(OPTIONAL):
        assert callable(getattr(found, verb)), verb
    if not (step.follows_link or step.shared):
        assert executor.has(kind, "remove")
    if step.unrepairable:
        assert executor.has(kind, "repair")
    if executor.has(kind, "repairable"):
        assert executor.has(kind, "repair")


def test_what_is_swept_by_marks_can_be_collected() -> None:
    for kind in executor.MARKED_KINDS:
        assert executor.has(kind, "collect")


def test_type_checkers_hold_each_module_against_the_interface(tmp_path: Path) -> None:
    """What mypy says of every module as a handler with just the optional verbs that it has."""
    lines = [
        "from typing import Protocol",
        "from pycni.plan import steps",
        "from pycni.spec.owner import Owners",
        "from pycni.steps.executor import Undo",
        "from pycni.steps.namespaces import HostAndSandbox",
    ]
    for number, (kind, module) in enumerate(modules().items()):
        step = f"steps.{KINDS[kind].__name__}"
        mine = [
            re.sub(r"\bS\b", step, verb) for name, verb in VERBS.items() if hasattr(module, name)
        ]
        lines += [f"class Handler{number}(Protocol):"]
        lines += ["    " + line for verb in mine for line in verb.splitlines()]
        lines += [f"from pycni.steps import {kind} as module{number}"]
        lines += [f"handler{number}: Handler{number} = module{number}"]
    program = tmp_path / "handlers.py"
    program.write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--disable-error-code=empty-body", program],
        cwd=Path(steps.__file__).parents[3], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("Success"), done.stdout
