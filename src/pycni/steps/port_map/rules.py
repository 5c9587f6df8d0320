"""The rules that lead ports of the host to an address, wherever they are but in our own maps.

Used by `flows`, for those of which no map says where they lead.
"""

from __future__ import annotations

from pycni.kernel.netfilter import iptables, nat_rules, nfnetlink
from pycni.kernel.netfilter.constant_rules import TABLE
from pycni.kernel.netfilter.nat_rules import RETURN
from pycni.kernel.netfilter.nfnetlink import NAT, NFPROTO_INET
from pycni.steps.port_map.layout import DNAT, REFERENCE_TABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netfilter.nat_rules import NatRule
    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.spec.ip import IPAddress


def to(netfilter: NetfilterSocket, target: IPAddress) -> list[NatRule]:
    """The rules that lead to an address: of containers with conditions, iptables, the reference.

    Raises NetlinkError, IPTablesError.
    """
    family = target.family
    lines = iptables.legacy_lines(family, NAT, DNAT)
    found = [
        *(
            nat_rules.parse_expressions(family, chain, rule.handle, expressions)
            for rule, chain, expressions in nfnetlink.expressions(
                netfilter, NFPROTO_INET, TABLE, "", (target.packed,)
            )
        ),
        *nat_rules.read(netfilter, family, NAT, "", target.packed),
        *nat_rules.read(netfilter, family, REFERENCE_TABLE, "", target.packed),
        *(nat_rules.parse_line(line) for line in lines if "--to-destination" in line),
    ]
    return [rule for rule in found if rule is not None and rule.target == target]


def target(
    netfilter: NetfilterSocket, family: int, protocol: str, port: int, host: IPAddress
) -> tuple[IPAddress, int] | None:
    """Where iptables leads what an address of the host is asked for; None if nowhere.

    By the first rule that does so without conditions. A container's interfaces may have a port in
    common, and then the one that came first has it.
    """

    def is_asked(rule: NatRule, /) -> bool:
        to = rule.destination is None or rule.destination.contains(host)
        return rule.protocol == protocol and port in rule.ports and to and not rule.conditional

    def in_nftables(chain: str) -> list[NatRule]:
        return nat_rules.read(netfilter, family, NAT, chain)

    def in_legacy(chain: str) -> list[NatRule]:
        return nat_rules.parse_lines(iptables.legacy_lines(family, NAT, chain), chain)

    for rules in (in_nftables, in_legacy):
        for entry in filter(is_asked, rules(DNAT)):
            for rule in filter(is_asked, rules(entry.jump)):
                if rule.jump == RETURN:
                    break
                if rule.target is not None:
                    return rule.target, rule.target_port
    return None
