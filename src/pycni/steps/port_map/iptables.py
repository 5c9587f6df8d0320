"""The iptables backend of `port_map`: the chains and rules of the reference, in table `nat`.

PREROUTING and OUTPUT lead what is for the host to CNI-HOSTPORT-DNAT, whose rules lead to a chain
for each container of a network, named by a hash of both. What must be masqueraded is marked there,
on its way to POSTROUTING. Which rules these are says `iptables_rules`, which of them stay with a
container's other interfaces `iptables_chain`.
"""

from __future__ import annotations

from pycni.kernel.netfilter import iptables, nat_rules, nfnetlink
from pycni.kernel.netfilter.nfnetlink import IP_FAMILIES, NAT
from pycni.spec.errors import CNIError
from pycni.steps.backend import Applied, Leftovers, applied
from pycni.steps.executor import give_up
from pycni.steps.interfaces import Interfaces, staying
from pycni.steps.port_map import port_holders
from pycni.steps.port_map.iptables_chain import (
    deletions,
    leading_rules,
    lines_gone,
    staying_rules,
)
from pycni.steps.port_map.iptables_rules import (
    ENTRY,
    OLD_OWN,
    OLD_SNAT,
    PREFIX,
    blocks,
    entries,
    is_exempting,
    own_chain,
    own_rules,
    shared,
    text_of,
)
from pycni.steps.port_map.layout import DNAT, MappedFlow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from pycni.kernel.netfilter.nat_rules import NatRule
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import PortMap
    from pycni.spec.ip import IPAddress, IPNetwork
    from pycni.spec.owner import Owners
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox


def apply(step: PortMap, kernel: HostAndSandbox, *, thorough: bool = False) -> Applied:
    """Make the shared rules that are missing, and the interface's own again.

    What an interface of the container that has gone left in its chain goes.
    """
    netfilter = kernel.host.netfilter
    interfaces = Interfaces(kernel, step.owner)
    undos: list[Undo] = []

    chains, for_all = shared(step)
    back: list[str] = []
    try:
        for network in step.addresses:
            family = network.family

            def build(network: IPNetwork = network) -> list[str]:
                present = iptables.present(
                    netfilter, network.family, NAT, [*chains, own_chain(step.owner)]
                )
                change, back[:] = _change(step, network, present, interfaces)
                return [*iptables.missing(present, chains, for_all), *change]

            iptables.update(family, NAT, build)
            undos.append(iptables.restoring(family, NAT, back))
            # Another container's ADD at the same time may have come first. The one that is not the
            # first in a family does not get to the next, so that one of them has the port in both.
            port_holders.require_free(step.replace(addresses=(network,)), kernel)
    except (OSError, CNIError):
        give_up(undos, kernel)
        raise
    return applied(undos)


def _change(
    step: PortMap, network: IPNetwork, present: Sequence[str], interfaces: Interfaces
) -> tuple[list[str], list[str]]:
    """The lines that make the interface's own rules, and those that put back what was there."""
    own = own_chain(step.owner)
    rules = nat_rules.parse_lines(present, own)
    callers = nat_rules.parse_lines(present, DNAT, (own,))
    targets = _targets_of(rules) - {network.address}
    stay = staying_rules(rules, interfaces.of_others(targets))
    kept = [rule.line for rule in stay]
    mine = [rule for rule in own_rules(step, network) if rule not in kept]
    # What conditions look like in a rule is the program's choice, so own ones are always new.
    wanted = entries(step, network)
    lead = leading_rules(callers, stay, blocks(step))
    unwanted = [rule for rule in callers if rule not in lead and rule.line not in wanted]
    new = [line for line in wanted if line not in present]
    change = [f":{own} - [0:0]", *(f"-D{rule.line[2:]}" for rule in unwanted), *kept, *mine, *new]
    back = [f"-D{line[2:]}" for line in new]
    if iptables.declares(present, own):
        before = [line for line in present if line.startswith(f"-A {own} ")]
        back += [f":{own} - [0:0]", *before, *(rule.line for rule in unwanted)]
    else:
        back += [f"-F {own}", f"-X {own}"]
    return change, back


def check(step: PortMap, kernel: HostAndSandbox) -> list[str]:
    differences: list[str] = []
    chain = own_chain(step.owner)
    for network in step.addresses:
        family = network.family
        present = {*iptables.kept(family, NAT)}
        own = [rule for rule in own_rules(step, network) if not is_exempting(rule)]
        lacking = iptables.lacking((*shared(step)[1], *own), present)
        # How conditions are printed is the program's choice, so the rest of the rule must do.
        callers = [line for line in present if iptables.jump_of(line) == chain]
        lacking += [
            f"{ENTRY}-p {protocol} -m multiport --dports {ports} -j {chain}"
            for protocol, ports in map(text_of, blocks(step))
            if not any(
                line.startswith(ENTRY)
                and f" -p {protocol} " in line
                and f" --dports {ports} " in line
                for line in callers
            )
        ]
        differences += iptables.sentences(family, NAT, lacking)
    return differences


def lacks_exemptions(step: PortMap) -> list[str]:
    """The rules that are missing for the host's own addresses, a sentence each.

    The reference makes none.
    """
    differences: list[str] = []
    for network in step.addresses:
        if wanted := [*filter(is_exempting, own_rules(step, network))]:
            differences += iptables.differences(network.family, NAT, wanted)
    return differences


