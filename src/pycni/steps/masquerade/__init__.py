"""Masquerade: packets from containers to outside their subnet leave with the host's address.

nftables in sets of our own, or iptables as the reference makes it, so that either can remove what
the other made. Removing looks at both, and at the nftables table of the reference. An ADD or DEL by
nftables, the usual case, does without the iptables half.
"""

from __future__ import annotations

from pycni.kernel.netfilter import subnet_sets
from pycni.kernel.netfilter.nfnetlink import IP_FAMILIES, NAT
from pycni.spec.ip import parse_address
from pycni.spec.owner import Owners
from pycni.steps import backend, ownership
from pycni.steps.masquerade import nftables
from pycni.steps.masquerade.sets import SETS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import Masquerade
    from pycni.spec.ip import IPAddress
    from pycni.steps.backend import Backend, Readable
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox

    Gone = set[IPAddress]


def _writable(name: str) -> Backend[Masquerade, Gone]:
    if name == "iptables":
        from pycni.steps.masquerade import iptables

        return iptables
    return nftables


def _readable(name: str) -> Readable[Masquerade, Gone]:
    if name == "reference":
        from pycni.steps.masquerade import reference

        return reference
    return _writable(name)


def apply(step: Masquerade, kernel: HostAndSandbox) -> Undo | None:
    """Have the addresses masqueraded. What an earlier holder of one has left is replaced.

    Raises NftError, NetlinkError, IPTablesError.
    """
    if not step.addresses:
        return None
    return backend.apply(step, kernel, backend.tried(step.backend), _writable).undo


def check(step: Masquerade, kernel: HostAndSandbox) -> list[str]:
    """What keeps the addresses from being masqueraded."""
    if not step.addresses:
        return []
    return backend.check(step, kernel, backend.accepted(step.backend), _readable)


def repair(step: Masquerade, kernel: HostAndSandbox) -> None:
    """As ADD does. Flows that have begun without being masqueraded are forgotten."""
    if apply(step, kernel) is not None:
        from pycni.steps.masquerade import flows

        flows.forget_misrouted(lambda: step.addresses, kernel)


def remove(step: Masquerade, kernel: HostAndSandbox) -> None:
    """Remove what masquerades for the owner, whichever backend, of ours or the reference, made it.

    Without addresses, whatever carries the owner's tag goes.
    """
    from pycni.kernel.netfilter import iptables

    owner = step.owner
    is_by_iptables = any(
        iptables.has_chain(kernel.host.netfilter, family, NAT, owner.chain())
        for family in IP_FAMILIES
    )
    gone = {network.address for network in step.addresses} or {*ownership.noted_addresses(kernel)}
    owners = Owners(owner.network, (owner.attachment,))
    _remove(
        backend.EVERY if is_by_iptables else backend.accepted("nftables"),
        owners,
        kernel,
        gone,
        step,
    )


def collect(kernel: HostAndSandbox, owners: Owners) -> None:
    """Remove what masquerades for them. Afterwards no set is left of a subnet without addresses."""
    gone = set(map(parse_address, owners.addresses("masquerade")))
    _remove(backend.EVERY, owners, kernel, gone)


def _remove(
    names: tuple[str, ...],
    owners: Owners,
    kernel: HostAndSandbox,
    gone: Gone,
    step: Masquerade | None = None,
) -> None:
    from pycni.steps.masquerade import flows

    backend.remove(map(_readable, names), owners, kernel, gone, step)
    if step is None:
        subnet_sets.delete_unused(kernel.host.netfilter, SETS)
    flows.end_detached(gone, kernel, owners.includes)
