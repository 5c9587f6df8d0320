"""Kernel parameters below /proc/sys, in a network namespace.

A key is written with dots (`net.ipv4.ip_forward`) or slashes (`net/ipv4/ip_forward`). The first
of the two in it separates its parts, and the other one stands for a dot inside a part, so both
`net/ipv4/conf/eth0.5/forwarding` and `net.ipv4.conf.eth0/5.forwarding` name the link eth0.5.
Used by the executor of plans and by plugins.

The kernel looks for a name in /proc/sys/net, such as `ipv4`, among those of all network namespaces
in which it has been looked for there, one by one. Hence such directories are kept open for a
namespace that is used again; for others, a process that lives long mounts a procfs of its own,
through which only few names have been looked up.
"""

from __future__ import annotations

import errno
import posix
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.namespace import Namespace

_PROC = "/proc"
_ROOT = f"{_PROC}/sys"
_NET = f"{_ROOT}/net/"
NO_PARTS = frozenset(("", ".", ".."))
# Most values are short, and for each read the kernel clears a buffer of the size asked for.
_USUAL = 4096
_LIMIT = 64 * 1024
_PAUSES = (*[0.0] * 10, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)  # seconds before each try
_MOST_KEPT = 16  # directories
_MOST_SEEN = 64  # values, through one procfs
_SEEN_AT_FIRST = 8  # through /proc: a plugin's process is done before a procfs of its own pays


class SysctlRejected(OSError):
    """The kernel took a number and went on to hold the one before."""


def with_slashes(key: str) -> str:
    """A key with slashes between its parts, as they are below /proc/sys."""
    dot, slash = key.find("."), key.find("/")
    return swapped(key) if dot >= 0 and (slash < 0 or dot < slash) else key


def swapped(key: str) -> str:
    """A key with slashes for its dots and the other way round: in the other of its two forms."""
    return key.translate({ord("."): "/", ord("/"): "."})


def path(key: str) -> str:
    """The file of a key. Raises ValueError for what is not a key, or leads out of /proc/sys."""
    key = with_slashes(key)
    if not NO_PARTS.isdisjoint(key.split("/")) or "\0" in key:
        raise ValueError(f"not a sysctl key: {key!r}")
    return f"{_ROOT}/{key}"


def read(key: str, here: Namespace | None = None) -> str:
    """The value in the thread's namespace, without its final newline.

    here: that namespace, if it is one that is worked in again. Raises FileNotFoundError if
    there is no such key, ValueError, another OSError.
    """
    fd = _open(path(key), posix.O_RDONLY, here)
    try:
        return _read(fd)
    finally:
        posix.close(fd)


def write(key: str, value: str, here: Namespace | None = None) -> str:
    """Set a value unless it is set already; return the one before, "" if it cannot be read.

    Values are compared word by word: the kernel separates them by tabs. It may show what it took in
    another form, such as 8080-8082 for 8080,8081,8082. here: as above. Raises FileNotFoundError,
    SysctlRejected, ValueError, another OSError; then the value is what it was.
    """
    name = path(key)
    try:
        fd = _open_to_write(name, here)
    except OSError:
        # A process that may not write need not, where the value is the one wanted.
        before = read(key, here)
        if before.split() == value.split():
            return before
        raise
    # Nothing written is nothing done; a line is an empty value.
    data, before = value.encode() or b"\n", ""
    try:
        before = _value(fd, unreadable="")
        if before.split() == value.split():
            return before
        # Where several set ip_forward at once, one that has to wait for the kernel's lock puts the
        # old value back first, over that of another as well (devinet_sysctl_forward).
        for pause in _PAUSES:
            time.sleep(pause)
            posix.pwrite(fd, data, 0)
            after = _value(fd, unreadable=value)
            if after != before or after.split() == value.split():
                return before
    except OSError as error:
        _restore(fd, before)  # of several words, the kernel keeps those before the bad one
        raise OSError(error.errno, error.strerror, name) from None
    finally:
        posix.close(fd)
    if _is_other(value, after):
        raise SysctlRejected(errno.EINVAL, f"set to {value!r}, but holds {after!r}", name)
    return before


def _open_to_write(name: str, here: Namespace | None) -> int:
    try:
        return _open(name, posix.O_RDWR, here)
    except OSError as error:
        if error.errno != errno.EACCES:
            raise
        return _open(name, posix.O_WRONLY, here)  # such as route/flush


