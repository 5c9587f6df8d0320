"""Send and receive single Ethernet frames, for what `ping` cannot show."""

from __future__ import annotations

import select
import socket
import time
from types import TracebackType
from typing import Self

from harness.namespaces import Namespace, inside

EXPERIMENTAL = 0x88B5  # an EtherType kept for local experiments
IPV4 = 0x0800
ARP = 0x0806
IPV6 = 0x86DD
BROADCAST = "ff:ff:ff:ff:ff:ff"


class Wire:
    """A packet socket on one interface, in a sandbox or (None) on the host.

    Sees frames of one EtherType from the moment it is opened.
    """

    def __init__(self, netns: Namespace | None, interface: str, kind: int = EXPERIMENTAL) -> None:
        self.kind = kind
        with inside(netns):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
            self._socket.bind((interface, kind))
        self.mac: str = self._socket.getsockname()[4].hex(":")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._socket.close()

    def send(self, payload: bytes, *, to: str = BROADCAST, source: str = "") -> None:
        """Send a frame; `source` is the interface's own address unless given."""
        header = _bytes(to) + _bytes(source or self.mac) + self.kind.to_bytes(2, "big")
        self._socket.send((header + payload).ljust(60, b"\0"))

    def receives(self, payload: bytes, seconds: float = 2.0) -> bool:
        """Whether a frame with this payload comes in; what the interface sends does not count."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                break
            frame, address = self._socket.recvfrom(65535)
            if payload in frame[14:] and address[2] != socket.PACKET_OUTGOING:
                return True
        return False


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
