"""Policy routing rules: what `ip rule` does.

Formats: include/uapi/linux/fib_rules.h. Errors: `NetlinkError`. Used by the executor of plans.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from _struct import Struct

from pycni.kernel.netlink import constants as c
from pycni.kernel.netlink.codec import IP, STRING, U8, U32, MalformedMessage, NetlinkRequest, Schema
from pycni.spec.ip import IPAddress, IPNetwork
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netlink.socket import NetlinkSocket

# struct fib_rule_hdr: family, dst and src prefix lengths, tos, table, reserved, action, flags
_RULE = Struct("=BBBBBxxBI")

_ATTRIBUTES = Schema(
    dst=(c.FRA_DST, IP),
    src=(c.FRA_SRC, IP),
    iif=(c.FRA_IIFNAME, STRING),
    oif=(c.FRA_OIFNAME, STRING),
    priority=(c.FRA_PRIORITY, U32),
    mark=(c.FRA_FWMARK, U32),
    mask=(c.FRA_FWMASK, U32),
    table=(c.FRA_TABLE, U32),
    protocol=(c.FRA_PROTOCOL, U8),
)


class Rule(Record):
    """A rule that sends what it matches to a routing table.

    src, dst: networks or None for all; iif, oif: link names, "" for all; mark and mask: of the
    firewall, None for all; priority: lower goes first, None: the kernel chooses. action is an
    FR_ACT_... number.
    """

    family: int
    table: int = c.RT_TABLE_MAIN
    priority: int | None = None
    src: IPNetwork | None = None
    dst: IPNetwork | None = None
    iif: str = ""
    oif: str = ""
    mark: int | None = None
    mask: int | None = None
    protocol: int = c.RTPROT_UNSPEC
    action: int = c.FR_ACT_TO_TBL

    def __str__(self) -> str:
        parts = [f"from {self.src or 'all'}"]
        if self.dst is not None:
            parts.append(f"to {self.dst}")
        parts += [f"{key} {name}" for key, name in (("iif", self.iif), ("oif", self.oif)) if name]
        if self.mark is not None:
            parts.append(f"fwmark {self.mark:#x}")
        parts.append(f"lookup {self.table}")
        return " ".join(parts)


def add(rule: Rule) -> NetlinkRequest:
    """Add a rule. EEXIST if there is one like it."""
    return _request(c.RTM_NEWRULE, c.NLM_F_CREATE | c.NLM_F_EXCL, "add", rule)


def delete(rule: Rule) -> NetlinkRequest:
    """Delete the first rule that matches what is given. ENOENT if there is none."""
    return _request(c.RTM_DELRULE, 0, "delete", rule)


def dump(netlink: NetlinkSocket, family: int) -> list[Rule]:
    """The rules of a family, in the order they apply."""
    body = _RULE.pack(family, 0, 0, 0, 0, 0, 0)
    answers = netlink.dump(NetlinkRequest(c.RTM_GETRULE, 0, body, "list rules"))
    found = (parse(message.payload) for message in answers)
    return [rule for rule in found if rule is not None]


def parse(payload: bytes) -> Rule | None:
    """Read an RTM_NEWRULE message; None for other families. Raises MalformedMessage."""
    if len(payload) < _RULE.size:
        raise MalformedMessage(f"rule message of {len(payload)} bytes")
    family, dst_prefix, src_prefix, _, table, action, _ = _RULE.unpack_from(payload)
    if family not in (AF_INET, AF_INET6):
        return None
    found = _ATTRIBUTES.decode(payload[_RULE.size :])
    return Rule(
        family=family,
        table=found.get("table", table),
        priority=found.get("priority", 0),
        src=_network(found.get("src"), src_prefix),
        dst=_network(found.get("dst"), dst_prefix),
        iif=found.get("iif", ""),
        oif=found.get("oif", ""),
        mark=found.get("mark"),
        mask=found.get("mask"),
        protocol=found.get("protocol", c.RTPROT_UNSPEC),
        action=action,
    )


def _request(kind: int, flags: int, verb: str, rule: Rule) -> NetlinkRequest:
    src, dst = rule.src, rule.dst
    header = _RULE.pack(
        rule.family,
        dst.prefix if dst else 0,
        src.prefix if src else 0,
        0,
        rule.table if rule.table < 256 else c.RT_TABLE_UNSPEC,
        rule.action,
        0,
    )
    body = header + _ATTRIBUTES.encode(
        {
            "src": src.network.address if src else None,
            "dst": dst.network.address if dst else None,
            "iif": rule.iif or None,
            "oif": rule.oif or None,
            "priority": rule.priority,
            "mark": rule.mark,
            "mask": rule.mask,
            "table": rule.table,
            "protocol": rule.protocol or None,
        }
    )
    return NetlinkRequest(kind, flags, body, f"{verb} rule {rule}")


def _network(address: IPAddress | None, prefix: int) -> IPNetwork | None:
    if address is None:
        return None
    if prefix > address.bits:
        raise MalformedMessage(f"rule with a prefix length of {prefix}")
    return IPNetwork(address, prefix)
