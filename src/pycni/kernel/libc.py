"""System calls the standard library lacks: setns and unshare before Python 3.12, mount, umount2.

`_ctypes` is the C module below `ctypes`; importing `ctypes` itself would add 3 ms to every start
of a plugin. Used by `namespace`.
"""

from __future__ import annotations

import _ctypes
import os

CLONE_NEWNET = 0x40000000  # linux/sched.h

# linux/mount.h
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SHARED = 1 << 20
MNT_DETACH = 2


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Word(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "L"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


_LIBC = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]


def setns(fd: int) -> None:
    """Move the calling thread into the network namespace behind a descriptor."""
    if hasattr(os, "setns"):
        os.setns(fd, CLONE_NEWNET)
    else:
        _call("setns", fd, CLONE_NEWNET)


def unshare_network() -> None:
    """Move the calling thread into a new network namespace."""
    if hasattr(os, "unshare"):
        os.unshare(CLONE_NEWNET)
    else:
        _call("unshare", CLONE_NEWNET)


def mount(source: str, target: str, kind: str, flags: int) -> None:
    """mount(2), without data."""
    _call("mount", os.fsencode(source), os.fsencode(target), os.fsencode(kind), flags, None)


def unmount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2)."""
    _call("umount2", os.fsencode(target), flags)


def _call(name: str, *arguments: bytes | int | None) -> None:
    """Call a C function that returns 0, or -1 and an errno. Raises OSError."""
    function = _Function(_ctypes.dlsym(_LIBC, name))
    # A register holds an int as it holds an unsigned long.
    words = (_Word(item) if isinstance(item, int) else item for item in arguments)
    if function(*words) == -1:
        error = _ctypes.get_errno()
        raise OSError(error, os.strerror(error))
