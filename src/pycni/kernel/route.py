"""Routes: what `ip route` does.

The verbs are those of `ip route`: they differ in what happens when the destination has a route
already. Formats: include/uapi/linux/rtnetlink.h. Errors: `NetlinkError`. Used by the executor of
plans and by plugins that look for the default route.
"""

from __future__ import annotations

import errno
from _socket import AF_INET, AF_INET6, AF_UNSPEC
from _struct import Struct

from pycni.kernel.netlink import constants as c
from pycni.kernel.netlink.codec import (
    BYTES,
    IP,
    U32,
    MalformedMessage,
    NetlinkRequest,
    Schema,
    attribute,
    attributes,
)
from pycni.kernel.netlink.errors import NetlinkError
from pycni.spec.ip import IPAddress, IPNetwork
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netlink.codec import Message
    from pycni.kernel.netlink.socket import NetlinkSocket

# struct rtmsg: family, dst and src prefix lengths, tos, table, protocol, scope, type, flags
# What a look-up fails with where there is no route, or one that says so (RTN_UNREACHABLE,
# RTN_PROHIBIT, RTN_BLACKHOLE).
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)

_ROUTE = Struct("=BBBBBBBBI")
_NEXTHOP = Struct("=HBBi")  # struct rtnexthop: length, flags, weight - 1, index
_VIA = Struct("=H")  # struct rtvia: family, then the address

_ATTRIBUTES = Schema(
    dst=(c.RTA_DST, IP),
    oif=(c.RTA_OIF, U32),
    gateway=(c.RTA_GATEWAY, IP),
    via=(c.RTA_VIA, BYTES),
    source=(c.RTA_PREFSRC, IP),
    priority=(c.RTA_PRIORITY, U32),
    table=(c.RTA_TABLE, U32),
    metrics=(c.RTA_METRICS, Schema(mtu=(c.RTAX_MTU, U32), advmss=(c.RTAX_ADVMSS, U32))),
    multipath=(c.RTA_MULTIPATH, BYTES),
)

SYSTEM_TABLES = (c.RT_TABLE_DEFAULT, c.RT_TABLE_MAIN, c.RT_TABLE_LOCAL)


class NextHop(Record):
    """One way of a multipath route; weight counts from 1."""

    index: int
    gateway: IPAddress | None = None
    weight: int = 1
    flags: int = 0


class KernelRoute(Record):
    """A route. dst is a network, 0.0.0.0/0 or ::/0 for the default route.

    index: of the link it leaves by, 0 if the gateway says it or if there are several (`multipath`);
    source: the preferred source address; priority: the metric, 0 for the family's default;
    onlink: take the gateway for reachable although no route says so. mtu and advmss are 0 if not
    set. scope, protocol and type are RT_SCOPE_..., RTPROT_..., RTN_... numbers.
    """

    dst: IPNetwork
    index: int = 0
    gateway: IPAddress | None = None
    source: IPAddress | None = None
    priority: int = 0
    table: int = c.RT_TABLE_MAIN
    scope: int = c.RT_SCOPE_UNIVERSE
    protocol: int = c.RTPROT_BOOT
    type: int = c.RTN_UNICAST
    onlink: bool = False
    mtu: int = 0
    advmss: int = 0
    multipath: tuple[NextHop, ...] = ()

    @property
    def gateways(self) -> list[IPAddress]:
        """The gateway, or those of all ways; [] for a route to neighbours."""
        found = [self.gateway, *(hop.gateway for hop in self.multipath)]
        return [gateway for gateway in found if gateway is not None]

    @property
    def indexes(self) -> list[int]:
        """The links it leaves by, one for each way."""
        return [hop.index for hop in self.multipath] or [self.index]

    def by(self, index: int) -> KernelRoute | None:
        """The route with only those of its ways that leave by a link; None if none does."""
        if not self.multipath:
            return self if self.index == index else None
        return self._with([hop for hop in self.multipath if hop.index == index])

    def without(self, index: int) -> KernelRoute | None:
        """The route without the ways that leave by a link; None if there is no other."""
        if not self.multipath:
            return None if self.index == index else self
        return self._with([hop for hop in self.multipath if hop.index != index])

    def _with(self, hops: list[NextHop]) -> KernelRoute | None:
        if len(hops) == len(self.multipath):
            return self
        if len(hops) > 1:
            return self.replace(multipath=tuple(hops))
        for hop in hops:
            onlink = bool(hop.flags & c.RTNH_F_ONLINK)
            return self.replace(index=hop.index, gateway=hop.gateway, onlink=onlink, multipath=())
        return None

    def __str__(self) -> str:
        parts = [str(self.dst)]
        if self.gateway is not None:
            parts.append(f"via {self.gateway}")
        if self.index:
            parts.append(f"dev {self.index}")
        if self.priority:
            parts.append(f"metric {self.priority}")
        if self.table != c.RT_TABLE_MAIN:
            parts.append(f"table {self.table}")
        return " ".join(parts)


