"""The iptables backend of `port_map`: the chains and rules of the reference, in table `nat`.

PREROUTING and OUTPUT lead what is for the host to CNI-HOSTPORT-DNAT, whose rules lead to a chain
for each container of a network, named by a hash of both. What must be masqueraded is marked there,
on its way to POSTROUTING. What the reference has not are rules that leave the host its own: ::1 and
link-local addresses.

The interface is no part of the chain's name, so the interfaces of a container in one network share
it. A rule is of the interface that has the address it leads to (`pycni.steps.interfaces`), and the
chain goes with the last of them.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel.netfilter import iptables, nat_rules, nfnetlink
from pycni.kernel.netfilter.nat_rules import RETURN
from pycni.kernel.netfilter.nfnetlink import IP_FAMILIES, NAT
from pycni.spec.errors import CNIError
from pycni.steps.executor import give_up, undo_all
from pycni.steps.interfaces import Interfaces, staying
from pycni.steps.port_map import port_holders
from pycni.steps.port_map.layout import (
    NOT_FOR_ALL,
    MappedFlow,
    applicable,
    conditions,
    host_address,
)
from pycni.steps.port_map.port_holders import DNAT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from pycni.kernel.netfilter.nat_rules import NatRule
    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import PortMap
    from pycni.spec.ip import IPAddress, IPNetwork
    from pycni.spec.owner import Owner, Owners
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox

    Block = tuple[str, tuple[int, ...]]  # a protocol, and ports that one rule matches

OWN = "CNI-DN-"
MARK = "CNI-HOSTPORT-SETMARK"
MASQUERADE = "CNI-HOSTPORT-MASQ"
OLD_SNAT = "CNI-HOSTPORT-SNAT"  # of early releases of the reference

PORTS_OF_A_RULE = 15  # that the multiport match takes

_ENTRY = f"-A {DNAT} "
_PREFIX = "dnat "  # of the comments of what leads to a container's chain
_ANYWHERE = {AF_INET: "0.0.0.0/0", AF_INET6: "::/0"}


def apply(step: PortMap, kernel: HostAndSandbox) -> Undo:
    """Make the shared rules that are missing, and the interface's own again.

    What an interface of the container that has gone left in its chain goes.
    """
    netfilter = kernel.host.netfilter
    interfaces = Interfaces(kernel, step.owner)
    undos: list[Undo] = []

    chains, shared = _shared(step)
    back: list[str] = []
    try:
        for network in step.addresses:
            family = network.family

            def build(network: IPNetwork = network) -> list[str]:
                present = iptables.present(
                    netfilter, network.family, NAT, [*chains, own_chain(step.owner)]
                )
                change, back[:] = _change(step, network, present, interfaces)
                return [*iptables.missing(present, chains, shared), *change]

            iptables.update(family, NAT, build)
            undos.append(iptables.restoring(family, NAT, back))
            # Another container's ADD at the same time may have come first. The one that is not the
            # first in a family does not get to the next, so that one of them has the port in both.
            port_holders.require_free(step.replace(addresses=(network,)), kernel)
    except (OSError, CNIError):
        give_up(undos, kernel)
        raise
    return lambda: undo_all(undos)


def _change(
    step: PortMap, network: IPNetwork, present: Sequence[str], interfaces: Interfaces
) -> tuple[list[str], list[str]]:
    """The lines that make the interface's own rules, and those that put back what was there."""
    own = own_chain(step.owner)
    rules = nat_rules.parse_lines(present, own)
    entries = nat_rules.parse_lines(present, DNAT, (own,))
    targets = {rule.target for rule in rules if rule.target is not None} - {network.address}
    stay = staying_rules(rules, interfaces.of_others(targets))
    kept = [rule.line for rule in stay]
    mine = [rule for rule in _own_rules(step, network) if rule not in kept]
    # What conditions look like in a rule is the program's choice, so own ones are always new.
    wanted = _entries(step, network)
    lead = _leading(entries, stay, _blocks(step))
    unwanted = [rule for rule in entries if rule not in lead and rule.line not in wanted]
    new = [line for line in wanted if line not in present]
    change = [f":{own} - [0:0]", *(f"-D{rule.line[2:]}" for rule in unwanted), *kept, *mine, *new]
    back = [f"-D{line[2:]}" for line in new]
    if iptables.declares(present, own):
        before = [line for line in present if line.startswith(f"-A {own} ")]
        back += [f":{own} - [0:0]", *before, *(rule.line for rule in unwanted)]
    else:
        back += [f"-F {own}", f"-X {own}"]
    return change, back


