"""What launcher and agent say to each other over the socket. See launcher/launcher.c.

    launcher  one message: header (protocol, size), then NUL-terminated strings: version, plugin,
              environment; with it descriptors: of a file that holds all of stdin, of a file for
              stderr, of a pipe for the answer and, if the launcher opened it, of CNI_NETNS
    agent     BEGUN, before it does anything; or it hangs up, and the launcher serves the call
    agent     to the pipe: exit code and size, then what belongs on stdout

The launcher waits for BEGUN a few milliseconds. Then it shuts down its reading side, after which
BEGUN cannot be sent, and an agent that could not send it does nothing. What had been sent is read.

A question about the agent itself has the plugin STATUS, and is answered to a pipe with JSON.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from pathlib import Path

from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PROTOCOL = 2
BEGUN = b"B"
BEGIN_MS = 10  # that a launcher waits for it: a third of what it takes to do without
SOCKET = Path("/run/pycni/agent.sock")
STATUS = "@status"
MAX_REQUEST = 65536  # bytes, the launcher's limit too
DESCRIPTORS = 4
REPLY = 2  # which of them the answer goes to

_HEADER = struct.Struct("=II")
_ANSWER = struct.Struct("=II")
_RIGHTS = socket.CMSG_LEN(DESCRIPTORS * struct.calcsize("i"))


class Refused(Exception):
    """A call that the agent does not take; its launcher serves it. The text says why."""


class Call(Record):
    """One call as it arrived. Descriptors are the receiver's to close.

    descriptors: of stdin, stderr, the answer and the sandbox's namespace, as far as they came.
    """

    version: str
    plugin: str
    environ: Mapping[str, str]
    descriptors: tuple[int, ...] = ()

    @property
    def netns_fd(self) -> int | None:
        """The sandbox's namespace, None where the launcher could not open one."""
        return self.descriptors[3] if len(self.descriptors) == DESCRIPTORS else None

    @property
    def reply(self) -> int:
        """Where its answer goes. Raises Refused if no such descriptor came."""
        if len(self.descriptors) < REPLY + 1:
            raise Refused("a malformed request")
        return self.descriptors[REPLY]

    def close(self) -> None:
        """Close the descriptors that came with it."""
        for descriptor in self.descriptors:
            os.close(descriptor)


def encode_call(version: str, plugin: str, environ: Mapping[str, str]) -> bytes:
    """A call as the launcher sends it."""
    strings = [version, plugin, *(f"{key}={value}" for key, value in environ.items())]
    body = b"".join(os.fsencode(text) + b"\0" for text in strings)
    return _HEADER.pack(PROTOCOL, len(body)) + body


def receive_call(connection: socket.socket, timeout: float) -> Call:
    """Read one call. Raises Refused if it is not one, OSError if it is not there in time.

    timeout: seconds for all of it, however slowly it comes.
    """
    until = time.monotonic() + timeout
    connection.settimeout(timeout)
    # Not socket.recv_fds, which ignores its flags: another call's program would inherit these.
    data, controls, flags, _ = connection.recvmsg(
        _HEADER.size + MAX_REQUEST, _RIGHTS, socket.MSG_CMSG_CLOEXEC
    )
    descriptors = [
        descriptor
        for level, kind, rights in controls
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (descriptor,) in struct.iter_unpack("i", rights)
    ]
    try:
        if flags & socket.MSG_CTRUNC:
            raise Refused("descriptors did not arrive")
        return _read_call(connection, data, tuple(descriptors), until)
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _read_call(
    connection: socket.socket, data: bytes, descriptors: tuple[int, ...], until: float
) -> Call:
    if len(data) < _HEADER.size:
        raise Refused("no request")
    protocol, size = _HEADER.unpack_from(data)
    if protocol != PROTOCOL or size > MAX_REQUEST:
        raise Refused("a request of another protocol, or too long")
    body = bytearray(data[_HEADER.size :])
    while len(body) < size:
        left = until - time.monotonic()
        if left <= 0:
            raise Refused("a request that takes too long")
        connection.settimeout(left)
        more = connection.recv(size - len(body))
        if not more:
            raise Refused("a request that was cut short")
        body += more
    strings = [os.fsdecode(bytes(text)) for text in body.split(b"\0")]
    if len(body) != size or len(strings) < 3 or strings.pop():
        raise Refused("a malformed request")
    pairs = (text.partition("=") for text in strings[2:])
    environ = {key: value for key, separator, value in pairs if separator}
    return Call(strings[0], strings[1], environ, descriptors)


def encode_answer(code: int, output: str) -> bytes:
    """The answer to a call that was begun."""
    data = output.encode()
    return _ANSWER.pack(code, len(data)) + data


def ask(connection: socket.socket, request: bytes, *descriptors: int) -> tuple[int, str]:
    """Ask as a launcher does: exit code and output. Raises OSError if the agent does not answer.

    descriptors: of stdin, stderr and perhaps a namespace. The connection's timeout is for each
    wait.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, "rb", buffering=0) as reply:
        try:
            stdin, stderr, *others = descriptors or (writer, writer)
            socket.send_fds(connection, [request], [stdin, stderr, writer, *others])
        finally:
            os.close(writer)
        if connection.recv(1) != BEGUN:
            raise ConnectionError("the agent refused the question")
        return read_answer(reply.fileno(), connection.gettimeout())


def read_answer(reply: int, timeout: float | None) -> tuple[int, str]:
    """Read an answer. Raises OSError if the agent is gone, or silent for too many seconds."""
    data = b""
    waiting = select.poll()
    waiting.register(reply, select.POLLIN)
    while waiting.poll(None if timeout is None else timeout * 1000):
        more = os.read(reply, 1 << 16)
        if not more:
            raise ConnectionError("the agent hung up")
        data += more
        if len(data) >= _ANSWER.size:
            code, size = _ANSWER.unpack_from(data)
            if len(data) >= _ANSWER.size + size:
                return code, data[_ANSWER.size :].decode()
    raise TimeoutError("the agent does not answer in time")
