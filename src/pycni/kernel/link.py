"""Links: what `ip link` does.

Reading takes a socket; everything that changes a link is a request to be sent, alone or in a
batch. A link is named by its index, its name, or a `Link` read before. The kernel takes alternative
names for names, and any program in a namespace can give those: so a link that is read by name must
have that name, and one that was not just made is changed by its index. Formats:
include/uapi/linux/if_link.h, veth.h. Errors: `NetlinkError`, ENODEV for a link that is not there.
Rarer kinds of links are in `link_kinds`. Used by the steps of plans and by plugins.
"""

from __future__ import annotations

import errno
import posix
from _socket import AF_INET6, AF_UNSPEC
from _struct import Struct

from pycni.kernel.netlink import constants as c
from pycni.kernel.netlink.codec import (
    BYTES,
    MAC,
    NESTED,
    S32,
    STRING,
    U8,
    U16,
    U32,
    MalformedMessage,
    NetlinkRequest,
    Schema,
    Structure,
)
from pycni.kernel.netlink.errors import EventsLost, NetlinkError
from pycni.kernel.netlink.socket import BATCH
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, TypedDict, Unpack

    from pycni.kernel.netlink.codec import Message
    from pycni.kernel.netlink.socket import NetlinkSocket

    class Changes(TypedDict, total=False):
        """What `update` can change. master: an index, 0 to leave; netns: a descriptor."""

        up: bool | None
        promiscuous: bool | None
        allmulti: bool | None
        mtu: int | None
        mac: str | None
        txqlen: int | None
        master: int | None
        name: str | None
        alias: str | None
        netns: int | None
        hairpin: bool | None
        isolated: bool | None


# IF_OPER_...: RFC 2863, in the words of the reference's messages.
OPERSTATES = ("unknown", "not-present", "down", "lower-layer-down", "testing", "dormant", "up")
_OPERSTATE_UP = OPERSTATES.index("up")
MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8, "source": 16}
IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
IPVLAN_KINDS = ("ipvlan", "ipvtap")  # which share their master's one mode
_FLAGS = {"up": c.IFF_UP, "promiscuous": c.IFF_PROMISC, "allmulti": c.IFF_ALLMULTI}

IFINFO = Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change

_KIND_DATA = {
    "bridge": Schema(
        vlan_filtering=(c.IFLA_BR_VLAN_FILTERING, U8),
        bridge_id=(c.IFLA_BR_BRIDGE_ID, BYTES),
        mcast_snooping=(c.IFLA_BR_MCAST_SNOOPING, U8),
    ),
    "ipvlan": Schema(mode=(c.IFLA_IPVLAN_MODE, U16)),
    "macvlan": Schema(
        mode=(c.IFLA_MACVLAN_MODE, U32),
        broadcast_queue=(c.IFLA_MACVLAN_BC_QUEUE_LEN, U32),
    ),
    "veth": Schema(peer=(c.VETH_INFO_PEER, BYTES)),
    "vlan": Schema(id=(c.IFLA_VLAN_ID, U16)),
    "vrf": Schema(table=(c.IFLA_VRF_TABLE, U32)),
}
_BRIDGE_PORT = Schema(
    hairpin=(c.IFLA_BRPORT_MODE, U8),
    isolated=(c.IFLA_BRPORT_ISOLATED, U8),
)
# linux/ipv6.h, DEVCONF_...: forwarding, hop limit, MTU, accept_ra, and more that is not read.
_IPV6_SETTINGS = Structure("=4i")
_FAMILIES = Schema(
    ipv6=(
        AF_INET6,
        Schema(
            settings=(c.IFLA_INET6_CONF, _IPV6_SETTINGS),
            address_mode=(c.IFLA_INET6_ADDR_GEN_MODE, U8),
        ),
    ),
)
_ATTRIBUTES = Schema(
    name=(c.IFLA_IFNAME, STRING),
    altname=(c.IFLA_ALT_IFNAME, STRING),
    mac=(c.IFLA_ADDRESS, MAC),
    mtu=(c.IFLA_MTU, U32),
    link=(c.IFLA_LINK, U32),
    master=(c.IFLA_MASTER, U32),
    txqlen=(c.IFLA_TXQLEN, U32),
    operstate=(c.IFLA_OPERSTATE, U8),
    alias=(c.IFLA_IFALIAS, STRING),
    group=(c.IFLA_GROUP, U32),
    netns=(c.IFLA_NET_NS_FD, U32),
    ext_mask=(c.IFLA_EXT_MASK, U32),
    promiscuity=(c.IFLA_PROMISCUITY, U32),
    link_netnsid=(c.IFLA_LINK_NETNSID, S32),
    tx_queues=(c.IFLA_NUM_TX_QUEUES, U32),
    rx_queues=(c.IFLA_NUM_RX_QUEUES, U32),
    allmulti=(c.IFLA_ALLMULTI, U32),
    info=(
        c.IFLA_LINKINFO,
        Schema(
            kind=(c.IFLA_INFO_KIND, STRING),
            data=(c.IFLA_INFO_DATA, NESTED),  # _KIND_DATA of the kind
            port_kind=(c.IFLA_INFO_SLAVE_KIND, STRING),
            port=(c.IFLA_INFO_SLAVE_DATA, NESTED),
        ),
    ),
    families=(c.IFLA_AF_SPEC, NESTED),
)


