"""The nftables table that the reference's masquerading makes: read and removed, never written."""

from __future__ import annotations

from pycni.kernel.netfilter import nfnetlink
from pycni.kernel.netfilter.nfnetlink import NFPROTO_INET
from pycni.spec.owner import tag_of
from pycni.steps.backend import Leftovers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket, Rule
    from pycni.plan.steps import Masquerade
    from pycni.spec.ip import IPAddress
    from pycni.spec.owner import Owners
    from pycni.steps.namespaces import HostAndSandbox

TABLE = "cni_plugins_masquerade"
CHAIN = "masq_checks"


def made(step: Masquerade, kernel: HostAndSandbox) -> bool:
    """Whether it masquerades for the owner."""
    owns = step.owner.owns
    rules = _rules(kernel.host.netfilter)
    return sum(owns(rule.comment) for rule in rules) >= len(step.addresses)


def check(step: Masquerade, kernel: HostAndSandbox) -> list[str]:
    if made(step, kernel):
        return []
    return [f"nftables: chain inet {TABLE} {CHAIN} lacks rules of {step.owner.container_id}"]


def leftovers(
    owners: Owners,
    kernel: HostAndSandbox,
    gone: set[IPAddress],
    step: Masquerade | None,
) -> Leftovers:
    return Leftovers(
        [
            nfnetlink.delete_rule(NFPROTO_INET, TABLE, CHAIN, rule.handle)
            for rule in _rules(kernel.host.netfilter)
            if owners.includes(rule.comment)
        ]
    )


def tags_for(netfilter: NetfilterSocket, address: IPAddress) -> set[str]:
    """The tags of the attachments that an address is masqueraded for."""
    found = nfnetlink.expressions(netfilter, NFPROTO_INET, TABLE, CHAIN, (address.packed,))
    return {tag_of(rule.comment) for rule, _, _ in found}


def _rules(netfilter: NetfilterSocket) -> list[Rule]:
    return nfnetlink.rules(netfilter, NFPROTO_INET, TABLE, CHAIN)
