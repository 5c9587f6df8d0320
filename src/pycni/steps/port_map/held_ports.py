"""The ports of the host that other containers hold, looked for where `port_holders` says.

A port is held by a rule or element that leads it to an address. That is read over netlink;
of iptables-legacy, from its program's lines, which runs only where the kernel says that the chains
are there. Rules that cannot concern a port or address of the step are not decoded.

What leads to an address of the step holds none of its ports, but was left by an earlier
holder of the address, who is gone: it leads strangers to the step's container, whatever the port.
"""

from __future__ import annotations

from pycni.kernel.netfilter import iptables, nat_rules, nfnetlink
from pycni.kernel.netfilter.constant_rules import TABLE
from pycni.kernel.netfilter.nfnetlink import NAT, NFPROTO_INET
from pycni.spec.errors import ALREADY_EXISTS, CNIError
from pycni.spec.ip import IPAddress
from pycni.spec.owner import Owner
from pycni.spec.record import Record
from pycni.steps import interfaces
from pycni.steps.port_map import flows as port_map_flows
from pycni.steps.port_map import iptables as port_map_iptables
from pycni.steps.port_map.layout import (
    OWN,
    MappedFlow,
    applicable,
    conditions,
    entries,
    host_address,
    port_text,
)
from pycni.steps.port_map.port_holders import (
    DNAT,
    REFERENCE_FOR_ALL,
    REFERENCE_FOR_ONE,
    REFERENCE_MASQUERADING,
    REFERENCE_TABLE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pycni.kernel.netfilter.nat_rules import NatRule
    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import PortMap, PortMapping
    from pycni.spec.ip import IPNetwork
    from pycni.steps.namespaces import HostAndSandbox


class HeldPort(Record):
    """A port of the host that leads to an address. host: None for all addresses of the host.

    container, network, ifname: whose it is, "" for not known; leaves_rest: whether only some of the
    packets go that way, and what is left can be the step's.
    """

    protocol: str
    port: int
    host: IPAddress | None
    target: IPAddress
    target_port: int
    container: str = ""
    network: str = ""
    ifname: str = ""
    leaves_rest: bool = False

    def __str__(self) -> str:
        known = {"network": self.network, "interface": self.ifname}
        words = [f"{name} {value}" for name, value in known.items() if value]
        words.append(f"{self.target} port {self.target_port}")
        return f"container {self.container or '?'} ({', '.join(words)})"

    def covers(self, mapping: PortMapping) -> bool:
        """Whether it takes packets for a mapping; what is for all addresses is for each."""
        host = host_address(mapping)
        return (self.protocol, self.port) == (mapping.protocol, mapping.host_port) and (
            host is None or self.host is None or host == self.host
        )


class HeldPorts(Record):
    """What concerns a step in one place.

    held: of its ports, by others; strays: what leads to its addresses and is not its own;
    requests, lines: what deletes the strays.
    """

    held: Sequence[HeldPort] = ()
    strays: Sequence[HeldPort] = ()
    requests: Sequence[NetlinkRequest] = ()
    lines: Sequence[str] = ()


def settle(
    step: PortMap,
    kernel: HostAndSandbox,
    chains: Iterable[tuple[int, str, str]],
    legacy: Iterable[int],
    *,
    maps: bool,
) -> None:
    """Refuse what is taken, then remove what leads to the step's addresses. Raises CNIError.

    chains: of the families that there are; legacy: the families that iptables-legacy has; maps:
    whether to look into our own maps too, which refuse a port by themselves, but to iptables.
    """
    by_family = {network.family: network for network in step.addresses}
    netfilter = kernel.host.netfilter
    flows: set[MappedFlow] = set()
    lines: dict[int, Sequence[str]] = {}

    def settled(network: IPNetwork, found: HeldPorts, *, is_own_map: bool = False) -> HeldPorts:
        if not is_own_map or step.backend == "iptables":
            require_free(step, network, netfilter, found.held)
        flows.update(
            MappedFlow(one.protocol, one.port, one.host, one.target) for one in found.strays
        )
        return found

    for family in legacy:
        network = by_family[family]
        lines[family] = settled(network, _in_legacy(step, network, kernel)).lines

    def stale() -> list[NetlinkRequest]:
        requests: list[NetlinkRequest] = []
        for family, table, _ in chains:
            look = _in_iptables if table == NAT else _in_reference_table
            network = by_family[family]
            requests += settled(network, look(step, network, kernel)).requests
        for network in step.addresses if maps else ():
            for found in _in_own_maps(step, network, kernel):
                requests += settled(network, found, is_own_map=True).requests
        return requests

    netfilter.update(stale)
    for family, gone in lines.items():
        iptables.restore_legacy(family, NAT, gone)
    port_map_flows.end(netfilter, flows)


def differences(
    step: PortMap,
    kernel: HostAndSandbox,
    chains: Iterable[tuple[int, str, str]],
    legacy: Iterable[int],
) -> list[str]:
    """The ports that lead to others, and others' that lead to the container, a sentence each.

    Our own maps come behind all others, and say themselves whose a port is. Of the others' tables,
    which hook in at the same place, the kernel asks the one first that came last, which nobody can
    see; so what any of them holds counts, but not behind the step's own rules in the same chain.
    """
    by_family = {network.family: network for network in step.addresses}
    told: list[str] = []
    for family, table, _ in chains:
        look = _in_iptables if table == NAT else _in_reference_table
        told += _sentences(step, family, look(step, by_family[family], kernel))
    for family in legacy:
        told += _sentences(step, family, _in_legacy(step, by_family[family], kernel))
    for network in step.addresses:
        for found in _in_own_maps(step, network, kernel):
            told += _sentences(step, network.family, found.replace(held=()))
    return [*dict.fromkeys(told)]


def _sentences(step: PortMap, family: int, found: HeldPorts) -> list[str]:
    return [
        *(
            f"{port_of(mapping, family)} is taken by {held_port}"
            for mapping, held_port in _conflicts(step, family, found.held)
        ),
        *(
            f"{port_text(stray.protocol, stray.port, stray.host, family)} leads here, "
            f"left by {stray}"
            for stray in found.strays
        ),
    ]


def require_free(
    step: PortMap, network: IPNetwork, netfilter: NetfilterSocket, held: Iterable[HeldPort]
) -> None:
    """Raise CNIError if a port of the step is held that it does not have yet."""
    for mapping, held_port in _conflicts(step, network.family, held):
        if not _has_already(step, network, netfilter, mapping):
            raise taken(port_of(mapping, network.family), held_port)


def taken(what: str, held_port: HeldPort) -> CNIError:
    """The refusal of a port. what: the port, see `port_map_layout.port_text`."""
    return CNIError(
        ALREADY_EXISTS,
        f"{what} is taken by {held_port}",
        "choose another hostPort, or detach that container; "
        "if it is gone, GC of its network removes what it left",
    )


def _conflicts(
    step: PortMap, family: int, held: Iterable[HeldPort]
) -> Iterator[tuple[PortMapping, HeldPort]]:
    """The mappings of a step whose ports others hold, each with what holds it."""
    for held_port in held:
        for mapping in applicable(step, family):
            if held_port.covers(mapping) and not held_port.leaves_rest:
                yield mapping, held_port


def _has_already(
    step: PortMap, network: IPNetwork, netfilter: NetfilterSocket, mapping: PortMapping
) -> bool:
    """Whether the owner has a mapping in our maps: then repair puts right what else it lacks."""
    if step.backend == "iptables":
        return False
    family = network.family
    if conditions(step, family):
        chain = OWN[family] + step.owner.tag
        return nfnetlink.chain_exists(netfilter, NFPROTO_INET, TABLE, chain)
    for entry in entries(step.replace(mappings=(mapping,), addresses=(network,))):
        found = nfnetlink.element(netfilter, NFPROTO_INET, TABLE, entry.map, entry.key)
        if found is not None and found.comment.startswith(step.owner.tag):
            return True
    return False


def port_of(mapping: PortMapping, family: int) -> str:
    """What a mapping is for, for people."""
    return port_text(mapping.protocol, mapping.host_port, host_address(mapping), family)


def _in_own_maps(step: PortMap, network: IPNetwork, kernel: HostAndSandbox) -> Iterator[HeldPorts]:
    from pycni.steps.port_map import held_ports_maps

    yield held_ports_maps.in_maps(step, network, kernel)
    yield held_ports_maps.in_conditional_chains(step, network, kernel)


# --- iptables ------------------------------------------------------------------------------------


def _in_iptables(step: PortMap, network: IPNetwork, kernel: HostAndSandbox) -> HeldPorts:
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
    own = port_map_iptables.own_chain(step.owner)
    names = {own, *(rule.chain for rule in leading)}
    callers = nat_rules.read(netfilter, family, NAT, DNAT, *(name.encode() for name in names))
    held, strays, stale = _held_by_others(step, network, kernel, leading, callers)
    requests: list[NetlinkRequest] = []
    for chain, gone in stale.items():
        there = nat_rules.read(netfilter, family, NAT, chain)
        stay = port_map_iptables.staying_rules(there, _others(there, gone))
        requests += port_map_iptables.deletions(netfilter, family, chain, there, stay)
    return HeldPorts(held, strays, requests)


def _in_legacy(step: PortMap, network: IPNetwork, kernel: HostAndSandbox) -> HeldPorts:
    """The same of iptables-legacy, by its lines."""
    lines = iptables.legacy_lines(network.family, NAT, DNAT)
    texts = [f"--to-destination {network.address}:", f"--to-destination [{network.address}]:"]
    texts += (f" --dport {mapping.host_port} " for mapping in step.mappings)
    found = (nat_rules.parse_line(line) for line in lines if any(one in line for one in texts))
    leading = _leading(step, network, [rule for rule in found if rule is not None])
    if not leading:
        return HeldPorts()
    own = port_map_iptables.own_chain(step.owner)
    callers = nat_rules.parse_lines(lines, DNAT, {own, *(rule.chain for rule in leading)})
    held, strays, stale = _held_by_others(step, network, kernel, leading, callers)
    change: list[str] = []
    for chain, gone in stale.items():
        there = nat_rules.parse_lines(lines, chain)
        stay = port_map_iptables.staying_rules(there, _others(there, gone))
        change += port_map_iptables.lines_gone(lines, chain, stay)
    return HeldPorts(held, strays, lines=change)


def _leading(step: PortMap, network: IPNetwork, rules: Iterable[NatRule]) -> list[NatRule]:
    """The rules in chains of other containers that lead to the address, or one of the ports."""
    own = port_map_iptables.own_chain(step.owner)
    ports = {(mapping.protocol, mapping.host_port) for mapping in applicable(step, network.family)}
    return [
        rule
        for rule in rules
        if rule.target is not None
        and rule.chain.startswith(port_map_iptables.OWN)
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
    own = port_map_iptables.own_chain(step.owner)
    held, strays = [], []
    stale: dict[str, set[IPAddress]] = {}
    living: set[str] = set()
    for rule in leading:
        if rule.target is None:
            continue
        for port in rule.ports:
            to_it = [
                entry
                for entry in callers
                if entry.protocol == rule.protocol and port in entry.ports
            ]
            first = next((entry for entry in to_it if entry.jump == rule.chain), None)
            if first is None:
                continue  # nothing leads there
            name, container = _named(first.comment)
            if rule.chain == port_map_iptables.own_chain(step.owner.replace(network=name)):
                container = step.owner.container_id  # which may have been cut
            host = None if rule.destination is None else rule.destination.address
            held_port = HeldPort(
                rule.protocol, port, host, rule.target, rule.target_port, container, name
            )
            if rule.target != network.address:
                is_own = container == step.owner.container_id
                other = step.owner.replace(network=name)
                if (
                    is_own
                    and kernel.is_attached(other.tag) is False
                    and not _is_held(step, kernel, rule)
                ):
                    stale.setdefault(rule.chain, set()).add(rule.target)
                    strays.append(held_port)
                    continue
            elif not _is_living(step, kernel, rule, name, container):
                strays.append(held_port)
                continue
            else:
                living.add(rule.chain)
            mine = next((entry for entry in to_it if entry.jump == own), None)
            if mine is not None and to_it.index(mine) < to_it.index(first):
                continue  # not what leads to the step's own
            if container != step.owner.container_id:
                # The step's own conditions can be compared when its rules are made.
                leaves = bool(first.matches) and (mine is None or mine.matches != first.matches)
                held.append(held_port.replace(leaves_rest=leaves))
    for rule in leading:
        if rule.target == network.address and rule.chain not in living:
            stale.setdefault(rule.chain, set()).add(rule.target)
    return held, strays, stale


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
    return _has_address(
        step,
        kernel,
        rule.target,
        lambda owner: port_map_iptables.own_chain(owner) == rule.chain,
    )


def _has_address(
    step: PortMap, kernel: HostAndSandbox, address: IPAddress, is_named: Callable[[Owner], bool]
) -> bool:
    """Whether a container that a rule may be of has an address, by another network."""
    network, tag = step.owner.network, step.owner.tag
    return interfaces.is_held(
        kernel,
        address,
        lambda owner: owner.network != network and is_named(owner),
        lambda comment: comment.startswith(tag),
    )


def _named(comment: str) -> tuple[str, str]:
    """Network and container in a comment such as `dnat name: "NET" id: "ID"`, which may be cut."""
    name, _, container = comment.removeprefix('dnat name: "').partition('" id: "')
    return name, container.removesuffix('"')


# --- the reference's nftables tables -------------------------------------------------------------


def _in_reference_table(step: PortMap, network: IPNetwork, kernel: HostAndSandbox) -> HeldPorts:
    """The rules that concern a step. Their comment is the container's id, and first ones count."""
    netfilter = kernel.host.netfilter
    family, address, container = network.family, network.address, step.owner.container_id
    mappings = applicable(step, family)
    wanted = [address.packed]
    for mapping in mappings:
        wanted += nat_rules.port_bytes(mapping.host_port)
    rules = [
        rule
        for chain in (REFERENCE_FOR_ONE, REFERENCE_FOR_ALL)
        for rule in nat_rules.read(netfilter, family, REFERENCE_TABLE, chain, *wanted)
    ]
    # No rule says of which network it is.
    leading = {rule.comment for rule in rules if rule.target == address} - {container}
    gone = {
        name
        for name in leading
        if not _has_address(step, kernel, address, lambda owner: owner.container_id == name)  # noqa: B023 - asked at once
    }
    held, strays = [], []
    own: set[tuple[str, int, IPAddress | None]] = set()
    for rule in rules:
        if rule.target is None:
            continue
        host = None if rule.destination is None else rule.destination.address
        for port in rule.ports:
            if rule.comment == container:
                own.add((rule.protocol, port, host))
                continue
            held_port = HeldPort(
                rule.protocol, port, host, rule.target, rule.target_port, rule.comment
            )
            if rule.target == address and rule.comment in gone:
                strays.append(held_port)
            elif not all(
                (one.protocol, one.host_port, host_address(one)) in own
                for one in mappings
                if held_port.covers(one)
            ):
                held.append(held_port)
    stale = [rule for rule in rules if rule.target == address and rule.comment in gone]
    if stale:
        found = nat_rules.read(
            netfilter, family, REFERENCE_TABLE, REFERENCE_MASQUERADING, address.packed
        )
        stale += (
            rule
            for rule in found
            if rule.destination is not None
            and rule.destination.address == address
            and rule.comment in gone
        )
    requests = [
        nfnetlink.delete_rule(family, REFERENCE_TABLE, rule.chain, rule.handle) for rule in stale
    ]
    return HeldPorts(held, strays, requests)
