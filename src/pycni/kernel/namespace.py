"""Network namespaces: open, compare, enter for a moment, make and delete.

A namespace is entered by one thread only, and never for longer than a `with` block. Most work
needs no more than a netlink socket opened inside and used from outside: `Namespace.netlink`.
Used by plugins, the runtime, and Python programs that run containers.
"""

from __future__ import annotations

import errno
import posix
import sys
import time
from fcntl import F_DUPFD_CLOEXEC, LOCK_EX, LOCK_NB, fcntl, flock, ioctl

from pycni.kernel.netlink.codec import U32, NetlinkRequest, Schema
from pycni.kernel.netlink.constants import NETLINK_ROUTE
from pycni.kernel.netlink.socket import NetlinkSocket

if sys.version_info >= (3, 12):
    from posix import setns, unshare
else:
    from pycni.kernel.libc import setns, unshare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

NAMED = "/run/netns"  # where `ip netns` keeps them
OWN = "/proc/thread-self/ns/net"

CLONE_NEWNET = 0x40000000  # linux/sched.h
CLONE_FS = 0x200
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_RTM_NEWNSID = 88  # linux/rtnetlink.h
_RTM_GETNSID = 90
_NSID_HEADER = bytes(4)  # struct rtgenmsg, padded
_NO_NSID = 0xFFFFFFFF  # NETNSA_NSID_NOT_ASSIGNED
_NSID = Schema(id=(1, U32), fd=(3, U32), target=(4, U32))  # linux/net_namespace.h, NETNSA_...
_PAUSES = (0.0, 0.001, 0.01, 0.1, 0.5)  # seconds before one try and the next
# Of paths that cannot lead to anything.
_NOTHING_THERE = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_EX_OSERR = 71  # sysexits.h


class NamespaceNotFound(FileNotFoundError):
    """There is nothing at the path of a network namespace."""


class NotANamespace(OSError):
    """What is at the path is not a network namespace."""


