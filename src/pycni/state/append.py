"""Adding to a file that a configuration has named: a plain one, and nothing else is opened.

Loaded by few calls: those of the log and of the debug plugin.
"""

from __future__ import annotations

import errno
import posix
from _stat import S_ISREG

from pycni.state.files import open_or_make_directory

_OPEN = posix.O_WRONLY | posix.O_APPEND | posix.O_NOFOLLOW | posix.O_CLOEXEC | posix.O_NONBLOCK
_MAKE = _OPEN | posix.O_CREAT | posix.O_EXCL


def append_file(path: str, data: bytes, mode: int) -> None:
    """Write once at the end of a plain file, which is made, with its directory, if it is missing.

    What other processes write does not mix with it. Raises OSError, also for a file that has
    another name besides.
    """
    folder, _, name = path.rpartition("/")
    directory = open_or_make_directory(folder or "/", 0o750)
    try:
        descriptor = _open_to_append(name, directory, mode)
    finally:
        posix.close(directory)
    try:
        posix.write(descriptor, data)
    finally:
        posix.close(descriptor)


def _open_to_append(name: str, directory: int, mode: int) -> int:
    try:
        return posix.open(name, _MAKE, mode, dir_fd=directory)
    except FileExistsError:
        pass
    # A device acts when it is opened, so it is looked at before.
    _require_plain(posix.stat(name, dir_fd=directory, follow_symlinks=False))
    descriptor = posix.open(name, _OPEN, dir_fd=directory)
    try:
        _require_plain(posix.fstat(descriptor))
    except OSError:
        posix.close(descriptor)
        raise
    return descriptor


def _require_plain(found: posix.stat_result) -> None:
    if not S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise OSError(errno.EINVAL, "not a plain file with one name")
