"""The bytecode of all modules that plugins import, in one file.

A plugin is a process for each call, which imports some sixty modules. For each, Python looks
through directories, and finds, opens and checks a source and a file of bytecode; of the bundle it
reads a part of one open file. Python's own way from an import statement to a module takes longer
than that, so modules that a module imports at its level are loaded with it, without that way, and
it is given what it takes from them. `pycni install` writes the bundle (`pycni.agent.bundling`)
beside Python's own caches of bytecode (PEP 3147). As with those, a module is taken from it only by
the version of Python that compiled it, and while its source has the size and the time that it had.
Whatever is not in it, or in no bundle at all, is imported as usual.

Used by plugins' executables, before anything else of the package is imported.
"""

import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType

    # A source below the package's folder, its size and time, and where its part of the bundle is.
    Entry = tuple[str, int, int, int, int]
    # The modules of the bundle that a module imports at its level; what it takes from each: names
    # there and here; its bytecode, without these imports.
    Imports = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    Part = tuple[tuple[str, ...], Imports, CodeType]
else:
    ModuleType = type(sys)

ROOT = __file__.rpartition("/")[0]  # of the package
PATH = f"{ROOT}/__pycache__/plugins.{sys.implementation.cache_tag}.bundle"
PACKAGE = "__init__.py"
HEAD = MAGIC_NUMBER + b"\3"  # Python's version, and that of what is below
SIZE = 4  # bytes for the size of the index, which follows
_FIRST = 64 * 1024  # bytes: more than head and index have


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
        if file.endswith(PACKAGE):
            spec.submodule_search_locations = [origin.removesuffix(f"/{PACKAGE}")]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave that to Python."""

    def exec_module(self, module: "ModuleType") -> None:
        spec = module.__spec__
        assert spec is not None
        # Not as the location of the spec: Python would look for a place for its bytecode.
        module.__file__ = spec.origin
        offset, length = spec.loader_state
        part: Part = marshal.loads(  # noqa: S302
            posix.pread(self._descriptor, length, self._start + offset)
        )
        needs, imports, code = part
        for name in needs:
            if name not in sys.modules:
                self.load(name)
        names = module.__dict__
        for origin, taken in imports:
            source = sys.modules[origin]
            for name, here in taken:
                names[here] = getattr(source, name)
        exec(code, names)  # noqa: S102 - both are what importing is

    def load(self, name: str) -> None:
        """Import a module whose package has been imported."""
        spec = self.find_spec(name)
        if spec is None:  # it is not as it was in the bundle
            __import__(name)
            return
        parent, _, last = name.rpartition(".")
        module = sys.modules[name] = ModuleType(name)
        module.__spec__ = spec
        module.__loader__ = self  # type: ignore[assignment]
        module.__package__ = spec.parent
        if spec.submodule_search_locations is not None:
            module.__path__ = spec.submodule_search_locations
        try:
            self.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        setattr(sys.modules[parent], last, module)


def use() -> None:
    """Have modules loaded from the bundle, if there is one for this Python."""
    try:
        descriptor = posix.open(PATH, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return
    head = posix.pread(descriptor, _FIRST, 0)
    first = len(HEAD) + SIZE
    start = first + int.from_bytes(head[len(HEAD) : first], "little")
    if not head.startswith(HEAD) or len(head) < start:
        posix.close(descriptor)
        return
    index = marshal.loads(head[first:start])  # noqa: S302
    sys.meta_path.insert(0, Bundle(descriptor, index, start))


def module(name: str) -> "ModuleType":
    """The module of a name: what `importlib.import_module` returns, sooner where it is bundled."""
    finder = sys.meta_path[0]
    if isinstance(finder, Bundle):
        with _loading:
            if name not in sys.modules:
                parent = name.rpartition(".")[0]
                if parent:
                    module(parent)
                finder.load(name)
    else:
        __import__(name)  # also where it is there: another thread may not be through with it
    return sys.modules[name]


_loading = RLock()  # a module that is being loaded is there already, and not yet whole