class Link(Record):
    """A link as the kernel describes it.

    kind is "" for hardware and loopback. master and link are indexes, 0 for none; link is the
    peer of a veth, the parent of a macvlan, ipvlan or vlan. That index counts in another
    namespace if link_netnsid is set: -1 if that one is going. promiscuity and allmulti count the
    requests for it.

    What only some links have is read when asked for, of the kernel's attributes in `details` (of
    its kind), `port` (of a bridge) and `families`, and is None for others.
    """

    index: int
    name: str
    kind: str = ""
    mac: str = ""
    mtu: int = 0
    flags: int = 0
    operstate: str = "unknown"
    master: int = 0
    link: int = 0
    link_netnsid: int | None = None
    alias: str = ""
    promiscuity: int = 0
    allmulti: int = 0
    txqlen: int = 0
    details: bytes = b""
    port: bytes = b""
    families: bytes = b""

    @property
    def is_up(self) -> bool:
        """Whether it was set up; whether it also carries traffic is in operstate."""
        return bool(self.flags & c.IFF_UP)

    @property
    def accept_ra(self) -> int | None:
        """The sysctl; None without IPv6."""
        settings = (_FAMILIES.first("ipv6", self.families) or {}).get("settings")
        return None if settings is None else settings[3]

    @property
    def vlan_filtering(self) -> bool | None:
        return _boolean(self._detail("bridge", "vlan_filtering"))

    @property
    def bridge_id(self) -> str:
        """The address in a bridge's id: its own once that was set or taken over from a port."""
        identity: bytes = (self._detail("bridge", "bridge_id") or b"")[2:]  # behind the priority
        return identity.hex(":") if any(identity) else ""

    @property
    def macvlan_mode(self) -> str | None:
        return _mode(MACVLAN_MODES, self._detail("macvlan", "mode"))

    @property
    def ipvlan_mode(self) -> str | None:
        if self.kind not in IPVLAN_KINDS:
            return None
        return _mode(IPVLAN_MODES, _KIND_DATA["ipvlan"].first("mode", self.details))

    @property
    def vlan_id(self) -> int | None:
        number: int | None = self._detail("vlan", "id")
        return number

    @property
    def vrf_table(self) -> int | None:
        table: int | None = self._detail("vrf", "table")
        return table

    @property
    def hairpin(self) -> bool | None:
        return _boolean(_BRIDGE_PORT.first("hairpin", self.port))

    @property
    def isolated(self) -> bool | None:
        return _boolean(_BRIDGE_PORT.first("isolated", self.port))

    def _detail(self, kind: str, name: str) -> Any:
        return _KIND_DATA[kind].first(name, self.details) if self.kind == kind else None


class NewLink(NetlinkRequest):
    """A request that creates a link."""

    __slots__ = ("name",)

    def __init__(self, kind: str, name: str, body: bytes) -> None:
        flags = c.NLM_F_CREATE | c.NLM_F_EXCL
        super().__init__(c.RTM_NEWLINK, flags, body, f'create {kind} "{name}"')
        self.name = name


# --- reading -------------------------------------------------------------------------------


