"""Port mappings: ports of the host lead to the container (`plan.steps.PortMap`).

Two backends, `nftables` and `iptables`; removing and collecting look at both, and at the nftables
tables of the reference. What `flows` says of flows that the kernel tracks is done as far as the
kernel lets us.
"""

from __future__ import annotations

from pycni.spec.errors import CNIError
from pycni.spec.ip import host_network, parse_address
from pycni.spec.owner import Owners
from pycni.steps import backend, ownership
from pycni.steps.backend import Applied
from pycni.steps.executor import give_up, undo_all
from pycni.steps.port_map import flows, layout, nftables, port_holders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import PortMap
    from pycni.steps.backend import Backend, Readable
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox
    from pycni.steps.port_map.layout import MappedFlow

    Gone = set[MappedFlow]


def _writable(name: str) -> Backend[PortMap, Gone]:
    if name == "iptables":
        from pycni.steps.port_map import iptables

        return iptables
    return nftables


def _readable(name: str) -> Readable[PortMap, Gone]:
    if name == "reference":
        from pycni.steps.port_map import reference

        return reference
    return _writable(name)


def apply(step: PortMap, kernel: HostAndSandbox) -> Undo | None:
    """Map the ports. Raises CNIError if another container has one of them."""
    return _apply(step, kernel) if step.mappings else None


def repair(step: PortMap, kernel: HostAndSandbox) -> None:
    """As ADD does, but looking closer at rules, and for others' ports that lead here."""
    _apply(step, kernel, thorough=True)


def _apply(step: PortMap, kernel: HostAndSandbox, *, thorough: bool = False) -> Undo | None:
    if not step.addresses:
        return None
    made = Applied()
    if step.mappings:
        port_holders.require_free(step, kernel)
        names = backend.tried(step.backend)
        made = backend.apply(step, kernel, names, _writable, thorough=thorough)
    undo = made.undo
    if thorough or made.has_replaced:
        try:
            port_holders.evict(step, kernel)
        except (OSError, CNIError):
            give_up([] if undo is None else [undo], kernel)
            raise
    if undo is None:
        return None
    flows.forget_misrouted(step, kernel, others=made.has_written)

    def end_flows() -> None:
        flows.end(kernel.host.netfilter, layout.flows(step))

    return lambda: undo_all([end_flows, undo])


def check(step: PortMap, kernel: HostAndSandbox) -> list[str]:
    """What keeps the ports from leading to the container, and what leads others' ports there."""
    if not step.addresses:
        return []
    differences: list[str] = []
    if step.mappings:
        differences += backend.check(step, kernel, backend.accepted(step.backend), _readable)
    return differences + port_holders.differences(step, kernel)


def repairable(step: PortMap, kernel: HostAndSandbox) -> list[str]:
    """Rules for the host's own addresses, which the reference does without."""
    if step.backend != "iptables" or not step.mappings:
        return []
    from pycni.steps.port_map import iptables

    return iptables.lacks_exemptions(step)


def remove(step: PortMap, kernel: HostAndSandbox) -> None:
    """Remove the owner's mappings, whichever backend, of ours or the reference, made them."""
    gone: Gone = set()
    if not step.addresses:
        noted = ownership.noted_addresses(kernel)
        step = step.replace(addresses=tuple(map(host_network, noted)))
    owners = Owners(step.owner.network, (step.owner.attachment,))
    backend.remove(map(_readable, backend.EVERY), owners, kernel, gone, step)
    flows.end(kernel.host.netfilter, gone.union(layout.flows(step)))


def collect(kernel: HostAndSandbox, owners: Owners) -> None:
    """Remove their mappings.

    The rules in the reference's nftables tables name no network, so those stay.
    """
    netfilter = kernel.host.netfilter
    gone: Gone = set()
    backend.remove(map(_readable, backend.NFTABLES_OR_IPTABLES), owners, kernel, gone)
    nftables.delete_unused(netfilter)
    flows.end(netfilter, gone)
    # The ruleset may have been lost, and with it what led there.
    noted = set(map(parse_address, owners.addresses("port_map")))
    flows.end_to(netfilter, noted.difference(flow.target for flow in gone))
