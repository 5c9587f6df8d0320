"""Disturb one change of a call: refuse it, lose its answer, or kill the process at it.

A change is whatever a call does that outlives it: a netlink request that is no question, a sysctl,
a transaction of libnftables, a file that is written, linked, renamed, unlinked, synced or locked, a
directory made, a program started, a device made by ioctl, a namespace entered, a message on D-Bus
or to a daemon. They are numbered from 0 in the order in which a call comes to them.

A call is a function that does its work in this process, as `harness.plugin.call_plugin` does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import posix
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

from pycni.kernel import namespace
from pycni.kernel.netfilter import firewalld, nftables
from pycni.kernel.netlink import socket
from pycni.kernel.netlink.codec import NetlinkRequest
from pycni.kernel.netlink.constants import RTM_DELLINK
from pycni.kernel.netlink.errors import EventsLost, NetlinkError
from pycni.plugins.shared import dhcp
from pycni.steps import tap

T = TypeVar("T")

# The errors of issue and practice. ENOBUFS from netlink is another matter than the rest: the
# request may have been carried out, and here it has been. And what gets ENODEV when it deletes a
# link can rely on it that the link has gone.
ERRORS = (errno.EBUSY, errno.ENOSPC, errno.EPERM, errno.EEXIST, errno.ENODEV, errno.ENOBUFS)

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)
_FILES = ("rename", "link", "unlink", "mkdir", "ftruncate", "fsync", "utime", "write", "pwrite")

# By subsystem of netfilter (linux/netfilter/nfnetlink.h), the messages that only ask.
_CONNTRACK, _NFTABLES = 1, 10
_QUESTIONS = {_CONNTRACK: {1, 4, 5}, _NFTABLES: {1, 4, 7, 10, 13, 16, 19, 23}}


@dataclass(frozen=True)
class Change:
    """One change: its sort, and in words what it is about."""

    sort: str
    what: str

    def __str__(self) -> str:
        return f"{self.sort}: {self.what}"


class Watch:
    """Counts the changes of a call in a `with` block, and disturbs the one at `position`.

    number: the errno to refuse it with; kill: end the process in its place. Neither: only count.
    """

    def __init__(self, position: int = -1, number: int = 0, *, kill: bool = False) -> None:
        self._position = position
        self._number = number
        self._kill = kill
        self._answer: Exception | None = None  # in place of the kernel's next one
        self._stack = ExitStack()
        self.seen: list[Change] = []

    @property
    def disturbed(self) -> Change | None:
        """The change that was disturbed; None if the call did not come so far."""
        return self.seen[self._position] if 0 <= self._position < len(self.seen) else None

    def __enter__(self) -> Watch:
        self._patch(socket, "before_send", self._netlink)
        real_read = socket.NetlinkSocket._read

        def read(sock: socket.NetlinkSocket, timeout: float | None) -> Any:
            answer = real_read(sock, timeout)
            if self._answer and sys._getframe(1).f_code.co_name in ("_receive", "_judge"):
                instead, self._answer = self._answer, None
                raise instead
            return answer

        self._patch(socket.NetlinkSocket, "_read", read)
        for name in _FILES:
            self._door(posix, name, "file")
        self._door(posix, "open", "file", _opens_to_write)
        self._door(posix, "posix_spawn", "program", after=True)
        self._door(fcntl, "flock", "lock")
        self._door(tap, "ioctl", "ioctl")
        self._door(namespace, "setns", "namespace", _goes_away)
        self._door(nftables, "run", "nft", error=nftables.NftError)
        self._door(dhcp, "_connect", "daemon")
        self._door(firewalld.Firewalld, "_ask", "D-Bus", _says, error=firewalld.FirewalldError)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _patch(self, where: Any, name: str, value: Any) -> None:
        self._stack.enter_context(mock.patch.object(where, name, value))

    def _door(
        self,
        where: Any,
        name: str,
        sort: str,
        concerns: Callable[..., bool] | None = None,
        error: Callable[[int, str], OSError] | None = None,
        after: bool = False,
    ) -> None:
        real = getattr(where, name)

        def guarded(*arguments: Any, **keywords: Any) -> Any:
            if (sort == "file" and arguments[0] == 2) or (
                concerns is not None and not concerns(*arguments, **keywords)
            ):
                return real(*arguments, **keywords)
            shown = next((item for item in arguments if isinstance(item, str)), "")
            number = self._at(Change(sort, f"{name} {shown}".rstrip()))
            if number:
                if error is not None:
                    raise error(number, f"{os.strerror(number)} (by the test)")
                raise OSError(number, f"{os.strerror(number)} (by the test)", shown or None)
            result = real(*arguments, **keywords)
            if after:  # while the program runs
                self._at(Change(sort, f"{name} {shown} done"), can_fail=False)
            return result

        self._patch(where, name, guarded)

    def _netlink(self, request: NetlinkRequest) -> None:
        if _asks(request):
            return
        number = self._at(Change("netlink", request.what))
        if not number:
            return
        refusal = NetlinkError(number, f"{os.strerror(number)} (by the test)", request.what)
        if number == errno.ENOBUFS:
            self._answer = EventsLost()
        elif number == errno.ENODEV and request.kind == RTM_DELLINK:
            self._answer = refusal
        else:
            raise refusal

    def _at(self, change: Change, *, can_fail: bool = True) -> int:
        """Note a change; the errno it is to be refused with, or 0."""
        self.seen.append(change)
        if len(self.seen) - 1 != self._position:
            return 0
        if self._kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._number if can_fail else 0


def changes(call: Callable[[], T]) -> tuple[T, list[Change]]:
    """What a call returns and changes, undisturbed."""
    with Watch() as watch:
        result = call()
    return result, watch.seen


def refused(call: Callable[[], T], position: int, number: int) -> tuple[T, Watch]:
    """A call with one change refused: what it returns, and what it did."""
    with Watch(position, number) as watch:
        result = call()
    return result, watch


def killed(call: Callable[[], object], position: int) -> bool:
    """A call in a process that is killed right before a change; False if it has fewer.

    Killed before one change it is killed after the one before. A process that comes to its end is
    as one killed after the last one: no one hears of its result.
    """
    child = os.fork()
    if child == 0:
        status = 70
        try:
            with Watch(position, kill=True):
                call()
            status = 0
        except BaseException as error:  # noqa: BLE001 - reported to the parent by the exit code
            sys.stderr.write(f"the killed call: {error!r}\n")
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the call itself failed: {code}"
    return code != 0


def _asks(request: NetlinkRequest) -> bool:
    if request.kind >> 8:  # netfilter
        return request.kind & 0xFF in _QUESTIONS.get(request.kind >> 8, set())
    return request.kind & 3 == 2  # RTM_GET...: linux/rtnetlink.h has them in fours


def _opens_to_write(path: Any, flags: int, *_: Any, **__: Any) -> bool:
    # A parameter of the kernel is set by the write that follows.
    return bool(flags & _WRITING) and not str(path).startswith("/proc/sys")


def _goes_away(_fd: int, _kind: int) -> bool:
    # A thread that cannot come back ends the process, and with it the test.
    return sys._getframe(2).f_code.co_name != "_leave"


def _says(_self: object, _where: object, method: str, *_: str) -> bool:
    return method in ("addSource", "removeSource")
