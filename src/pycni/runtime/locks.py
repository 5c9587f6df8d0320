"""Who may work at the same time: one operation per attachment, and GC of a network alone.

The specification asks both of runtimes. Within this process operations on one container wait for
each other in memory; between processes those on one attachment do, by a lock on a part of one file
below the cache's directory: a byte for each attachment, a stretch for each network.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
from contextvars import ContextVar

from pycni.spec.errors import IO_FAILURE, TRY_AGAIN_LATER, CNIError
from pycni.spec.owner import Owner, network_tag
from pycni.state.files import below, make_directories

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token

    from pycni.runtime.options import Cancellation

FILE = "pycni.lock"
TIMEOUT = 120.0  # seconds; runtimes give a whole ADD two to four minutes
PRECEDENCE = 10.0  # seconds in which nothing begins while a GC waits for what has begun
_LONGEST_PAUSE = 0.02  # seconds between two tries
_STRETCH = 1 << 32  # bytes that stand for one network
_EVERYTHING = ""  # no container has this id
_held: ContextVar[frozenset[str]] = ContextVar("turns", default=frozenset())
_locked: ContextVar[frozenset[tuple[str, Owner]]] = ContextVar("locked", default=frozenset())
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid


class AttachmentLocks:
    """AttachmentLocks among the threads of this process: one operation per container, and GC alone.

    An operation that a plugin begins, within another one, has the turns that this one has. One that
    hangs holds up those that need its turn, for TIMEOUT at most, and no others.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy: dict[str, float] = {}  # by container: since when
        self._collecting: float | None = None  # since when
        self._waiting = 0  # to collect
        self._closed_until = 0.0  # at the latest, while somebody waits to collect
        os.register_at_fork(after_in_child=self._forget)

    def container(self, container_id: str, cancel: Cancellation | None = None) -> HeldLock:
        """A context manager: no other operation on this container, and no GC, meanwhile."""
        return HeldLock(self, container_id, cancel)

    def exclusive(self, cancel: Cancellation | None = None) -> HeldLock:
        """A context manager: no operation at all meanwhile."""
        return HeldLock(self, _EVERYTHING, cancel)

    def acquire(self, what: str, cancel: Cancellation | None) -> None:
        """Wait for a turn. Raises Canceled, and CNIError (code 11) when the time is over."""
        if cancel is not None:
            cancel.listen(self._wake)
        try:
            with self._changed:
                if what != _EVERYTHING:
                    self._wait(what, cancel, lambda: not (self._is_closed or what in self._busy))
                    self._busy[what] = time.monotonic()
                    return
                # Who waits to collect goes before those who would attach; not for ever.
                self._closed_until = time.monotonic() + PRECEDENCE
                self._waiting += 1
                try:
                    self._wait(what, cancel, lambda: not self._busy and self._collecting is None)
                    self._collecting = time.monotonic()
                finally:
                    self._waiting -= 1
                    self._changed.notify_all()
        finally:
            if cancel is not None:
                cancel.unlisten(self._wake)

    def release(self, what: str) -> None:
        """Let others have a turn."""
        with self._changed:
            if what == _EVERYTHING:
                self._collecting = None
            else:
                self._busy.pop(what, None)
            self._changed.notify_all()

    @property
    def _is_closed(self) -> bool:
        is_next = self._waiting > 0 and time.monotonic() < self._closed_until
        return self._collecting is not None or is_next

    def _wait(self, what: str, cancel: Cancellation | None, is_free: Callable[[], bool]) -> None:
        while not is_free():
            if cancel is not None:
                cancel.check()
            now = time.monotonic()
            who, since = self._in_the_way(what, now)
            if now >= since + TIMEOUT:
                raise CNIError(
                    TRY_AGAIN_LATER,
                    f"another operation of this process is at work on {who} for {TIMEOUT:g} s now",
                    "a plugin hangs in it; `timeout` ends an operation that takes longer",
                )
            times = (since + TIMEOUT, self._closed_until)
            self._changed.wait(min(one - now for one in times if one > now))

    def _in_the_way(self, what: str, now: float) -> tuple[str, float]:
        """Whom an operation waits for, and since when that one has been at work."""
        if self._collecting is not None:
            return "all containers", self._collecting
        if what == _EVERYTHING:
            return min(self._busy.items(), key=lambda one: one[1])
        return what, self._busy.get(what, now)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _forget(self) -> None:
        """In a forked child, which has none of the threads that have turns."""
        self._changed = threading.Condition()
        self._busy.clear()
        self._collecting = None
        self._waiting = 0
        _held.set(frozenset())


