"""Packets on a container's interface: a packet socket there, and DHCP in UDP in IP on it.

The interface has no address yet, so the kernel's UDP is of no use. A socket keeps its network
namespace alive; it is therefore open for one exchange only, never between two. Where there is no
interface any more, `send_routed` has the host's own stack carry a last message.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import struct
import time
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Self

from pyroute2.dhcp.dhcp4socket import listen_udp_port
from pyroute2.protocols import ip4msg, udp4_pseudo_header, udpmsg

from pycni.dhcp.message import DHCPRequest, MalformedDHCPMessage, Reply
from pycni.kernel import link, namespace
from pycni.kernel.link import Link
from pycni.kernel.netlink.socket import NetlinkSocket

CLIENT_PORT, SERVER_PORT = 68, 67

_ETH_P_IP = 0x0800
_SO_ATTACH_FILTER = 26
_ETHERNET, _UDP = 14, 8
_BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"
_ANY, _BROADCAST = IPv4Address(0), IPv4Address("255.255.255.255")
_RUNNING_WITHIN = 5.0  # seconds for a link that was just set up to carry traffic


class LinkGone(Exception):
    """The interface is not there, or is another one than it was; says which and where."""


@dataclass(frozen=True)
class ClientIdentity:
    """A namespace's file and cookie, and an interface's index; 0 for what is not known."""

    device: int = 0
    inode: int = 0
    cookie: int = 0
    index: int = 0

    def is_same_namespace(self, other: ClientIdentity) -> bool:
        """Whether both are of one namespace, as far as is known of them."""
        if not self.inode:
            return True
        if self.cookie and other.cookie:
            return self.cookie == other.cookie
        return (self.device, self.inode) == (other.device, other.inode)


UNKNOWN = ClientIdentity()


class Sandbox:
    """Where a container's interface is: how to find it again, and to know it as the same.

    path: of the network namespace, as this process sees it; identity: the kernel's numbers of
    the namespace and of the interface in it; mac: the interface's address when it was first seen,
    by which the server knows it from then on; each empty until then.
    """

    def __init__(
        self, path: str, ifname: str, identity: ClientIdentity = UNKNOWN, mac: str = ""
    ) -> None:
        self.path = path
        self.ifname = ifname
        self.identity = identity
        self.mac = mac

    def open(self) -> namespace.Namespace:
        """The namespace, to be closed soon. Raises LinkGone, OSError."""
        try:
            space = namespace.open_path(self.path)
        except (namespace.NamespaceNotFound, namespace.NotANamespace) as error:
            raise LinkGone(
                f'cannot open the network namespace "{self.path}": {error.strerror}'
            ) from error
        try:
            found = ClientIdentity(space.device, space.inode, space.cookie, self.identity.index)
            if not self.identity.is_same_namespace(found):
                raise LinkGone(f'"{self.path}" is another network namespace than it was')
        except BaseException:
            space.close()
            raise
        self.identity = found
        return space

    def find(self, space: namespace.Namespace) -> Link:
        """The interface. Raises LinkGone."""
        index = self.identity.index
        with space.netlink() as netlink:
            found = link.find(netlink, index or self.ifname)
        if found is None:
            raise LinkGone(f'there is no interface {self.ifname} in "{self.path}" any more')
        if not index and self.mac not in ("", found.mac):  # as an earlier release noted it
            raise LinkGone(
                f'interface {self.ifname} in "{self.path}" has the MAC address {found.mac}, '
                f"not {self.mac}: it is another one"
            )
        self.identity = replace(self.identity, index=found.index)
        self.mac = self.mac or found.mac
        return found


class Wire:
    """An open packet socket on a sandbox's interface, for the length of an exchange.

    mac: by which the server knows the interface; own_mac: the one that it has now, which another
    plugin, or the container, may have changed.
    """

    def __init__(self, packets: socket.socket, mac: str, own_mac: str) -> None:
        self.mac = mac
        self.own_mac = own_mac
        self._packets = packets
        self._address = (packets.getsockname()[0], _ETH_P_IP)

    @classmethod
    async def open(cls, sandbox: Sandbox, *, set_up: bool = False) -> Self:
        """Open a socket on the interface. Raises LinkGone, OSError.

        set_up: have the interface up and running first.
        """
        with sandbox.open() as space:
            found = sandbox.find(space)
            if set_up:
                netlink = space.netlink()
                await asyncio.to_thread(_set_up, netlink, found)
            with space.enter():
                # No protocol yet: nothing comes in before the filter is there.
                packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            _attach_filter(packets)
            packets.bind((found.name, _ETH_P_IP))
            return cls(packets, sandbox.mac, found.mac)
        except BaseException:
            packets.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._packets.close()

    def send(
        self, message: bytes, source: IPv4Address = _ANY, to: tuple[str, IPv4Address] | None = None
    ) -> None:
        """Send a message; to: the server's MAC and IP addresses, None for a broadcast."""
        mac, address = to or (_BROADCAST_MAC, _BROADCAST)
        frame = bytes.fromhex((mac + self.own_mac).replace(":", "")) + _ETH_P_IP.to_bytes(2, "big")
        self._packets.send(frame + _packet(message, source, address))

    async def receive(self, until: float) -> tuple[Reply, str] | None:
        """The next answer for this interface and the MAC address it came from.

        None when the loop's clock reaches `until`. What is not a DHCP answer is passed over.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(until):
                while True:
                    frame = await loop.sock_recv(self._packets, 65536)
                    try:
                        reply = Reply.decode(_payload(frame))
                    except MalformedDHCPMessage:
                        continue
                    if reply.mac == self.mac:
                        return reply, frame[6:12].hex(":")
        except TimeoutError:
            return None


def send_routed(message: DHCPRequest, server: IPv4Address) -> None:
    """Send a message to a server from the host's own address. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.setblocking(False)
        channel.sendto(message.encode(), (str(server), SERVER_PORT))


