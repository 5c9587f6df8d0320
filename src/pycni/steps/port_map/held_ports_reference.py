"""The ports that other containers hold in the reference's nftables tables; see `held_ports`."""

from __future__ import annotations

from pycni.kernel.netfilter import nat_rules, nfnetlink
from pycni.steps.port_map.held_port import HeldPort, HeldPorts, has_address
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
    from pycni.plan.steps import PortMap
    from pycni.spec.ip import IPAddress, IPNetwork
    from pycni.steps.namespaces import HostAndSandbox


def in_tables(step: PortMap, network: IPNetwork, kernel: HostAndSandbox) -> HeldPorts:
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
        if not has_address(step, kernel, address, lambda owner: owner.container_id == name)  # noqa: B023 - asked at once
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
