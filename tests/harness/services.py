"""Servers in namespaces that say who they are and who asked, and the questions to them."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from harness.namespaces import Namespace, inside

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@contextmanager
def service(netns: Namespace | None, name: str, *ports: int, only: str = "") -> Iterator[None]:
    """Serve TCP and UDP on these ports of a namespace (None: the thread's), on both families.

    Each answer is `NAME PEER`. only: the one address to listen on.
    """
    sockets = []
    with inside(netns):
        for port in ports:
            for kind in _KINDS.values():
                family = socket.AF_INET if "." in only else socket.AF_INET6
                server = socket.socket(family, kind)
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                server.bind((only or "::", port))
                if kind == socket.SOCK_STREAM:
                    server.listen()
                sockets.append(server)
    wake, end = socket.socketpair()
    thread = threading.Thread(target=_serve, args=(name, sockets, end), daemon=True)
    thread.start()
    try:
        yield
    finally:
        wake.close()
        thread.join()
        for each in (*sockets, end):
            each.close()


def _serve(name: str, sockets: list[socket.socket], end: socket.socket) -> None:
    while True:
        ready, _, _ = select.select([*sockets, end], [], [])
        if end in ready:
            return
        for server in ready:
            if server.type == socket.SOCK_STREAM:
                connection, peer = server.accept()
                with connection:
                    connection.sendall(_answer(name, peer[0]))
            else:
                _, peer = server.recvfrom(100)
                server.sendto(_answer(name, peer[0]), peer)


def _answer(name: str, peer: str) -> bytes:
    return f"{name} {peer.removeprefix('::ffff:')}".encode()


def ask(
    netns: Namespace | None,
    address: str,
    port: int,
    protocol: str = "tcp",
    *,
    source: tuple[str, int] | None = None,
    timeout: float = 1.0,
) -> str:
    """Ask a service from a namespace (None: the thread's): its answer, "" if there is none."""
    with inside(netns):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, _KINDS[protocol])
    with sock:
        sock.settimeout(timeout)
        try:
            if source is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(source)
            sock.connect((address, port))
            if protocol == "udp":
                sock.send(b"who are you?")
            return sock.recv(100).decode()
        except (TimeoutError, ConnectionError, OSError):
            return ""
