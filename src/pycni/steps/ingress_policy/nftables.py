"""The nftables backend of `ingress_policy`, in the chain of `firewall.nftables`.

A bridge with a policy is in one set, and with itself in another unless it is isolated. What goes
from one such bridge to one is dropped unless the pair is there:

    set firewall-bridges { "cni0" }    set firewall-pairs { "cni0" . "cni0" }
"""

from __future__ import annotations

from pycni.kernel.netfilter import constant_rules, nfnetlink
from pycni.kernel.netfilter.constant_rules import TABLE
from pycni.kernel.netfilter.nfnetlink import NFPROTO_INET
from pycni.steps.backend import Applied, Leftovers
from pycni.steps.firewall.nftables import CHAIN
from pycni.steps.firewall.registry import BRIDGES, DECLARATIONS, PAIRS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import IngressPolicy
    from pycni.spec.owner import Owners
    from pycni.steps.namespaces import HostAndSandbox

COMMENT = "made by pycni"


def apply(step: IngressPolicy, kernel: HostAndSandbox, *, thorough: bool = False) -> Applied:
    netfilter = kernel.host.netfilter
    done: list[tuple[str, bytes, bool]] = []

    def change(name: str, key: bytes, wanted: bool) -> list[NetlinkRequest]:
        there = nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, key) is not None
        if there == wanted:
            return []
        if wanted:
            return [nfnetlink.add_element(NFPROTO_INET, TABLE, name, key, COMMENT)]
        return [_delete(name, key)]

    def missing() -> list[NetlinkRequest]:
        constant_rules.set_up(netfilter, DECLARATIONS, [CHAIN])
        requests: list[NetlinkRequest] = []
        done.clear()
        for name, key, wanted in _elements(step):
            needed = change(name, key, wanted)
            if needed:
                done.append((name, key, wanted))
            requests += needed
        return requests

    def undo() -> None:
        netfilter.update(
            lambda: [
                request for name, key, wanted in done for request in change(name, key, not wanted)
            ]
        )

    netfilter.update(missing)
    return Applied(undo if done else None)


def check(step: IngressPolicy, kernel: HostAndSandbox) -> list[str]:
    netfilter = kernel.host.netfilter
    differences = constant_rules.differences(netfilter, [CHAIN], "no bridge is kept apart")
    for name, key, wanted in _elements(step):
        found = nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, key)
        if (found is not None) != wanted:
            state = "not in" if wanted else "in"
            differences.append(f"nftables: {step.bridge} is {state} set inet {TABLE} {name}")
    return differences


def made(step: IngressPolicy, kernel: HostAndSandbox) -> bool:
    return not check(step, kernel)


def leftovers(
    owners: Owners,
    kernel: HostAndSandbox,
    gone: Callable[[str], bool],
    step: IngressPolicy | None,
) -> Leftovers:
    """What takes bridges out of the sets that are gone."""
    return Leftovers(
        [
            _delete(name, item.key)
            for name in (BRIDGES, PAIRS)
            for item in nfnetlink.elements(kernel.host.netfilter, NFPROTO_INET, TABLE, name)
            if gone(item.key[:16].rstrip(b"\0").decode("utf-8", "surrogateescape"))
        ]
    )


def _elements(step: IngressPolicy) -> list[tuple[str, bytes, bool]]:
    """Sets with the key that they should hold, or (False) should not."""
    bridge = step.bridge
    return [
        (BRIDGES, nfnetlink.ifname_key(bridge), True),
        (PAIRS, nfnetlink.ifname_key(bridge, bridge), not step.isolated),
    ]


def _delete(name: str, key: bytes) -> NetlinkRequest:
    return nfnetlink.delete_element(NFPROTO_INET, TABLE, name, key)
