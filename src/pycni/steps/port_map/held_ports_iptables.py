"""The ports that other containers hold in iptables, whichever keeps the rules; see `held_ports`.

Rules that cannot concern a port or address of the step are not decoded. A rule names no interface;
one of another network most often has the same name.
"""

from __future__ import annotations

from pycni.kernel.netfilter import iptables, nat_rules, nfnetlink
from pycni.kernel.netfilter.nfnetlink import NAT
from pycni.spec.owner import Owner
from pycni.steps.port_map.held_port import HeldPort, HeldPorts, has_address
from pycni.steps.port_map.iptables_chain import deletions, lines_gone, staying_rules
from pycni.steps.port_map.iptables_rules import OWN, own_chain
from pycni.steps.port_map.layout import DNAT, applicable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pycni.kernel.netfilter.nat_rules import NatRule
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import PortMap
    from pycni.spec.ip import IPAddress, IPNetwork
    from pycni.steps.namespaces import HostAndSandbox


def in_nftables(step: PortMap, network: IPNetwork, kernel: HostAndSandbox) -> HeldPorts:
    """The rules that concern a step, where iptables-nft keeps them."""
    netfilter, family = kernel.host.netfilter, network.family
    # One rule that jumps there and one for a port; two can as well be two that jump there.
    users = nfnetlink.users(netfilter, family, NAT, DNAT)
    if users < 2 or (users == 2 and not nfnetlink.rules(netfilter, family, NAT, DNAT)):
        return HeldPorts()
    wanted = [network.address.packed]
    for mapping in applicable(step, family):
        wanted += nat_rules.port_bytes(mapping.host_port)
    rules = nat_rules.read(netfilter, family, NAT, "", *wanted)
    leading = _leading(step, network, rules)
    if not leading:
        return HeldPorts()
    own = own_chain(step.owner)
    names = {own, *(rule.chain for rule in leading)}
    callers = nat_rules.read(netfilter, family, NAT, DNAT, *(name.encode() for name in names))
    held, strays, stale = _held_by_others(step, network, kernel, leading, callers)
    requests: list[NetlinkRequest] = []
    for chain, gone in stale.items():
        there = nat_rules.read(netfilter, family, NAT, chain)
        stay = staying_rules(there, _others(there, gone))
        requests += deletions(netfilter, family, chain, there, stay)
    return HeldPorts(held, strays, requests)


def in_legacy(step: PortMap, network: IPNetwork, kernel: HostAndSandbox) -> HeldPorts:
    """The same of iptables-legacy, by its lines."""
    lines = iptables.legacy_lines(network.family, NAT, DNAT)
    texts = [f"--to-destination {network.address}:", f"--to-destination [{network.address}]:"]
    texts += (f" --dport {mapping.host_port} " for mapping in step.mappings)
    found = (nat_rules.parse_line(line) for line in lines if any(one in line for one in texts))
    leading = _leading(step, network, [rule for rule in found if rule is not None])
    if not leading:
        return HeldPorts()
    own = own_chain(step.owner)
    callers = nat_rules.parse_lines(lines, DNAT, {own, *(rule.chain for rule in leading)})
    held, strays, stale = _held_by_others(step, network, kernel, leading, callers)
    change: list[str] = []
    for chain, gone in stale.items():
        there = nat_rules.parse_lines(lines, chain)
        stay = staying_rules(there, _others(there, gone))
        change += lines_gone(lines, chain, stay)
    return HeldPorts(held, strays, lines=change)


def _leading(step: PortMap, network: IPNetwork, rules: Iterable[NatRule]) -> list[NatRule]:
    """The rules in chains of other containers that lead to the address, or one of the ports."""
    own = own_chain(step.owner)
    ports = {(mapping.protocol, mapping.host_port) for mapping in applicable(step, network.family)}
    return [
        rule
        for rule in rules
        if rule.target is not None
        and rule.chain.startswith(OWN)
        and rule.chain != own
        and (
            rule.target == network.address
            or any((rule.protocol, port) in ports for port in rule.ports)
        )
    ]