def get(netlink: NetlinkSocket, target: int | str, *, altnames: bool = False) -> Link:
    """The link with an index or a name. Raises NetlinkError (ENODEV).

    altnames: also one that has the name as an alternative, for names that people give.
    """
    found = _read(netlink.request(_get_request(target)), target)
    if altnames or target in (found.index, found.name):
        return found
    reason = f"it is an alternative name of {found.name}"
    error = NetlinkError(errno.ENODEV, reason, f"get link {label(target)}")
    error.way_out = drop_altname(found, str(target))
    raise error


def find(netlink: NetlinkSocket, target: int | str, *, altnames: bool = False) -> Link | None:
    """Like `get`, but None if there is no such link."""
    try:
        return get(netlink, target, altnames=altnames)
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def drop_altname(holder: Link, name: str) -> str:
    """What to do where a link keeps others from a name by having it as an alternative."""
    return (
        "Linux gives no other interface that name: take it off, with "
        f"ip link property del dev {holder.name} altname {name}"
    )


def dump(netlink: NetlinkSocket, master: int = 0) -> list[Link]:
    """All links, or the ports of one master."""
    body = IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _ATTRIBUTES.encode(
        {"ext_mask": c.RTEXT_FILTER_SKIP_STATS, "master": master or None}
    )
    links = netlink.dump(NetlinkRequest(c.RTM_GETLINK, 0, body, "list links"))
    return [parse(message.payload) for message in links]


def wait_running(netlink: NetlinkSocket, target: int | str, deadline: float) -> None:
    """Wait until a link's operstate is up; `deadline` is in terms of time.monotonic().

    Raises NetlinkError: ETIMEDOUT with the state it was in, ENODEV if it is or goes away.
    """
    described = _description(netlink.request(_get_request(target)), target)
    if _ATTRIBUTES.first("operstate", described[IFINFO.size :]) == _OPERSTATE_UP:
        return
    netlink.subscribe((c.RTNLGRP_LINK,))
    try:
        link = _get_past_events(netlink, index_of(described))
        while link.operstate != "up":
            try:
                events = netlink.events(deadline)
            except EventsLost:
                link = _get_past_events(netlink, link.index)
                continue
            if not events:
                raise NetlinkError(
                    errno.ETIMEDOUT, f"it is {link.operstate}", f"wait for link {label(link)}"
                )
            for event in events:
                if index_of(event.payload) != link.index:
                    continue
                if event.kind == c.RTM_DELLINK:
                    raise NetlinkError(errno.ENODEV, "", f"wait for link {label(link)}")
                link = parse(event.payload)
    finally:
        netlink.unsubscribe()


# --- deleting many ---------------------------------------------------------------------------


def delete_together(netlink: NetlinkSocket, targets: Sequence[Link]) -> None:
    """Delete links; those that have gone already are no error. Raises NetlinkError.

    They are put into a group of their own, which the kernel deletes as one: it waits once for what
    may still use them, some 20 ms, and not once for each.
    """
    if not targets:
        return
    group = int.from_bytes(posix.urandom(4), "big") | 1 << 31  # groups that people use are small
    for start in range(0, len(targets), BATCH):
        try:
            netlink.batch([_into_group(target, group) for target in targets[start : start + BATCH]])
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
    body = IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _ATTRIBUTES.encode({"group": group})
    try:
        netlink.request(NetlinkRequest(c.RTM_DELLINK, 0, body, f"delete {len(targets)} links"))
    except NetlinkError as error:
        if error.errno != errno.ENODEV:  # all have gone
            raise


def _into_group(target: Link, group: int) -> NetlinkRequest:
    body = IFINFO.pack(AF_UNSPEC, 0, target.index, 0, 0) + _ATTRIBUTES.encode({"group": group})
    return NetlinkRequest(c.RTM_SETLINK, 0, body, f"set link {label(target)}: group {group}")


# --- creating ------------------------------------------------------------------------------


def create(netlink: NetlinkSocket, request: NewLink, inside: NetlinkSocket | None = None) -> Link:
    """Create a link and return it as the kernel made it.

    inside: a socket in the namespace the link is created in, if that is not `netlink`'s.
    Raises NetlinkError: EEXIST if the name is taken.
    """
    if inside is not None:
        netlink.request(request)
        try:
            return get(inside, request.name)
        except BaseException:
            inside.request(delete(request.name))
            raise
    try:
        _, answer = netlink.batch((request, _get_request(request.name)))
    except NetlinkError as error:
        if 0 in error.done:
            netlink.request(delete(request.name))
        raise
    return _read(answer, request.name)