def add(route: KernelRoute) -> NetlinkRequest:
    """Add a route. EEXIST if one has its destination, priority and table."""
    return _new(route, "add", c.NLM_F_CREATE | c.NLM_F_EXCL)


def prepend(route: KernelRoute) -> NetlinkRequest:
    """Add a route before others to the same destination (IPv4), or as one more way (IPv6).

    This is what the reference plugins do. EEXIST if exactly this route is there.
    """
    return _new(route, "prepend", c.NLM_F_CREATE)


def append(route: KernelRoute) -> NetlinkRequest:
    """Add a route behind others to the same destination."""
    return _new(route, "append", c.NLM_F_CREATE | c.NLM_F_APPEND)


def replace(route: KernelRoute) -> NetlinkRequest:
    """Add a route, or put it in the place of the one to the same destination."""
    return _new(route, "replace", c.NLM_F_CREATE | c.NLM_F_REPLACE)


def delete(route: KernelRoute, *, any_scope: bool = True) -> NetlinkRequest:
    """Delete a route. ESRCH if it is not there.

    Fields at their defaults match whatever the route has, and so does any scope and protocol.
    """
    scope = c.RT_SCOPE_NOWHERE if any_scope else route.scope
    return NetlinkRequest(
        c.RTM_DELROUTE,
        0,
        _encode(route, scope, c.RTPROT_UNSPEC, c.RTN_UNSPEC),
        f"delete route {route}",
    )


def take_out(route: KernelRoute, index: int) -> tuple[NetlinkRequest, NetlinkRequest]:
    """Delete the ways of a route that leave by a link; and what puts them back.

    The route must have such. Ways of an IPv6 route are routes of their own to the kernel, IPv4's
    come and go as a whole.
    """
    part, rest = route.by(index), route.without(index)
    if part is not None and (rest is None or not route.dst.is_ipv4):
        return delete(part), prepend(part)
    return replace(rest or route), replace(route)


def dump(
    netlink: NetlinkSocket,
    family: int = AF_UNSPEC,
    *,
    table: int = c.RT_TABLE_MAIN,
    index: int = 0,
    protocol: int = c.RTPROT_UNSPEC,
) -> list[KernelRoute]:
    """The routes of one table (0: of all), chosen by the kernel: by family, link, protocol.

    Multipath routes count for the links of all their ways. [] if there is no such table. Cloned
    routes (the cache) are left out.
    """
    answers = dump_messages(netlink, family, table=table, index=index, protocol=protocol)
    return [route for route, _ in answers]


def dump_messages(
    netlink: NetlinkSocket,
    family: int = AF_UNSPEC,
    *,
    table: int = c.RT_TABLE_MAIN,
    index: int = 0,
    protocol: int = c.RTPROT_UNSPEC,
) -> list[tuple[KernelRoute, bytes]]:
    """The same, each with the message's payload, which RTM_NEWROUTE takes as it is."""
    families = (family,) if family != AF_UNSPEC else (AF_INET, AF_INET6)
    found: list[tuple[KernelRoute, bytes]] = []
    for one in families:
        narrow = table if table < 256 else c.RT_TABLE_UNSPEC
        body = _ROUTE.pack(one, 0, 0, 0, narrow, protocol, 0, 0, 0) + _ATTRIBUTES.encode(
            {"table": table, "oif": index or None}
        )
        try:
            answers = netlink.dump(
                NetlinkRequest(c.RTM_GETROUTE, 0, body, f"list routes of table {table}")
            )
        except NetlinkError as error:
            # The table, or the whole family, is not there.
            if error.errno in (errno.ENOENT, errno.EAFNOSUPPORT):
                continue
            raise
        for message in answers:
            route = parse(message)
            # A kernel without strict checks answers with everything.
            if (
                route is not None
                and table in (0, route.table)
                and (index == 0 or index in route.indexes)
                and protocol in (c.RTPROT_UNSPEC, route.protocol)
            ):
                found.append((route, message.payload))
    return found


