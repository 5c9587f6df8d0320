"""The iptables backend of `masquerade`: the chains and rules of the reference, in table `nat`.

A chain for each container of a network, named by a hash of both: what stays in the subnet is
accepted, the rest is masqueraded. POSTROUTING jumps there for each address.

The interface is no part of the chain's name, so the interfaces of a container in one network share
it. A jump is of the interface that has its address (`pycni.steps.interfaces`), and the chain goes
with the last of them.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel.netfilter import iptables, nat_rules, nfnetlink
from pycni.kernel.netfilter.nfnetlink import IP_FAMILIES, NAT
from pycni.spec.ip import host_network
from pycni.spec.owner import Owner
from pycni.steps import ownership
from pycni.steps.backend import Applied, Leftovers, applied
from pycni.steps.executor import give_up
from pycni.steps.interfaces import Interfaces, staying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from pycni.kernel.netfilter.nat_rules import NatRule
    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import Masquerade
    from pycni.spec.ip import IPAddress, IPNetwork
    from pycni.spec.owner import Owners
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox

POSTROUTING = "POSTROUTING"

_SURE = 128  # bytes of a network's name that no comment is too short for
CHAIN_LENGTH = 28  # of a container's chain, as `Owner.chain` has it

_MULTICAST = {AF_INET: "224.0.0.0/4", AF_INET6: "ff00::/8"}


def apply(step: Masquerade, kernel: HostAndSandbox, *, thorough: bool = False) -> Applied:
    """Make the chain and the rules that are missing.

    What an interface of the container that has gone left in its chain goes.
    """
    chain = step.owner.chain()
    interfaces = Interfaces(kernel, step.owner)
    undos: list[Undo] = []

    back: list[str] = []
    try:
        for family, networks in _by_family(step).items():

            def build(family: int = family, networks: list[IPNetwork] = networks) -> list[str]:
                present = iptables.present(kernel.host.netfilter, family, NAT, [chain])
                change, back[:] = _change(step.owner, networks, present, interfaces)
                return change

            back.clear()
            iptables.update(family, NAT, build)
            if back:
                undos.append(iptables.restoring(family, NAT, back))
    except OSError:
        give_up(undos, kernel)
        raise
    return applied(undos)


def _change(
    owner: Owner, networks: Sequence[IPNetwork], present: Sequence[str], interfaces: Interfaces
) -> tuple[list[str], list[str]]:
    """The lines that make what is missing, and those that put back what was there."""
    chain = owner.chain()
    own = {network.address for network in networks}
    jumps = _jumps_among(present, chain)
    spared = interfaces.of_others(_sources(jumps) - own)
    unwanted = [rule.line for rule in jumps if _sources([rule]) - own - spared]
    before = [line for line in present if line.startswith(f"-A {chain} ")]
    stay = [rule.line for rule in _staying(nat_rules.parse_lines(before, chain), spared)]
    accepted, rest, leading = _rules_of(owner, networks)
    # What stays in a subnet is accepted before the rest is masqueraded.
    wanted = [*dict.fromkeys((*(line for line in stay if line not in rest), *accepted, *rest))]
    new = [line for line in leading if line not in present]
    remade = [] if wanted == before else [f":{chain} - [0:0]", *wanted]
    change = [*remade, *(f"-D{line[2:]}" for line in unwanted), *new]
    back = [f"-D{line[2:]}" for line in new]
    if not iptables.declares(present, chain):
        back += [f"-F {chain}", f"-X {chain}"]
    elif remade:
        back = [f":{chain} - [0:0]", *back, *unwanted, *before]
    else:
        back += unwanted
    return change, back


def check(step: Masquerade, kernel: HostAndSandbox) -> list[str]:
    differences: list[str] = []
    for family, networks in _by_family(step).items():
        rules = [line for lines in _rules_of(step.owner, networks) for line in lines]
        differences += iptables.differences(family, NAT, rules)
    return differences


def made(step: Masquerade, kernel: HostAndSandbox) -> bool:
    """Whether the owner's container has its chain."""
    netfilter, chain = kernel.host.netfilter, step.owner.chain()
    families = {network.family for network in step.addresses}
    return any(iptables.has_chain(netfilter, family, NAT, chain) for family in families)


