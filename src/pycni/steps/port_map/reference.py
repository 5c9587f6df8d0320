"""The nftables tables that the reference's port mappings make: read and removed, never written."""

from __future__ import annotations

from pycni.kernel.netfilter import nat_rules, nfnetlink
from pycni.kernel.netfilter.nfnetlink import IP_FAMILIES
from pycni.steps.backend import Leftovers
from pycni.steps.port_map.layout import (
    REFERENCE_FOR_ALL,
    REFERENCE_FOR_ONE,
    REFERENCE_MASQUERADING,
    REFERENCE_TABLE,
    applicable,
    host_address,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netfilter.nat_rules import NatRule
    from pycni.plan.steps import PortMap
    from pycni.spec.ip import IPAddress
    from pycni.spec.owner import Owners
    from pycni.steps.namespaces import HostAndSandbox
    from pycni.steps.port_map.layout import MappedFlow


def made(step: PortMap, kernel: HostAndSandbox) -> bool:
    """Whether they have the mappings."""
    for network in step.addresses:
        mappings = applicable(step, network.family)
        for_all = sum(host_address(one) is None for one in mappings)
        wanted = {REFERENCE_FOR_ALL: for_all, REFERENCE_FOR_ONE: len(mappings) - for_all}
        for chain, count in wanted.items():
            rules = nfnetlink.rules(kernel.host.netfilter, network.family, REFERENCE_TABLE, chain)
            if sum(rule.comment == step.owner.container_id for rule in rules) < count:
                return False
    return True


def check(step: PortMap, kernel: HostAndSandbox) -> list[str]:
    if made(step, kernel):
        return []
    return [f"nftables: table {REFERENCE_TABLE} lacks rules of {step.owner.container_id}"]


def leftovers(
    owners: Owners, kernel: HostAndSandbox, gone: set[MappedFlow], step: PortMap | None
) -> Leftovers:
    """What deletes the container's rules for the step's addresses; all of them without any.

    They name no network, and the container may have more in another one. So those of what GC
    collects stay.
    """
    if step is None:
        return Leftovers()
    addresses = {network.address for network in step.addresses}
    container = step.owner.container_id
    return Leftovers(
        [
            nfnetlink.delete_rule(family, REFERENCE_TABLE, chain, rule.handle)
            for family in IP_FAMILIES
            for chain in (REFERENCE_FOR_ONE, REFERENCE_FOR_ALL, REFERENCE_MASQUERADING)
            for rule in nat_rules.read(
                kernel.host.netfilter, family, REFERENCE_TABLE, chain, container.encode()
            )
            if rule.comment == container
            and (not addresses or not addresses.isdisjoint(_addresses_of(rule)))
        ]
    )


def _addresses_of(rule: NatRule) -> set[IPAddress]:
    """The addresses that a rule leads to, or masquerades what goes to."""
    found = {rule.target, None if rule.destination is None else rule.destination.address}
    return {address for address in found if address is not None}
