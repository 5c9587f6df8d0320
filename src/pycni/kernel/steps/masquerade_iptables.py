"""The iptables backend of `masquerade`: the chains and rules of the reference, in table `nat`.

A chain for each container of a network, named by a hash of both (the interface is not part of
it): what stays in the subnet is accepted, the rest is masqueraded. POSTROUTING jumps there for
each address.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel import iptables, nfnetlink
from pycni.spec.owner import Owner, containers_named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from pycni.kernel.netlink.codec import Request
    from pycni.kernel.nfnetlink import NetfilterSocket
    from pycni.plan.steps import Masquerade
    from pycni.spec.ip import IPNetwork

FAMILIES = (AF_INET, AF_INET6)
TABLE = "nat"
POSTROUTING = "POSTROUTING"

_MULTICAST = {AF_INET: "224.0.0.0/4", AF_INET6: "ff00::/8"}


def apply(step: Masquerade, netfilter: NetfilterSocket) -> Callable[[], None] | None:
    """Make the chain and the rules that are missing."""
    chain = step.owner.chain()
    made: list[tuple[int, list[str]]] = []

    def undo() -> None:
        for family, lines in made:
            iptables.undo(family, TABLE, lines)

    try:
        for family, rules in rules_of(step).items():
            lines = iptables.ensure(netfilter, family, TABLE, chain, rules)
            if lines:
                made.append((family, lines))
    except OSError:
        undo()
        raise
    return undo if made else None


def check(step: Masquerade) -> list[str]:
    """The rules that are missing, a sentence each."""
    differences: list[str] = []
    for family, rules in rules_of(step).items():
        present = {*iptables.save(family, TABLE), *iptables.legacy_lines(family, TABLE)}
        program = "iptables" if family == AF_INET else "ip6tables"
        differences += (
            f"{program}: table {TABLE} lacks the rule: {rule}"
            for rule in rules
            if rule not in present
        )
    return differences


def made_by_iptables(step: Masquerade, netfilter: NetfilterSocket) -> bool:
    """Whether the owner's container has its chain."""
    chain = step.owner.chain()
    families = {network.family for network in step.addresses}
    return any(iptables.has_chain(netfilter, family, TABLE, chain) for family in families)


def leftovers(owner: Owner, netfilter: NetfilterSocket) -> list[Request]:
    """What deletes the owner's chain and the jumps to it, where iptables-nft keeps them."""
    return [
        request
        for family in FAMILIES
        for request in iptables.removal(netfilter, family, TABLE, owner.chain(), [POSTROUTING])
    ]


def remove_legacy(owner: Owner) -> None:
    """Delete the owner's chain and the jumps to it, where iptables-legacy keeps them."""
    for family in FAMILIES:
        iptables.remove_legacy(family, TABLE, [owner.chain()])


def stale(network: str, keep: Collection[str], netfilter: NetfilterSocket) -> list[Request]:
    """What deletes the network's chains of containers that are not kept (iptables-nft)."""
    requests: list[Request] = []
    for family in FAMILIES:
        for chain in nfnetlink.chains(netfilter, family, TABLE):
            if not chain.startswith("CNI-") or len(chain) != len("CNI-") + 24:
                continue
            found = nfnetlink.rules(netfilter, family, TABLE, chain)
            if chain in _chains_of((rule.comment for rule in found), network, keep):
                requests += iptables.removal(netfilter, family, TABLE, chain, [POSTROUTING])
    return requests


def collect_legacy(network: str, keep: Collection[str]) -> None:
    """Delete the network's chains of containers that are not kept (iptables-legacy)."""
    iptables.collect_legacy(TABLE, lambda comments: _chains_of(comments, network, keep))


def rules_of(step: Masquerade) -> dict[int, list[str]]:
    """The rules by family, in the form of iptables-save."""
    rules: dict[int, list[str]] = {}
    for network in step.addresses:
        mine = rules.setdefault(network.family, [])
        mine += (rule for rule in _rules_of(step.owner, network) if rule not in mine)
    return rules


def _rules_of(owner: Owner, network: IPNetwork) -> list[str]:
    chain, comment = owner.chain(), iptables.comment(owner.iptables_comment)
    address = network.address
    return [
        f"-A {chain} -d {network.network} {comment} -j ACCEPT",
        f"-A {chain} ! -d {_MULTICAST[network.family]} {comment} -j MASQUERADE",
        f"-A {POSTROUTING} -s {address}/{address.bits} {comment} -j {chain}",
    ]


def _chains_of(comments: Iterable[str], network: str, keep: Collection[str]) -> set[str]:
    """The chains of the containers, among those that comments name, that are not kept."""
    containers = containers_named(comments, network)
    return {Owner(network, container, "").chain() for container in containers.difference(keep)}
