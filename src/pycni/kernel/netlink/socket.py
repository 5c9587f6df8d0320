"""The netlink socket: requests in batches, dumps that are whole or an error, notifications.

A socket belongs to the network namespace its thread was in when it was opened, for good: it can
be used from any thread in any namespace, by one thread at a time.
"""

from __future__ import annotations

import errno
import sys
import time
from _socket import (
    AF_NETLINK,
    MSG_DONTWAIT,
    MSG_TRUNC,
    SOCK_CLOEXEC,
    SOCK_RAW,
    SOL_SOCKET,
    socket,
)

from pycni.kernel.netlink.codec import (
    MalformedMessage,
    Message,
    NetlinkRequest,
    outcome,
    pack,
    unpack,
)
from pycni.kernel.netlink.constants import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_CAP_ACK,
    NETLINK_DROP_MEMBERSHIP,
    NETLINK_EXT_ACK,
    NETLINK_GET_STRICT_CHK,
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
)
from pycni.kernel.netlink.errors import EventsLost, NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Self

# Answers wait in the receive buffer (208 KiB) until the whole batch has been carried out. An
# acknowledgement takes under 1 KiB of it, a link's description 4.
BATCH = 32
BUFFER = 64 * 1024  # twice what the kernel fills at a time in a dump

_SO_NETNS_COOKIE = 71  # asm-generic/socket.h

DUMP_ATTEMPTS = 40
LONGEST_PAUSE = 0.05

# For tests: called with each request before it is sent; raises NetlinkError to have it fail
# there. While it is set, requests are sent one by one.
before_send: Callable[[NetlinkRequest], None] | None = None