def check(step: PortMap) -> list[str]:
    """The rules that are missing, a sentence each."""
    differences: list[str] = []
    for network in step.addresses:
        family = network.family
        present = {*iptables.save(family, NAT), *iptables.legacy_lines(family, NAT)}
        own = [rule for rule in _own_rules(step, network) if not _is_exempting(rule)]
        lacking = [rule for rule in (*_shared(step)[1], *own) if f"-A{rule[2:]}" not in present]
        # How conditions are printed is the program's choice, so the rest of the rule must do.
        entries = [line for line in present if iptables.jump_of(line) == own_chain(step.owner)]
        lacking += [
            f"{_ENTRY}-p {protocol} -m multiport --dports {ports} -j {own_chain(step.owner)}"
            for protocol, ports in map(_text, _blocks(step))
            if not any(
                line.startswith(_ENTRY)
                and f" -p {protocol} " in line
                and f" --dports {ports} " in line
                for line in entries
            )
        ]
        differences += _sentences(family, lacking)
    return differences


def lacks_exemptions(step: PortMap) -> list[str]:
    """The rules that are missing for the host's own addresses, a sentence each.

    The reference makes none.
    """
    differences: list[str] = []
    for network in step.addresses:
        exempting = filter(_is_exempting, _own_rules(step, network))
        if wanted := [*exempting]:
            family = network.family
            present = {*iptables.save(family, NAT), *iptables.legacy_lines(family, NAT)}
            differences += _sentences(family, [rule for rule in wanted if rule not in present])
    return differences


def _sentences(family: int, lacking: Iterable[str]) -> list[str]:
    program = "iptables" if family == AF_INET else "ip6tables"
    return [f"{program}: table {NAT} lacks the rule: {rule}" for rule in lacking]


def made(step: PortMap, netfilter: NetfilterSocket) -> bool:
    """Whether the owner's container has its chain."""
    return any(
        iptables.has_chain(netfilter, network.family, NAT, own_chain(step.owner))
        for network in step.addresses
    )


def target(
    netfilter: NetfilterSocket, family: int, protocol: str, port: int, host: IPAddress
) -> tuple[IPAddress, int] | None:
    """Where the rules lead what an address of the host is asked for; None if nowhere.

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


def own_chain(owner: Owner) -> str:
    """The chain of the owner's container."""
    return owner.chain(OWN)


def leftovers(
    step: PortMap, kernel: HostAndSandbox, flows: set[MappedFlow]
) -> list[NetlinkRequest]:
    """What deletes the interface's own rules, where iptables-nft keeps them.

    That is the chain with the jumps to it, if no other interface has rules there. What the rules
    lead to the container is added to flows.
    """
    netfilter, owner = kernel.host.netfilter, step.owner
    interfaces = Interfaces(kernel, owner)
    requests: list[NetlinkRequest] = []
    for family in IP_FAMILIES:
        chain = own_chain(owner)
        if nfnetlink.chain_exists(netfilter, family, NAT, chain):
            rules = nat_rules.read(netfilter, family, NAT, chain)
            stay = staying_rules(rules, _spared(step, kernel, rules, interfaces))
            flows.update(_led(rules, stay))
            requests += deletions(netfilter, family, chain, rules, stay, _blocks(step))
        requests += iptables.removal(netfilter, family, NAT, owner.chain("CNI-SN-"), [OLD_SNAT])
    return requests


