"""Port mappings: ports of the host lead to the container (`plan.steps.PortMap`).

Two backends, `port_map_nftables` and `port_map_iptables`; removing and collecting look at both, and
at the nftables tables of the reference. What `port_map_flows` says of flows that the kernel tracks
is done as far as the kernel lets us.
"""

from __future__ import annotations

from pycni.kernel.netfilter import nat_rules, nfnetlink
from pycni.kernel.netfilter.nfnetlink import IP_FAMILIES
from pycni.spec.errors import CNIError
from pycni.spec.ip import host_network, parse_address
from pycni.steps import ownership
from pycni.steps.executor import give_up, undo_all
from pycni.steps.port_map import flows as port_map_flows
from pycni.steps.port_map import layout as port_map_layout
from pycni.steps.port_map import nftables as port_map_nftables
from pycni.steps.port_map import port_holders
from pycni.steps.port_map.nftables import Applied
from pycni.steps.port_map.port_holders import (
    REFERENCE_FOR_ALL,
    REFERENCE_FOR_ONE,
    REFERENCE_MASQUERADING,
    REFERENCE_TABLE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netfilter.nat_rules import NatRule
    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import PortMap
    from pycni.spec.ip import IPAddress
    from pycni.spec.owner import Owners
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox
    from pycni.steps.port_map.layout import MappedFlow


def apply(step: PortMap, kernel: HostAndSandbox) -> Undo | None:
    """Map the ports. Raises CNIError if another container has one of them."""
    return _apply(step, kernel) if step.mappings else None


def repair(step: PortMap, kernel: HostAndSandbox) -> None:
    """As ADD does, but looking closer at rules, and for others' ports that lead here."""
    _apply(step, kernel, thorough=True)


def _apply(step: PortMap, kernel: HostAndSandbox, *, thorough: bool = False) -> Undo | None:
    if not step.addresses:
        return None
    made = Applied(None)
    if step.mappings:
        port_holders.require_free(step, kernel)
        made = _map(step, kernel, thorough=thorough)
    undo = made.undo
    if thorough or made.replaced:
        try:
            port_holders.evict(step, kernel)
        except (OSError, CNIError):
            give_up([] if undo is None else [undo], kernel)
            raise
    if undo is None:
        return None
    port_map_flows.forget_misrouted(step, kernel, others=made.rules)

    def end_flows() -> None:
        port_map_flows.end(kernel.host.netfilter, port_map_layout.flows(step))

    return lambda: undo_all([end_flows, undo])


def _map(step: PortMap, kernel: HostAndSandbox, *, thorough: bool) -> Applied:
    """Make what is missing."""
    if step.backend != "iptables":
        try:
            return port_map_nftables.apply(step, kernel, thorough=thorough)
        except OSError as error:
            from pycni.kernel.netfilter import iptables

            families = [network.family for network in step.addresses]
            if step.backend or not iptables.can_replace_nftables(error, families):
                raise
    from pycni.steps.port_map import iptables as port_map_iptables

    return Applied(port_map_iptables.apply(step, kernel))


def check(step: PortMap, kernel: HostAndSandbox) -> list[str]:
    """What keeps the ports from leading to the container, and what leads others' ports there."""
    if not step.addresses:
        return []
    return [*_missing(step, kernel), *port_holders.differences(step, kernel)]


def _missing(step: PortMap, kernel: HostAndSandbox) -> list[str]:
    """What is not as ADD leaves it, a sentence each."""
    if not step.mappings:
        return []
    netfilter = kernel.host.netfilter
    if step.backend != "iptables":
        differences = port_map_nftables.check(step, kernel)
        if not differences or _reference_made(step, netfilter):
            return []
        if step.backend:
            return differences
    from pycni.steps.port_map import iptables as port_map_iptables

    if step.backend or port_map_iptables.made(step, netfilter):
        return port_map_iptables.check(step)
    return differences


def repairable(step: PortMap, kernel: HostAndSandbox) -> list[str]:
    """Rules for the host's own addresses, which the reference does without."""
    if step.backend != "iptables" or not step.mappings:
        return []
    from pycni.steps.port_map import iptables as port_map_iptables

    return port_map_iptables.lacks_exemptions(step)


def remove(step: PortMap, kernel: HostAndSandbox) -> None:
    """Remove the owner's mappings, whichever backend, of ours or the reference, made them."""
    from pycni.steps.port_map import iptables as port_map_iptables

    netfilter = kernel.host.netfilter
    flows: set[MappedFlow] = set()
    if not step.addresses:
        noted = ownership.noted_addresses(kernel)
        step = step.replace(addresses=tuple(map(host_network, noted)))

    def left() -> list[NetlinkRequest]:
        requests, seen = port_map_nftables.leftovers(step.owner, netfilter, kernel.is_attached)
        flows.update(seen)
        return [
            *requests,
            *_reference_rules(step, netfilter),
            *port_map_iptables.leftovers(step, kernel, flows),
        ]

    netfilter.update(left)
    port_map_iptables.remove_legacy(step, kernel, flows)
    port_map_flows.end(netfilter, flows.union(port_map_layout.flows(step)))


def collect(kernel: HostAndSandbox, owners: Owners) -> None:
    """Remove their mappings.

    The rules in the reference's nftables tables name no network, so those stay.
    """
    from pycni.steps.port_map import iptables as port_map_iptables

    netfilter = kernel.host.netfilter
    flows: set[MappedFlow] = set()

    def left() -> list[NetlinkRequest]:
        requests, seen = port_map_nftables.stale(owners, netfilter, kernel.is_attached)
        flows.update(seen)
        return [*requests, *port_map_iptables.stale(owners, kernel, flows)]

    netfilter.update(left)
    port_map_iptables.collect_legacy(owners, kernel, flows)
    port_map_nftables.delete_unused(netfilter)
    port_map_flows.end(netfilter, flows)
    # The ruleset may have been lost, and with it what led there.
    noted = set(map(parse_address, owners.addresses("port_map")))
    port_map_flows.end_to(netfilter, noted.difference(flow.target for flow in flows))


# --- the reference's nftables tables -------------------------------------------------------------


def _reference_rules(step: PortMap, netfilter: NetfilterSocket) -> list[NetlinkRequest]:
    """What deletes the container's rules for the step's addresses; all of them without any.

    They name no network, and the container may have more in another one.
    """
    addresses = {network.address for network in step.addresses}
    return [
        nfnetlink.delete_rule(family, REFERENCE_TABLE, chain, rule.handle)
        for family in IP_FAMILIES
        for chain in (REFERENCE_FOR_ONE, REFERENCE_FOR_ALL, REFERENCE_MASQUERADING)
        for rule in nat_rules.read(
            netfilter, family, REFERENCE_TABLE, chain, step.owner.container_id.encode()
        )
        if rule.comment == step.owner.container_id
        and (not addresses or not addresses.isdisjoint(_addresses_of(rule)))
    ]


def _addresses_of(rule: NatRule) -> set[IPAddress]:
    """The addresses that a rule leads to, or masquerades what goes to."""
    found = {rule.target, None if rule.destination is None else rule.destination.address}
    return {address for address in found if address is not None}


def _reference_made(step: PortMap, netfilter: NetfilterSocket) -> bool:
    """Whether the reference's nftables tables have the mappings."""
    for network in step.addresses:
        mappings = port_map_layout.applicable(step, network.family)
        for_all = sum(port_map_layout.host_address(one) is None for one in mappings)
        wanted = {REFERENCE_FOR_ALL: for_all, REFERENCE_FOR_ONE: len(mappings) - for_all}
        for chain, count in wanted.items():
            rules = nfnetlink.rules(netfilter, network.family, REFERENCE_TABLE, chain)
            if sum(rule.comment == step.owner.container_id for rule in rules) < count:
                return False
    return True