def leftovers(
    owners: Owners, kernel: HostAndSandbox, gone: set[IPAddress], step: Masquerade | None
) -> Leftovers:
    """What removes their own rules, whichever iptables keeps them.

    That is a container's chain with the jumps to it, if no other interface has any. The addresses
    that the rules masqueraded go.
    """
    if step is None:
        return Leftovers(
            _of_owners(owners, kernel, gone), lambda: _legacy_of_owners(owners, kernel, gone)
        )
    if not step.addresses:
        noted = ownership.noted_addresses(kernel)
        step = step.replace(addresses=tuple(map(host_network, noted)))
    return Leftovers(_of_step(step, kernel, gone), lambda: _legacy_of_step(step, kernel, gone))


def _of_step(
    step: Masquerade, kernel: HostAndSandbox, gone: set[IPAddress]
) -> list[NetlinkRequest]:
    """What deletes an interface's own rules, where iptables-nft keeps them."""
    netfilter, chain = kernel.host.netfilter, step.owner.chain()
    interfaces = Interfaces(kernel, step.owner)
    requests: list[NetlinkRequest] = []
    for family in IP_FAMILIES:
        if nfnetlink.chain_exists(netfilter, family, NAT, chain):
            jumps = _jumps(netfilter, family, chain)
            spared = interfaces.spared(_sources(jumps), step.addresses)
            gone |= _sources(jumps) - spared
            requests += _deletions(netfilter, family, chain, jumps, spared)
    return requests


def _legacy_of_step(step: Masquerade, kernel: HostAndSandbox, gone: set[IPAddress]) -> None:
    """Delete the same where iptables-legacy keeps it."""
    chain = step.owner.chain()
    interfaces = Interfaces(kernel, step.owner)
    for family in IP_FAMILIES:
        lines = iptables.legacy_lines(family, NAT, chain)
        jumps = _jumps_among(lines, chain)
        spared = interfaces.spared(_sources(jumps), step.addresses)
        gone |= _sources(jumps) - spared
        iptables.restore_legacy(family, NAT, _lines_gone(lines, chain, spared))


def _of_owners(
    owners: Owners, kernel: HostAndSandbox, gone: set[IPAddress]
) -> list[NetlinkRequest]:
    """The same as `_of_step` for all interfaces of some owners."""
    netfilter = kernel.host.netfilter
    requests: list[NetlinkRequest] = []
    for family in IP_FAMILIES:
        network = owners.network.encode()[:_SURE]
        marked = [
            (rule.comment, chain)
            for rule, chain, _ in nfnetlink.expressions(netfilter, family, NAT, "", (network,))
            if _is_chain(chain)
        ]
        chains = owners.chains(marked, Owner.chain)
        found = nat_rules.read(netfilter, family, NAT, POSTROUTING) if chains else []
        jumps = {
            container: [rule for rule in found if rule.jump == chain]
            for container, chain in chains.items()
        }
        sources = {container: _sources(rules) for container, rules in jumps.items()}
        for container, spared in staying(kernel, owners, sources).items():
            chain = chains[container]
            gone |= sources[container] - spared
            requests += _deletions(netfilter, family, chain, jumps[container], spared)
    return requests


def _legacy_of_owners(owners: Owners, kernel: HostAndSandbox, gone: set[IPAddress]) -> None:
    """Delete the same where iptables-legacy keeps it."""
    for family in IP_FAMILIES:
        lines = iptables.legacy_lines(family, NAT)
        marked = [(iptables.comment_of(line), _own_chain(line)) for line in lines]
        chains = owners.chains(marked, Owner.chain)
        sources = {
            container: _sources(_jumps_among(lines, chain)) for container, chain in chains.items()
        }
        change: list[str] = []
        for container, spared in staying(kernel, owners, sources).items():
            gone |= sources[container] - spared
            change += _lines_gone(lines, chains[container], spared)
        iptables.restore_legacy(family, NAT, change)


