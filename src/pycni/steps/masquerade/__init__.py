"""Masquerade: packets from containers to outside their subnet leave with the host's address.

nftables, table `inet pycni`: a packet costs a look-up per subnet, however many containers there
are. Each address is a member of the set of its subnet, and what it sends elsewhere is masqueraded,
but for multicast; see `pycni.kernel.netfilter.subnet_sets`:

    set masquerade-10.1.0.0/24 { 10.1.0.2 comment "<owner>" }
    chain masquerade-postrouting { ip saddr @masquerade-10.1.0.0/24 ip daddr != 10.1.0.0/24
                                   ip daddr != 224.0.0.0/4 masquerade comment "10.1.0.0/24" }

iptables, table `nat`, and the nftables table of the reference: as the reference makes them, so
that either can remove what the other made. Removing looks at all three. An ADD or DEL by nftables,
the usual case, does without the iptables half, which functions import when they need it.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel.netfilter import nfnetlink, shared_elements, subnet_sets
from pycni.kernel.netfilter.constant_rules import TABLE
from pycni.kernel.netfilter.nfnetlink import IP_FAMILIES, NAT, NFPROTO_INET
from pycni.kernel.netfilter.subnet_sets import Feature, Member, Membership
from pycni.spec.ip import IPAddress, IPNetwork, host_network, parse_address, parse_network
from pycni.spec.owner import Owners, tag_of
from pycni.steps import ownership
from pycni.steps.executor import give_up
from pycni.steps.masquerade import flows as masquerade_flows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import Masquerade
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox

SETS = Feature(
    "masquerade-",
    {AF_INET: "ipv4_addr", AF_INET6: "ipv6_addr"},
    "masquerade-postrouting",
    {
        AF_INET: "ip saddr @{set} ip daddr != {subnet} ip daddr != 224.0.0.0/4 masquerade",
        AF_INET6: "ip6 saddr @{set} ip6 daddr != {subnet} ip6 daddr != ff00::/8 masquerade",
    },
)
HARM = "no container is masqueraded"

REFERENCE_TABLE = "cni_plugins_masquerade"
REFERENCE_CHAIN = "masq_checks"


def apply(step: Masquerade, kernel: HostAndSandbox) -> Undo | None:
    """Have the addresses masqueraded. What an earlier holder of one has left is replaced.

    Raises NftError, NetlinkError, IPTablesError.
    """
    if not step.addresses:
        return None
    if step.backend != "iptables":
        try:
            return _apply_nftables(step, kernel)
        except OSError as error:
            from pycni.kernel.netfilter import iptables

            families = [network.family for network in step.addresses]
            if step.backend or not iptables.can_replace_nftables(error, families):
                raise
    from pycni.steps.masquerade import iptables as masquerade_iptables

    return masquerade_iptables.apply(step, kernel)


def check(step: Masquerade, kernel: HostAndSandbox) -> list[str]:
    """What keeps the addresses from being masqueraded."""
    netfilter = kernel.host.netfilter
    if not step.addresses:
        return []
    differences: list[str] = []
    if step.backend != "iptables":
        differences = _membership(step, kernel).differences(
            lambda found: found.comment.startswith(step.owner.tag), HARM
        )
        if not differences or _reference_made(step, netfilter):
            return []
        if step.backend:
            return differences
    from pycni.steps.masquerade import iptables as masquerade_iptables

    if not step.backend and not masquerade_iptables.made_by_iptables(step, netfilter):
        return differences
    return masquerade_iptables.check(step)


def repair(step: Masquerade, kernel: HostAndSandbox) -> None:
    """As ADD does. Flows that have begun without being masqueraded are forgotten."""
    if apply(step, kernel) is not None:
        masquerade_flows.forget_misrouted(lambda: step.addresses, kernel)


def remove(step: Masquerade, kernel: HostAndSandbox) -> None:
    """Remove what masquerades for the owner, whichever backend, of ours or the reference, made it.

    Without addresses, whatever carries the owner's tag goes.
    """
    from pycni.kernel.netfilter import iptables

    netfilter = kernel.host.netfilter
    owner = step.owner
    is_by_iptables = any(
        iptables.has_chain(netfilter, family, NAT, owner.chain()) for family in IP_FAMILIES
    )
    if is_by_iptables:
        from pycni.steps.masquerade import iptables as masquerade_iptables
    # Subnets are not noted, so elements are found by their owner where there is no prevResult.
    known = step
    if not step.addresses:
        noted = ownership.noted_addresses(kernel)
        known = step.replace(addresses=tuple(map(host_network, noted)))
    addresses = {network.address for network in known.addresses}

    def left() -> list[NetlinkRequest]:
        if step.addresses:
            requests = _membership(step, kernel).leftovers()
        else:
            goes = Owners(owner.network, frozenset((owner.attachment,))).includes
            requests, found = _elements(kernel, owner.tag, goes)
            addresses.update(found)
        requests += _reference_rules(netfilter, lambda comment: comment.startswith(owner.tag))
        if is_by_iptables:
            requests += masquerade_iptables.leftovers(known, kernel, addresses)
        return requests

    netfilter.update(left)
    if is_by_iptables:
        masquerade_iptables.remove_legacy(known, kernel, addresses)
    _end_flows(addresses, kernel, lambda comment: comment.startswith(owner.tag))


def collect(kernel: HostAndSandbox, owners: Owners) -> None:
    """Remove what masquerades for them. Afterwards no set is left of a subnet without addresses."""
    from pycni.steps.masquerade import iptables as masquerade_iptables

    netfilter = kernel.host.netfilter
    addresses = set(map(parse_address, owners.addresses("masquerade")))

    def left() -> list[NetlinkRequest]:
        requests, found = _elements(kernel, owners.tag, owners.includes)
        addresses.update(found)
        return [
            *requests,
            *_reference_rules(netfilter, owners.includes),
            *masquerade_iptables.stale(owners, kernel, addresses),
        ]

    netfilter.update(left)
    masquerade_iptables.collect_legacy(owners, kernel, addresses)
    subnet_sets.delete_unused(netfilter, SETS)
    _end_flows(addresses, kernel, owners.includes)


# --- nftables ------------------------------------------------------------------------------------


def _membership(step: Masquerade, kernel: HostAndSandbox) -> Membership:
    members = [
        Member(network.network, network.address.packed, str(network.address))
        for network in step.addresses
    ]
    netfilter = kernel.host.netfilter
    return Membership(netfilter, SETS, members, step.owner, kernel.is_attached, new=True)


def _apply_nftables(step: Masquerade, kernel: HostAndSandbox) -> Undo | None:
    netfilter = kernel.host.netfilter
    membership = _membership(step, kernel)

    def undo() -> None:
        netfilter.update(membership.undone)
        membership.discard_fresh()
        made = [IPAddress(one.key) for one in membership.made]
        _end_flows(made, kernel, lambda comment: comment.startswith(step.owner.tag))

    try:
        netfilter.update(membership.missing)
    except OSError:
        membership.discard_fresh()
        raise
    membership.collect_earlier()
    if membership.fresh:
        # Whose elements are still there without the rules gets these back as well.
        masquerade_flows.forget_misrouted(lambda: _members(membership.fresh, netfilter), kernel)
    if membership.replaced:
        # An earlier holder of the address has gone without DEL.
        try:
            masquerade_flows.end({IPAddress(one.key) for one in membership.replaced}, netfilter)
        except OSError:
            give_up([undo], kernel)
            raise
    return undo if membership.has_changed else None


def _members(subnets: Iterable[str], netfilter: NetfilterSocket) -> list[IPNetwork]:
    """The addresses in the sets of some subnets, with these."""
    return [
        IPNetwork(IPAddress(item.key), parse_network(subnet).prefix)
        for subnet in subnets
        for item in nfnetlink.elements(
            netfilter, NFPROTO_INET, TABLE, subnet_sets.set_name(SETS, subnet)
        )
    ]


def _end_flows(
    addresses: Collection[IPAddress], kernel: HostAndSandbox, is_own: Callable[[str], bool]
) -> None:
    """Forget the flows of addresses that nobody is masqueraded with any more.

    Unless all flows of an address have been forgotten already, or will be. is_own: whether a tag or
    an alias is of who is not masqueraded any more.
    """
    from pycni.steps import address_flows

    done = kernel.without_flows | address_flows.left(kernel)
    masquerade_flows.end(
        [one for one in addresses if one not in done],
        kernel.host.netfilter,
        lambda address: _is_masqueraded(address, kernel, is_own),
    )


def _is_masqueraded(
    address: IPAddress, kernel: HostAndSandbox, is_own: Callable[[str], bool]
) -> bool:
    """Whether another attachment has an address and is masqueraded, in any of the three ways."""
    netfilter = kernel.host.netfilter
    if subnet_sets.has_key(netfilter, SETS, address.packed):
        return True
    from pycni.steps import interfaces
    from pycni.steps.masquerade import iptables as masquerade_iptables

    chains = masquerade_iptables.chains_for(netfilter, address)
    tags = {
        tag_of(rule.comment)
        for rule, _, _ in nfnetlink.expressions(
            netfilter, NFPROTO_INET, REFERENCE_TABLE, REFERENCE_CHAIN, (address.packed,)
        )
    }
    if not chains and not tags:
        return False
    return interfaces.is_held(
        kernel, address, lambda owner: owner.chain() in chains or owner.tag in tags, is_own
    )


def _elements(
    kernel: HostAndSandbox, tag: str, goes: Callable[[str], bool]
) -> tuple[list[NetlinkRequest], list[IPAddress]]:
    """What takes some owners' elements out of all sets, and the addresses that they are.

    tag: what the comments of all of them contain.
    """
    netfilter = kernel.host.netfilter
    names = subnet_sets.sets(netfilter, SETS)
    requests, found = shared_elements.deletions_of_owners(
        netfilter, names, tag, goes, kernel.is_attached
    )
    return requests, [IPAddress(item.key) for item in found]


# --- the reference's nftables table --------------------------------------------------------------


def _reference_rules(
    netfilter: NetfilterSocket, matches: Callable[[str], bool]
) -> list[NetlinkRequest]:
    return [
        nfnetlink.delete_rule(NFPROTO_INET, REFERENCE_TABLE, REFERENCE_CHAIN, rule.handle)
        for rule in nfnetlink.rules(netfilter, NFPROTO_INET, REFERENCE_TABLE, REFERENCE_CHAIN)
        if matches(rule.comment)
    ]


def _reference_made(step: Masquerade, netfilter: NetfilterSocket) -> bool:
    """Whether the reference's nftables table masquerades for the owner."""
    found = nfnetlink.rules(netfilter, NFPROTO_INET, REFERENCE_TABLE, REFERENCE_CHAIN)
    owned = [rule for rule in found if rule.comment.startswith(step.owner.tag)]
    return len(owned) >= len(step.addresses)
