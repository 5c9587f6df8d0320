"""No module of pycni needs one that needs it, be it by an import inside a function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pycni

PACKAGE = Path(pycni.__file__).parent
# The front door looks up what programs ask it for: nothing of the package imports that.
FRONT_DOOR = "pycni"


def test_no_circle_of_imports() -> None:
    circles = list(strongly_connected(imports()))
    assert not circles, "\n".join(" <-> ".join(sorted(circle)) for circle in circles)


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"e"}}
    assert [sorted(circle) for circle in strongly_connected(graph)] == [["a", "b", "c"], ["e"]]


def test_what_only_type_checkers_import_does_not_count() -> None:
    tree = ast.parse("if TYPE_CHECKING:\n import pycni.a\ndef f():\n from pycni import b\n")
    known = {"pycni.a", "pycni.b"}
    assert set(imported(tree, known)) == {"pycni.b"}


def imports() -> dict[str, set[str]]:
    """By module: those of pycni that it imports, at module level or when a function is called."""
    trees = {name_of(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    trees.pop(FRONT_DOOR)
    return {name: set(imported(tree, trees.keys())) for name, tree in trees.items()}


def name_of(path: Path) -> str:
    parts = ("pycni", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(node: ast.AST, known: set[str] | object) -> Iterator[str]:
    assert hasattr(known, "__contains__")
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from imported(other, known)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name in known)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                found = inner if inner in known else child.module
                if found in known:
                    yield str(found)
        else:
            yield from imported(child, known)


def strongly_connected(graph: dict[str, set[str]]) -> Iterator[set[str]]:
    """The groups of more than one, or of one that needs itself (Tarjan's algorithm)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> Iterator[set[str]]:
        numbers[name] = lowest[name] = len(numbers)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in numbers:
                yield from visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], numbers[other])
        if lowest[name] == numbers[name]:
            group = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            if len(group) > 1 or name in graph[name]:
                yield group

    for name in sorted(graph):
        if name not in numbers:
            yield from visit(name)


def test_no_module_is_long() -> None:
    lengths = {path: path.read_text().count("\n") for path in PACKAGE.rglob("*.py")}
    assert {str(path): lines for path, lines in lengths.items() if lines >= 600} == {}
