"""Flows of an address that goes, all that the kernel tracks: forgotten for its next holder's sake.

A firewall that lets the answers to containers through goes by connection tracking: by the entries
of an earlier container it would let strangers' packets in to the next one. So when `firewall` no
longer lets an address through, its flows are forgotten, whichever side opened them.

A kind of its own in what is noted of an attachment: where masquerading is still to be removed, for
which flows of the same address have to be found, DEL of firewall leaves that to the DEL of the
interface's plugin, which then looks for all of them at once, when the interface has gone. What it
costs is said in `pycni.kernel.netfilter.conntrack`. Used by `firewall` and `masquerade`.
"""

from __future__ import annotations

from pycni.spec.ip import parse_address
from pycni.steps import ownership

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from pycni.spec.ip import IPAddress
    from pycni.spec.owner import Owners
    from pycni.steps.namespaces import HostAndSandbox

KIND = "address_flows"


def end(addresses: Collection[IPAddress], kernel: HostAndSandbox) -> None:
    """Forget all flows of addresses. The caller knows that no container has them any more.

    Raises NetlinkError.
    """
    if not addresses:
        return
    from pycni.kernel.netfilter import conntrack

    conntrack.forget(
        kernel.host.netfilter,
        (
            query
            for address in addresses
            for query in (
                conntrack.Query(address.family, source=address),
                conntrack.Query(address.family, target=address),
            )
        ),
    )
    kernel.without_flows.update(addresses)


def end_with_interface(addresses: Collection[IPAddress], kernel: HostAndSandbox) -> None:
    """Forget all flows of addresses: now, or (the attachment's own) with its interface's DEL."""
    claim = kernel.claim
    identity = kernel.identity
    if claim is not None and identity is not None:
        noted = set(ownership.noted_addresses(kernel))
        is_to_come = any(
            "masquerade" in part.kinds for part in identity.parts if part.plugin != claim.plugin
        )
        if is_to_come and noted.issubset(addresses):
            claim.left = (KIND,)
            addresses = [address for address in addresses if address not in noted]
    end(addresses, kernel)


def left(kernel: HostAndSandbox) -> set[IPAddress]:
    """The addresses of the attachment whose flows firewall has left to this DEL."""
    identity = kernel.identity
    if identity is None or KIND not in identity.kinds:
        return set()
    return set(ownership.noted_addresses(kernel))


def collect(kernel: HostAndSandbox, owners: Owners) -> None:
    """Forget what `end_with_interface` has left, unless another has the address by now."""
    from pycni.steps.firewall import registry

    netfilter = kernel.host.netfilter
    addresses = map(parse_address, owners.addresses(KIND))
    end([one for one in addresses if registry.element(netfilter, one) is None], kernel)
