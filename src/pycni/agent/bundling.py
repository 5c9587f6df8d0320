"""Writing the bundle of bytecode that plugins' processes load their modules from.

See `pycni.bundle`, which reads it.
"""

from __future__ import annotations
import __future__

import ast
import marshal
import os

from pycni.bundle import HEAD, PACKAGE, PATH, ROOT, SIZE
from pycni.state.files import make_directories, write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container
    from types import CodeType

    from pycni.bundle import Entry, Imports, Part

_FOLDERS = ("spec", "plan", "kernel", "steps", "state", "sdk", "plugins")


def write() -> None:
    """Write the bundle, in the place of the one before. Raises OSError."""
    files = {_name(file): file for file in _sources()}
    index: dict[str, Entry] = {}
    parts: list[bytes] = []
    offset = 0
    for name, file in files.items():
        origin = f"{ROOT}/{file}"
        with open(origin, "rb") as source:
            tree = ast.parse(source.read(), origin)
            found = os.fstat(source.fileno())
        needs = tuple(need for need in _imported(tree) if need in files)
        taken = _without_imports(tree, files)
        part: Part = needs, taken, _compiled(tree, origin)
        encoded = marshal.dumps(part)
        index[name] = (file, found.st_size, found.st_mtime_ns, offset, len(encoded))
        parts.append(encoded)
        offset += len(encoded)
    listed = marshal.dumps(index)
    head = HEAD + len(listed).to_bytes(SIZE, "little") + listed
    make_directories(f"{ROOT}/__pycache__")
    write_file(PATH, head + b"".join(parts), 0o644, sync=False)


def _imported(tree: ast.Module) -> list[str]:
    """What a module imports at module level, without condition; packages before their parts."""
    imported: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    parts = (name.split(".") for name in imported)
    ways = (".".join(part[:end]) for part in parts for end in range(1, len(part) + 1))
    return list(dict.fromkeys(ways))


def _without_imports(tree: ast.Module, files: Container[str]) -> Imports:
    """Take from a module its imports at module level of others in the bundle, and return them."""
    found = [
        node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module in files
    ]
    for node in found:
        tree.body.remove(node)
    return tuple(
        (str(node.module), tuple((alias.name, alias.asname or alias.name) for alias in node.names))
        for node in found
    )


def _compiled(tree: ast.Module, origin: str) -> CodeType:
    """A module's bytecode, without what only readers, type checkers and the compiler look at.

    Those are docstrings, annotations of functions, what stands under `if TYPE_CHECKING`, and the
    import of `__future__`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and _is_documented(node):
            node.body[0] = ast.copy_location(ast.Pass(), node.body[0])
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    tree.body = [part for node in tree.body for part in _for_the_interpreter(node)]
    features = [
        node
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    for feature in features:
        tree.body.remove(feature)
    flags = __future__.annotations.compiler_flag if features else 0
    code: CodeType = compile(tree, origin, "exec", flags, dont_inherit=True)
    return code


def _for_the_interpreter(node: ast.stmt) -> list[ast.stmt]:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return node.orelse
    return [node]


def _is_documented(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> bool:
    return ast.get_docstring(node, clean=False) is not None


def _sources() -> list[str]:
    """The modules of the plugin path as files below the package's folder."""
    found = []
    for folder in _FOLDERS:
        for parent, folders, names in os.walk(os.path.join(ROOT, folder)):
            if PACKAGE not in names:  # such as the template of a plugin
                folders.clear()
                continue
            below = os.path.relpath(parent, ROOT)
            found += [os.path.join(below, name) for name in names if name.endswith(".py")]
    return sorted(found)


def _name(file: str) -> str:
    module = file.removesuffix(f"/{PACKAGE}").removesuffix(".py")
    return f"pycni.{module.replace('/', '.')}"