def chains_for(netfilter: NetfilterSocket, address: IPAddress) -> set[str]:
    """The chains of containers that an address is masqueraded by, whichever iptables has them."""
    lines = iptables.legacy_lines(address.family, NAT)
    jumps = [
        *nat_rules.read(netfilter, address.family, NAT, POSTROUTING, address.packed),
        *nat_rules.parse_lines([line for line in lines if f" {address}/" in line], POSTROUTING),
    ]
    return {rule.jump for rule in jumps if address in _sources([rule]) and _is_chain(rule.jump)}


# --- whose rules stay ----------------------------------------------------------------------------


def _sources(jumps: Iterable[NatRule]) -> set[IPAddress]:
    return {rule.source.address for rule in jumps if rule.source is not None}


def _staying(rules: Iterable[NatRule], spared: Collection[IPAddress]) -> list[NatRule]:
    """The rules of a container's chain that spared addresses need."""
    if not spared:
        return []
    return [
        rule
        for rule in rules
        # What is not multicast is matched by exclusion, which `NatRule` does not describe.
        if rule.conditional
        or rule.destination is None
        or any(rule.destination.contains(address) for address in spared)
    ]


def _jumps(netfilter: NetfilterSocket, family: int, chain: str) -> list[NatRule]:
    found = nat_rules.read(netfilter, family, NAT, POSTROUTING, chain.encode())
    return [rule for rule in found if rule.jump == chain]


def _jumps_among(lines: Sequence[str], chain: str) -> list[NatRule]:
    return nat_rules.parse_lines(lines, POSTROUTING, (chain,))


def _deletions(
    netfilter: NetfilterSocket,
    family: int,
    chain: str,
    jumps: Iterable[NatRule],
    spared: Collection[IPAddress],
) -> list[NetlinkRequest]:
    """What deletes a container's rules but those for spared addresses."""
    if not spared:
        return iptables.removal(netfilter, family, NAT, chain, [POSTROUTING])
    rules = nat_rules.read(netfilter, family, NAT, chain)
    unwanted = [rule for rule in rules if rule not in _staying(rules, spared)]
    unwanted += [rule for rule in jumps if rule.source and rule.source.address not in spared]
    return [nfnetlink.delete_rule(family, NAT, rule.chain, rule.handle) for rule in unwanted]


def _lines_gone(lines: Sequence[str], chain: str, spared: Collection[IPAddress]) -> list[str]:
    """The same as lines for iptables-restore."""
    if not spared:
        return iptables.gone(lines, [chain])
    rules = nat_rules.parse_lines(lines, chain)
    unwanted = [rule for rule in rules if rule not in _staying(rules, spared)]
    unwanted += [
        rule
        for rule in _jumps_among(lines, chain)
        if rule.source and rule.source.address not in spared
    ]
    return [f"-D{rule.line[2:]}" for rule in unwanted]


# --- the rules -----------------------------------------------------------------------------------


def _by_family(step: Masquerade) -> dict[int, list[IPNetwork]]:
    found: dict[int, list[IPNetwork]] = {}
    for network in step.addresses:
        found.setdefault(network.family, []).append(network)
    return found


def _rules_of(
    owner: Owner, networks: Sequence[IPNetwork]
) -> tuple[list[str], list[str], list[str]]:
    """What accepts, what masquerades, and what leads there, for networks of one family."""
    chain, comment = owner.chain(), iptables.comment(owner.iptables_comment)
    subnets = dict.fromkeys(network.network for network in networks)
    addresses = dict.fromkeys(network.address for network in networks)
    return (
        [f"-A {chain} -d {subnet} {comment} -j ACCEPT" for subnet in subnets],
        [f"-A {chain} ! -d {_MULTICAST[networks[0].family]} {comment} -j MASQUERADE"],
        [f"-A {POSTROUTING} -s {one}/{one.bits} {comment} -j {chain}" for one in addresses],
    )


def _is_chain(name: str) -> bool:
    """Whether a chain may be that of a container, by its name."""
    return name.startswith("CNI-") and len(name) == CHAIN_LENGTH and not name.startswith("CNI-DN-")


def _own_chain(line: str) -> str:
    """The container's chain that a rule stands in or leads to, "" for none."""
    chain = line.split()[1] if line.startswith("-A ") else ""
    return next((one for one in (chain, iptables.jump_of(line)) if _is_chain(one)), "")
