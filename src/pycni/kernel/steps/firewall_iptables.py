"""The iptables backend of `firewall`: the chains and rules of the reference, in table `filter`.

FORWARD leads to CNI-FORWARD, which first leads to the administrator's chain and then accepts each
container's packets and the answers to them. The rules name no owner.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel import iptables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pycni.kernel.nfnetlink import NetfilterSocket
    from pycni.plan.steps import Firewall
    from pycni.spec.ip import IPAddress

FAMILIES = (AF_INET, AF_INET6)
TABLE = "filter"
FORWARD = "CNI-FORWARD"

_COMMENT = iptables.comment("CNI firewall plugin rules")
_ADMIN_COMMENT = iptables.comment("CNI firewall plugin admin overrides")


def apply(step: Firewall, netfilter: NetfilterSocket) -> list[Callable[[], None]]:
    """Make the rules that are missing. Returns how to take back those for the addresses."""
    done: list[Callable[[], None]] = []
    try:
        for family, rules in _by_family(step.addresses).items():
            chains = [FORWARD, step.admin_chain]
            present = iptables.present(netfilter, family, TABLE, chains)
            own = iptables.missing(present, (), rules)
            lines = [*iptables.missing(present, chains, _shared(step)), *own]
            if lines:
                iptables.restore(family, TABLE, lines)
            if own:
                done.append(_undo(family, own))
    except OSError:
        for undo in done:
            undo()
        raise
    return done


def check(step: Firewall) -> list[str]:
    """The rules that are missing, a sentence each."""
    differences: list[str] = []
    for family, rules in _by_family(step.addresses).items():
        present = {*iptables.save(family, TABLE), *iptables.legacy_lines(family, TABLE)}
        program = "iptables" if family == AF_INET else "ip6tables"
        differences += (
            f"{program}: table {TABLE} lacks the rule: -A{rule[2:]}"
            for rule in (*_shared(step), *rules)
            if f"-A{rule[2:]}" not in present
        )
    return differences


def remove(addresses: Collection[IPAddress], netfilter: NetfilterSocket) -> None:
    """Delete the rules for addresses; what is missing is no error."""
    for family, rules in _by_family(addresses).items():
        iptables.delete_rules(netfilter, family, TABLE, FORWARD, rules)


def _shared(step: Firewall) -> list[str]:
    return [
        f"-I FORWARD {_COMMENT} -j {FORWARD}",
        f"-I {FORWARD} {_ADMIN_COMMENT} -j {step.admin_chain}",
    ]


def _by_family(addresses: Collection[IPAddress]) -> dict[int, list[str]]:
    rules: dict[int, list[str]] = {}
    for address in addresses:
        network = f"{address}/{address.bits}"
        rules.setdefault(address.family, []).extend(
            (
                f"-A {FORWARD} -d {network} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                f"-A {FORWARD} -s {network} -j ACCEPT",
            )
        )
    return rules


def _undo(family: int, lines: list[str]) -> Callable[[], None]:
    return lambda: iptables.undo(family, TABLE, lines)
