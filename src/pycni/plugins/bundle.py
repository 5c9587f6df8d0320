"""The bytecode of all modules that plugins import, in one file.

A plugin is a process for each call, which imports some sixty modules. For each, Python looks
through directories, and finds, opens and checks a source and a file of bytecode; of the bundle it
reads a part of one open file. `pycni install` writes it beside Python's own caches of bytecode
(PEP 3147). As with those, a module is taken from it only by the version of Python that compiled it,
and while its source has the size and the time that it had. Whatever is not in it, or in no bundle
at all, is imported as usual.

Used by `pycni.plugins.run`, before anything else is imported.
"""

import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    # A source below the package's folder, its size and time, and where its bytecode is.
    Entry = tuple[str, int, int, int, int]

ROOT = __file__.rpartition("/plugins/")[0]  # of the package
PATH = f"{ROOT}/__pycache__/plugins.{sys.implementation.cache_tag}.bundle"

_FOLDERS = ("spec", "plan", "kernel", "state", "sdk", "plugins")
_PACKAGE = "__init__.py"
_FIRST = 64 * 1024  # bytes, of which the first are MAGIC_NUMBER and the size of the index


class Bundle:
    """Finds and loads modules (PEP 451) by an index of them and the file that it is of."""

    def __init__(self, descriptor: int, index: "dict[str, Entry]", start: int) -> None:
        self._descriptor = descriptor
        self._index = index
        self._start = start

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> ModuleSpec | None:
        """How to load a module; None to have it looked for elsewhere."""
        entry = self._index.get(name)
        if entry is None:
            return None
        file, size, time, offset, length = entry
        origin = f"{ROOT}/{file}"
        try:
            source = posix.stat(origin)
        except OSError:
            return None
        if (source.st_size, source.st_mtime_ns) != (size, time):
            return None
        spec = ModuleSpec(name, self, origin=origin, loader_state=(offset, length))  # type: ignore[arg-type]
        spec.has_location = True
        if file.endswith(_PACKAGE):
            spec.submodule_search_locations = [origin.removesuffix(f"/{_PACKAGE}")]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave that to Python."""

    def exec_module(self, module: "ModuleType") -> None:
        assert module.__spec__ is not None
        offset, length = module.__spec__.loader_state
        code = marshal.loads(posix.pread(self._descriptor, length, self._start + offset))  # noqa: S302
        exec(code, module.__dict__)  # noqa: S102 - both are what importing is


def use() -> None:
    """Have modules loaded from the bundle, if there is one for this Python."""
    try:
        descriptor = posix.open(PATH, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return
    head = posix.pread(descriptor, _FIRST, 0)
    start = 8 + int.from_bytes(head[4:8], "little")
    if head[:4] != MAGIC_NUMBER or len(head) < start:
        posix.close(descriptor)
        return
    index = marshal.loads(head[8:start])  # noqa: S302
    sys.meta_path.insert(0, Bundle(descriptor, index, start))


def write() -> None:
    """Write the bundle anew, in the place of the one before. Raises OSError."""
    from pycni.state.files import make_directories, write_file  # plugins only read it

    index: dict[str, Entry] = {}
    codes: list[bytes] = []
    offset = 0
    for file in _sources():
        origin = f"{ROOT}/{file}"
        with open(origin, "rb") as source:
            code = _compiled(source.read(), origin)
            found = posix.fstat(source.fileno())
        index[_name(file)] = (file, found.st_size, found.st_mtime_ns, offset, len(code))
        codes.append(code)
        offset += len(code)
    encoded = marshal.dumps(index)
    head = MAGIC_NUMBER + len(encoded).to_bytes(4, "little") + encoded
    make_directories(f"{ROOT}/__pycache__")
    write_file(PATH, head + b"".join(codes), 0o644, sync=False)


def _compiled(source: bytes, origin: str) -> bytes:
    """A module's bytecode. It does not import `__future__`, which only the compiler looks at."""
    import __future__

    import ast

    tree = ast.parse(source, origin)
    features = [
        node
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    for node in features:
        tree.body.remove(node)
    flags = __future__.annotations.compiler_flag if features else 0
    return marshal.dumps(compile(tree, origin, "exec", flags, dont_inherit=True))


def _sources() -> list[str]:
    """The modules of the plugin path as files below the package's folder."""
    import os

    found = []
    for folder in _FOLDERS:
        for parent, _, names in os.walk(os.path.join(ROOT, folder)):
            below = os.path.relpath(parent, ROOT)
            found += [os.path.join(below, name) for name in names if name.endswith(".py")]
    return sorted(found)


def _name(file: str) -> str:
    module = file.removesuffix(f"/{_PACKAGE}").removesuffix(".py")
    return f"pycni.{module.replace('/', '.')}"