def made(step: PortMap, kernel: HostAndSandbox) -> bool:
    """Whether the owner's container has its chain."""
    return any(
        iptables.has_chain(kernel.host.netfilter, network.family, NAT, own_chain(step.owner))
        for network in step.addresses
    )


def leftovers(
    owners: Owners, kernel: HostAndSandbox, gone: set[MappedFlow], step: PortMap | None
) -> Leftovers:
    """What removes their own rules, whichever iptables keeps them.

    That is a container's chain with the jumps to it, if no other interface has rules there. What
    the rules lead to the container goes.
    """
    if step is None:
        return Leftovers(
            _of_owners(owners, kernel, gone), lambda: _legacy_of_owners(owners, kernel, gone)
        )
    return Leftovers(_of_step(step, kernel, gone), lambda: _legacy_of_step(step, kernel, gone))


def _of_step(step: PortMap, kernel: HostAndSandbox, gone: set[MappedFlow]) -> list[NetlinkRequest]:
    """What deletes an interface's own rules, where iptables-nft keeps them."""
    netfilter, owner = kernel.host.netfilter, step.owner
    interfaces = Interfaces(kernel, owner)
    requests: list[NetlinkRequest] = []
    for family in IP_FAMILIES:
        chain = own_chain(owner)
        if nfnetlink.chain_exists(netfilter, family, NAT, chain):
            rules = nat_rules.read(netfilter, family, NAT, chain)
            stay = staying_rules(rules, interfaces.spared(_targets_of(rules), step.addresses))
            gone.update(_led(rules, stay))
            requests += deletions(netfilter, family, chain, rules, stay, blocks(step))
        requests += iptables.removal(netfilter, family, NAT, owner.chain(OLD_OWN), [OLD_SNAT])
    return requests


def _legacy_of_step(step: PortMap, kernel: HostAndSandbox, gone: set[MappedFlow]) -> None:
    """Delete the same where iptables-legacy keeps it."""
    interfaces = Interfaces(kernel, step.owner)
    chain, old = own_chain(step.owner), step.owner.chain(OLD_OWN)
    for family in IP_FAMILIES:
        lines = iptables.legacy_lines(family, NAT, chain)
        rules = nat_rules.parse_lines(lines, chain)
        stay = staying_rules(rules, interfaces.spared(_targets_of(rules), step.addresses))
        gone.update(_led(rules, stay))
        change = lines_gone(lines, chain, stay, blocks(step)) + iptables.gone(lines, [old])
        iptables.restore_legacy(family, NAT, change)


def _of_owners(
    owners: Owners, kernel: HostAndSandbox, gone: set[MappedFlow]
) -> list[NetlinkRequest]:
    """The same as `_of_step` for all interfaces of some owners."""
    netfilter = kernel.host.netfilter
    requests: list[NetlinkRequest] = []
    for family in IP_FAMILIES:
        callers = nat_rules.read(netfilter, family, NAT, DNAT)
        chains = _chains_of([(entry.comment, entry.jump) for entry in callers], owners)
        leading = {
            container: nat_rules.read(netfilter, family, NAT, chain, b"DNAT\0")
            for container, chain in chains.items()
        }
        targets = {container: _targets_of(found) for container, found in leading.items()}
        for container, spared in staying(kernel, owners, targets).items():
            chain = chains[container]
            rules = nat_rules.read(netfilter, family, NAT, chain)
            stay = staying_rules(rules, spared)
            gone.update(_led(rules, stay))
            requests += deletions(netfilter, family, chain, rules, stay)
    return requests


def _legacy_of_owners(owners: Owners, kernel: HostAndSandbox, gone: set[MappedFlow]) -> None:
    """Delete the same where iptables-legacy keeps it."""
    for family in IP_FAMILIES:
        lines = iptables.legacy_lines(family, NAT, DNAT)
        marked = [(iptables.comment_of(line), iptables.jump_of(line)) for line in lines]
        chains = _chains_of(marked, owners)
        rules = {
            container: nat_rules.parse_lines(lines, chain) for container, chain in chains.items()
        }
        targets = {container: _targets_of(found) for container, found in rules.items()}
        change: list[str] = []
        for container, spared in staying(kernel, owners, targets).items():
            stay = staying_rules(rules[container], spared)
            gone.update(_led(rules[container], stay))
            change += lines_gone(lines, chains[container], stay)
        iptables.restore_legacy(family, NAT, change)


def _led(rules: Iterable[NatRule], stay: Collection[NatRule]) -> Iterator[MappedFlow]:
    """What rules lead to containers, but for those that stay."""
    for rule in rules:
        if rule.target is not None and rule not in stay:
            host = None if rule.destination is None else rule.destination.address
            yield from (MappedFlow(rule.protocol, port, host, rule.target) for port in rule.ports)


def _targets_of(rules: Iterable[NatRule]) -> set[IPAddress]:
    """The addresses that rules lead to."""
    return {rule.target for rule in rules if rule.target is not None}


def _chains_of(marked: Iterable[tuple[str, str]], owners: Owners) -> dict[str, str]:
    """The chains of the network's containers, by container."""
    return owners.chains(marked, own_chain, PREFIX)