def remove_legacy(step: PortMap, kernel: HostAndSandbox, flows: set[MappedFlow]) -> None:
    """Delete the same where iptables-legacy keeps it."""
    interfaces = Interfaces(kernel, step.owner)
    chain, old = own_chain(step.owner), step.owner.chain("CNI-SN-")
    for family in IP_FAMILIES:
        lines = iptables.legacy_lines(family, NAT, chain)
        rules = nat_rules.parse_lines(lines, chain)
        stay = staying_rules(rules, _spared(step, kernel, rules, interfaces))
        flows.update(_led(rules, stay))
        change = lines_gone(lines, chain, stay, _blocks(step)) + iptables.gone(lines, [old])
        iptables.restore_legacy(family, NAT, change)


def stale(owners: Owners, kernel: HostAndSandbox, flows: set[MappedFlow]) -> list[NetlinkRequest]:
    """What deletes the rules of their interfaces (iptables-nft); flows as for `leftovers`."""
    netfilter = kernel.host.netfilter
    requests: list[NetlinkRequest] = []
    for family in IP_FAMILIES:
        entries = nat_rules.read(netfilter, family, NAT, DNAT)
        chains = _chains_of([(entry.comment, entry.jump) for entry in entries], owners)
        leading = {
            container: nat_rules.read(netfilter, family, NAT, chain, b"DNAT\0")
            for container, chain in chains.items()
        }
        for container, spared in staying(kernel, owners, _targets(leading)).items():
            chain = chains[container]
            rules = nat_rules.read(netfilter, family, NAT, chain)
            stay = staying_rules(rules, spared)
            flows.update(_led(rules, stay))
            requests += deletions(netfilter, family, chain, rules, stay)
    return requests


def collect_legacy(owners: Owners, kernel: HostAndSandbox, flows: set[MappedFlow]) -> None:
    """Delete the same where iptables-legacy keeps it."""
    for family in IP_FAMILIES:
        lines = iptables.legacy_lines(family, NAT, DNAT)
        marked = [(iptables.comment_of(line), iptables.jump_of(line)) for line in lines]
        chains = _chains_of(marked, owners)
        rules = {
            container: nat_rules.parse_lines(lines, chain) for container, chain in chains.items()
        }
        change: list[str] = []
        for container, spared in staying(kernel, owners, _targets(rules)).items():
            stay = staying_rules(rules[container], spared)
            flows.update(_led(rules[container], stay))
            change += lines_gone(lines, chains[container], stay)
        iptables.restore_legacy(family, NAT, change)


# --- whose rules stay ----------------------------------------------------------------------------


def _spared(
    step: PortMap, kernel: HostAndSandbox, rules: Iterable[NatRule], interfaces: Interfaces
) -> set[IPAddress]:
    """The addresses that rules lead to and another interface of the container has."""
    targets = {rule.target for rule in rules if rule.target is not None}
    if not step.addresses and kernel.sandbox is None:
        return interfaces.noted_of_others(targets)
    return interfaces.of_others(targets - {network.address for network in step.addresses})


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


