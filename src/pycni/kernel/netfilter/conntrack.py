"""Connection tracking: find flows, and forget those that lead elsewhere than they should.

The kernel keeps a flow on the way that its first packet took, whatever the rules say by now. What
is forgotten here is judged again with its next packet. Used by the steps of port mappings, of
masquerading and `address_flows`, which know the right ways.

What it costs, with 262,144 buckets in the kernel's table: a kernel from 6.8 on picks the flows to
forget itself, which takes it 0.2 ms and 0.4 us for each entry of the machine. A list of flows takes
10 ms and as much for each entry, since the kernel locks each bucket. Lists are for what it cannot
pick: by an IPv6 address, which it compares the wrong way round (ctnetlink_filter_match_tuple), by
a port of SCTP, which it does not compare, and by anything but equality. Where nothing is tracked,
nothing is listed.

Format: include/uapi/linux/netfilter/nfnetlink_conntrack.h. Errors: NetlinkError.
"""

from __future__ import annotations

import errno
from _socket import AF_INET, AF_INET6, AF_UNSPEC, IPPROTO_TCP, IPPROTO_UDP
from _struct import Struct

from pycni.kernel.netlink.codec import (
    BE16,
    BE32,
    BYTES,
    IP,
    U8,
    U32,
    NetlinkRequest,
    Schema,
    attribute,
)
from pycni.kernel.netlink.constants import NLA_F_NESTED
from pycni.kernel.netlink.errors import NetlinkError
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import Any

    from pycni.kernel.netlink.socket import NetlinkSocket
    from pycni.spec.ip import IPAddress

# enum ip_conntrack_status: the flow has been answered; its packets get another source, or target.
ANSWERED = 1 << 1
SOURCE_TRANSLATED = 1 << 4
TARGET_TRANSLATED = 1 << 5

_SUBSYSTEM = 1  # NFNL_SUBSYS_CTNETLINK
_GET = _SUBSYSTEM << 8 | 1
_DELETE = _SUBSYSTEM << 8 | 2
_GET_STATS = _SUBSYSTEM << 8 | 5

_GENERAL = Struct(">BBH")  # struct nfgenmsg: family, version, resource
_VERSION = 1  # with version 0 the kernel would not look at the family

# CTA_FILTER_F_CTA_...: which parts of a tuple count.
_SOURCE = 1 << 0
_DESTINATION = 1 << 1
_PROTOCOL = 1 << 3
_DESTINATION_PORT = 1 << 5

_WITH_PORTS = (IPPROTO_TCP, IPPROTO_UDP)  # protocols whose ports the kernel compares

_KEYS = ("target", "source")

_MANY = 50  # queries: with more, a list that is decoded takes less than a pass for each
_NEEDLES = 8  # queries: with more, decoding takes less than looking for the bytes of each
_FEW = 2000  # entries: to list all takes less than to go through the table for each family

_TUPLE = Schema(
    ip=(
        1,
        Schema(source4=(1, IP), destination4=(2, IP), source6=(3, IP), destination6=(4, IP)),
    ),
    ports=(2, Schema(protocol=(1, U8), source=(2, BE16), destination=(3, BE16))),
)
_FILTER = Schema(original=(1, U32), reply=(2, U32))
_QUERY = Schema(
    original=(1, _TUPLE),
    reply=(2, _TUPLE),
    status=(3, BE32),
    status_mask=(26, BE32),
    filter=(25, _FILTER),
)
_ENTRY = Schema(
    original=(1, BYTES), reply=(2, _TUPLE), status=(3, BE32), id=(12, BYTES), zone=(18, BYTES)
)
_STATS = Schema(entries=(1, BE32))

_PORT_ATTRIBUTE = b"\x06\x00\x03\x00"  # the header of CTA_PROTO_DST_PORT


class Flow(Record):
    """A flow that the kernel tracks. Ports are 0 for protocols without.

    source, destination, port: what its first packet had; target, target_port: where that was sent
    instead, or the same; status: bits such as ANSWERED; entry: what names the flow to the kernel.
    """

    family: int
    protocol: int
    source: IPAddress
    destination: IPAddress
    port: int
    target: IPAddress
    target_port: int
    status: int
    entry: bytes


