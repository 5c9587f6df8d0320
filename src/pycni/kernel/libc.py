"""System calls the standard library lacks: mounts, prctl, before 3.12 setns and unshare.

`_ctypes` is the C module below `ctypes`; `ctypes` itself would add 3 ms to every start of a
plugin. Used by `namespace`, `sysctl`, `nftables` and the conformance kit.
"""

from __future__ import annotations

import _ctypes
import posix

# linux/mount.h
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SHARED = 1 << 20
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 1
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432  # asm-generic/unistd.h

CLONE_FILES = 0x400  # linux/sched.h
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Word(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "L"


class _Byte(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "B"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


_LIBC = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
_SETNS = _Function(_ctypes.dlsym(_LIBC, "setns"))  # asked for many times in an attachment


def setns(fd: int, nstype: int) -> None:
    """setns(2), as `os.setns` from Python 3.12 on."""
    _judge(_SETNS(fd, nstype))


def unshare(flags: int) -> None:
    """unshare(2), as `os.unshare` from Python 3.12 on."""
    _call("unshare", flags)


def mount(source: str, target: str, kind: str, flags: int) -> None:
    """mount(2), without data."""
    _call("mount", _path(source), _path(target), kind.encode(), flags, None)


def unmount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2)."""
    _call("umount2", _path(target), flags)


def detached_mount(kind: str, attributes: int) -> int:
    """A new file system, mounted nowhere: the descriptor of its root (fsmount(2), Linux 5.2).

    attributes: MOUNT_ATTR_... of linux/mount.h.
    """
    context = _call("syscall", _SYS_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)
    try:
        _call("syscall", _SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _call("syscall", _SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
    finally:
        posix.close(context)


def getsockopt(fd: int, level: int, option: int, question: bytes, length: int) -> bytes:
    """getsockopt(2) of an option that is asked with a value. length: of the answer, in bytes."""
    kind = type("_Buffer", (_ctypes.Array,), {"_type_": _Byte, "_length_": length})
    answer, size = kind(*question), _Word(length)
    address = _ctypes.addressof
    _call("getsockopt", fd, level, option, address(answer), address(size))
    return bytes(answer)


def become_subreaper() -> None:
    """Have the orphans among this process's descendants become its children, for good."""
    _call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _call(name: str, *arguments: bytes | int | None) -> int:
    """Call a C function and return what it does, which is -1 for an errno. Raises OSError."""
    function = _Function(_ctypes.dlsym(_LIBC, name))
    # A register holds an int as it holds an unsigned long.
    words = (_Word(item) if isinstance(item, int) else item for item in arguments)
    return _judge(function(*words))


def _path(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _judge(answer: int) -> int:
    if answer == -1:
        error = _ctypes.get_errno()
        raise OSError(error, posix.strerror(error))
    return answer
