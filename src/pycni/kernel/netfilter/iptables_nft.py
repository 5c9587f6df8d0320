"""Rules that accept packets of an address, as `iptables-nft` makes them, by netlink.

`iptables-nft` keeps its rules in nftables' tables `ip` and `ip6`. To append one, the program takes
a process, which reads tables first; by netlink it takes one request, however many there are. The
program reads such a rule as its own if it has the very form: conntrack as the match of x_tables,
not as nftables' own expression. Formats: linux/netfilter/nf_tables.h, nf_tables_compat.h,
xt_conntrack.h. Used by the iptables backend of firewall.
"""

from __future__ import annotations

from _struct import Struct

from pycni.kernel.netfilter import nfnetlink
from pycni.kernel.netlink.codec import BE32, BYTES, STRING, U64, Schema

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from pycni.kernel.netfilter.nfnetlink import Expression, NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.spec.ip import IPAddress

_NETWORK_HEADER = 1  # NFT_PAYLOAD_NETWORK_HEADER
_REGISTER, _VERDICT_REGISTER = 1, 0  # NFT_REG_1, NFT_REG_VERDICT
_ACCEPT = 1  # NF_ACCEPT
# Where the header has them, by the length of an address.
_SOURCE = {4: 12, 16: 8}
_DESTINATION = {4: 16, 16: 24}

_PAYLOAD = Schema(register=(1, BE32), base=(2, BE32), offset=(3, BE32), length=(4, BE32))
_COMPARE = Schema(register=(1, BE32), operation=(2, BE32), data=(3, Schema(value=(1, BYTES))))
_MATCH = Schema(name=(1, STRING), revision=(2, BE32), info=(3, BYTES))
_COUNTER = Schema(bytes=(1, U64), packets=(2, U64))
_VERDICT = Schema(register=(1, BE32), data=(2, Schema(verdict=(2, Schema(code=(1, BE32))))))
_SCHEMAS = {"payload": _PAYLOAD, "cmp": _COMPARE, "match": _MATCH, "immediate": _VERDICT}

# struct xt_conntrack_mtinfo3, of which `--ctstate` sets match_flags and state_mask.
_CONNTRACK = Struct("=146xHxxH16x")
_BY_STATE = 1  # XT_CONNTRACK_STATE
_ESTABLISHED_RELATED = 1 << 1 | 1 << 2


def add(table: str, chain: str, address: IPAddress) -> list[NetlinkRequest]:
    """Append what accepts the packets of an address, and the answers to them."""
    return [
        nfnetlink.add_rule(address.family, table, chain, expressions)
        for expressions in _accepting(address)
    ]


def find(
    netfilter: NetfilterSocket, family: int, table: str, chain: str, addresses: Iterable[IPAddress]
) -> tuple[dict[IPAddress, list[NetlinkRequest]], set[IPAddress]]:
    """What deletes the rules of `add`, as often as they are there, for each address that has some.

    Also returns the addresses that other rules there speak of, which the program may know better.
    """
    wanted = {
        address.packed: (address, [_essence(rule) for rule in _accepting(address)])
        for address in addresses
    }
    only = next(iter(wanted)) if len(wanted) == 1 else b""  # spares decoding the others' rules
    requests: dict[IPAddress, list[NetlinkRequest]] = {}
    others: set[IPAddress] = set()
    for rule, _, code in nfnetlink.expressions(netfilter, family, table, chain, (only,)):
        essence = _essence(code)
        address, forms = wanted.get(_compared(essence), (None, []))
        if address is not None and essence in forms:
            request = nfnetlink.delete_rule(family, table, chain, rule.handle)
            requests.setdefault(address, []).append(request)
        elif address is not None:
            others.add(address)
    return requests, others


def _accepting(address: IPAddress) -> list[list[Expression]]:
    key = address.packed
    answers = _MATCH.encode(
        {
            "name": "conntrack",
            "revision": 3,
            "info": _CONNTRACK.pack(_BY_STATE, _ESTABLISHED_RELATED),
        }
    )
    return [
        [*_compare(_DESTINATION[len(key)], key), ("match", answers), *_ACCEPTED],
        [*_compare(_SOURCE[len(key)], key), *_ACCEPTED],
    ]


def _compare(offset: int, key: bytes) -> list[Expression]:
    place = {"register": _REGISTER, "base": _NETWORK_HEADER, "offset": offset, "length": len(key)}
    equal = {"register": _REGISTER, "operation": 0, "data": {"value": key}}
    return [("payload", _PAYLOAD.encode(place)), ("cmp", _COMPARE.encode(equal))]


def _compared(essence: list[tuple[str, Any]]) -> bytes:
    """The address that a rule compares with, b"" if none."""
    for name, said in essence:
        if name == "cmp":
            value: bytes = said.get("data", {}).get("value", b"")
            return value
    return b""


def _essence(expressions: list[Expression]) -> list[tuple[str, Any]]:
    """What expressions say, whatever flags their attributes have; without the counters' values."""
    return [
        (name, _SCHEMAS[name].decode(data) if name in _SCHEMAS else None)
        for name, data in expressions
    ]


_ACCEPTED: list[Expression] = [
    ("counter", _COUNTER.encode({"bytes": 0, "packets": 0})),
    (
        "immediate",
        _VERDICT.encode({"register": _VERDICT_REGISTER, "data": {"verdict": {"code": _ACCEPT}}}),
    ),
]
