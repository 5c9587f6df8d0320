"""Port mappings: ports of the host lead to the container (`plan.steps.PortMap`).

Two backends, `port_map_nftables` and `port_map_iptables`; removing and collecting look at both, and
at the nftables tables of the reference. UDP flows that a mapping's coming or going leaves on the
wrong way are forgotten, as far as the kernel lets us.
"""

from __future__ import annotations

import errno

from pycni.kernel import nfnetlink, subnet_sets
from pycni.kernel.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6
from pycni.kernel.steps import port_map_layout, port_map_nftables
from pycni.spec.owner import Owner, network_tag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pycni.kernel.context import Kernel
    from pycni.kernel.executor import Undo
    from pycni.kernel.netlink.codec import Request
    from pycni.kernel.nfnetlink import NetfilterSocket
    from pycni.kernel.steps.port_map_layout import Flow
    from pycni.plan.steps import PortMap
    from pycni.spec.config import Attachment

REFERENCE_TABLE = "cni_hostport"
REFERENCE_CHAINS = ("hostports", "hostip_hostports", "masquerading")
_REFERENCE_FAMILIES = (NFPROTO_IPV4, NFPROTO_IPV6)


def apply(step: PortMap, kernel: Kernel) -> Undo | None:
    """Map the ports. Raises CNIError if another container has one of them."""
    if not step.mappings or not step.addresses:
        return None
    netfilter = kernel.host.netfilter
    undo = _apply(step, netfilter)
    flows = port_map_layout.flows(step)
    _forget(netfilter, flows)

    def take_back() -> None:
        if undo is not None:
            undo()
        _forget(netfilter, flows)

    return take_back


def _apply(step: PortMap, netfilter: NetfilterSocket) -> Undo | None:
    if step.backend != "iptables":
        try:
            return port_map_nftables.apply(step, netfilter)
        except OSError as error:
            if step.backend or not _should_fall_back(step, error):
                raise
    from pycni.kernel.steps import port_map_iptables

    return port_map_iptables.apply(step, netfilter)


def _should_fall_back(step: PortMap, error: OSError) -> bool:
    """Whether the host cannot do nftables, and can do iptables.

    A refusal by the library says so; one by netlink is about the step.
    """
    from pycni.kernel import iptables
    from pycni.kernel.nftables import NftError

    if not isinstance(error, NftError) or error.errno == errno.EPERM:
        return False
    return all(iptables.available(network.family) for network in step.addresses)


def check(step: PortMap, kernel: Kernel) -> list[str]:
    """What keeps the ports from leading to the container."""
    if not step.mappings or not step.addresses:
        return []
    netfilter = kernel.host.netfilter
    if step.backend != "iptables":
        differences = port_map_nftables.check(step, netfilter)
        if not differences or _reference_made(step, netfilter):
            return []
        if step.backend:
            return differences
    from pycni.kernel.steps import port_map_iptables

    if step.backend or port_map_iptables.made(step, netfilter):
        return port_map_iptables.check(step)
    return differences


def remove(step: PortMap, kernel: Kernel) -> None:
    """Remove the owner's mappings, whichever backend, of ours or the reference, made them."""
    from pycni.kernel.steps import port_map_iptables

    netfilter = kernel.host.netfilter
    flows = set(port_map_layout.flows(step))
    container = step.owner.container_id

    def left() -> list[Request]:
        requests, seen = port_map_nftables.leftovers(step.owner, netfilter)
        flows.update(seen)
        return [
            *requests,
            *_reference_rules(netfilter, container),
            *port_map_iptables.leftovers(step.owner, netfilter),
        ]

    netfilter.update(left)
    port_map_iptables.remove_legacy(step.owner)
    _forget(netfilter, flows)


def collect(kernel: Kernel, network: str, keep: Collection[Attachment]) -> None:
    """Remove the mappings of attachments of the network that are not kept.

    The rules in the reference's nftables tables name no network, so those stay.
    """
    from pycni.kernel.steps import port_map_iptables

    netfilter = kernel.host.netfilter
    kept = {Owner(network, item.container_id, item.ifname).tag for item in keep}
    containers = {item.container_id for item in keep}
    flows: set[Flow] = set()

    def left() -> list[Request]:
        requests, seen = port_map_nftables.stale(network_tag(network), kept, netfilter)
        flows.update(seen)
        return [*requests, *port_map_iptables.stale(network, containers, netfilter)]

    netfilter.update(left)
    port_map_iptables.collect_legacy(network, containers)
    subnet_sets.delete_unused(netfilter, port_map_layout.SOURCES)
    _forget(netfilter, flows)


def _forget(netfilter: NetfilterSocket, flows: Iterable[Flow]) -> None:
    """Best effort: without connection tracking there is nothing to forget."""
    for flow in flows:
        from pycni.kernel import conntrack

        try:
            conntrack.forget(netfilter, flow.family, flow.port, flow.address)
        except OSError:
            continue


# --- the reference's nftables tables -------------------------------------------------------------


def _reference_rules(netfilter: NetfilterSocket, container: str) -> list[Request]:
    return [
        nfnetlink.delete_rule(family, REFERENCE_TABLE, chain, rule.handle)
        for family in _REFERENCE_FAMILIES
        for chain in REFERENCE_CHAINS
        for rule in nfnetlink.rules(netfilter, family, REFERENCE_TABLE, chain)
        if rule.comment == container
    ]


def _reference_made(step: PortMap, netfilter: NetfilterSocket) -> bool:
    """Whether the reference's nftables tables have the mappings."""
    for network in step.addresses:
        rules = nfnetlink.rules(netfilter, network.family, REFERENCE_TABLE, REFERENCE_CHAINS[0])
        count = sum(rule.comment == step.owner.container_id for rule in rules)
        if count < len(port_map_layout.applicable(step, network.family)):
            return False
    return True
