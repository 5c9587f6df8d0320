"""Sessions of a container that are to go on, whatever is done to others.

An outgoing one is with the machine beyond, an incoming one comes from the client by a published
port; each by UDP and by TCP. What was opened is tried after each operation, first towards the side
that waits: a container whose peer has to speak first to be heard again has lost its session.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from sequences.lab import inside
from sequences.loop import Loop, Service, receive, send
from sequences.packets import TIMEOUT

OPENING = 1.5  # seconds
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_numbers = itertools.count(1)


@dataclass
class Flow:
    """A session that is open. near: of who opened it; service: of who was asked."""

    name: str  # such as "udp to beyond", "tcp by port 8080"
    protocol: str
    incoming: bool
    port: int
    near: socket.socket
    service: Service
    peer: tuple[str, int]  # what the service knows the other side as

    @property
    def kind(self) -> str:
        return f"{self.protocol} {'in' if self.incoming else 'out'}"


class Flows:
    """Opens sessions, and tries them."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def open(
        self,
        where: int,
        service: Service,
        protocol: str,
        to: tuple[str, int],
        *,
        source: str = "",
        device: str = "",
        incoming: bool,
    ) -> Flow | None:
        """A session from a namespace to a service by an address; None if there is no way."""
        with inside(where):
            near = socket.socket(socket.AF_INET, _KINDS[protocol])
        if device:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if source:
            near.bind((source, 0))
        near.settimeout(OPENING)
        try:
            near.connect(to)
        except OSError:
            near.close()
            return None
        self._loop.add(near, lambda _: self._note(near, protocol))
        token = f"flow{next(_numbers)}"
        send(near, f"!{token}\n".encode())
        if not self._loop.run(lambda: token in self._loop.arrived, OPENING):
            self._loop.drop(near)
            return None
        way = f"by port {to[1]}" if incoming else "to beyond"
        peer = self._loop.arrived[token]
        return Flow(f"{protocol} {way}", protocol, incoming, to[1], near, service, peer)

    def close(self, flows: Iterable[Flow]) -> None:
        for flow in flows:
            self._loop.drop(flow.near)

    def interrupted(self, flows: list[Flow]) -> list[Flow]:
        """Those that do not go on in both directions."""
        broken: dict[int, Flow] = {}
        for towards_opener in (True, False):
            tokens = {}
            for flow in flows:
                if id(flow) not in broken:
                    token = f"flow{next(_numbers)}"
                    tokens[token] = flow
                    self._push(flow, token, towards_opener)
            arrived = self._loop.arrived
            self._loop.run(lambda: arrived.keys() >= tokens.keys(), TIMEOUT)  # noqa: B023
            for token in tokens.keys() - arrived.keys():
                broken[id(tokens[token])] = tokens[token]
        return list(broken.values())

    def use(self, flows: Iterable[Flow]) -> None:
        """Have the container send by UDP, and expect nothing."""
        for flow in flows:
            if flow.protocol == "udp":
                self._push(flow, "no one waits", flow.incoming)

    def _push(self, flow: Flow, token: str, towards_opener: bool) -> None:
        data = f"!{token}\n".encode()
        if not towards_opener:
            send(flow.near, data)
        elif flow.protocol == "udp":
            send(flow.service.udp, data, flow.peer)
        else:
            connection = flow.service.connections.get(flow.peer)
            if connection is not None:
                send(connection, data)

    def _note(self, near: socket.socket, protocol: str) -> None:
        data = receive(near)
        if not data and protocol == "tcp":  # it has ended
            self._loop.drop(near)
        for line in data.decode().splitlines():
            if line.startswith("!"):
                self._loop.arrived[line[1:]] = ("", 0)
