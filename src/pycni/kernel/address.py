"""Addresses of links: what `ip address` does, and the wait for duplicate address detection.

Formats: include/uapi/linux/if_addr.h. Errors: `NetlinkError`. Used by the executor of plans and
by plugins that look at the host.
"""

from __future__ import annotations

import errno
from _socket import AF_INET, AF_INET6, AF_UNSPEC
from _struct import Struct

from pycni.kernel import link
from pycni.kernel.netlink import constants as c
from pycni.kernel.netlink.codec import (
    IP,
    S32,
    STRING,
    U32,
    MalformedMessage,
    NetlinkRequest,
    Schema,
)
from pycni.kernel.netlink.errors import EventsLost, NetlinkError
from pycni.spec.ip import IPAddress, IPNetwork
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netlink.socket import NetlinkSocket

_IFADDR = Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index

_ATTRIBUTES = Schema(
    address=(c.IFA_ADDRESS, IP),
    local=(c.IFA_LOCAL, IP),
    label=(c.IFA_LABEL, STRING),
    broadcast=(c.IFA_BROADCAST, IP),
    flags=(c.IFA_FLAGS, U32),
    netns_id=(c.IFA_TARGET_NETNSID, S32),
)


class InterfaceAddress(Record):
    """An address on the link with index `index`.

    peer: the other end of a point-to-point address, else None; scope: RT_SCOPE_...;
    flags: IFA_F_...
    """

    index: int
    network: IPNetwork
    peer: IPAddress | None = None
    broadcast: IPAddress | None = None
    scope: int = c.RT_SCOPE_UNIVERSE
    flags: int = 0
    label: str = ""


def add(
    index: int,
    network: IPNetwork,
    *,
    scope: int = c.RT_SCOPE_UNIVERSE,
    no_dad: bool = False,
    no_prefix_route: bool = False,
    replace: bool = False,
) -> NetlinkRequest:
    """Put an address on a link. EEXIST if it is there, unless `replace`.

    An IPv4 address with a prefix under 31 gets its broadcast address. no_dad: an IPv6 address
    is usable at once, without duplicate address detection. no_prefix_route: the kernel makes no
    route to its network.
    """
    values: dict[str, object] = {"local": network.address, "address": network.address}
    if network.is_ipv4 and network.prefix < 31:
        values["broadcast"] = network.broadcast
    special = (c.IFA_F_NODAD if no_dad and not network.is_ipv4 else 0) | (
        c.IFA_F_NOPREFIXROUTE if no_prefix_route else 0
    )
    if special:
        values["flags"] = special
    body = _IFADDR.pack(network.family, network.prefix, 0, scope, index) + _ATTRIBUTES.encode(
        values
    )
    flags = c.NLM_F_CREATE | (c.NLM_F_REPLACE if replace else c.NLM_F_EXCL)
    return NetlinkRequest(c.RTM_NEWADDR, flags, body, f"add address {network} to link {index}")


def delete(index: int, network: IPNetwork, peer: IPAddress | None = None) -> NetlinkRequest:
    """Take an address off a link. EADDRNOTAVAIL if it is not there, ENODEV without the link."""
    body = _IFADDR.pack(network.family, network.prefix, 0, 0, index) + _ATTRIBUTES.encode(
        # Without IFA_ADDRESS the kernel takes any prefix length.
        {"local": network.address, "address": peer or network.address}
    )
    return NetlinkRequest(c.RTM_DELADDR, 0, body, f"delete address {network} from link {index}")


def dump(
    netlink: NetlinkSocket, index: int = 0, family: int = AF_UNSPEC, netns_id: int | None = None
) -> list[InterfaceAddress]:
    """The addresses of one link, or of all; of one family, or both, chosen by the kernel.

    netns_id: of another namespace, as the socket's one calls it. ENODEV if there is no link with
    that index, EINVAL if there is no such namespace.
    """
    return [address for address, _ in dump_messages(netlink, index, family, netns_id)]


