"""The ports of the host that other containers hold, looked for where `port_holders` says.

A port is held by a rule or element that leads it to an address. That is read over netlink;
of iptables-legacy, from its program's lines, which runs only where the kernel says that the chains
are there. A module for each place says what it holds: `held_ports_iptables`, `held_ports_maps`,
`held_ports_reference`.

What leads to an address of the step holds none of its ports, but was left by an earlier
holder of the address, who is gone: it leads strangers to the step's container, whatever the port.
"""

from __future__ import annotations

from pycni.kernel.netfilter import iptables, nfnetlink
from pycni.kernel.netfilter.constant_rules import TABLE
from pycni.kernel.netfilter.nfnetlink import NAT, NFPROTO_INET
from pycni.steps.port_map import flows as port_map_flows
from pycni.steps.port_map.held_port import HeldPort, HeldPorts, port_of, taken
from pycni.steps.port_map.layout import (
    OWN,
    MappedFlow,
    applicable,
    conditions,
    entries,
    port_text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import PortMap, PortMapping
    from pycni.spec.ip import IPNetwork
    from pycni.steps.namespaces import HostAndSandbox


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
            network = by_family[family]
            requests += settled(network, _in_chain(table, step, network, kernel)).requests
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
    which hook in at the same place, the kernel asks the one first that came last, which no one can
    see; so what any of them holds counts, but not behind the step's own rules in the same chain.
    """
    by_family = {network.family: network for network in step.addresses}
    found: list[str] = []
    for family, table, _ in chains:
        found += _sentences(step, family, _in_chain(table, step, by_family[family], kernel))
    for family in legacy:
        found += _sentences(step, family, _in_legacy(step, by_family[family], kernel))
    for network in step.addresses:
        for ports in _in_own_maps(step, network, kernel):
            found += _sentences(step, network.family, ports.replace(held=()))
    return [*dict.fromkeys(found)]


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
        if found is not None and step.owner.owns(found.comment):
            return True
    return False


def _in_chain(table: str, step: PortMap, network: IPNetwork, kernel: HostAndSandbox) -> HeldPorts:
    if table == NAT:
        from pycni.steps.port_map import held_ports_iptables

        return held_ports_iptables.in_nftables(step, network, kernel)
    from pycni.steps.port_map import held_ports_reference

    return held_ports_reference.in_tables(step, network, kernel)


def _in_legacy(step: PortMap, network: IPNetwork, kernel: HostAndSandbox) -> HeldPorts:
    from pycni.steps.port_map import held_ports_iptables

    return held_ports_iptables.in_legacy(step, network, kernel)


def _in_own_maps(step: PortMap, network: IPNetwork, kernel: HostAndSandbox) -> Iterator[HeldPorts]:
    from pycni.steps.port_map import held_ports_maps

    yield held_ports_maps.in_maps(step, network, kernel)
    yield held_ports_maps.in_conditional_chains(step, network, kernel)
