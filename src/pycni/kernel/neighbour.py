"""Neighbours (ARP and NDP entries): what `ip neighbour` does.

Formats: include/uapi/linux/neighbour.h. Errors: `NetlinkError`. Used by the executor of plans.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, AF_UNSPEC
from _struct import Struct

from pycni.kernel.netlink import constants as c
from pycni.kernel.netlink.codec import IP, MAC, U32, MalformedMessage, NetlinkRequest, Schema
from pycni.spec.ip import IPAddress
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netlink.socket import NetlinkSocket

_NEIGHBOUR = Struct("=BxxxiHBB")  # struct ndmsg: family, index, state, flags, type

_ATTRIBUTES = Schema(
    address=(c.NDA_DST, IP),
    mac=(c.NDA_LLADDR, MAC),
    index=(c.NDA_IFINDEX, U32),
)


class Neighbour(Record):
    """Which MAC address an IP address has behind a link. state: NUD_..., flags: NTF_...

    A proxy entry (flags NTF_PROXY) has no MAC: the host answers for the address.
    """

    index: int
    address: IPAddress
    mac: str = ""
    state: int = c.NUD_PERMANENT
    flags: int = 0

    def __str__(self) -> str:
        mac = f" lladdr {self.mac}" if self.mac else ""
        return f"{self.address}{mac} dev {self.index}"


def add(neighbour: Neighbour, *, replace: bool = False) -> NetlinkRequest:
    """Add an entry. EEXIST if the address has one on that link, unless `replace`."""
    flags = c.NLM_F_CREATE | (c.NLM_F_REPLACE if replace else c.NLM_F_EXCL)
    return NetlinkRequest(c.RTM_NEWNEIGH, flags, _encode(neighbour), f"add neighbour {neighbour}")


def delete(neighbour: Neighbour) -> NetlinkRequest:
    """Delete an entry. ENOENT if it is not there."""
    return NetlinkRequest(c.RTM_DELNEIGH, 0, _encode(neighbour), f"delete neighbour {neighbour}")


def dump(netlink: NetlinkSocket, index: int, family: int = AF_UNSPEC) -> list[Neighbour]:
    """The entries of one link, chosen by the kernel; proxy entries are not among them."""
    found: list[Neighbour] = []
    for one in (family,) if family != AF_UNSPEC else (AF_INET, AF_INET6):
        body = _NEIGHBOUR.pack(one, 0, 0, 0, 0) + _ATTRIBUTES.encode({"index": index})
        request = NetlinkRequest(c.RTM_GETNEIGH, 0, body, f"list neighbours of link {index}")
        for message in netlink.dump(request):
            neighbour = parse(message.payload)
            if neighbour is not None and neighbour.index == index:
                found.append(neighbour)
    return found


def parse(payload: bytes) -> Neighbour | None:
    """Read an RTM_NEWNEIGH or RTM_DELNEIGH message; None for families other than IPv4 and IPv6.

    Raises MalformedMessage.
    """
    if len(payload) < _NEIGHBOUR.size:
        raise MalformedMessage(f"neighbour message of {len(payload)} bytes")
    family, index, state, flags, _ = _NEIGHBOUR.unpack_from(payload)
    if family not in (AF_INET, AF_INET6):
        return None
    found = _ATTRIBUTES.decode(payload[_NEIGHBOUR.size :])
    if "address" not in found:
        raise MalformedMessage("neighbour message without an address")
    return Neighbour(index, found["address"], found.get("mac", ""), state, flags)


def _encode(neighbour: Neighbour) -> bytes:
    header = _NEIGHBOUR.pack(
        neighbour.address.family, neighbour.index, neighbour.state, neighbour.flags, 0
    )
    return header + _ATTRIBUTES.encode({"address": neighbour.address, "mac": neighbour.mac or None})
