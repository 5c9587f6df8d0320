"""Marks of a link: what identifies it wherever it is, and cannot be written in its namespace.

The administrator of a namespace can choose a name, an altname, an alias, a MAC address and even an
index (of a link that was away), but not what bus hardware is on, nor where the other end of a
virtual link is. Formats: include/uapi/linux/if_link.h. Used by the steps that have to recognize a
link.
"""

from __future__ import annotations

from _socket import AF_UNSPEC

from pycni.kernel.link import IFINFO, index_of
from pycni.kernel.netlink import constants as c
from pycni.kernel.netlink.codec import MAC, S32, STRING, U32, Many, NetlinkRequest, Schema
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netlink.socket import NetlinkSocket

_RTM_NEWLINKPROP = 108
_RTM_DELLINKPROP = 109
_NAMES = Schema(names=(c.IFLA_ALT_IFNAME, Many(STRING)))
_ATTRIBUTES = Schema(
    name=(c.IFLA_IFNAME, STRING),
    mac=(c.IFLA_ADDRESS, MAC),
    mtu=(c.IFLA_MTU, U32),
    alias=(c.IFLA_IFALIAS, STRING),
    altnames=(c.IFLA_PROP_LIST, _NAMES),
    permanent_mac=(c.IFLA_PERM_ADDRESS, MAC),
    bus=(c.IFLA_PARENT_DEV_BUS_NAME, STRING),
    bus_address=(c.IFLA_PARENT_DEV_NAME, STRING),
    link=(c.IFLA_LINK, U32),
    link_netnsid=(c.IFLA_LINK_NETNSID, S32),
    info=(c.IFLA_LINKINFO, Schema(kind=(c.IFLA_INFO_KIND, STRING))),
    ext_mask=(c.IFLA_EXT_MASK, U32),
)


class Marks(Record):
    """A link and its marks.

    Cannot be written in its namespace: kind, "" for hardware and loopback; permanent_mac, which
    hardware has; bus and bus_address, where that is (pci, 0000:3b:00.1), "" before Linux 5.14;
    link and link_netnsid, as of a `Link`: where the other end is.
    """

    index: int
    name: str
    mac: str = ""
    mtu: int = 0
    alias: str = ""
    altnames: tuple[str, ...] = ()
    kind: str = ""
    permanent_mac: str = ""
    bus: str = ""
    bus_address: str = ""
    link: int = 0
    link_netnsid: int | None = None


def dump(netlink: NetlinkSocket) -> list[Marks]:
    """The marks of all links of a namespace. Raises NetlinkError."""
    body = IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _ATTRIBUTES.encode(
        {"ext_mask": c.RTEXT_FILTER_SKIP_STATS}
    )
    messages = netlink.dump(NetlinkRequest(c.RTM_GETLINK, 0, body, "list links"))
    return [parse(message.payload) for message in messages]


def get(netlink: NetlinkSocket, index: int) -> Marks:
    """The marks of a link by its index. Raises NetlinkError (ENODEV)."""
    body = IFINFO.pack(AF_UNSPEC, 0, index, 0, 0) + _ATTRIBUTES.encode(
        {"ext_mask": c.RTEXT_FILTER_SKIP_STATS}
    )
    request = NetlinkRequest(c.RTM_GETLINK, 0, body, f"get link {index}", answered=True)
    return parse(netlink.request(request)[0].payload)


def parse(payload: bytes) -> Marks:
    """Read an RTM_NEWLINK message. Raises MalformedMessage."""
    found = _ATTRIBUTES.decode(payload[IFINFO.size :])
    info = found.pop("info", {})
    altnames = found.pop("altnames", {}).get("names", ())
    return Marks(index_of(payload), altnames=tuple(altnames), kind=info.get("kind", ""), **found)


def add_altname(index: int, name: str) -> NetlinkRequest:
    """Give a link a further name. EEXIST if anything in its namespace has it."""
    flags = c.NLM_F_CREATE | c.NLM_F_EXCL
    return NetlinkRequest(_RTM_NEWLINKPROP, flags, _altname(index, name), f"add altname {name}")


def delete_altname(index: int, name: str) -> NetlinkRequest:
    """Take a further name off a link. ENOENT if it does not have it."""
    return NetlinkRequest(_RTM_DELLINKPROP, 0, _altname(index, name), f"delete altname {name}")


def _altname(index: int, name: str) -> bytes:
    names = _ATTRIBUTES.encode({"altnames": {"names": (name,)}})
    return IFINFO.pack(AF_UNSPEC, 0, index, 0, 0) + names