def renewed(payload: bytes, *, with_source: bool = True) -> bytes:
    """A route's message as it was listed, without what only the kernel may say of a route.

    with_source: keep its preferred source address; without, the kernel chooses one.
    """
    size = _ROUTE.size
    parts = [payload[: size - 4], U32.encode(U32.decode(payload[size - 4 :]) & c.RTNH_F_ONLINK)]
    for number, value in attributes(payload[size:], range(c.NLA_TYPE_MASK + 1)):
        if number == c.RTA_PREFSRC and not with_source:
            continue
        kept = value if number != c.RTA_MULTIPATH else _renewed_nexthops(value)
        parts.append(attribute(number, kept))
    return b"".join(parts)


def _renewed_nexthops(data: bytes) -> bytes:
    hops = bytearray(data)
    offset = 0
    while offset + _NEXTHOP.size <= len(hops):
        size, flags, weight, index = _NEXTHOP.unpack_from(hops, offset)
        _NEXTHOP.pack_into(hops, offset, size, flags & c.RTNH_F_ONLINK, weight, index)
        offset += max((size + 3) & ~3, _NEXTHOP.size)
    return bytes(hops)


def astray(netlink: NetlinkSocket, index: int, name: str) -> list[str]:
    """Default routes of the main table that leave by a link which has a table of its own.

    What routers advertise comes and goes by itself.
    """
    return [
        f"a default route of the main table leaves by {name}, which has a table of its own: {part}"
        for route in dump(netlink, index=index)
        if route.dst.is_default and route.protocol != c.RTPROT_RA
        if (part := route.by(index)) is not None
    ]


def default_device(netlink: NetlinkSocket) -> int:
    """The index of the link that the default route leaves by, IPv4's before IPv6's; 0 for none.

    Of several default routes the preferred one counts, of a multipath route its first way.
    """
    for family in (AF_INET, AF_INET6):
        found = [
            route
            for route in dump(netlink, family)
            if route.dst.is_default and route.type == c.RTN_UNICAST
        ]
        if found:
            best = min(found, key=lambda route: route.priority)
            return best.index or best.multipath[0].index
    return 0


def device_towards(netlink: NetlinkSocket, address: IPAddress) -> int:
    """The index of the link that packets to an address leave by, 0 if there is no way to it."""
    header = _ROUTE.pack(address.family, address.bits, 0, 0, 0, 0, 0, 0, 0)
    body = header + _ATTRIBUTES.encode({"dst": address})
    request = NetlinkRequest(c.RTM_GETROUTE, 0, body, f"find a way to {address}")
    try:
        answers = netlink.request(request)
    except NetlinkError as error:
        if error.errno in _NO_WAY:
            return 0
        raise
    for message in answers:
        found: int = _ATTRIBUTES.decode(message.payload[_ROUTE.size :]).get("oif", 0)
        return found
    return 0


def kind_towards(netlink: NetlinkSocket, address: IPAddress) -> int:
    """What becomes of packets to an address: RTN_LOCAL, RTN_UNICAST (sent on) or another of these.

    RTN_UNSPEC if there is no way to it.
    """
    header = _ROUTE.pack(address.family, address.bits, 0, 0, 0, 0, 0, 0, 0)
    body = header + _ATTRIBUTES.encode({"dst": address})
    try:
        answers = netlink.request(
            NetlinkRequest(c.RTM_GETROUTE, 0, body, f"find a way to {address}")
        )
    except NetlinkError:
        return c.RTN_UNSPEC
    kinds: list[int] = [_ROUTE.unpack_from(message.payload)[7] for message in answers]
    return kinds[0] if kinds else c.RTN_UNSPEC