class Namespace:
    """An open network namespace, which lives at least as long. Close it, or use `with`.

    fd: its descriptor; path: where it was opened, "" if by descriptor.
    """

    __slots__ = ("_identity", "fd", "path")

    def __init__(self, fd: int, path: str = "") -> None:
        """Take over a descriptor. If it is not a namespace's: close it, raise NotANamespace."""
        self.fd = fd
        self.path = path
        try:
            kind = ioctl(fd, _NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != CLONE_NEWNET:
            posix.close(fd)
            raise NotANamespace(errno.EINVAL, "not a network namespace", path or f"fd {fd}")
        status = posix.fstat(fd)
        self._identity = (status.st_dev, status.st_ino)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Namespace {self.path or self.inode}>"

    def close(self) -> None:
        """Close the descriptor; closing twice is fine."""
        if self.fd >= 0:
            posix.close(self.fd)
            self.fd = -1

    @property
    def device(self) -> int:
        """With `inode`, what identifies a namespace."""
        return self._identity[0]

    @property
    def inode(self) -> int:
        """The number in `net:[4026531840]`."""
        return self._identity[1]

    @property
    def cookie(self) -> int:
        """The kernel's own number of the namespace, never reused; 0 before Linux 5.14."""
        with self.netlink() as netlink:
            return netlink.netns_cookie

    def same_as(self, other: Namespace) -> bool:
        """Whether both are the same namespace, whatever path or descriptor they came by."""
        return self._identity == other._identity

    def enter(self, home: Namespace | None = None) -> Entered:
        """A context manager: the calling thread is inside during the block.

        home: the thread's own namespace, where the caller has it open.
        """
        return Entered(self, home)

    def netlink(self, protocol: int = NETLINK_ROUTE) -> NetlinkSocket:
        """Open a netlink socket inside, for use from anywhere."""
        with self.enter():
            return NetlinkSocket(protocol)


class Entered:
    """The calling thread's stay in a namespace; see `Namespace.enter`."""

    _given = True
    _home = -1
    _inside = False

    def __init__(self, target: Namespace, home: Namespace | None) -> None:
        self._target = target
        self._given = home is not None
        if home is not None:
            self._home = home.fd

    def __enter__(self) -> None:
        if self._target.fd < 0:  # posix.setns has a ValueError for it, the C library an OSError
            raise OSError(errno.EBADF, posix.strerror(errno.EBADF))
        if not self._given:
            self._home = posix.open(OWN, posix.O_RDONLY | posix.O_CLOEXEC)
        self._inside = True  # or may be, whatever interrupts this
        try:
            setns(self._target.fd, CLONE_NEWNET)
        except OSError:
            self._inside = False
            self._leave()
            raise

    def __exit__(self, *_: object) -> None:
        self._leave()

    def __del__(self) -> None:
        # What interrupts a thread, such as Ctrl-C, may do so before the block or after it.
        self._leave()

    def _leave(self) -> None:
        if self._inside:
            try:
                setns(self._home, CLONE_NEWNET)
            except OSError:
                _go_home(self._home)
            self._inside = False
        if not self._given and self._home >= 0:
            home, self._home = self._home, -1
            posix.close(home)


def id_seen_from(netlink: NetlinkSocket, other: Namespace) -> int | None:
    """The number by which links of a socket's namespace refer to another one; None without one.

    `Link.link_netnsid` has it for a link whose other end or parent is there.
    """
    return _ask_id(netlink, {"fd": other.fd})


def assign_id(netlink: NetlinkSocket, other: Namespace) -> int | None:
    """Have a socket's namespace refer to another one by a number, as it does once a link leads
    there; returns it."""
    body = _NSID_HEADER + _NSID.encode({"id": _NO_NSID, "fd": other.fd})
    netlink.request(NetlinkRequest(_RTM_NEWNSID, 0, body, "give a namespace an id"))
    return id_seen_from(netlink, other)


def id_translated(netlink: NetlinkSocket, number: int, other: int) -> int | None:
    """The number by which one namespace refers to another one; None without one.

    Both by the numbers that the socket's namespace has for them: that of the one meant, and that
    of the one that refers to it.
    """
    return _ask_id(netlink, {"id": number, "target": other})


def _ask_id(netlink: NetlinkSocket, asked: dict[str, int]) -> int | None:
    body = _NSID_HEADER + _NSID.encode(asked)
    answer = netlink.request(
        NetlinkRequest(_RTM_GETNSID, 0, body, "get namespace id", answered=True)
    )
    number: int | None = _NSID.decode(answer[0].payload[len(_NSID_HEADER) :]).get("id")
    return None if number in (None, _NO_NSID) else number


def open_path(path: str) -> Namespace:
    """Open the namespace at a path: /run/netns/<name>, /proc/<pid>/ns/net.

    Raises NamespaceNotFound, NotANamespace, or another OSError (no permission).
    """
    try:
        # O_NONBLOCK: should it be a FIFO, say.
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    except OSError as error:
        # ESRCH: the process of /proc/<pid>/ns/net has just ended.
        if error.errno in (errno.ENOENT, errno.ESRCH):
            raise NamespaceNotFound(errno.ENOENT, posix.strerror(errno.ENOENT), path) from None
        if error.errno in _NOTHING_THERE:
            raise NamespaceNotFound(error.errno, error.strerror, path) from None
        if error.errno == errno.ENXIO:  # a socket
            raise NotANamespace(errno.EINVAL, "not a network namespace", path) from None
        raise
    except ValueError:  # a NUL
        raise NotANamespace(errno.EINVAL, "not a network namespace", path) from None
    return Namespace(fd, path)


def from_fd(fd: int) -> Namespace:
    """A namespace by a descriptor that stays the caller's. Raises NotANamespace, OSError."""
    return Namespace(fcntl(fd, F_DUPFD_CLOEXEC, 0))


def current() -> Namespace:
    """The calling thread's namespace."""
    return open_path(OWN)


def bring_back(home: Namespace) -> None:
    """Have the calling thread, which other code moved, in its namespace again."""
    try:
        setns(home.fd, CLONE_NEWNET)
    except OSError:
        _go_home(home.fd)


def leave_shared_directory() -> None:
    """Give the calling thread a working directory and umask of its own until it ends."""
    unshare(CLONE_FS)


def create() -> Namespace:
    """A new namespace without a name; the kernel frees it when it is not used any more."""
    return _in_new_namespace(None)


def create_named(name: str) -> Namespace:
    """A new namespace at /run/netns/<name>, as `ip netns add` makes it.

    Raises FileExistsError; ValueError if `name` is not a file name.
    """
    import os  # plugins make no namespaces

    path = _named_path(name)
    os.makedirs(NAMED, 0o755, exist_ok=True)
    _share_mounts(NAMED)
    posix.close(
        posix.open(path, posix.O_RDONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0)
    )
    try:
        return _in_new_namespace(path)
    except BaseException:
        posix.unlink(path)
        raise


def delete_named(name: str) -> None:
    """Remove /run/netns/<name>. Raises NamespaceNotFound."""
    from pycni.kernel import libc

    path = _named_path(name)
    try:
        libc.unmount(path)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise NamespaceNotFound(errno.ENOENT, posix.strerror(errno.ENOENT), path) from None
        if error.errno != errno.EINVAL:  # not mounted: the plain file is still to be removed
            raise
    posix.unlink(path)


def _named_path(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"not a name for a network namespace: {name!r}")
    return f"{NAMED}/{name}"


def _in_new_namespace(path: str | None) -> Namespace:
    """Make a namespace in a thread that then ends, so that no thread has to come back from it."""
    from pycni.kernel.thread import run_apart

    def make() -> Namespace:
        unshare(CLONE_NEWNET)
        if path is not None:
            from pycni.kernel import libc

            libc.mount(OWN, path, "none", libc.MS_BIND)
        return open_path(path or OWN)

    made = run_apart(make)
    made.path = path or ""
    return made


def _share_mounts(directory: str) -> None:
    """Let mounts below a directory reach other mount namespaces, as `ip netns` does."""
    from pycni.kernel import libc

    if _make_shared(directory):  # as all but the first time
        return
    fd = posix.open(directory, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        _lock_for_a_while(fd)
        if not _make_shared(directory):
            libc.mount(directory, directory, "none", libc.MS_BIND | libc.MS_REC)
            _make_shared(directory)
    finally:
        posix.close(fd)


def _make_shared(directory: str) -> bool:
    """Let mounts below a directory reach other mount namespaces; False if it is no mount point."""
    from pycni.kernel import libc

    try:
        libc.mount("", directory, "none", libc.MS_SHARED | libc.MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _lock_for_a_while(fd: int) -> None:
    """Take the lock of `ip netns`, or go on without: any user may open the directory and keep it.

    Two that both mount the directory on itself at once do no harm.
    """
    for pause in _PAUSES:
        time.sleep(pause)
        try:
            flock(fd, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            continue
        return


def _go_home(home: int) -> None:
    """Return from a namespace after a first refusal: memory that was short comes back.

    A thread that cannot leave would serve its next request on the wrong network: the process ends.
    """
    for pause in _PAUSES:
        time.sleep(pause)
        try:
            setns(home, CLONE_NEWNET)
        except OSError as refused:
            error = refused
        else:
            return
    sys.stderr.write(f"pycni: cannot return to the thread's network namespace: {error}; exiting\n")
    sys.stderr.flush()
    posix._exit(_EX_OSERR)