# Of this process: operations of all its networks on one container wait for each other.
ATTACHMENT_LOCKS = AttachmentLocks()


class HeldLock:
    """A turn that is held during a `with` block. what: the container, or all of them."""

    def __init__(self, locks: AttachmentLocks, what: str, cancel: Cancellation | None) -> None:
        self._locks = locks
        self._what = what
        self._cancel = cancel
        self._before: Token[frozenset[str]] | None = None

    def __enter__(self) -> None:
        held = _held.get()
        if self._what in held or _EVERYTHING in held:
            return
        if self._what == _EVERYTHING and held:
            raise CNIError(
                TRY_AGAIN_LATER,
                f"GC within an operation on {', '.join(sorted(held))}, which it would wait for",
                "collect before or after it",
            )
        self._locks.acquire(self._what, self._cancel)
        self._before = _held.set(held | {self._what})

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            _held.reset(self._before)
            self._locks.release(self._what)


class ProcessLock:
    """A lock against other processes during a `with` block; also against threads of this one.

    root: the cache's directory; owner: the attachment's, with neither container nor interface for
    all of its network. What is begun within the block, as by `on_call`, has it too. Where the file
    cannot be had, no other process can note anything there either, and the block goes on without.
    Raises CNIError: code 11 when the time is over, code 5 on a file system without locks; Canceled.
    """

    def __init__(self, root: str, owner: Owner, cancel: Cancellation | None = None) -> None:
        self._root = root
        self._owner = owner
        self._cancel = cancel
        self._descriptor = -1
        self._before: Token[frozenset[tuple[str, Owner]]] | None = None

    def __enter__(self) -> None:
        held = _locked.get()
        network = Owner(self._owner.network, "", "")
        if not held.isdisjoint(((self._root, self._owner), (self._root, network))):
            return
        try:
            self._descriptor = self._open()
        except OSError:
            return
        try:
            self._acquire(self._span())
        except BaseException:
            os.close(self._descriptor)
            self._descriptor = -1
            raise
        self._before = _locked.set(held | {(self._root, self._owner)})

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            _locked.reset(self._before)
        if self._descriptor >= 0:
            # By itself it ends with the last descriptor, and a child that was forked may have one.
            unlocked = self._span(fcntl.F_UNLCK)
            try:
                fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, unlocked)
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def _open(self) -> int:
        path = below(self._root, FILE)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            make_directories(self._root, 0o700)
            return os.open(path, flags, 0o600)

    def _span(self, kind: int = fcntl.F_WRLCK) -> bytes:
        """The part of the file that stands for what is locked; kind: of lock."""
        start = int(network_tag(self._owner.network)[:7], 16) * _STRETCH
        length = _STRETCH
        if self._owner.container_id:
            start += int(self._owner.tag[17:25], 16)
            length = 1
        return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)

    def _acquire(self, span: bytes) -> None:
        give_up = time.monotonic() + TIMEOUT
        pause = 0.0005
        while True:
            try:
                fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, span)
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):  # POSIX allows either
                    raise self._failure(error) from None
                if time.monotonic() >= give_up:
                    raise self._busy() from None
            if self._cancel is not None:
                self._cancel.check()
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _failure(self, error: OSError) -> CNIError:
        return CNIError(
            IO_FAILURE,
            f"cannot lock {below(self._root, FILE)}: {error.strerror}",
            "the runtime's cache must be on a file system that has locks",
        )

    def _busy(self) -> CNIError:
        owner = self._owner
        what = f"network {owner.network}"
        if owner.container_id:
            what = f"the attachment of {owner.container_id} to {owner.network} by {owner.ifname}"
        return CNIError(
            TRY_AGAIN_LATER,
            f"another process has been at work on {what} for {TIMEOUT:g} s",
            f"it holds a lock on {below(self._root, FILE)}; if it hangs, end it, and try again",
        )