def _others(rules: Iterable[NatRule], gone: set[IPAddress]) -> set[IPAddress]:
    return {rule.target for rule in rules if rule.target is not None} - gone


def _held_by_others(
    step: PortMap,
    network: IPNetwork,
    kernel: HostAndSandbox,
    leading: Sequence[NatRule],
    callers: Sequence[NatRule],
) -> tuple[list[HeldPort], list[HeldPort], dict[str, set[IPAddress]]]:
    """What other containers hold and comes first; what is left, and by chain to what it leads.

    Left is what leads to the step's address, or what its container had in a network that it is
    detached from. A rule names no interface; one of another network most often has the same name.
    """
    own = own_chain(step.owner)
    held, strays = [], []
    stale: dict[str, set[IPAddress]] = {}
    living: set[str] = set()
    for rule, port in ((each, port) for each in leading for port in each.ports):
        to_it = [one for one in callers if one.protocol == rule.protocol and port in one.ports]
        first = next((entry for entry in to_it if entry.jump == rule.chain), None)
        if first is None or rule.target is None:
            continue  # nothing leads there
        held_port = _held_port(step, rule, rule.target, port, first)
        if rule.target != network.address:
            if _was_own(step, kernel, rule, held_port):
                stale.setdefault(rule.chain, set()).add(rule.target)
                strays.append(held_port)
                continue
        elif not _is_living(step, kernel, rule, held_port.network, held_port.container):
            strays.append(held_port)
            continue
        else:
            living.add(rule.chain)
        mine = next((entry for entry in to_it if entry.jump == own), None)
        if mine is not None and to_it.index(mine) < to_it.index(first):
            continue  # not what leads to the step's own
        if held_port.container != step.owner.container_id:
            # The step's own conditions can be compared when its rules are made.
            leaves = bool(first.matches) and (mine is None or mine.matches != first.matches)
            held.append(held_port.replace(leaves_rest=leaves))
    for rule in leading:
        if rule.target == network.address and rule.chain not in living:
            stale.setdefault(rule.chain, set()).add(rule.target)
    return held, strays, stale


def _held_port(
    step: PortMap, rule: NatRule, target: IPAddress, port: int, caller: NatRule
) -> HeldPort:
    """A port that a rule leads to an address. caller: the rule that jumps to its chain."""
    name, container = _named(caller.comment)
    if rule.chain == own_chain(step.owner.replace(network=name)):
        container = step.owner.container_id  # which may have been cut
    host = None if rule.destination is None else rule.destination.address
    return HeldPort(rule.protocol, port, host, target, rule.target_port, container, name)


def _was_own(step: PortMap, kernel: HostAndSandbox, rule: NatRule, held_port: HeldPort) -> bool:
    """Whether the step's container has a port in a network that it is detached from."""
    other = step.owner.replace(network=held_port.network)
    return (
        held_port.container == step.owner.container_id
        and kernel.is_attached(other.tag) is False
        and not _is_held(step, kernel, rule)
    )


def _is_living(
    step: PortMap, kernel: HostAndSandbox, rule: NatRule, name: str, container: str
) -> bool:
    """Whether a rule that leads to the step's address is of an attachment that has it as well.

    name, container: network and container that are said to have the rule.
    """
    if name == step.owner.network:
        return False  # which has given the address to the step's container
    other = Owner(name, container, step.owner.ifname)
    return bool(kernel.is_attached(other.tag)) or _is_held(step, kernel, rule)


def _is_held(step: PortMap, kernel: HostAndSandbox, rule: NatRule) -> bool:
    """Whether the container in whose chain a rule is has the address that the rule leads to."""
    assert rule.target is not None
    return has_address(
        step,
        kernel,
        rule.target,
        lambda owner: own_chain(owner) == rule.chain,
    )


def _named(comment: str) -> tuple[str, str]:
    """Network and container in a comment such as `dnat name: "NET" id: "ID"`, which may be cut."""
    name, _, container = comment.removeprefix('dnat name: "').partition('" id: "')
    return name, container.removesuffix('"')