class NetlinkSocket:
    """A netlink socket in the calling thread's network namespace. Close it, or use `with`.

    Raises OSError if the protocol is not there or the process has no free descriptor.
    """

    __slots__ = ("_events", "_events_lost", "_groups", "_port", "_room", "_sequence", "_socket")

    # Whether who lacks the rights gets one answer for all requests that are sent together.
    refused_as_one = False

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)
        try:
            for option in (NETLINK_EXT_ACK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
            self._socket.bind((0, 0))
            self._port: int = self._socket.getsockname()[0]
        except BaseException:
            self._socket.close()
            raise
        self._room = BUFFER
        self._sequence = 0
        self._groups: set[int] = set()
        self._events: list[Message] = []
        self._events_lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; closing twice is fine."""
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, for select and poll; -1 once closed."""
        return self._socket.fileno()

    @property
    def netns_cookie(self) -> int:
        """The number that the kernel gave the socket's network namespace; 0 before Linux 5.14."""
        try:
            cookie = self._socket.getsockopt(SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:
            return 0
        return int.from_bytes(cookie, sys.byteorder)

    def request(self, request: NetlinkRequest) -> list[Message]:
        """Have one request carried out; return what the kernel answers besides the acknowledgement.

        Raises NetlinkError.
        """
        return self.batch((request,))[0]

    def batch(self, requests: Sequence[NetlinkRequest]) -> list[list[Message]]:
        """Have requests carried out in order, sent together; return each one's answers.

        Raises NetlinkError for the first that failed; its `done` names those that took effect.
        """
        answers: list[list[Message]] = []
        size = BATCH if before_send is None else 1
        for start in range(0, len(requests), size):
            try:
                if before_send is not None:
                    before_send(requests[start])
                answers += self._exchange(requests[start : start + size])
            except NetlinkError as error:
                error.done = (*range(start), *(start + position for position in error.done))
                raise
        return answers

    def dump(self, request: NetlinkRequest) -> list[Message]:
        """The entries a dump request asks for, all from one consistent state.

        The kernel says when something changed while it was dumping; then the dump is repeated,
        with growing pauses. Raises NetlinkError: EAGAIN if it was disturbed every time.
        """
        pause = 0.0
        for _ in range(DUMP_ATTEMPTS):
            if pause:
                time.sleep(pause)
            pause = min(LONGEST_PAUSE, 2 * pause or 0.0005)
            if before_send is not None:
                before_send(request)
            try:
                messages = self._dump_once(request)
            except NetlinkError as error:
                # Answers lost among notifications, or a dump given up before is still going on.
                if error.errno not in (errno.ENOBUFS, errno.EBUSY):
                    raise
                continue
            if messages is not None:
                return messages
        raise NetlinkError(errno.EAGAIN, "it kept changing while it was read", request.what)

    def subscribe(self, groups: Iterable[int]) -> None:
        """Receive the notifications of multicast groups (RTNLGRP_...) from now on."""
        for group in groups:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            self._groups.add(group)

    def unsubscribe(self) -> None:
        """Leave all groups and forget notifications not yet read."""
        while self._groups:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, self._groups.pop())
        self._make_room()
        self._events.clear()
        self._events_lost = False

    def events(self, deadline: float) -> list[Message]:
        """Wait for notifications until `deadline` (time.monotonic()); [] once it has passed.

        Raises EventsLost if the kernel had to drop some.
        """
        while not self._events:
            if self._events_lost:
                self._events_lost = False
                raise EventsLost
            remaining = deadline - time.monotonic()
            if remaining <= 0 or self._read(remaining) is None:
                return []
        taken, self._events = self._events, []
        return taken

    def _exchange(self, requests: Sequence[NetlinkRequest]) -> list[list[Message]]:
        first = self._send(requests)
        answers: list[list[Message]] = [[] for _ in requests]
        failures: list[tuple[int, NetlinkError]] = []
        done: list[int] = []
        awaited = len(requests)
        while len(done) + len(failures) < awaited:
            for message in self._receive(requests[0]):
                position = message.sequence - first
                if not 0 <= position < len(requests):
                    continue  # the rest of an exchange that was given up
                if message.kind == NLMSG_ERROR:
                    error = _failure(message, requests[position])
                    if error is None:
                        done.append(position)
                    else:
                        failures.append((position, error))
                        if self.refused_as_one and error.errno == errno.EPERM:
                            awaited = 0
                else:
                    answers[position].append(message)
                    if requests[position].answered:
                        done.append(position)
        if failures:
            error = failures[0][1]
            error.netlink = self
            error.done = tuple(done)
            raise error
        return answers

    def _dump_once(self, request: NetlinkRequest) -> list[Message] | None:
        """One attempt; None if it was disturbed."""
        sequence = self._send((request,), NLM_F_DUMP)
        entries: list[Message] = []
        disturbed = False
        while True:
            for message in self._receive(request):
                if message.sequence != sequence:
                    continue
                disturbed = disturbed or bool(message.flags & NLM_F_DUMP_INTR)
                if message.kind in (NLMSG_DONE, NLMSG_ERROR):
                    error = _failure(message, request)
                    if error is not None:
                        raise error
                    return None if disturbed else entries
                entries.append(message)

    def _send(self, requests: Sequence[NetlinkRequest], flags: int = 0) -> int:
        """Send requests in one datagram; return the sequence number of the first.

        Without flags, each is to be acknowledged that is not answered.
        """
        if self._groups:
            self._make_room()
        first = self._sequence + 1
        self._sequence += len(requests)
        if self._sequence >= 1 << 32:
            first, self._sequence = 1, len(requests)
        messages = []
        for sequence, request in enumerate(requests, first):
            asked = flags or (0 if request.answered else NLM_F_ACK)
            kind, how = request.kind, request.flags | NLM_F_REQUEST | asked
            messages.append(pack(kind, how, sequence, self._port, request.body))
        try:
            self._socket.send(b"".join(messages))
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO, "not sent", requests[0].what) from None
        return first

    def _make_room(self) -> None:
        """Read the notifications that wait.

        Once their queue has run over, the kernel drops answers without a word until it is empty.
        """
        while True:
            try:
                if self._read(0.0) is None:
                    return
            except EventsLost:
                self._events_lost = True

    def _receive(self, request: NetlinkRequest) -> list[Message]:
        """The next answers of the kernel, waiting as long as it takes."""
        try:
            return self._read(None) or []
        except EventsLost:
            self._events_lost = True
            raise NetlinkError(
                errno.ENOBUFS, "answers were lost; it may have been carried out", request.what
            ) from None
        except MalformedMessage as error:
            raise NetlinkError(errno.EBADMSG, str(error), request.what) from None

    def _read(self, timeout: float | None) -> list[Message] | None:
        """Read one datagram: answers are returned, notifications put aside. None: timed out."""
        flags = 0
        if timeout:
            self._socket.settimeout(timeout)
        elif timeout is not None:
            flags = MSG_DONTWAIT
        try:
            data, _, seen, (port, groups) = self._socket.recvmsg(self._room, 0, flags)
        except (TimeoutError, BlockingIOError):
            return None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise EventsLost from None
            raise
        finally:
            if timeout:
                self._socket.settimeout(None)
        if seen & MSG_TRUNC:  # it was cut; with room for it, it can be asked for again
            self._room *= 2
            raise EventsLost
        if port != 0:
            return []  # another process, not the kernel
        messages = unpack(data)
        # Without a subscription, what comes from a group is an answer that was asked for by
        # NLM_F_ECHO.
        if groups and self._groups:
            self._events += messages
            return []
        return [message for message in messages if message.port == self._port]


def _failure(message: Message, request: NetlinkRequest) -> NetlinkError | None:
    result = outcome(message)
    if not result.errno:
        return None
    return NetlinkError(result.errno, result.text, request.what, result.offset)
