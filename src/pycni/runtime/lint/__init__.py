"""Finding all that is wrong with network configurations, without the host that they are for.

`lint` looks at each file (`single_file`), at each plugin in it (`plugin`), and at what keys
(`between_keys`) and files (`between_files`) come to together.
"""

from __future__ import annotations

import os

from pycni.runtime import find
from pycni.runtime.config import files
from pycni.runtime.errors import NetworkNotFound
from pycni.runtime.lint.between_files import faults_between_files
from pycni.runtime.lint.plugin import OTHERS, capabilities
from pycni.runtime.lint.single_file import lint_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pycni.runtime.errors import FaultInFile

    Path = str | os.PathLike[str]

__all__ = ["capabilities", "config_files", "configured_files", "lint", "lint_file"]

_PLUGIN_DIRECTORY = "/opt/cni/bin"  # where nearly all runtimes look for plugins


def lint(paths: Iterable[Path], *, plugin_dirs: Path | Sequence[Path] = ()) -> list[FaultInFile]:
    """All faults of network configurations: of each file, then between those of one directory.

    paths: files, or directories of them. plugin_dirs: a plugin is known if it is pycni's, a
    well-known one of others, or there; without any /opt/cni/bin is looked at, if it is there.
    Raises OSError for a directory that cannot be read; a file that cannot has that as its fault.
    """
    where = find.directories(plugin_dirs)
    if not where and os.path.isdir(_PLUGIN_DIRECTORY):
        where = [_PLUGIN_DIRECTORY]
    others = OTHERS | find.executables(where).keys()
    found = config_files(paths)
    faults = [fault for file in found for fault in lint_file(file, others)]
    return faults + faults_between_files(found)


def config_files(paths: Iterable[Path]) -> list[str]:
    """Files as they are given, and of directories the files that runtimes would read.

    Raises OSError for a directory that cannot be read.
    """
    found: list[str] = []
    for path in paths:
        one = os.fspath(path)
        found += files(one, find.EXTENSIONS) if os.path.isdir(one) else [one]
    return found


def configured_files(conf_dir: Path | Sequence[Path] = find.DEFAULT_DIRECTORY) -> list[str]:
    """The files in the directories of configurations. Raises NetworkNotFound if there is none."""
    where = find.directories(conf_dir)
    found = config_files(filter(os.path.isdir, where))
    if not found:
        raise NetworkNotFound.nothing_in(where)
    return found