def bridge(
    name: str,
    *,
    mac: str | None = None,
    mtu: int = 0,
    vlan_filtering: bool | None = None,
    mcast_snooping: bool | None = None,
) -> NewLink:
    """A bridge. Without `mac` it takes the lowest address of its ports, and changes with them.

    mcast_snooping: whether it notes which ports listen to which group; None: the kernel's choice.
    """
    options = {"vlan_filtering": vlan_filtering, "mcast_snooping": mcast_snooping}
    return new("bridge", name, options, mac=mac, mtu=mtu)


def veth(
    name: str,
    peer: str,
    *,
    peer_netns: int | None = None,
    mac: str | None = None,
    peer_mac: str | None = None,
    mtu: int = 0,
    master: int = 0,
    up: bool = False,
) -> NewLink:
    """A veth pair: `name` here, `peer` in the namespace behind the descriptor `peer_netns`.

    mtu is for both ends; master (an index) and up are for this one. The `Link` of this end
    holds the peer's index in `link`. Each end has one queue each way. It is all that the kernel
    uses in any case, but by default it makes one per processor of the host first.
    """
    queues = {"tx_queues": 1, "rx_queues": 1}
    body = IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _ATTRIBUTES.encode(
        {"name": peer, "mtu": mtu or None, "mac": peer_mac, "netns": peer_netns} | queues
    )
    return new(
        "veth", name, {"peer": body}, mac=mac, mtu=mtu, master=master or None, up=up, **queues
    )


def port_mac() -> str:
    """A random MAC address for a bridge's port, above that of any hardware.

    A bridge takes the lowest of its ports' addresses: with a lower one each container could change
    it, and hosts that had learned the bridge's address would not reach it for a while.
    """
    return f"fe:{posix.urandom(5).hex(':')}"


# --- changing ------------------------------------------------------------------------------


def update(target: Link | int | str, **changes: Unpack[Changes]) -> NetlinkRequest:
    """Change what is given and is not None.

    hairpin and isolated are for a link that is a bridge port already.
    A new name needs a target given by `Link` or index.
    """
    index, named = _target(target)
    if named and changes.get("name") is not None:
        raise ValueError(f"to rename {target!r}, name the link by its index")
    flags = change = 0
    words = []
    attributes: dict[str, object] = {**named}
    port: dict[str, object] = {}
    for name, value in changes.items():
        if value is None:
            continue
        words.append(f"{name} {value}")
        if name in _FLAGS:
            change |= _FLAGS[name]
            flags |= _FLAGS[name] if value else 0
        elif name in ("hairpin", "isolated"):
            port[name] = value
        else:
            attributes[name] = value
    if port:
        attributes["info"] = {"port_kind": "bridge", "port": _BRIDGE_PORT.encode(port)}
    body = IFINFO.pack(AF_UNSPEC, 0, index, flags, change) + _ATTRIBUTES.encode(attributes)
    return NetlinkRequest(c.RTM_NEWLINK, 0, body, f"set link {label(target)}: {', '.join(words)}")


def no_link_local(target: Link | int | str) -> NetlinkRequest:
    """Have the kernel give a link no IPv6 link-local address. EAFNOSUPPORT without IPv6."""
    index, named = _target(target)
    mode = _FAMILIES.encode({"ipv6": {"address_mode": c.IN6_ADDR_GEN_MODE_NONE}})
    body = IFINFO.pack(AF_UNSPEC, 0, index, 0, 0) + _ATTRIBUTES.encode(named | {"families": mode})
    return NetlinkRequest(
        c.RTM_NEWLINK, 0, body, f"set link {label(target)}: no IPv6 link-local address"
    )


def delete(target: Link | int | str) -> NetlinkRequest:
    """Delete a link. ENODEV if it is not there."""
    index, named = _target(target)
    body = IFINFO.pack(AF_UNSPEC, 0, index, 0, 0) + _ATTRIBUTES.encode(named)
    return NetlinkRequest(c.RTM_DELLINK, 0, body, f"delete link {label(target)}")


