"""Which rules of a container's chain in iptables stay when one of its interfaces goes.

The interface is no part of the chain's name, so the interfaces of a container in one network share
it. A rule is of the interface that has the address it leads to (`pycni.steps.interfaces`), and the
chain goes with the last of them.
"""

from __future__ import annotations

from pycni.kernel.netfilter import iptables, nat_rules, nfnetlink
from pycni.kernel.netfilter.nat_rules import RETURN
from pycni.kernel.netfilter.nfnetlink import NAT
from pycni.steps.port_map.layout import DNAT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from pycni.kernel.netfilter.nat_rules import NatRule
    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.spec.ip import IPAddress
    from pycni.steps.port_map.iptables_rules import Block


def staying_rules(rules: Sequence[NatRule], spared: Collection[IPAddress]) -> list[NatRule]:
    """The rules of a container's chain that lead to spared addresses, and what goes with those."""
    leading = [rule for rule in rules if rule.target in spared]
    return [
        rule
        for rule in rules
        if rule in leading
        or (rule.target is None and any(_goes_with(rule, other) for other in leading))
    ]


def _goes_with(rule: NatRule, leading: NatRule) -> bool:
    """Whether a rule marks packets that another one leads to its address, or keeps some from it."""
    if rule.jump == RETURN:
        ports = rule.protocol, rule.ports
        return leading.destination is None and ports == (leading.protocol, leading.ports)
    if rule.traffic != leading.traffic or leading.target is None:
        return False
    source = rule.source
    return source is None or source.address.is_loopback or source.contains(leading.target)


def leading_rules(
    entries: Iterable[NatRule], stay: Iterable[NatRule], own: Collection[Block] = ()
) -> list[NatRule]:
    """The rules that lead to a chain with what stays in it.

    own: what an interface had that has none of that; such a rule stays only if no other one leads
    to the same ports, since interfaces with equal mappings share it.
    """
    left = {(rule.protocol, port) for rule in stay if rule.target for port in rule.ports}
    found: list[NatRule] = []
    for rule in sorted(entries, key=lambda rule: (rule.protocol, rule.ports) in own):
        ports = {(rule.protocol, port) for port in rule.ports}
        is_own = (rule.protocol, rule.ports) in own
        covered = {(other.protocol, port) for other in found for port in other.ports if is_own}
        if ports & left - covered:
            found.append(rule)
    return found


def deletions(
    netfilter: NetfilterSocket,
    family: int,
    chain: str,
    rules: Sequence[NatRule],
    stay: Sequence[NatRule],
    own: Collection[Block] = (),
) -> list[NetlinkRequest]:
    """What deletes the rules of a container's chain but some, and what leads to none of those."""
    if not stay:
        return iptables.removal(netfilter, family, NAT, chain, [DNAT])
    found = nat_rules.read(netfilter, family, NAT, DNAT, chain.encode())
    entries = [rule for rule in found if rule.jump == chain]
    lead = leading_rules(entries, stay, own)
    return [
        nfnetlink.delete_rule(family, NAT, rule.chain, rule.handle)
        for rule in (*entries, *rules)
        if rule not in lead and rule not in stay
    ]


def lines_gone(
    lines: Sequence[str], chain: str, stay: Sequence[NatRule], own: Collection[Block] = ()
) -> list[str]:
    """The same as lines for iptables-restore."""
    if not stay:
        return iptables.gone(lines, [chain])
    rules = nat_rules.parse_lines(lines, chain)
    entries = nat_rules.parse_lines(lines, DNAT, (chain,))
    lead = leading_rules(entries, stay, own)
    return [
        f"-D{rule.line[2:]}" for rule in (*entries, *rules) if rule not in lead and rule not in stay
    ]
