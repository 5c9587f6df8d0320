"""Flows of masqueraded addresses that the kernel tracks: which are forgotten.

Where an address is masqueraded again, those that have begun without; where it is not any more,
those whose answers would be led back to it. What it costs is said in
`pycni.kernel.netfilter.conntrack`: a detached address pays for a pass over the kernel's table.
"""

from __future__ import annotations

from _socket import AF_INET, IPPROTO_TCP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from pycni.kernel.netfilter import conntrack
    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.spec.ip import IPAddress, IPNetwork
    from pycni.steps.namespaces import HostAndSandbox


def forget_misrouted(networks: Callable[[], Iterable[IPNetwork]], kernel: HostAndSandbox) -> None:
    """Forget flows of addresses, each with its subnet, that leave it without being masqueraded.

    An established connection of TCP is let go on: it can end, but not change its source.
    """
    from pycni.kernel.netfilter import conntrack

    netfilter = kernel.host.netfilter
    try:
        if conntrack.is_empty(netfilter):
            return
        subnets: dict[IPAddress, list[IPNetwork]] = {}
        for network in networks():
            subnets.setdefault(network.address, []).append(network)
        found = conntrack.find(
            netfilter, [conntrack.Query(address.family, source=address) for address in subnets]
        )
        conntrack.discard(
            netfilter, [flow for flow in found if _lacks(flow, subnets[flow.source], kernel)]
        )
    except OSError:
        pass  # they are masqueraded from the next flow on


def end(
    addresses: Collection[IPAddress],
    netfilter: NetfilterSocket,
    is_masqueraded: Callable[[IPAddress], bool] = lambda _: False,
) -> None:
    """Forget the masqueraded flows of addresses: their next holders would get the answers.

    is_masqueraded: whether another attachment still has an address. Raises NetlinkError.
    """
    if not addresses:
        return
    from pycni.kernel.netfilter import conntrack

    conntrack.forget(
        netfilter,
        (
            conntrack.Query(address.family, source=address, status=conntrack.SOURCE_TRANSLATED)
            for address in addresses
            if not is_masqueraded(address)
        ),
    )


def end_detached(
    addresses: Collection[IPAddress], kernel: HostAndSandbox, is_own: Callable[[str], bool]
) -> None:
    """Forget the flows of addresses that no other attachment is masqueraded with.

    Unless all flows of an address have been forgotten already, or will be. is_own: whether a tag or
    an alias is of an attachment that is not masqueraded any more.
    """
    from pycni.steps import address_flows

    done = kernel.without_flows | address_flows.left(kernel)
    end(
        [one for one in addresses if one not in done],
        kernel.host.netfilter,
        lambda address: _is_masqueraded(address, kernel, is_own),
    )


def _is_masqueraded(
    address: IPAddress, kernel: HostAndSandbox, is_own: Callable[[str], bool]
) -> bool:
    """Whether another attachment has an address and is masqueraded, by any backend."""
    from pycni.kernel.netfilter import subnet_sets
    from pycni.steps.masquerade.sets import SETS

    netfilter = kernel.host.netfilter
    if subnet_sets.has_key(netfilter, SETS, address.packed):
        return True
    from pycni.steps import interfaces
    from pycni.steps.masquerade import iptables, reference

    chains = iptables.chains_for(netfilter, address)
    tags = reference.tags_for(netfilter, address)
    if not chains and not tags:
        return False
    return interfaces.is_held(
        kernel, address, lambda owner: owner.chain() in chains or owner.tag in tags, is_own
    )


def _lacks(flow: conntrack.Flow, subnets: Collection[IPNetwork], kernel: HostAndSandbox) -> bool:
    """Whether a flow is not masqueraded although rules that are there now would do so."""
    from pycni.kernel import route
    from pycni.kernel.netfilter import conntrack
    from pycni.kernel.netlink.constants import RTN_UNICAST

    if flow.status & conntrack.SOURCE_TRANSLATED:
        return False
    if flow.protocol == IPPROTO_TCP and flow.status & conntrack.ANSWERED:
        return False
    if all(network.contains(flow.target) for network in subnets) or _is_multicast(flow.target):
        return False
    # What is for the host itself never leaves it.
    return route.kind_towards(kernel.host.netlink, flow.target) == RTN_UNICAST


def _is_multicast(address: IPAddress) -> bool:
    first = address.packed[0]
    return first & 0xF0 == 0xE0 if address.family == AF_INET else first == 0xFF
