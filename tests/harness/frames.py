"""Send and receive single frames and packets, for what `ping` cannot show."""

from __future__ import annotations

import select
import socket
import struct
import time
from types import TracebackType
from typing import Self

from harness.namespaces import Namespace, inside

EXPERIMENTAL = 0x88B5  # an EtherType kept for local experiments
IPV4 = 0x0800
ARP = 0x0806
IPV6 = 0x86DD
BROADCAST = "ff:ff:ff:ff:ff:ff"
ALL_NODES = "33:33:00:00:00:01"


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


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def sctp_init(port: int) -> bytes:
    """A packet of SCTP, from port 40000, that opens an association (RFC 9260, 3.1 and 3.3.2)."""
    chunk = struct.pack(">BBHIIHHI", 1, 0, 20, 77, 65535, 1, 1, 7)
    header = struct.pack(">HHI", 40000, port, 0)
    checksum = struct.pack("<I", _crc32c(header + bytes(4) + chunk))
    return header + checksum + chunk


def router_advertisement(mac: str, router: str, prefix: str = "2001:db8:bad::") -> bytes:
    """Be my client: a default route, a prefix to make addresses of, an MTU (RFC 4861, 4.2)."""
    source = socket.inet_pton(socket.AF_INET6, router)
    destination = socket.inet_pton(socket.AF_INET6, "ff02::1")
    announced = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 86400, 86400, 0)
    body = b"".join(
        (
            struct.pack("!BBHBBHII", 134, 0, 0, 64, 0x08, 9000, 0, 0),  # preference: high
            announced + socket.inet_pton(socket.AF_INET6, prefix),
            struct.pack("!BBHI", 5, 1, 0, 1280),
            struct.pack("!BB", 1, 1) + _bytes(mac),
        )
    )
    pseudo = source + destination + struct.pack("!IHBB", len(body), 0, 0, 58)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), 58, 255)
    return header + source + destination + body


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
