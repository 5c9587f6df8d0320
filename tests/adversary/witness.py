"""What Python code touches while it is watched: paths, programs, sockets, libraries.

Audit events report what is opened, changed and run, wherever in the standard library. They do not
report what is only looked at (stat, access, readlink), nor where a relative path of `posix.open`
begins, so these functions of module posix are wrapped meanwhile. What libraries and programs do by
themselves the `canary` shows.
"""

from __future__ import annotations

import ctypes
import os
import posix
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Self

PROGRAM, CONNECTION, LIBRARY, LOOK = "program", "connection", "library", "look"

_PATHS = {  # events by the positions of their paths, and of the directory that each is relative to
    "os.listdir": ((0, None),),
    "os.scandir": ((0, None),),
    "os.chdir": ((0, None),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "os.truncate": ((0, None),),
    "os.setxattr": ((0, None),),
    "os.removexattr": ((0, None),),
}
_PROGRAMS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn")
_CONNECTIONS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
                "socket.gethostbyname")  # fmt: skip
_WRAPPED = ("open", "stat", "lstat", "access", "readlink", "mkfifo", "mknod", "statvfs")
_FDS = "/proc/self/fd"

_KERNELS = {0x9FA0: "/proc", 0x62656572: "/sys"}

_readlink = posix.readlink
_current: Witness | None = None
_is_hooked = False


class Touch(NamedTuple):
    """what: the audit event or function; path: absolute where that is known, or what was run."""

    what: str
    path: str
    kind: str = ""


class Witness:
    """Keeps what is touched inside the `with` block, by whatever thread."""

    def __init__(self) -> None:
        self.touches: set[Touch] = set()
        self._genuine: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> Self:
        global _current, _is_hooked  # noqa: PLW0603 - a hook is for good
        if not _is_hooked:
            sys.addaudithook(_hook)
            _is_hooked = True
        for name in _WRAPPED:
            genuine = self._genuine[name] = getattr(posix, name)
            setattr(posix, name, self._wrapped(name, genuine))
        _current = self
        return self

    def __exit__(self, *_: object) -> None:
        global _current  # noqa: PLW0603
        _current = None
        for name, genuine in self._genuine.items():
            setattr(posix, name, genuine)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit event."""
        if event == "open":
            path = arguments[0]
            # `posix.open` is wrapped; a relative path is reported there.
            if isinstance(path, str | bytes) and os.fsdecode(path).startswith("/"):
                self._add(event, path, None)
        elif event in _PATHS:
            for position, relative_to in _PATHS[event]:
                start = None if relative_to is None else arguments[relative_to]
                self._add(event, arguments[position], start)
        elif event in _PROGRAMS:
            self.touches.add(Touch(event, _words(arguments), PROGRAM))
        elif event in _CONNECTIONS:
            self.touches.add(Touch(event, repr(arguments[1:] or arguments), CONNECTION))
        elif event == "ctypes.dlopen" and arguments[0] is not None:
            self.touches.add(Touch(event, str(arguments[0]), LIBRARY))

    def _wrapped(self, name: str, genuine: Callable[..., Any]) -> Callable[..., Any]:
        kind = "" if name in ("open", "mkfifo", "mknod") else LOOK

        def wrapper(path: Any, *arguments: Any, **keywords: Any) -> Any:
            start = keywords.get("dir_fd")
            if start != -1:  # none, which the kernel refuses
                self._add(name, path, start, kind)
            return genuine(path, *arguments, **keywords)

        return wrapper

    def _add(self, what: str, path: Any, start: int | None, kind: str = "") -> None:
        if isinstance(path, int) or not path:
            return  # a descriptor, which was reported when it was opened; or what leads nowhere
        text = os.fsdecode(path)
        if not text.startswith("/"):
            text = f"{os.getcwd() if start is None or start < 0 else _folder(start)}/{text}"
        if text.startswith(f"{_FDS}/"):
            return
        self.touches.add(Touch(what, text, kind))


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _current is not None:
        _current.note(event, arguments)


def _folder(descriptor: int) -> str:
    """The path of a directory that is open."""
    path = _readlink(f"{_FDS}/{descriptor}")
    kernels = _KERNELS.get(_file_system(descriptor), "")
    # One that is mounted nowhere has paths of its own.
    return path if path.startswith(kernels) else f"{kernels}{path}".rstrip("/")


def _file_system(descriptor: int) -> int:
    """The magic number of the file system that a descriptor is of (statfs(2), linux/magic.h)."""
    answer = (ctypes.c_long * 32)()
    return answer[0] if ctypes.CDLL(None).fstatfs(descriptor, answer) == 0 else 0


def _words(arguments: tuple[Any, ...]) -> str:
    words = arguments[1] if len(arguments) > 1 else ()
    return " ".join(map(str, words)) if isinstance(words, list | tuple) else str(arguments[0])