class Query(Record):
    """Flows by what they have in common; 0 and None stand for any. See `Flow`.

    status: bits that must all be set.
    """

    family: int
    protocol: int = 0
    port: int = 0
    source: IPAddress | None = None
    destination: IPAddress | None = None
    target: IPAddress | None = None
    status: int = 0

    def matches(self, flow: Flow) -> bool:
        return (
            self.family == flow.family
            and self.protocol in (0, flow.protocol)
            and self.port in (0, flow.port)
            and self.source in (None, flow.source)
            and self.destination in (None, flow.destination)
            and self.target in (None, flow.target)
            and flow.status & self.status == self.status
        )

    @property
    def is_exact(self) -> bool:
        """Whether the kernel compares all of it, and rightly."""
        addresses = (self.source, self.destination, self.target)
        if self.family == AF_INET6 and addresses != (None, None, None):
            return False
        return not self.port or self.protocol in _WITH_PORTS

    def __str__(self) -> str:
        words = ["IPv4" if self.family == AF_INET else "IPv6", "flows"]
        for name in ("protocol", "source", "destination", "port", "target"):
            value = getattr(self, name)
            words += [name, str(value)] if value else []
        return " ".join(words)

    def encode(self) -> bytes:
        """What has the kernel look for it."""
        suffix = "4" if self.family == AF_INET else "6"
        original, reply = 0, 0
        ip: dict[str, object] = {}
        ports: dict[str, object] = {}
        # Without a tuple, kernels before 6.8 would delete all flows: with half of one they refuse.
        wanted: dict[str, dict[str, object]] = {"original": {}}
        if self.source is not None:
            ip[f"source{suffix}"] = self.source
            original |= _SOURCE
        if self.destination is not None:
            ip[f"destination{suffix}"] = self.destination
            original |= _DESTINATION
        if self.protocol:
            ports["protocol"] = self.protocol
            original |= _PROTOCOL
        if self.protocol and self.port:
            ports["destination"] = self.port
            original |= _DESTINATION_PORT
        if ip:
            wanted["original"]["ip"] = ip
        if ports:
            wanted["original"]["ports"] = ports
        if self.target is not None:
            wanted["reply"] = {"ip": {f"source{suffix}": self.target}}
            reply |= _SOURCE
        query: dict[str, Any] = {**wanted}
        if self.status:
            query["status"] = query["status_mask"] = self.status
        query["filter"] = {"original": original, "reply": reply}
        return _QUERY.encode(query)

    @property
    def needles(self) -> tuple[bytes, ...]:
        """Bytes that are in the kernel's description of each such flow."""
        found = [item.packed for item in (self.source, self.destination, self.target) if item]
        if self.port:
            found.append(_PORT_ATTRIBUTE + self.port.to_bytes(2, "big"))
        return tuple(found)


def forget(netfilter: NetlinkSocket, queries: Iterable[Query]) -> None:
    """Forget all flows that one of the queries is about.

    Where no flow is tracked, the queries are not even asked for.
    """
    if is_empty(netfilter):
        return
    queries = list(queries)
    left = [
        query
        for query in queries
        if len(queries) > _MANY or not query.is_exact or not _delete(netfilter, query)
    ]
    if left:
        discard(netfilter, find(netfilter, left))


def find(netfilter: NetlinkSocket, queries: Collection[Query]) -> list[Flow]:
    """The flows that one of the queries is about."""
    tracked = _count(netfilter) if queries else 0
    if tracked == 0:
        return []
    families = {query.family for query in queries}
    if len(families) > 1 and tracked <= _FEW:
        return _list(netfilter, AF_UNSPEC, b"", queries)
    found = []
    for family in sorted(families):
        narrowed = [query for query in queries if query.family == family]
        found += _list(netfilter, family, _common(narrowed).encode(), narrowed)
    return found


def discard(netfilter: NetlinkSocket, flows: Iterable[Flow]) -> None:
    """Forget these flows, as far as they are still there."""
    for flow in flows:
        body = _GENERAL.pack(flow.family, _VERSION, 0) + flow.entry
        what = f"forget the flow from {flow.source} to {flow.destination} port {flow.port}"
        try:
            netfilter.request(NetlinkRequest(_DELETE, 0, body, what))
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise


