"""Masquerade: packets from containers to outside their subnet leave with the host's address.

nftables, table `inet pycni`: a packet costs a look-up per subnet, however many containers there
are. Each address is a member of the set of its subnet, and what it sends elsewhere is masqueraded,
but for multicast; see `pycni.kernel.subnet_sets`:

    set masquerade-10.1.0.0/24 { 10.1.0.2 comment "<owner>" }
    chain masquerade-postrouting { ip saddr @masquerade-10.1.0.0/24 ip daddr != 10.1.0.0/24
                                   ip daddr != 224.0.0.0/4 masquerade comment "10.1.0.0/24" }

iptables, table `nat`, and the nftables table of the reference: as the reference makes them, so
that either can remove what the other made. Removing looks at all three. An ADD by nftables, the
usual case, does without the iptables half, which functions therefore import when they need it.
"""

from __future__ import annotations

import errno
from _socket import AF_INET, AF_INET6

from pycni.kernel import nfnetlink, subnet_sets
from pycni.kernel.constant_rules import TABLE
from pycni.kernel.nfnetlink import NFPROTO_INET
from pycni.kernel.subnet_sets import Feature, Member, Membership
from pycni.spec.owner import Owner, network_tag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pycni.kernel.context import Kernel
    from pycni.kernel.netlink.codec import Request
    from pycni.kernel.nfnetlink import NetfilterSocket
    from pycni.plan.steps import Masquerade
    from pycni.spec.config import Attachment

SETS = Feature(
    "masquerade-",
    "masquerade-postrouting",
    {AF_INET: "ipv4_addr", AF_INET6: "ipv6_addr"},
    {
        AF_INET: "ip saddr @{set} ip daddr != {subnet} ip daddr != 224.0.0.0/4 masquerade",
        AF_INET6: "ip6 saddr @{set} ip6 daddr != {subnet} ip6 daddr != ff00::/8 masquerade",
    },
)
HARM = "no container is masqueraded"

REFERENCE_TABLE = "cni_plugins_masquerade"
REFERENCE_CHAIN = "masq_checks"

TAG_LENGTH = 33


def apply(step: Masquerade, kernel: Kernel) -> Callable[[], None] | None:
    """Have the addresses masqueraded; an element of an address that was another's is replaced."""
    if not step.addresses:
        return None
    if step.backend != "iptables":
        try:
            return _apply_nftables(step, kernel.host.netfilter)
        except OSError as error:
            if step.backend or not _should_fall_back(step, error):
                raise
    from pycni.kernel.steps import masquerade_iptables

    return masquerade_iptables.apply(step, kernel.host.netfilter)


def _should_fall_back(step: Masquerade, error: OSError) -> bool:
    """Whether the host cannot do nftables, and can do iptables.

    A refusal by the library says so; one by netlink is about the step.
    """
    from pycni.kernel import iptables
    from pycni.kernel.nftables import NftError

    if not isinstance(error, NftError) or error.errno == errno.EPERM:
        return False
    return all(iptables.available(address.family) for address in step.addresses)


def check(step: Masquerade, kernel: Kernel) -> list[str]:
    """What keeps the addresses from being masqueraded."""
    netfilter = kernel.host.netfilter
    if not step.addresses:
        return []
    from pycni.kernel.steps import masquerade_iptables

    if step.backend != "iptables":
        differences = _membership(step, netfilter).differences(
            lambda found: found.comment.startswith(step.owner.tag), HARM
        )
        if not differences or _reference_made(step, netfilter):
            return []
        if step.backend or not masquerade_iptables.made_by_iptables(step, netfilter):
            return differences
    return masquerade_iptables.check(step)


def remove(step: Masquerade, kernel: Kernel) -> None:
    """Remove what masquerades for the owner, whichever backend, of ours or the reference, made it.

    Without addresses, whatever carries the owner's tag goes.
    """
    from pycni.kernel.steps import masquerade_iptables

    netfilter = kernel.host.netfilter
    owner = step.owner

    def left() -> list[Request]:
        return [
            *(
                _membership(step, netfilter).leftovers()
                if step.addresses
                else _elements(netfilter, owner.tag, lambda text: text.startswith(owner.tag))
            ),
            *_reference_rules(netfilter, lambda comment: comment.startswith(owner.tag)),
            *masquerade_iptables.leftovers(owner, netfilter),
        ]

    netfilter.update(left)
    masquerade_iptables.remove_legacy(owner)


def collect(kernel: Kernel, network: str, keep: Collection[Attachment]) -> None:
    """Remove what masquerades for attachments of the network that are not kept.

    Afterwards no set is left of a subnet without addresses.
    """
    from pycni.kernel.steps import masquerade_iptables

    netfilter = kernel.host.netfilter
    tag = network_tag(network)
    kept = {Owner(network, item.container_id, item.ifname).tag for item in keep}
    containers = {item.container_id for item in keep}

    def stale(comment: str) -> bool:
        return comment.startswith(f"{tag}-") and comment[:TAG_LENGTH] not in kept

    def left() -> list[Request]:
        return [
            *_elements(netfilter, tag, stale),
            *_reference_rules(netfilter, stale),
            *masquerade_iptables.stale(network, containers, netfilter),
        ]

    netfilter.update(left)
    masquerade_iptables.collect_legacy(network, containers)
    subnet_sets.delete_unused(netfilter, SETS)


# --- nftables ------------------------------------------------------------------------------------


def _membership(step: Masquerade, netfilter: NetfilterSocket) -> Membership:
    members = [
        Member(network.network, network.address.packed, str(network.address))
        for network in step.addresses
    ]
    return Membership(netfilter, SETS, members, step.owner, new=True)


def _apply_nftables(step: Masquerade, netfilter: NetfilterSocket) -> Callable[[], None] | None:
    membership = _membership(step, netfilter)

    def undo() -> None:
        netfilter.update(membership.undone)
        membership.discard_fresh()

    try:
        netfilter.update(membership.missing)
    except OSError:
        membership.discard_fresh()
        raise
    membership.collect_earlier()
    return undo if membership.made else None


def _elements(
    netfilter: NetfilterSocket, tag: str, matches: Callable[[str], bool]
) -> list[Request]:
    """What deletes the elements whose comment contains a tag and matches."""
    return [
        nfnetlink.delete_element(NFPROTO_INET, TABLE, name, item.key)
        for name in subnet_sets.sets(netfilter, SETS)
        for item in nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name, tag)
        if matches(item.comment)
    ]


# --- the reference's nftables table --------------------------------------------------------------


def _reference_rules(netfilter: NetfilterSocket, matches: Callable[[str], bool]) -> list[Request]:
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
