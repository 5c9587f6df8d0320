"""Sockets in many namespaces, served and asked by one thread that waits for events.

A socket stays in the namespace it was opened in, whichever thread uses it. So containers' services,
the machine beyond and all who ask need no thread or process of their own: while somebody waits for
an answer, the same loop gives it.

What is sent is lines: `?NONCE` is answered by `=NONCE NAME PEER`, `!TOKEN` is noted as arrived.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable

Handler = Callable[[int], None]


class Loop:
    """Handlers by descriptor; arrived: tokens that reached somebody, and from where."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self.arrived: dict[str, tuple[str, int]] = {}

    def add(self, sock: socket.socket, handler: Handler, events: int = select.EPOLLIN) -> None:
        sock.setblocking(False)
        self._handlers[sock.fileno()] = handler
        self._poll.register(sock.fileno(), events)

    def change(self, sock: socket.socket, events: int) -> None:
        self._poll.modify(sock.fileno(), events)

    def drop(self, sock: socket.socket) -> None:
        """Close a socket; closing twice is fine."""
        number = sock.fileno()
        if self._handlers.pop(number, None) is not None:
            self._poll.unregister(number)
        sock.close()

    def run(self, done: Callable[[], bool], seconds: float) -> bool:
        """Serve until `done`, or for some seconds; whether it is."""
        deadline = time.monotonic() + seconds
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for number, events in self._poll.poll(left):
                handler = self._handlers.get(number)
                if handler is not None:
                    handler(events)
        return True


class Service:
    """UDP and TCP at a port of an address, in the namespace that the thread is in.

    connections: those of TCP, by their peer.
    """

    def __init__(self, loop: Loop, name: str, address: str, port: int) -> None:
        self._loop = loop
        self._name = name
        self.connections: dict[tuple[str, int], socket.socket] = {}
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((address, port))
        loop.add(self.udp, self._datagram)
        self._tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tcp.bind((address, port))
        self._tcp.listen()
        loop.add(self._tcp, self._accept)

    def close(self) -> None:
        for sock in (self.udp, self._tcp, *self.connections.values()):
            self._loop.drop(sock)

    def _datagram(self, _events: int) -> None:
        try:
            data, peer = self.udp.recvfrom(200)
        except OSError:  # an ICMP error for something sent before
            return
        answer = self._answer(data, peer)
        if answer:
            send(self.udp, answer, peer)

    def _accept(self, _events: int) -> None:
        try:
            connection, peer = self._tcp.accept()
        except OSError:
            return
        self.connections[peer] = connection

        def handle(_events: int) -> None:
            data = receive(connection)
            if not data:
                self.connections.pop(peer, None)
                self._loop.drop(connection)
                return
            answer = self._answer(data, peer)
            if answer:
                send(connection, answer)

        self._loop.add(connection, handle)

    def _answer(self, data: bytes, peer: tuple[str, int]) -> bytes:
        answers = []
        for line in data.decode().splitlines():
            if line.startswith("?"):
                answers.append(f"={line[1:]} {self._name} {peer[0]}\n")
            elif line.startswith("!"):
                self._loop.arrived[line[1:]] = peer
        return "".join(answers).encode()


def send(sock: socket.socket, data: bytes, to: tuple[str, int] | None = None) -> str:
    """Send; the error's name if that is refused, "" if not."""
    try:
        if to is None:
            sock.send(data)
        else:
            sock.sendto(data, to)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def receive(sock: socket.socket) -> bytes:
    """What a socket has, b"" at its end or after an error.

    TCP acknowledges it at once: later, the way may be another.
    """
    try:
        data = sock.recv(4096)
        if sock.type == socket.SOCK_STREAM:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    except OSError:
        return b""
    return data