def is_empty(netfilter: NetlinkSocket) -> bool:
    """Whether no flow is tracked in this network namespace, or the kernel tracks none at all."""
    return _count(netfilter) == 0


def _count(netfilter: NetlinkSocket) -> int:
    """How many flows are tracked in this network namespace; 0 where the kernel tracks none."""
    body = _GENERAL.pack(AF_UNSPEC, 0, 0)
    request = NetlinkRequest(_GET_STATS, 0, body, "read how many flows are tracked", answered=True)
    try:
        for message in netfilter.request(request):
            count: int = _STATS.decode(message.payload[_GENERAL.size :]).get("entries", 0)
            return count
    except NetlinkError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # no such subsystem
            raise
    return 0


def _delete(netfilter: NetlinkSocket, query: Query) -> bool:
    """Have the kernel find and forget flows. False if it cannot find them by itself."""
    body = _GENERAL.pack(query.family, _VERSION, 0) + query.encode()
    try:
        netfilter.request(NetlinkRequest(_DELETE, 0, body, f"forget {query}"))
    except NetlinkError as error:
        # Kernels before 6.8 want the whole tuple of one flow.
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        if error.errno != errno.ENOENT:
            raise
    return True


def _common(queries: Collection[Query]) -> Query:
    """What the kernel can rightly narrow a list by, of queries for one family."""
    (family,) = {query.family for query in queries}
    names = ["protocol", "status"]
    if family == AF_INET:
        names += ["source", "destination", "target"]
    if all(query.protocol in _WITH_PORTS for query in queries):
        names.append("port")
    wanted: dict[str, Any] = {}
    for name in names:
        values = {getattr(query, name) for query in queries}
        if len(values) == 1:
            wanted[name] = values.pop()
    return Query(family, **wanted)


def _list(
    netfilter: NetlinkSocket, family: int, narrowed: bytes, queries: Collection[Query]
) -> list[Flow]:
    request = NetlinkRequest(
        _GET, 0, _GENERAL.pack(family, _VERSION, 0) + narrowed, "list tracked flows"
    )
    needles = {query.needles for query in queries}
    is_few = len(needles) <= _NEEDLES
    # Queries for thousands of containers are found by the address that each of them has.
    indexes: dict[str, dict[IPAddress, list[Query]]] = {name: {} for name in _KEYS}
    unindexed: list[Query] = []
    for query in queries:
        name = next((name for name in _KEYS if getattr(query, name) is not None), "")
        place = indexes[name].setdefault(getattr(query, name), []) if name else unindexed
        place.append(query)
    found = []
    for message in netfilter.dump(request):
        payload = message.payload
        if is_few and not any(all(needle in payload for needle in each) for each in needles):
            continue  # most are not worth decoding
        flow = parse(payload)
        if flow is None:
            continue
        candidates = [*unindexed]
        for name, index in indexes.items():
            candidates += index.get(getattr(flow, name), ())
        if any(query.matches(flow) for query in candidates):
            found.append(flow)
    return found


def parse(payload: bytes) -> Flow | None:
    """A flow of the kernel's description, None for what is none of IPv4 or IPv6.

    Raises MalformedMessage.
    """
    family = payload[0] if payload else AF_UNSPEC
    if family not in (AF_INET, AF_INET6):
        return None
    entry = _ENTRY.decode(payload[_GENERAL.size :])
    original, reply = _TUPLE.decode(entry.get("original", b"")), entry.get("reply", {})
    suffix = "4" if family == AF_INET else "6"
    sent, answered = original.get("ip", {}), reply.get("ip", {})
    ports = original.get("ports", {})
    try:
        return Flow(
            family=family,
            protocol=ports.get("protocol", 0),
            source=sent[f"source{suffix}"],
            destination=sent[f"destination{suffix}"],
            port=ports.get("destination", 0),
            target=answered[f"source{suffix}"],
            target_port=reply.get("ports", {}).get("source", 0),
            status=entry.get("status", 0),
            entry=attribute(1 | NLA_F_NESTED, entry["original"])
            + b"".join(
                attribute(number, entry[name])
                for number, name in ((12, "id"), (18, "zone"))
                if name in entry
            ),
        )
    except KeyError:
        return None