def _set_up(netlink: NetlinkSocket, found: Link) -> None:
    """Set an interface up, wait until it carries traffic, and close the socket."""
    with netlink:
        if not found.is_up:
            netlink.batch([link.update(found, up=True)])
        try:
            link.wait_running(netlink, found.index, time.monotonic() + _RUNNING_WITHIN)
        except OSError as error:
            if error.errno != errno.ETIMEDOUT:  # it may yet carry when the message is sent again
                raise


def _attach_filter(packets: socket.socket) -> None:
    """Only let UDP for a DHCP client in, so that a busy container costs nothing."""
    program = b"".join(
        struct.pack("=HBBI", code, yes, no, value & 0xFFFFFFFF)
        for code, yes, no, value in listen_udp_port(CLIENT_PORT)
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog of linux/filter.h: number of instructions, address
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    packets.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)


def _packet(message: bytes, source: IPv4Address, destination: IPv4Address) -> bytes:
    """A message in UDP in IP."""
    length = _UDP + len(message)
    ends = {"src": str(source), "dst": str(destination)}
    ports = {"sport": CLIENT_PORT, "dport": SERVER_PORT, "len": length}
    pseudo = udp4_pseudo_header({**ends, "len": length}).encode().buf
    checksum = _checksum(pseudo + udpmsg(ports).encode().buf + message)
    udp = udpmsg({**ports, "csum": checksum or 0xFFFF}).encode().buf
    header = {
        **ends,
        "len": 20 + length,
        "id": int.from_bytes(os.urandom(2), "big"),
        "ttl": 64,
        "proto": socket.IPPROTO_UDP,
    }
    checksum = _checksum(ip4msg(header).encode().buf)
    ip: bytes = ip4msg({**header, "csum": checksum}).encode().buf
    return ip + bytes(udp) + message


def _payload(frame: bytes) -> bytes:
    """What UDP carries in a frame that the filter let through.

    The UDP checksum is not looked at: a server on this host leaves it to a device to fill in, and
    between two ends of a veth there is none.
    """
    if len(frame) < _ETHERNET + 20 + _UDP:
        raise MalformedDHCPMessage("a frame too short for UDP")
    header = (frame[_ETHERNET] & 0x0F) * 4
    start = _ETHERNET + header
    length = int.from_bytes(frame[start + 4 : start + 6], "big")
    return frame[start + _UDP : start + length]


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