def parse(message: Message) -> KernelRoute | None:
    """Read an RTM_NEWROUTE or RTM_DELROUTE message; None for cloned routes and other families.

    Raises MalformedMessage.
    """
    payload = message.payload
    if len(payload) < _ROUTE.size:
        raise MalformedMessage(f"route message of {len(payload)} bytes")
    family, prefix, _, _, table, protocol, scope, kind, flags = _ROUTE.unpack_from(payload)
    if family not in (AF_INET, AF_INET6) or flags & c.RTM_F_CLONED:
        return None
    found = _ATTRIBUTES.decode(payload[_ROUTE.size :])
    dst = found.get("dst") or IPAddress.from_int(0, family)
    if dst.family != family or prefix > dst.bits:
        raise MalformedMessage(f"route message with a destination not of family {family}")
    metrics = found.get("metrics", {})
    return KernelRoute(
        dst=IPNetwork(dst, prefix),
        index=found.get("oif", 0),
        gateway=_gateway(found),
        source=found.get("source"),
        priority=found.get("priority", 0),
        table=found.get("table", table),
        scope=scope,
        protocol=protocol,
        type=kind,
        onlink=bool(flags & c.RTNH_F_ONLINK),
        mtu=metrics.get("mtu", 0),
        advmss=metrics.get("advmss", 0),
        multipath=_nexthops(found.get("multipath", b"")),
    )


def _new(route: KernelRoute, verb: str, flags: int) -> NetlinkRequest:
    body = _encode(route, route.scope, route.protocol, route.type)
    return NetlinkRequest(c.RTM_NEWROUTE, flags, body, f"{verb} route {route}")


def _encode(route: KernelRoute, scope: int, protocol: int, kind: int) -> bytes:
    dst = route.dst
    header = _ROUTE.pack(
        dst.family,
        dst.prefix,
        0,
        0,
        route.table if route.table < 256 else c.RT_TABLE_UNSPEC,
        protocol,
        scope,
        kind,
        c.RTNH_F_ONLINK if route.onlink else 0,
    )
    gateway = route.gateway
    values: dict[str, object] = {"dst": dst.network.address if dst.prefix else None}
    if gateway is not None and gateway.family != dst.family:
        values["via"] = _VIA.pack(gateway.family) + gateway.packed
    else:
        values["gateway"] = gateway
    values["oif"] = route.index or None
    values["source"] = route.source
    values["priority"] = route.priority or None
    values["table"] = route.table
    if route.mtu or route.advmss:
        values["metrics"] = {"mtu": route.mtu or None, "advmss": route.advmss or None}
    if route.multipath:
        values["multipath"] = b"".join(_encode_nexthop(hop) for hop in route.multipath)
    return header + _ATTRIBUTES.encode(values)


def _encode_nexthop(hop: NextHop) -> bytes:
    gateway = _ATTRIBUTES.encode({"gateway": hop.gateway})
    size = _NEXTHOP.size + len(gateway)
    flags = hop.flags & c.RTNH_F_ONLINK  # that a link is down is for the kernel to say
    return _NEXTHOP.pack(size, flags, hop.weight - 1, hop.index) + gateway


def _nexthops(data: bytes) -> tuple[NextHop, ...]:
    hops = []
    offset = 0
    while offset < len(data):
        if len(data) - offset < _NEXTHOP.size:
            raise MalformedMessage(f"{len(data) - offset} bytes where a next hop should be")
        size, flags, weight, index = _NEXTHOP.unpack_from(data, offset)
        if size < _NEXTHOP.size or offset + size > len(data):
            raise MalformedMessage(f"next hop of {size} bytes in {len(data) - offset}")
        found = _ATTRIBUTES.decode(data[offset + _NEXTHOP.size : offset + size])
        hops.append(NextHop(index, _gateway(found), weight + 1, flags))
        offset += (size + 3) & ~3
    return tuple(hops)


def _gateway(found: dict[str, object]) -> IPAddress | None:
    gateway = found.get("gateway")
    if isinstance(gateway, IPAddress):
        return gateway
    via = found.get("via")
    return IP.decode(via[_VIA.size :]) if isinstance(via, bytes) else None
