"""Flows of port mappings that the kernel tracks: which of them lead elsewhere than they should.

Where a mapping has come, those that do not lead to its container; where it has gone, those that
still do. Only flows that an address of the host was asked for: a port of that number belongs to
other hosts as well. What it costs is said in `pycni.kernel.netfilter.conntrack`.
"""

from __future__ import annotations

from _socket import AF_INET

from pycni.kernel.netfilter.nfnetlink import PROTOCOL_NAMES, PROTOCOLS
from pycni.steps.port_map import nftables as port_map_nftables
from pycni.steps.port_map.layout import (
    MappedFlow,
    applicable,
    conditions,
    flows,
    host_address,
    is_for_all,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from pycni.kernel.netfilter import conntrack
    from pycni.kernel.netfilter.nat_rules import NatRule
    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.plan.steps import PortMap
    from pycni.spec.ip import IPAddress
    from pycni.spec.owner import Owner
    from pycni.steps.namespaces import HostAndSandbox

# Clients that use these ask again from the same port, and would never get to the container. A
# connection of TCP goes on with the host's own program, or is refused; the next one is a new flow.
_PERSISTENT = ("udp", "sctp")


def forget_misrouted(step: PortMap, kernel: HostAndSandbox, *, others: bool = False) -> None:
    """Forget the flows that ought to lead to the step's container, and do not.

    others: likewise those that ought to lead to containers by any element of the maps.
    """
    netfilter = kernel.host.netfilter
    try:
        wanted = [
            flow
            for flow in (*flows(step), *(port_map_nftables.mapped(netfilter) if others else ()))
            if flow.protocol in _PERSISTENT
        ]
        if not wanted:
            return
        from pycni.kernel.netfilter import conntrack

        queries = {
            conntrack.Query(
                flow.target.family, PROTOCOLS[flow.protocol], flow.port, destination=flow.address
            )
            for flow in wanted
        }
        ways = _Ways(step, kernel)
        wrong = [flow for flow in conntrack.find(netfilter, queries) if not ways.is_right(flow)]
        if wrong:
            sharing = _shared_with(step.owner, kernel)
            wrong = [flow for flow in wrong if str(flow.target) not in sharing]
        conntrack.discard(netfilter, wrong)
    except OSError:
        pass  # the ports are mapped, and what is left of earlier flows ends by itself


def _hosts(flow: conntrack.Flow) -> tuple[IPAddress | None, ...]:
    """The addresses of the host that mappings of a flow may be for; None for all."""
    return (flow.destination, None) if is_for_all(flow.destination) else (flow.destination,)


def _shared_with(owner: Owner, kernel: HostAndSandbox) -> set[str]:
    """The addresses of the container's other interfaces with published ports.

    One port may lead to several of them, also where the rules that said so have been lost.
    """
    return {
        address
        for other in (() if kernel.claim is None else kernel.claim.others())
        if other.owner.container_id == owner.container_id
        and other.owner != owner
        and "port_map" in other.kinds
        for address in other.addresses
    }


def end(netfilter: NetfilterSocket, led: Collection[MappedFlow]) -> None:
    """Forget flows that lead to a container by mappings that have gone, of every protocol.

    An established connection too: the container's next holder of the address would get it. What a
    mapping that is there still leads there, another attachment's, goes on. Raises NetlinkError.
    """
    if not led:
        return
    from pycni.kernel.netfilter import conntrack

    leads = _Leads(netfilter)
    conntrack.forget(
        netfilter,
        (
            conntrack.Query(
                flow.target.family,
                PROTOCOLS[flow.protocol],
                flow.port,
                destination=flow.address,
                target=flow.target,
                status=conntrack.TARGET_TRANSLATED,
            )
            for flow in led
            if flow.protocol in PROTOCOLS and not leads.has(flow)
        ),
    )


def end_to(netfilter: NetfilterSocket, targets: Collection[IPAddress]) -> None:
    """Forget all flows that mappings led to addresses, but by those that are there.

    Others may have the addresses by now. Raises NetlinkError.
    """
    if not targets:
        return
    from pycni.kernel.netfilter import conntrack

    translated = conntrack.TARGET_TRANSLATED
    found = conntrack.find(
        netfilter, [conntrack.Query(one.family, target=one, status=translated) for one in targets]
    )
    leads = _Leads(netfilter)
    conntrack.discard(
        netfilter,
        [
            flow
            for flow in found
            if not leads.has(
                MappedFlow(
                    PROTOCOL_NAMES.get(flow.protocol, ""), flow.port, flow.destination, flow.target
                )
            )
        ],
    )


class _Leads:
    """What leads to containers now, by whichever backend."""

    def __init__(self, netfilter: NetfilterSocket) -> None:
        self._netfilter = netfilter
        self._rules: dict[IPAddress, list[NatRule]] = {}

    def has(self, flow: MappedFlow) -> bool:
        """Whether something leads flows where they go."""
        if flow.protocol not in PROTOCOLS:
            return False
        hosts = [flow.address]
        if flow.address is not None and is_for_all(flow.address):
            hosts.append(None)
        for host in hosts:
            found = port_map_nftables.target(self._netfilter, flow.replace(address=host))
            if found is not None and found[0] == flow.target:
                return True
        return any(
            rule.protocol == flow.protocol
            and flow.port in rule.ports
            and (None if rule.destination is None else rule.destination.address) in hosts
            for rule in self._rules_to(flow.target)
        )

    def _rules_to(self, target: IPAddress) -> list[NatRule]:
        """The rules that lead to an address; asked once."""
        if target not in self._rules:
            from pycni.steps.port_map import rules as port_map_rules

            self._rules[target] = port_map_rules.to(self._netfilter, target)
        return self._rules[target]


class _Ways:
    """Where a step's mappings lead flows."""

    def __init__(self, step: PortMap, kernel: HostAndSandbox) -> None:
        self._step = step
        self._kernel = kernel
        self._of_host: dict[IPAddress, bool] = {}
        self._own: dict[tuple[int, int, int, IPAddress | None], tuple[IPAddress, int]] = {}
        for network in step.addresses:
            for mapping in applicable(step, network.family):
                protocol, host = PROTOCOLS[mapping.protocol], host_address(mapping)
                key = network.family, protocol, mapping.host_port, host
                self._own.setdefault(key, (network.address, mapping.container_port))

    def is_right(self, flow: conntrack.Flow) -> bool:
        """Whether a flow leads where the mappings for its port would lead it."""
        from pycni.kernel.netfilter import conntrack

        if not self._is_of_host(flow.destination):
            return True
        target = self._target(flow)
        if target is None:
            return True
        if target == (flow.target, flow.target_port):
            return bool(flow.status & conntrack.SOURCE_TRANSLATED) or not self._masquerades(flow)
        if not flow.status & conntrack.TARGET_TRANSLATED:
            return False
        if (flow.target, flow.target_port) in self._own_targets(flow):
            return True  # by an earlier mapping to another interface of the container
        # By another container's conditions it may be right.
        return bool(conditions(self._step, flow.family)) or self._leads(flow)

    def _leads(self, flow: conntrack.Flow) -> bool:
        """Whether iptables, which comes first, leads a flow where it goes."""
        from pycni.steps.port_map import rules as port_map_rules

        protocol = PROTOCOL_NAMES[flow.protocol]
        netfilter = self._kernel.host.netfilter
        asked = flow.family, protocol, flow.port, flow.destination
        return port_map_rules.target(netfilter, *asked) == (flow.target, flow.target_port)

    def _target(self, flow: conntrack.Flow) -> tuple[IPAddress, int] | None:
        """The container's address and port for a flow. What is for one address comes first."""
        for address in _hosts(flow):
            # A port that the container has in two networks leads to the first one's address.
            asked = MappedFlow(PROTOCOL_NAMES[flow.protocol], flow.port, address, flow.destination)
            found = port_map_nftables.target(self._kernel.host.netfilter, asked)
            if found is None:
                found = self._own.get((flow.family, flow.protocol, flow.port, address))
            if found is not None:
                return found
        return None

    def _own_targets(self, flow: conntrack.Flow) -> list[tuple[IPAddress, int] | None]:
        """Where the step's own mappings lead a flow."""
        asked = flow.family, flow.protocol, flow.port
        return [self._own.get((*asked, host)) for host in _hosts(flow)]

    def _masquerades(self, flow: conntrack.Flow) -> bool:
        step = self._step
        if not step.snat or all(flow.target != network.address for network in step.addresses):
            return False
        loopback = flow.family == AF_INET and flow.source.is_loopback
        return (
            step.masquerade_all
            or loopback
            or any(network.contains(flow.source) for network in step.addresses)
        )

    def _is_of_host(self, address: IPAddress) -> bool:
        from pycni.kernel import route
        from pycni.kernel.netlink.constants import RTN_LOCAL

        if address not in self._of_host:
            kind = route.kind_towards(self._kernel.host.netlink, address)
            self._of_host[address] = kind == RTN_LOCAL
        return self._of_host[address]
