"""TCP transfers between namespaces, and the rate they come to."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass, field

from harness.namespaces import Namespace, inside

PORT = 5001
CHUNK = bytes(64 * 1024)
# What a full segment with time stamps is on the wire, Ethernet header included.
WIRE = 1514 / 1448


@dataclass
class Transfer:
    """When how many bytes of payload had arrived: (seconds since the start, bytes)."""

    arrivals: list[tuple[float, int]] = field(default_factory=list)

    def rate(self, after: int = 0) -> float:
        """Bits a second on the wire, from the moment that `after` bytes had arrived."""
        late = [arrival for arrival in self.arrivals if arrival[1] >= after]
        (start, first), (end, last) = late[0], late[-1]
        return (last - first) * 8 * WIRE / (end - start)


def transfer(
    sender: Namespace | None, receiver: Namespace | None, address: str, size: int, seconds: float
) -> Transfer:
    """Send up to `size` bytes for up to some seconds to a server at an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(receiver):
        listener = socket.create_server((address, PORT), family=family)
    with inside(sender):
        client = socket.socket(family)
    found = Transfer()

    def receive() -> None:
        peer, _ = listener.accept()
        count = 0
        with peer:
            while data := peer.recv(1 << 20):
                count += len(data)
                found.arrivals.append((time.monotonic() - start, count))

    thread = threading.Thread(target=receive)
    start = time.monotonic()
    thread.start()
    with client, listener:
        client.connect((address, PORT))
        # So that what waits here does not count for seconds of the rate.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * 1024)
        left = size
        while left > 0 and time.monotonic() - start < seconds:
            left -= client.send(CHUNK[:left])
        client.shutdown(socket.SHUT_WR)
        thread.join()
    return found