def _leading(
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
    lead = _leading(entries, stay, own)
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
    lead = _leading(entries, stay, own)
    return [
        f"-D{rule.line[2:]}" for rule in (*entries, *rules) if rule not in lead and rule not in stay
    ]


def _led(rules: Iterable[NatRule], stay: Collection[NatRule]) -> Iterator[MappedFlow]:
    """What rules lead to containers, but for those that stay."""
    for rule in rules:
        if rule.target is not None and rule not in stay:
            host = None if rule.destination is None else rule.destination.address
            yield from (MappedFlow(rule.protocol, port, host, rule.target) for port in rule.ports)


def _targets(rules: dict[str, list[NatRule]]) -> dict[str, set[IPAddress]]:
    """The addresses that the rules of each container lead to."""
    return {
        container: {rule.target for rule in found if rule.target is not None}
        for container, found in rules.items()
    }


# --- the rules -----------------------------------------------------------------------------------


def _shared(step: PortMap) -> tuple[list[str], list[str]]:
    """The chains and rules that all containers share."""
    chains = [DNAT]
    rules = [
        f"-A {hook} -m addrtype --dst-type LOCAL -j {DNAT}" for hook in ("PREROUTING", "OUTPUT")
    ]
    if step.snat and not step.mark_chain:
        mark = f"{1 << step.mark_bit:#x}/{1 << step.mark_bit:#x}"
        comment = iptables.comment("CNI portfwd masquerade mark")
        masquerade = iptables.comment("CNI portfwd requiring masquerade")
        chains += [MARK, MASQUERADE]
        rules += [
            f"-A {MARK} {comment} -j MARK --set-xmark {mark}",
            f"-A {MASQUERADE} -m mark --mark {mark} -j MASQUERADE",
            # First, since the masquerading of bridge accepts what stays in its subnet.
            f"-I POSTROUTING {masquerade} -j {MASQUERADE}",
        ]
    return chains, rules


def _own_rules(step: PortMap, network: IPNetwork) -> list[str]:
    """The rules of the container's own chain."""
    family, target = network.family, str(network.address)
    sources = [_ANYWHERE[family] if step.masquerade_all else str(network.network)]
    if family == AF_INET and not step.masquerade_all:
        sources.append("127.0.0.1/32")
    if family == AF_INET6:
        target = f"[{target}]"
    chain = f"-A {own_chain(step.owner)}"
    rules = []
    for mapping in applicable(step, family):
        host, protocol = host_address(mapping), mapping.protocol
        match = "" if host is None else f"-d {host}/{host.bits} "
        match += f"-p {protocol} -m {protocol} --dport {mapping.host_port}"
        if family == AF_INET6 and host is None:
            rules += [f"{chain} -d {own} {match} -j {RETURN}" for own in NOT_FOR_ALL]
        if step.snat:
            rules += [
                f"{chain} {_source(source)}{match} -j {step.mark_chain or MARK}"
                for source in sources
            ]
        rules.append(f"{chain} {match} -j DNAT --to-destination {target}:{mapping.container_port}")
    return rules


def _is_exempting(line: str) -> bool:
    """Whether a rule leaves packets to the host."""
    return line.endswith(f" -j {RETURN}")


def _source(source: str) -> str:
    return "" if source in _ANYWHERE.values() else f"-s {source} "


def _entries(step: PortMap, network: IPNetwork) -> list[str]:
    """The rules that lead to the container's own chain."""
    words = "".join(f"{iptables.quoted(word)} " for word in conditions(step, network.family))
    owner = step.owner
    text = owner.iptables_comment_after(_PREFIX)
    return [
        f"{_ENTRY}-p {protocol} {iptables.comment(text)} -m multiport --dports {ports} {words}"
        f"-j {own_chain(owner)}"
        for protocol, ports in map(_text, _blocks(step))
    ]


def _text(block: Block) -> tuple[str, str]:
    return block[0], ",".join(map(str, block[1]))


def _blocks(step: PortMap) -> list[Block]:
    """The host's ports by protocol, as many together as fit into a rule."""
    blocks: list[Block] = []
    for protocol in sorted({mapping.protocol for mapping in step.mappings}):
        ports = [mapping.host_port for mapping in step.mappings if mapping.protocol == protocol]
        blocks += [
            (protocol, tuple(ports[first : first + PORTS_OF_A_RULE]))
            for first in range(0, len(ports), PORTS_OF_A_RULE)
        ]
    return blocks


def _chains_of(marked: Iterable[tuple[str, str]], owners: Owners) -> dict[str, str]:
    """The chains of the network's containers, by container."""
    return owners.chains(marked, own_chain, _PREFIX)
