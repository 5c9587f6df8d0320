"""Sets of addresses that rules of iptables look into (`-m set`), over netlink.

They are the kernel's own, beside nftables: what the program `ipset` lists. Whatever a set holds, a
look-up and a change cost the same. Formats: include/uapi/linux/netfilter/ipset/ip_set.h,
nf_tables_compat.h. Errors: `NetlinkError`. Used by the firewall's rules in iptables.
"""

from __future__ import annotations

from pycni.kernel.netfilter.nfnetlink import ABSENT, GENERAL
from pycni.kernel.netlink.codec import BE32, BYTES, STRING, U8, NetlinkRequest, Schema
from pycni.kernel.netlink.constants import NLA_F_NET_BYTEORDER, NLM_F_CREATE
from pycni.kernel.netlink.errors import NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket

_SUBSYSTEM = 6  # NFNL_SUBSYS_IPSET
_CREATE = _SUBSYSTEM << 8 | 2
_ADD = _SUBSYSTEM << 8 | 9
_DELETE = _SUBSYSTEM << 8 | 10
_TEST = _SUBSYSTEM << 8 | 11
_TYPE = _SUBSYSTEM << 8 | 13
_COMPAT_GET = 11 << 8  # NFNL_SUBSYS_NFT_COMPAT, NFNL_MSG_COMPAT_GET

_PROTOCOL = 6  # IPSET_PROTOCOL_MIN: all that is used here is in it
_KIND = "hash:ip"
# IPSET_ERR_FIND_TYPE: no such kind of set; IPSET_ERR_EXIST: the element is not there.
_UNKNOWN = (*ABSENT, 4098, 4103)

# By the length of an address. The flag says that a value is in network byte order, as it must be.
_ADDRESS = {
    4: Schema(value=(1 | NLA_F_NET_BYTEORDER, BYTES)),
    16: Schema(value=(2 | NLA_F_NET_BYTEORDER, BYTES)),
}
_ELEMENT = {size: Schema(address=(1, address)) for size, address in _ADDRESS.items()}
_SET = Schema(
    protocol=(1, U8), name=(2, STRING), kind=(3, STRING), revision=(4, U8), family=(5, U8),
    data=(7, Schema()),
)  # fmt: skip
_SET_AND_ELEMENT = {
    size: Schema(protocol=(1, U8), name=(2, STRING), data=(7, element))
    for size, element in _ELEMENT.items()
}
_MATCH = Schema(name=(1, STRING), revision=(2, BE32), type=(3, BE32))


def usable(netfilter: NetfilterSocket, family: int) -> bool:
    """Whether the kernel has sets of addresses of a family, and rules can look into them."""
    kind = _SET.encode({"protocol": _PROTOCOL, "kind": _KIND, "family": family})
    match = _MATCH.encode({"name": "set", "revision": 1, "type": 0})
    return all(
        _is_known(netfilter, _request(command, family, body, f"look for {what}", answered=True))
        for command, body, what in (
            (_TYPE, kind, f"sets of type {_KIND}"),
            (_COMPAT_GET, match, "the match of sets"),
        )
    )


def create(netfilter: NetfilterSocket, name: str, family: int) -> None:
    """Make a set of addresses, unless it is there. Raises NetlinkError, EEXIST for another kind."""
    asked = {"protocol": _PROTOCOL, "name": name, "kind": _KIND, "revision": 0, "family": family}
    body = _SET.encode({**asked, "data": {}})
    netfilter.request(_request(_CREATE, family, body, f"create set {name}", NLM_F_CREATE))


def contains(netfilter: NetfilterSocket, name: str, key: bytes) -> bool:
    """Whether a set is there and has an address."""
    return _is_known(netfilter, _element_request(_TEST, name, key, "look for {} in set {}"))


def add(netfilter: NetfilterSocket, name: str, key: bytes) -> None:
    """Add an address, unless it is there."""
    netfilter.request(_element_request(_ADD, name, key, "add {} to set {}"))


def delete(netfilter: NetfilterSocket, name: str, key: bytes) -> None:
    """Delete an address, if it is there."""
    _is_known(netfilter, _element_request(_DELETE, name, key, "delete {} from set {}"))


def _is_known(netfilter: NetfilterSocket, request: NetlinkRequest) -> bool:
    """Whether there is what a request speaks of."""
    try:
        netfilter.request(request)
    except NetlinkError as error:
        if error.errno in _UNKNOWN:
            return False
        raise
    return True


def _element_request(command: int, name: str, key: bytes, what: str) -> NetlinkRequest:
    element = {"address": {"value": key}}
    body = _SET_AND_ELEMENT[len(key)].encode({"protocol": _PROTOCOL, "name": name, "data": element})
    return _request(command, 0, body, what.format(key.hex(), name))


def _request(
    command: int, family: int, body: bytes, what: str, flags: int = 0, *, answered: bool = False
) -> NetlinkRequest:
    return NetlinkRequest(
        command, flags, GENERAL.pack(family, 0, 0) + body, what, answered=answered
    )
