"""The nftables backend of `masquerade`, in table `inet pycni`.

A packet costs a look-up per subnet, however many containers there are. Each address is a member of
the set of its subnet, and what it sends elsewhere is masqueraded, but for multicast; see
`pycni.kernel.netfilter.subnet_sets`:

    set masquerade-10.1.0.0/24 { 10.1.0.2 comment "<owner>" }
    chain masquerade-postrouting { ip saddr @masquerade-10.1.0.0/24 ip daddr != 10.1.0.0/24
                                   ip daddr != 224.0.0.0/4 masquerade comment "10.1.0.0/24" }
"""

from __future__ import annotations

from pycni.kernel.netfilter import nfnetlink, subnet_sets
from pycni.kernel.netfilter.constant_rules import TABLE
from pycni.kernel.netfilter.nfnetlink import NFPROTO_INET
from pycni.kernel.netfilter.subnet_sets import Member, Membership
from pycni.spec.ip import IPAddress, IPNetwork, parse_network
from pycni.steps.backend import Applied, Leftovers
from pycni.steps.executor import give_up
from pycni.steps.masquerade.sets import HARM, SETS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.plan.steps import Masquerade
    from pycni.spec.owner import Owners
    from pycni.steps.namespaces import HostAndSandbox


def apply(step: Masquerade, kernel: HostAndSandbox, *, thorough: bool = False) -> Applied:
    """Enter the addresses into the sets. Raises NftError, NetlinkError."""
    netfilter = kernel.host.netfilter
    membership = _membership(step, kernel)

    def undo() -> None:
        from pycni.steps.masquerade import flows

        netfilter.update(membership.undone)
        membership.discard_fresh()
        made = [IPAddress(one.key) for one in membership.made]
        flows.end_detached(made, kernel, step.owner.owns)

    try:
        netfilter.update(membership.missing)
    except OSError:
        membership.discard_fresh()
        raise
    membership.collect_earlier()
    if membership.fresh or membership.replaced:
        from pycni.steps.masquerade import flows

        if membership.fresh:
            # Whose elements are still there without the rules gets these back as well.
            flows.forget_misrouted(lambda: _members(membership.fresh, netfilter), kernel)
        try:
            # An earlier holder of the address has gone without DEL.
            flows.end({IPAddress(one.key) for one in membership.replaced}, netfilter)
        except OSError:
            give_up([undo], kernel)
            raise
    return Applied(undo if membership.has_changed else None)


def check(step: Masquerade, kernel: HostAndSandbox) -> list[str]:
    owner = step.owner
    return _membership(step, kernel).differences(lambda found: owner.owns(found.comment), HARM)


def made(step: Masquerade, kernel: HostAndSandbox) -> bool:
    return not check(step, kernel)


def leftovers(
    owners: Owners, kernel: HostAndSandbox, gone: set[IPAddress], step: Masquerade | None
) -> Leftovers:
    """What takes their elements out of the sets; the addresses that these are go.

    Subnets are not noted, so elements are found by their owner where there is no prevResult.
    """
    if step is not None and step.addresses:
        return Leftovers(_membership(step, kernel).leftovers())
    from pycni.kernel.netfilter import shared_elements

    netfilter = kernel.host.netfilter
    names = subnet_sets.sets(netfilter, SETS)
    requests, found = shared_elements.deletions_of_owners(
        netfilter, names, owners.tag, owners.includes, kernel.is_attached
    )
    gone.update(IPAddress(item.key) for item in found)
    return Leftovers(requests)


def _membership(step: Masquerade, kernel: HostAndSandbox) -> Membership:
    members = [
        Member(network.network, network.address.packed, str(network.address))
        for network in step.addresses
    ]
    netfilter = kernel.host.netfilter
    return Membership(netfilter, SETS, members, step.owner, kernel.is_attached, new=True)


def _members(subnets: Iterable[str], netfilter: NetfilterSocket) -> list[IPNetwork]:
    """The addresses in the sets of some subnets, with these."""
    return [
        IPNetwork(IPAddress(item.key), parse_network(subnet).prefix)
        for subnet in subnets
        for item in nfnetlink.elements(
            netfilter, NFPROTO_INET, TABLE, subnet_sets.set_name(SETS, subnet)
        )
    ]
