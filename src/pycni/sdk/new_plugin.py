"""The beginnings of a plugin of one's own, which works as it is: for `pycni new-plugin`.

A project has a plugin, its test, and what it takes to build and install it. It is a copy of one in
the folder `template` with other names: the plugin is chained and sets the MTU of the container's
interface, or makes an interface of its own, a veth that the host routes to. What stands there are
real projects, which linters and type checkers read with the rest. docs/plugin-tutorial.md says how
to go on.
"""

from __future__ import annotations

import keyword
from pathlib import Path

from pycni import __version__
from pycni.plugins import NAMES
from pycni.spec.names import is_name

TEMPLATE = Path(__file__).with_name("template")
# The kinds of plugins, each with its plugin's name in the template.
KINDS = {"chained": "my-mtu", "interface": "my-wire"}


def new_plugin(name: str, directory: Path | None = None, *, kind: str = "chained") -> list[Path]:
    """Write the project of a plugin into a directory that is not there yet, or empty.

    directory: by default one of the plugin's name; kind: one of KINDS. Returns the files' paths.
    Raises ValueError for a name that cannot be a plugin's, or is one's of pycni; FileExistsError,
    another OSError.
    """
    check_name(name)
    target = Path(name) if directory is None else directory
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is there already, and not empty")
    other = KINDS[kind]
    renamed = {
        other: name,
        module_name(other): module_name(name),
        _class_name(other): _class_name(name),
        "pycni[cli]": f"pycni[cli]>={__version__}",
    }
    written = []
    for file in _files(TEMPLATE / kind):
        path = target / _replaced(str(file), renamed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_replaced((TEMPLATE / kind / file).read_text(), renamed))
        written.append(path)
    return written


def check_name(name: str) -> None:
    """Raise ValueError for a name that cannot be that of a new plugin."""
    module = module_name(name)
    if not is_name(name) or not module.isidentifier() or keyword.iskeyword(module):
        raise ValueError(f"'{name}' is not fit for a plugin's name; expected one like my-nat")
    if name in NAMES:
        raise ValueError(f"pycni has a plugin called {name} already")


def module_name(name: str) -> str:
    """The Python package of a plugin: its name, as Python can say it."""
    return name.lower().replace("-", "_").replace(".", "_")


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in module_name(name).split("_"))


def _files(folder: Path) -> list[Path]:
    """The files of a project, relative to it, but for what Python and tools leave in folders."""
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if not any(part[0] in "._" for part in path.parent.parts)]


def _replaced(text: str, words: dict[str, str]) -> str:
    for word, other in words.items():
        text = text.replace(word, other)
    return text