def _restore(fd: int, before: str) -> None:
    try:
        if before and _value(fd, unreadable=before) != before:
            posix.pwrite(fd, before.encode(), 0)
    except OSError:
        pass


def _is_other(wanted: str, held: str) -> bool:
    """Whether numbers that were wanted are not those that the kernel holds."""
    try:
        numbers = [int(word, 0) for word in wanted.split()]
        return numbers != [int(word, 0) for word in held.split()][: len(numbers)]
    except ValueError:
        return False


def _value(fd: int, unreadable: str) -> str:
    """The value behind a descriptor.

    Some cannot be read before they are set (EIO, stable_secret), others never (EBADF).
    """
    try:
        return _read(fd)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EBADF):
            raise
        return unreadable


def _read(fd: int) -> str:
    data = posix.pread(fd, _USUAL, 0)
    if len(data) == _USUAL:
        data = posix.pread(fd, _LIMIT, 0)
    return data.decode("utf-8", "replace").removesuffix("\n")


def _open(name: str, how: int, here: Namespace | None) -> int:
    try:
        if name.startswith(_NET):
            if here is None:
                return _open_in_passing(name, how)
            family, _, rest = name.removeprefix(_NET).partition("/")
            if rest:
                return _open_again(family, rest, how, here)
        return _open_genuine(name, how, _device())
    except OSError as error:
        error.filename = name
        raise


def _open_again(family: str, rest: str, how: int, here: Namespace) -> int:
    """Open a file below /proc/sys/net/`family` in a namespace that is worked in again."""
    key = here.device, here.inode, family
    directory = _kept.get(key)
    if directory is not None:
        try:
            return directory.open(rest, how)
        except FileNotFoundError:
            pass  # or it was that of another namespace, which has gone and left its number
    directory = _Directory.at(f"{_NET}{family}")
    if len(_kept) >= _MOST_KEPT:
        _kept.clear()
    _kept[key] = directory
    return directory.open(rest, how)


def _open_in_passing(name: str, how: int) -> int:
    """Open a file below /proc/sys/net in a namespace that is hardly worked in again."""
    global _procfs, _left  # noqa: PLW0603 - one for all threads
    procfs = _procfs
    if procfs is None:
        _procfs = procfs = _Directory.at(_PROC)
    elif _left <= 0:
        _procfs = procfs = _private_procfs()
        _left = _MOST_SEEN
    _left -= 1
    return procfs.open(name.removeprefix(f"{_PROC}/"), how)


def _private_procfs() -> _Directory:
    """A procfs that is mounted nowhere; /proc where that is forbidden."""
    from pycni.kernel import libc

    read_only = posix.statvfs(_ROOT).f_flag & posix.ST_RDONLY
    try:
        fd = libc.detached_mount("proc", libc.MOUNT_ATTR_RDONLY if read_only else 0)
    except OSError:
        return _Directory.at(_PROC)
    return _Directory(fd, posix.fstat(fd).st_dev)


def _open_genuine(name: str, how: int, device: int, dir_fd: int | None = None) -> int:
    """Open what is the kernel's own, on the device of /proc, and not what was mounted over it."""
    fd = posix.open(name, how | posix.O_CLOEXEC | posix.O_NOFOLLOW, dir_fd=dir_fd)
    if posix.fstat(fd).st_dev != device:
        posix.close(fd)
        raise FileNotFoundError(errno.ENOENT, posix.strerror(errno.ENOENT), name)
    return fd


class _Directory:
    """A directory of a procfs, open until it is not needed any more."""

    __slots__ = ("_device", "_fd")

    def __init__(self, fd: int, device: int) -> None:
        self._fd = fd
        self._device = device

    @classmethod
    def at(cls, path: str) -> _Directory:
        device = _device()
        return cls(_open_genuine(path, posix.O_PATH | posix.O_DIRECTORY, device), device)

    def open(self, name: str, how: int) -> int:
        return _open_genuine(name, how, self._device, self._fd)

    def __del__(self) -> None:
        posix.close(self._fd)


_kept: dict[tuple[int, int, str], _Directory] = {}  # by the namespace's device and inode
_procfs: _Directory | None = None
_left = _SEEN_AT_FIRST  # values to be seen through it


def _device() -> int:
    """The device number of /proc."""
    return posix.stat(f"{_PROC}/self").st_dev