def dump_messages(
    netlink: NetlinkSocket, index: int = 0, family: int = AF_UNSPEC, netns_id: int | None = None
) -> list[tuple[InterfaceAddress, bytes]]:
    """The same, each with the message's payload, which RTM_NEWADDR takes as it is."""
    where = f"link {index}" if index else "all links"
    body = _IFADDR.pack(family, 0, 0, 0, index)
    if netns_id is not None:
        body += _ATTRIBUTES.encode({"netns_id": netns_id})
    request = NetlinkRequest(c.RTM_GETADDR, 0, body, f"list addresses of {where}")
    answers = [(parse(one.payload, netns_id), one.payload) for one in netlink.dump(request)]
    # Other families answer to AF_UNSPEC too, and a kernel without strict checks to everything.
    return [
        (address, payload)
        for address, payload in answers
        if address is not None
        and index in (0, address.index)
        and family in (AF_UNSPEC, address.network.family)
    ]


def checked(payload: bytes) -> bytes:
    """An address's message with duplicate address detection behind it (IPv6)."""
    found = parse(payload)
    if found is None or found.network.is_ipv4:
        return payload
    flags = found.flags & ~c.IFA_F_TENTATIVE | c.IFA_F_NODAD
    # The last of two attributes counts.
    return payload + _ATTRIBUTES.encode({"flags": flags})


def wait_settled(netlink: NetlinkSocket, index: int, deadline: float) -> None:
    """Wait until no IPv6 address of a link is tentative; `deadline` as for time.monotonic().

    Raises NetlinkError: EADDRINUSE if another host has one of them, ETIMEDOUT. A link that is
    not running at the deadline is no error: without a carrier, detection cannot go on.
    """
    netlink.subscribe((c.RTNLGRP_IPV6_IFADDR,))
    try:
        while True:
            tentative = _tentative(netlink, index)
            if not tentative:
                return
            if not _settle(netlink, index, tentative, deadline):
                continue
            if not tentative:
                return
            if link.get(netlink, index).operstate != "up":
                return
            waiting = ", ".join(sorted(str(address) for address in tentative))
            raise NetlinkError(
                errno.ETIMEDOUT, f"still tentative: {waiting}", f"settle addresses of link {index}"
            )
    finally:
        netlink.unsubscribe()


def parse(payload: bytes, netns_id: int | None = None) -> InterfaceAddress | None:
    """Read an RTM_NEWADDR or RTM_DELADDR message; None for families other than IPv4 and IPv6.

    netns_id: None, too, for what is in another namespace than this one.

    Raises MalformedMessage.
    """
    if len(payload) < _IFADDR.size:
        raise MalformedMessage(f"address message of {len(payload)} bytes")
    family, prefix, flags, scope, index = _IFADDR.unpack_from(payload)
    if family not in (AF_INET, AF_INET6):
        return None
    found = _ATTRIBUTES.decode(payload[_IFADDR.size :])
    if found.get("netns_id") != netns_id:
        return None
    address = found.get("local", found.get("address"))
    if address is None or address.family != family or prefix > address.bits:
        raise MalformedMessage(f"address message without an address of family {family}")
    peer = found.get("address")
    return InterfaceAddress(
        index=index,
        network=IPNetwork(address, prefix),
        peer=None if peer == address else peer,
        broadcast=found.get("broadcast"),
        scope=scope,
        flags=found.get("flags", flags),
        label=found.get("label", ""),
    )


def _tentative(netlink: NetlinkSocket, index: int) -> set[IPAddress]:
    """The addresses of a link whose detection is not finished."""
    waiting: set[IPAddress] = set()
    for address in dump(netlink, index, AF_INET6):
        _note(waiting, address)
    return waiting


def _settle(netlink: NetlinkSocket, index: int, tentative: set[IPAddress], deadline: float) -> bool:
    """Take from `tentative` what settles, until it is empty or time is up; False: read it again."""
    while tentative:
        try:
            events = netlink.events(deadline)
        except EventsLost:
            return False
        if not events:
            return True
        for event in events:
            address = parse(event.payload)
            if address is None or address.index != index:
                continue
            if event.kind == c.RTM_DELADDR and not address.flags & c.IFA_F_DADFAILED:
                tentative.discard(address.network.address)
            else:
                _note(tentative, address)
    return True


def _note(tentative: set[IPAddress], address: InterfaceAddress) -> None:
    if address.flags & c.IFA_F_DADFAILED:
        raise NetlinkError(
            errno.EADDRINUSE,
            f"another host has {address.network.address}",
            f"settle addresses of link {address.index}",
        )
    # An optimistic address can be used while it is being checked.
    if address.flags & c.IFA_F_TENTATIVE and not address.flags & c.IFA_F_OPTIMISTIC:
        tentative.add(address.network.address)
    else:
        tentative.discard(address.network.address)