# --- messages ------------------------------------------------------------------------------


def parse(payload: bytes) -> Link:
    """Read an RTM_NEWLINK or RTM_DELLINK message. Raises MalformedMessage."""
    index, flags = _header(payload)
    found = _ATTRIBUTES.decode(payload[IFINFO.size :])
    info = found.get("info", {})
    state = found.get("operstate", 0)
    return Link(
        index=index,
        name=found.get("name", ""),
        kind=info.get("kind", ""),
        mac=found.get("mac", ""),
        mtu=found.get("mtu", 0),
        flags=flags,
        operstate=OPERSTATES[state] if state < len(OPERSTATES) else "unknown",
        master=found.get("master", 0),
        link=found.get("link", 0),
        link_netnsid=found.get("link_netnsid"),
        alias=found.get("alias", ""),
        promiscuity=found.get("promiscuity", 0),
        allmulti=found.get("allmulti", 0),
        txqlen=found.get("txqlen", 0),
        details=info.get("data", b""),
        port=info.get("port", b"") if info.get("port_kind") == "bridge" else b"",
        families=found.get("families", b""),
    )


def index_of(payload: bytes) -> int:
    """The link index in a link message, without reading the rest."""
    return _header(payload)[0]


def _header(payload: bytes) -> tuple[int, int]:
    if len(payload) < IFINFO.size:
        raise MalformedMessage(f"link message of {len(payload)} bytes")
    _, _, index, flags, _ = IFINFO.unpack_from(payload)
    return index, flags


def new(
    kind: str,
    name: str,
    data: Mapping[str, int | bytes | None] | None,
    *,
    mac: str | None = None,
    mtu: int = 0,
    up: bool = False,
    **more: int | None,
) -> NewLink:
    """A link of a kind that `_KIND_DATA` describes. data: of the kind; more: attributes of any."""
    flags = c.IFF_UP if up else 0
    info = {"kind": kind, "data": None if data is None else _KIND_DATA[kind].encode(data)}
    body = IFINFO.pack(AF_UNSPEC, 0, 0, flags, flags) + _ATTRIBUTES.encode(
        {"name": name, "mac": mac, "mtu": mtu or None, **more, "info": info}
    )
    return NewLink(kind, name, body)


def _get_request(target: int | str) -> NetlinkRequest:
    index, named = _target(target)
    body = IFINFO.pack(AF_UNSPEC, 0, index, 0, 0) + _ATTRIBUTES.encode(
        named | {"ext_mask": c.RTEXT_FILTER_SKIP_STATS}
    )
    return NetlinkRequest(c.RTM_GETLINK, 0, body, f"get link {label(target)}", answered=True)


def _get_past_events(netlink: NetlinkSocket, target: int | str) -> Link:
    """`get` on a socket with notifications, whose overflow can take the answer with it."""
    while True:
        try:
            return get(netlink, target)
        except NetlinkError as error:
            if error.errno != errno.ENOBUFS:
                raise


def _read(answer: list[Message], target: int | str) -> Link:
    return parse(_description(answer, target))


def _description(answer: list[Message], target: int | str) -> bytes:
    if not answer:
        raise MalformedMessage(f"no answer to: get link {label(target)}")
    return answer[0].payload


def _target(target: Link | int | str) -> tuple[int, dict[str, str]]:
    """The index for the header and, for a target given by name, the attribute that names it.

    Raises NetlinkError (ENODEV) for a name that no link can have; the kernel says ERANGE.
    """
    if isinstance(target, int):
        return target, {}
    if isinstance(target, Link):
        return target.index, {}
    size = len(target.encode())
    if size >= c.ALTIFNAMSIZ:
        reason = f"names have at most {c.ALTIFNAMSIZ - 1} bytes"
        raise NetlinkError(errno.ENODEV, reason, f"get link {label(target)}")
    return 0, {"name" if size < c.IFNAMSIZ else "altname": target}


def label(target: Link | int | str) -> str:
    """A link in the words of errors."""
    if isinstance(target, int):
        return str(target)
    return f'"{target if isinstance(target, str) else target.name}"'


def _boolean(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _mode(modes: dict[str, int], value: int | None) -> str | None:
    for name, number in modes.items():
        if number == value:
            return name
    return None
