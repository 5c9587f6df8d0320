"""What packets show: who answers at an address, by which way, and whether flows go on.

`Probes` asks many questions at once and waits for all answers together, so that a whole round takes
a millisecond or two. Silence is what takes time, and is asked again before it is believed.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import struct
from dataclasses import dataclass, field

from sequences.lab import inside
from sequences.loop import Loop, receive, send

TIMEOUT = 0.4  # seconds that an answer may take
TRIES = 4
SILENT, REFUSED = "silence", "refused"

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_numbers = itertools.count(1)


@dataclass
class Probe:
    """A question, and what came: "NAME PEER" of a service, "" of a ping, or why nothing did."""

    where: int  # a namespace's descriptor
    protocol: str  # "tcp", "udp", "ping"
    to: tuple[str, int]
    source: str = ""  # the address it is sent from
    device: str = ""  # the interface it leaves by
    names_only: bool = False  # who it is seen as does not matter
    answer: str = SILENT
    _sock: socket.socket | None = field(default=None, repr=False)
    _nonce: str = ""

    @property
    def is_done(self) -> bool:
        return self.answer != SILENT


class Probes:
    """Asks in rounds: what is silent is asked again."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def ask(self, probes: list[Probe], *, tries: int = TRIES) -> None:
        for _ in range(tries):
            missing = [probe for probe in probes if not probe.is_done]
            if not missing:
                return
            try:
                self._start(missing)
                self._loop.run(lambda: all(probe.is_done for probe in probes), TIMEOUT)
            finally:
                for probe in missing:
                    if probe._sock is not None:
                        self._loop.drop(probe._sock)

    def _start(self, probes: list[Probe]) -> None:
        by_place: dict[int, list[Probe]] = {}
        for probe in probes:
            by_place.setdefault(probe.where, []).append(probe)
        for where, there in by_place.items():
            with inside(where):
                for probe in there:
                    try:
                        probe._sock = _open(probe)
                    except OSError as error:
                        probe.answer = f"no socket: {error.strerror}"
        for probe in probes:
            if probe._sock is not None and not probe.is_done:
                self._send(probe, probe._sock)

    def _send(self, probe: Probe, sock: socket.socket) -> None:
        probe._nonce = str(next(_numbers))
        if probe.protocol == "ping":
            self._loop.add(sock, lambda _: _pong(probe, sock))
            refusal = send(sock, _echo_request(probe._nonce), probe.to)
            if refusal:
                probe.answer = refusal
            return
        events = select.EPOLLIN | (select.EPOLLOUT if probe.protocol == "tcp" else 0)
        self._loop.add(sock, lambda events: self._ready(probe, sock, events), events)
        number = sock.connect_ex(probe.to)
        if number not in (0, errno.EINPROGRESS):
            probe.answer = _why(number)
        elif probe.protocol == "udp":
            refusal = send(sock, f"?{probe._nonce}\n".encode())
            if refusal:
                probe.answer = refusal

    def _ready(self, probe: Probe, sock: socket.socket, events: int) -> None:
        if probe.is_done:
            return
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            probe.answer = _why(number)
        elif events & select.EPOLLIN:
            for line in receive(sock).decode().splitlines() or ["closed"]:
                nonce, _, text = line.partition(" ")
                if nonce == f"={probe._nonce}":
                    probe.answer = text.partition(" ")[0] if probe.names_only else text
                elif line == "closed":
                    probe.answer = line
        elif events & select.EPOLLOUT:
            self._loop.change(sock, select.EPOLLIN)
            send(sock, f"?{probe._nonce}\n".encode())


def _open(probe: Probe) -> socket.socket:
    if probe.protocol == "ping":
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    else:
        sock = socket.socket(socket.AF_INET, _KINDS[probe.protocol])
    sock.setblocking(False)
    if probe.device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, probe.device.encode())
    if probe.source:
        sock.bind((probe.source, 0))
    return sock


def _why(number: int) -> str:
    return REFUSED if number == errno.ECONNREFUSED else os.strerror(number)


# --- ICMP ----------------------------------------------------------------------------------------


def _echo_request(nonce: str) -> bytes:
    body = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, int(nonce) & 0xFFFF)
    total = sum(struct.unpack("!4H", body))
    total = (total & 0xFFFF) + (total >> 16)
    return body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:]


def _pong(probe: Probe, sock: socket.socket) -> None:
    data = receive(sock)
    header = (data[0] & 0xF) * 4 if data else 0
    if len(data) >= header + 8:
        kind, _, _, identity, number = struct.unpack_from("!BBHHH", data, header)
        if (kind, identity, number) == (0, os.getpid() & 0xFFFF, int(probe._nonce) & 0xFFFF):
            probe.answer = ""
