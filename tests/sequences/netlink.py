"""Read the kernel's tables over rtnetlink, a dump for each kind.

Written apart from `pycni.kernel`, whose work is judged by it. A `Reader` is opened in a network
namespace once and then reads that namespace from anywhere.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

NETLINK_ROUTE = 0
RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH, RTM_GETQDISC = 18, 22, 26, 30, 38
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
RT_TABLE_MAIN = 254
RTPROT_KERNEL = 2
NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # reachable, stale, delay, probe, permanent
IFF_UP = 1

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg
_ROUTE = struct.Struct("=8BI")  # struct rtmsg
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg
_QDISC = struct.Struct("=BxxxiIII")  # struct tcmsg

Attributes = dict[int, bytes]


@dataclass(frozen=True)
class Link:
    index: int
    name: str
    kind: str
    mac: str
    master: int
    alias: str
    is_up: bool


@dataclass(frozen=True)
class Address:
    index: int
    address: str
    prefix: int


@dataclass(frozen=True)
class Route:
    index: int
    destination: str  # "default", or an address and its prefix
    gateway: str
    by_kernel: bool


@dataclass(frozen=True)
class Neighbour:
    index: int
    address: str
    mac: str


@dataclass(frozen=True)
class Qdisc:
    index: int
    kind: str


class Reader:
    """A socket in the namespace that the calling thread is in."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def links(self) -> list[Link]:
        return [
            Link(
                index,
                _text(found.get(3)),
                _text(_attributes(found.get(18, b"")).get(1)),
                found.get(1, b"").hex(":"),
                _number(found.get(10)),
                _text(found.get(20)),
                bool(flags & IFF_UP),
            )
            for (_, _, index, flags, _), found in self._dump(RTM_GETLINK, _LINK)
        ]

    def addresses(self) -> list[Address]:
        return [
            Address(index, _address(found.get(2) or found.get(1, b"")), prefix)
            for (_, prefix, _, _, index), found in self._dump(RTM_GETADDR, _ADDRESS)
        ]

    def routes(self) -> list[Route]:
        """Those of the main table."""
        return [
            Route(
                _number(found.get(4)),
                f"{_address(found[1])}/{fields[1]}" if 1 in found else "default",
                _address(found.get(5, b"")),
                fields[5] == RTPROT_KERNEL,
            )
            for fields, found in self._dump(RTM_GETROUTE, _ROUTE)
            if (_number(found.get(15)) or fields[4]) == RT_TABLE_MAIN
        ]

    def neighbours(self) -> list[Neighbour]:
        return [
            Neighbour(index, _address(found.get(1, b"")), found.get(2, b"").hex(":"))
            for (_, index, state, _, _), found in self._dump(RTM_GETNEIGH, _NEIGHBOUR)
            if state & NUD_USABLE
        ]

    def qdiscs(self) -> list[Qdisc]:
        return [
            Qdisc(index, _text(found.get(1)))
            for (_, index, _, _, _), found in self._dump(RTM_GETQDISC, _QDISC)
        ]

    def _dump(
        self, kind: int, layout: struct.Struct
    ) -> Iterator[tuple[tuple[int, ...], Attributes]]:
        self._sequence += 1
        size = _HEADER.size + layout.size
        flags = NLM_F_REQUEST | NLM_F_DUMP
        self._socket.send(_HEADER.pack(size, kind, flags, self._sequence, 0) + bytes(layout.size))
        while True:
            data = self._socket.recv(1 << 17)
            position = 0
            while position < len(data):
                length, found, _, sequence, _ = _HEADER.unpack_from(data, position)
                body = data[position + _HEADER.size : position + length]
                position += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                if found == NLMSG_DONE:
                    return
                if found == NLMSG_ERROR:
                    number = -struct.unpack_from("=i", body)[0]
                    raise OSError(number, os.strerror(number))
                yield layout.unpack_from(body), _attributes(body[layout.size :])


def _attributes(data: bytes) -> Attributes:
    found: Attributes = {}
    position = 0
    while position + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3
    return found


def _text(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode("utf-8", "replace")


def _number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "little")


def _address(data: bytes) -> str:
    if len(data) == 4:
        return socket.inet_ntop(socket.AF_INET, data)
    return socket.inet_ntop(socket.AF_INET6, data) if len(data) == 16 else ""
