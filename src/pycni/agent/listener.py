"""The agent's socket: made for one user, and removed again by the agent that made it.

Two agents may be there for a while, one that finishes its calls and one that takes new ones. So a
name is removed only while it still leads to the remover's own socket, and looking and doing are
under one lock.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from pycni.spec.errors import IO_FAILURE, CNIError
from pycni.state.files import Lock

_BACKLOG = 512
_LOCK_SECONDS = 5.0  # for another agent that starts or stops


class Listener:
    """A listening socket that never waits. path: its name, if that is this process's to remove."""

    def __init__(self, listening: socket.socket, path: Path | None = None) -> None:
        listening.setblocking(False)
        self._socket = listening
        self._path = path
        self._inode = None if path is None else _inode(path)

    def fileno(self) -> int:
        """Its descriptor, which can be read when a client connects."""
        return self._socket.fileno()

    @property
    def name(self) -> Path:
        """The path that it is bound to."""
        return Path(self._socket.getsockname())

    def accept(self) -> socket.socket:
        """A connection. Raises OSError."""
        return self._socket.accept()[0]

    def close(self) -> None:
        """Take no more connections: new ones are refused at once. Closing twice is fine."""
        self._socket.close()
        path, self._path = self._path, None
        if path is None:
            return
        try:
            with _lock(path):
                if _inode(path) == self._inode:
                    path.unlink()
        except (OSError, CNIError):
            pass  # a name without a listener; the next agent replaces it


def listen(path: Path) -> Listener:
    """A listening socket that only this user can reach, in a directory that is only theirs.

    A socket left by an agent that was killed is replaced; one that answers is not. Raises CNIError.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(path.parent)
        with _lock(path):
            if _answers(path):
                raise CNIError(IO_FAILURE, f"an agent listens on {path} already")
            path.unlink(missing_ok=True)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listening.bind(str(path))
            path.chmod(0o600)
            listening.listen(_BACKLOG)
            return Listener(listening, path)
    except OSError as error:
        raise CNIError(IO_FAILURE, f"cannot listen on {path}: {error.strerror or error}") from error


def _lock(path: Path) -> Lock:
    return Lock(str(path.with_suffix(".lock")), mode=0o600, timeout=_LOCK_SECONDS)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _answers(path: Path) -> bool:
    """Whether a process listens, even one that takes no more connections for now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)


def _require_private(directory: Path) -> None:
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise CNIError(
            IO_FAILURE,
            f"{directory} is not a directory that only this user can enter",
            f"chown it to uid {os.geteuid()} and chmod it to 0700",
        )
