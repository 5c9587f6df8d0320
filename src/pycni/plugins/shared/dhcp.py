"""One question to the DHCP daemon and its answer, over the daemon's unix socket.

A connection carries one exchange, each message one JSON object on a line:

    -> {"pycni": 1, "command": "ADD", "network": ..., "containerID": ..., "ifname": ..., ...}
    <- {"within": 218}                  at once: seconds until there is an answer at the latest
    <- {"lease": {...}}                 or {"error": {"code": ..., "msg": ..., "details": ...}}

A client that hangs up has given up; the daemon then stops what it was doing for it. The reference's
daemon speaks Go's own net/rpc and gob instead. Called by the plugin and by `pycni dhcp`.
"""

from __future__ import annotations

import errno
import posix
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket
from select import POLLIN, poll

from pycni.spec.errors import IO_FAILURE, TRY_AGAIN_LATER, UNAVAILABLE, CNIError
from pycni.spec.jsontext import JSONError, dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SOCKET = "/run/cni/dhcp.sock"
PROTOCOL = 1
MAX_LINE = 1 << 20  # bytes of a message

_TIMEOUT = 10  # seconds for the daemon to take notice
_PAUSE = 0.01
_LONGEST = 86400  # seconds to wait for an answer, whatever was said


class NoDaemon(CNIError):
    """No daemon listens on the socket."""


def ask(path: str, question: Mapping[str, Any], cancel: int | None = None) -> dict[str, Any]:
    """Ask the daemon at a socket; return its answer.

    cancel: a descriptor, the question is dropped when that can be read. Raises NoDaemon (code 50),
    or CNIError: what the daemon answered, or code 50 if it does not answer in time.
    """
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        connection.settimeout(_TIMEOUT)
        _connect(connection, path)
        lines = Lines(connection, path, cancel)
        try:
            connection.sendall(dumps({"pycni": PROTOCOL, **question}).encode() + b"\n")
        except OSError as error:
            raise _broken(path, str(error)) from None
        return read_answer(lines)
    finally:
        connection.close()


def read_answer(lines: Lines) -> dict[str, Any]:
    """The daemon's answer. Raises CNIError, also the one that it is."""
    answer = lines.next(_TIMEOUT)
    within = answer.get("within")
    if isinstance(within, int | float):
        answer = lines.next(min(within, _LONGEST))
    failure = answer.get("error")
    if isinstance(failure, dict):
        code = failure.get("code")
        raise CNIError(
            code if isinstance(code, int) else IO_FAILURE,
            str(failure.get("msg", "")),
            str(failure.get("details", "")),
        )
    return answer


class Lines:
    """The daemon's messages, as they come in on a connection."""

    def __init__(self, connection: socket, path: str, cancel: int | None) -> None:
        self._connection = connection
        self._path = path
        self._cancel = cancel
        self._received = b""

    def next(self, timeout: float) -> dict[str, Any]:
        """The next message, waited for so many seconds. Raises CNIError."""
        until = time.monotonic() + timeout
        while b"\n" not in self._received:
            self._wait(until)
            try:
                data = self._connection.recv(65536)
            except OSError as error:
                raise _broken(self._path, str(error)) from None
            if not data or len(self._received) > MAX_LINE:
                raise _broken(self._path, "it hung up" if not data else "its answer has no end")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        try:
            message = loads(line)
        except JSONError:
            message = None
        if not isinstance(message, dict):
            said = line[:60].decode("utf-8", "replace").strip()
            raise CNIError(
                UNAVAILABLE,
                f"what listens on {self._path} is not pycni's DHCP daemon",
                f"it said \"{said}\"; the reference's daemon serves the reference's plugin only: "
                "stop it and start `pycni dhcp daemon`",
            )
        return message

    def _wait(self, until: float) -> None:
        poller = poll()
        poller.register(self._connection.fileno(), POLLIN)
        if self._cancel is not None:
            poller.register(self._cancel, POLLIN)
        left = max(until - time.monotonic(), 0)
        ready = [descriptor for descriptor, _ in poller.poll(left * 1000)]
        if not ready:
            raise _broken(self._path, "it does not answer")
        if self._connection.fileno() not in ready:
            raise CNIError(TRY_AGAIN_LATER, "cancelled while waiting for the DHCP daemon")


def _connect(connection: socket, path: str) -> None:
    until = time.monotonic() + _TIMEOUT
    while True:
        try:
            connection.connect(path)
            return
        except OSError as error:
            # EAGAIN: more callers than fit in the socket's queue.
            if error.errno != errno.EAGAIN or time.monotonic() > until:
                raise _unreachable(path, error) from None
        time.sleep(_PAUSE)


def _unreachable(path: str, error: OSError) -> CNIError:
    words = posix.strerror(error.errno).lower() if error.errno else str(error)
    absent = error.errno in (errno.ENOENT, errno.ECONNREFUSED)
    return (NoDaemon if absent else CNIError)(
        UNAVAILABLE,
        f"error dialing DHCP daemon: dial unix {path}: connect: {words}",
        "`pycni dhcp daemon` must run on this host and listen there; "
        '"daemonSocketPath" of "ipam" names another socket',
    )


def _broken(path: str, what: str) -> CNIError:
    return CNIError(
        UNAVAILABLE,
        f"error calling the DHCP daemon at {path}: {what}",
        "see the daemon's log; its leases are kept when it is restarted",
    )
