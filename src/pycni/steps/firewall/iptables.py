"""The iptables backend of `firewall`: the chains and rules of the reference, in table `filter`.

FORWARD leads to CNI-FORWARD, which first leads to the administrator's chain and then accepts each
container's packets and the answers to them. The rules name no owner.
"""

from __future__ import annotations

from pycni.kernel.netfilter import iptables, iptables_nft, nfnetlink
from pycni.steps.backend import Applied, Leftovers, applied
from pycni.steps.executor import give_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import Firewall
    from pycni.spec.ip import IPAddress
    from pycni.spec.owner import Owners
    from pycni.steps.executor import Undo
    from pycni.steps.firewall.closing import Closing
    from pycni.steps.namespaces import HostAndSandbox

TABLE = "filter"
FORWARD = "CNI-FORWARD"

_COMMENT = iptables.comment("CNI firewall plugin rules")
_ADMIN_COMMENT = iptables.comment("CNI firewall plugin admin overrides")


def apply(step: Firewall, kernel: HostAndSandbox, *, thorough: bool = False) -> Applied:
    """Make the rules that are missing. Those for the addresses can be taken back.

    thorough: there may be rules for the addresses already.
    """
    netfilter = kernel.host.netfilter
    done: list[Undo] = []
    own: list[str] = []
    try:
        for family, addresses in by_family(step.addresses).items():
            if not thorough and _is_ready(step, netfilter, family):
                netfilter.commit(
                    [
                        request
                        for address in addresses
                        for request in iptables_nft.add(TABLE, FORWARD, address)
                    ]
                )
                done.append(_removal(addresses, netfilter))
                continue

            def build(family: int = family, addresses: list[IPAddress] = addresses) -> list[str]:
                chains = [FORWARD, step.admin_chain]
                present = iptables.present(netfilter, family, TABLE, chains)
                own[:] = iptables.missing(present, (), _rules(addresses))
                return [*iptables.missing(present, chains, shared(step)), *own]

            own.clear()
            iptables.update(family, TABLE, build)
            if own:
                done.append(_undo(family, [*own]))
    except OSError:
        give_up(done, kernel)
        raise
    return applied(done)


def _is_ready(step: Firewall, netfilter: NetfilterSocket, family: int) -> bool:
    """Whether iptables-nft has all that the host's containers share."""
    return (
        iptables.is_nft(family)
        and any(
            rule.chain == FORWARD for rule in nfnetlink.rules(netfilter, family, TABLE, "FORWARD")
        )
        and _is_jumped_to(netfilter, family, TABLE, step.admin_chain)
    )


def check(step: Firewall, kernel: HostAndSandbox) -> list[str]:
    differences: list[str] = []
    for family, addresses in by_family(step.addresses).items():
        rules = (*shared(step), *_rules(addresses))
        differences += iptables.differences(family, TABLE, rules)
    return differences


def made(step: Firewall, kernel: HostAndSandbox) -> bool:
    """Whether there are rules for each address, such as the reference makes."""
    found = _Rules(step.addresses, kernel.host.netfilter)
    return found.addresses.issuperset(step.addresses)


def leftovers(
    owners: Owners, kernel: HostAndSandbox, gone: Closing, step: Firewall | None
) -> Leftovers:
    """What deletes the rules for addresses, whichever iptables keeps them."""
    rules = _Rules(gone.addresses, kernel.host.netfilter)
    gone.doubt(rules.addresses)
    return Leftovers(then=lambda: rules.remove(gone.closed))


class _Rules:
    """The rules for some addresses, whichever iptables keeps them."""

    def __init__(self, addresses: Collection[IPAddress], netfilter: NetfilterSocket) -> None:
        self._netfilter = netfilter
        self._requests: dict[IPAddress, list[NetlinkRequest]] = {}
        self._by_program: set[IPAddress] = set()
        for family, found in by_family(addresses).items():
            requests, others = iptables_nft.find(netfilter, family, TABLE, FORWARD, found)
            legacy = set(iptables.legacy_lines(family, TABLE, FORWARD))
            self._requests.update(requests)
            self._by_program |= others
            self._by_program.update(one for one in found if legacy.intersection(_rules([one])))

    @property
    def addresses(self) -> set[IPAddress]:
        """Those of the addresses that have any."""
        return {*self._requests, *self._by_program}

    def remove(self, addresses: Collection[IPAddress]) -> None:
        """Delete those of some of the addresses. Raises IPTablesError, NetlinkError."""
        self._netfilter.commit(
            [request for one in addresses for request in self._requests.get(one, ())]
        )
        for family, found in by_family(self._by_program.intersection(addresses)).items():
            iptables.delete_rules(self._netfilter, family, TABLE, FORWARD, _rules(found))


def shared(step: Firewall) -> list[str]:
    """The rules that all containers share: the jump to FORWARD's own chain, then to the admin's."""
    return [
        f"-I FORWARD {_COMMENT} -j {FORWARD}",
        f"-I {FORWARD} {_ADMIN_COMMENT} -j {step.admin_chain}",
    ]


def by_family(addresses: Collection[IPAddress]) -> dict[int, list[IPAddress]]:
    """Addresses by family (AF_INET, AF_INET6)."""
    found: dict[int, list[IPAddress]] = {}
    for address in addresses:
        found.setdefault(address.family, []).append(address)
    return found


def _rules(addresses: Collection[IPAddress]) -> list[str]:
    return [
        f"-A {FORWARD} {rule}"
        for address in addresses
        for rule in (
            f"-d {address}/{address.bits} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            f"-s {address}/{address.bits} -j ACCEPT",
        )
    ]


def _removal(addresses: Collection[IPAddress], netfilter: NetfilterSocket) -> Undo:
    return lambda: _Rules(addresses, netfilter).remove(addresses)


def _undo(family: int, lines: list[str]) -> Undo:
    return lambda: iptables.undo(family, TABLE, lines)


def _is_jumped_to(netfilter: NetfilterSocket, family: int, table: str, chain: str) -> bool:
    """Whether a chain exists and a rule jumps to it."""
    count = nfnetlink.users(netfilter, family, table, chain)
    return count > len(nfnetlink.rules(netfilter, family, table, chain)) if count else False
