"""The rules of `firewall` in iptables for all containers together: they look into a set.

    -A CNI-FORWARD -m set --match-set CNI-FORWARD4 dst -m conntrack --ctstate ... -j ACCEPT
    -A CNI-FORWARD -m set --match-set CNI-FORWARD4 src ... -j ACCEPT

The chains are those of `firewall.iptables`, whose rules for each container make everything grow:
packets go through all of them, and so does the kernel at each change. These two do not. Hence they
are chosen where iptables decides, unless the configuration names it; see `firewall.chosen`.

Rules are known by their comments and read over netlink, so iptables must be `iptables-nft`; the
program runs where one is missing.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel.netfilter import ipset, iptables, nfnetlink
from pycni.steps.backend import Applied, Leftovers, applied
from pycni.steps.executor import give_up
from pycni.steps.firewall import iptables as firewall_iptables
from pycni.steps.firewall.iptables import FORWARD, TABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.plan.steps import Firewall
    from pycni.spec.ip import IPAddress
    from pycni.spec.owner import Owners
    from pycni.steps.executor import Undo
    from pycni.steps.firewall.closing import Closing
    from pycni.steps.namespaces import HostAndSandbox

SETS = {AF_INET: "CNI-FORWARD4", AF_INET6: "CNI-FORWARD6"}

_ANSWERS = "CNI firewall plugin: answers to containers"
_CONTAINERS = "CNI firewall plugin: from containers"


def is_usable(netfilter: NetfilterSocket, families: Iterable[int]) -> bool:
    """Whether these rules can be made here."""
    return all(iptables.is_nft(family) and ipset.usable(netfilter, family) for family in families)


def apply(step: Firewall, kernel: HostAndSandbox, *, thorough: bool = False) -> Applied:
    """Make what is missing. What is not shared can be taken back."""
    netfilter = kernel.host.netfilter
    done: list[Undo] = []
    try:
        for family in firewall_iptables.by_family(step.addresses):

            def build(family: int = family) -> list[str]:
                lines = _missing(step, netfilter, family)
                if lines:
                    ipset.create(netfilter, SETS[family], family)
                return lines

            iptables.update(family, TABLE, build)
        for address in step.addresses:
            if not _has(address, netfilter):
                # First, for it may be there even if adding it fails: the answer can be lost.
                done.append(_removal(address, netfilter))
                ipset.add(netfilter, SETS[address.family], address.packed)
    except OSError:
        give_up(done, kernel)
        raise
    return applied(done)


def check(step: Firewall, kernel: HostAndSandbox) -> list[str]:
    netfilter = kernel.host.netfilter
    differences: list[str] = []
    for family, addresses in firewall_iptables.by_family(step.addresses).items():
        rules = [
            rule for rule in _missing(step, netfilter, family) if rule.startswith(("-A", "-I"))
        ]
        differences += iptables.sentences(family, TABLE, iptables.lacking(rules, ()))
        differences += (
            f"{iptables.program(family)}: {address} is not in the set {SETS[family]}"
            for address in addresses
            if not _has(address, netfilter)
        )
    return differences


def made(step: Firewall, kernel: HostAndSandbox) -> bool:
    return any(_has(address, kernel.host.netfilter) for address in step.addresses)


def leftovers(
    owners: Owners, kernel: HostAndSandbox, gone: Closing, step: Firewall | None
) -> Leftovers:
    """What takes addresses out of the sets. An entry of one that the sets of nftables give to the
    owners alone is theirs too.
    """
    netfilter = kernel.host.netfilter
    gone.doubt(one for one in gone.addresses - gone.own if _has(one, netfilter))
    return Leftovers(then=lambda: _remove(gone.own | gone.closed, netfilter))


def _has(address: IPAddress, netfilter: NetfilterSocket) -> bool:
    return ipset.contains(netfilter, SETS[address.family], address.packed)


def _remove(addresses: Collection[IPAddress], netfilter: NetfilterSocket) -> None:
    """Take addresses out of the sets; what is missing is no error."""
    for address in addresses:
        ipset.delete(netfilter, SETS[address.family], address.packed)


def _missing(step: Firewall, netfilter: NetfilterSocket, family: int) -> list[str]:
    """The lines for `iptables.restore` that make the chains and rules which are not there."""
    to_forward, to_admin = firewall_iptables.shared(step)
    callers = nfnetlink.rules(netfilter, family, TABLE, "FORWARD")
    present = nfnetlink.rules(netfilter, family, TABLE, FORWARD)
    comments = {rule.comment for rule in present}
    rules = [rule for comment, rule in _rules(family).items() if comment not in comments]
    if all(rule.chain != step.admin_chain for rule in present):
        rules.insert(0, to_admin)
    if all(rule.chain != FORWARD for rule in callers):
        rules.insert(0, to_forward)
    if not rules:
        return []
    chains = [
        f"-N {chain}"
        for chain in (FORWARD, step.admin_chain)
        if not nfnetlink.chain_exists(netfilter, family, TABLE, chain)
    ]
    return chains + rules


def _rules(family: int) -> dict[str, str]:
    """What accepts packets of the set's addresses, and the answers to them; by comment."""
    match = f"-A {FORWARD} -m set --match-set {SETS[family]}"
    answers = "-m conntrack --ctstate RELATED,ESTABLISHED"
    return {
        _ANSWERS: f"{match} dst {answers} {iptables.comment(_ANSWERS)} -j ACCEPT",
        _CONTAINERS: f"{match} src {iptables.comment(_CONTAINERS)} -j ACCEPT",
    }


def _removal(address: IPAddress, netfilter: NetfilterSocket) -> Undo:
    return lambda: _remove([address], netfilter)
