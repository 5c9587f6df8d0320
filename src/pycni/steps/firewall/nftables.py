"""The nftables backend of `firewall`: the chain `firewall-forward`, which filters by the sets of
`registry`. Its rules are all there are, however many containers.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel.netfilter import constant_rules
from pycni.kernel.netfilter.constant_rules import ConstantChain
from pycni.steps.backend import Leftovers
from pycni.steps.firewall import registry
from pycni.steps.firewall.registry import ADMIN, BRIDGES, PAIRS, SETS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import Firewall
    from pycni.spec.owner import Owners
    from pycni.steps.firewall.closing import Closing
    from pycni.steps.firewall.registry import Registered
    from pycni.steps.namespaces import HostAndSandbox

FORWARD = "firewall-forward"
CHAIN = ConstantChain(
    FORWARD,
    {
        "of the administrator": f"jump {ADMIN}",
        "ingressPolicy": f"iifname @{BRIDGES} oifname @{BRIDGES}"
        f" iifname . oifname != @{PAIRS} drop",
        "answers IPv4": f"ip daddr @{SETS[AF_INET]} ct state established,related accept",
        "answers IPv6": f"ip6 daddr @{SETS[AF_INET6]} ct state established,related accept",
        "containers IPv4": f"ip saddr @{SETS[AF_INET]} accept",
        "containers IPv6": f"ip6 saddr @{SETS[AF_INET6]} accept",
    },
    "type filter hook forward priority filter",
)

_FEW = 8  # addresses: with more, to list the sets takes less than to look for each


def apply(step: Firewall, kernel: HostAndSandbox, *, thorough: bool = False) -> Registered:
    return registry.register(step, kernel, CHAIN)


def check(step: Firewall, kernel: HostAndSandbox) -> list[str]:
    netfilter = kernel.host.netfilter
    differences = constant_rules.differences(netfilter, [CHAIN], "no container is let through")
    return differences + registry.differences(step, kernel)


def made(step: Firewall, kernel: HostAndSandbox) -> bool:
    return not check(step, kernel)


def leftovers(
    owners: Owners, kernel: HostAndSandbox, gone: Closing, step: Firewall | None
) -> Leftovers:
    """What takes owners out of the sets, when it is known which addresses stay.

    With them those go that have been seen to be gone; GC leaves the elements of addresses that are
    in use.
    """

    def leave() -> None:
        spared = gone.spared
        stale = {*gone.others} & gone.addresses - spared
        dead = {comment for address in stale for comment in gone.others[address]}
        is_few = len(gone.recorded) <= _FEW
        kernel.host.netfilter.update(
            lambda: registry.departures(
                kernel,
                lambda comment: owners.includes(comment) or comment in dead,
                None if is_few else owners.tag,
                among=gone.recorded | stale if is_few else stale,
                spared=spared - {*gone.others} if step is None else set(),
            )
        )

    return Leftovers(then=leave)
