"""Bridges whose containers others on this host do not reach (`plan.steps.IngressPolicy`).

The name of a bridge may be an alternative one; rules are made of that by which the kernel knows it.
What is no bridge is refused: the policy of a name that a plugin reports first may be that of the
host's uplink, which it would cut off.
"""

from __future__ import annotations

from pycni.spec.errors import CNIError, invalid_config
from pycni.steps import backend, firewall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pycni.plan.steps import IngressPolicy
    from pycni.spec.owner import Owners
    from pycni.steps.backend import Backend
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox

_KINDS = ("bridge", "openvswitch")


def _load(name: str) -> Backend[IngressPolicy, Callable[[str], bool]]:
    if name == "nftables":
        from pycni.steps.ingress_policy import nftables

        return nftables
    from pycni.steps.ingress_policy import iptables

    return iptables


def apply(step: IngressPolicy, kernel: HostAndSandbox) -> Undo | None:
    """Raises CNIError (code 7) if there is no such bridge, or no rule for its name alone."""
    step = _named(step, kernel)
    return _load(_chosen(step, kernel)).apply(step, kernel).undo


def check(step: IngressPolicy, kernel: HostAndSandbox) -> list[str]:
    step = _named(step, kernel)
    return _load(_chosen(step, kernel)).check(step, kernel)


def collect(kernel: HostAndSandbox, owners: Owners) -> None:
    """Remove what is about bridges that are not there, or about what is none, by any backend."""
    gone: dict[str, bool] = {}

    def is_gone(bridge: str) -> bool:
        if bridge not in gone:
            found = kernel.host.find(bridge)
            gone[bridge] = found is None or found.kind not in _KINDS
        return gone[bridge]

    backend.remove(map(_load, ("nftables", "iptables")), owners, kernel, is_gone)


def no_bridge(name: str, policy: str, reason: str) -> CNIError:
    """The error for a policy of what is no bridge."""
    return invalid_config(
        f'"{name}" is no bridge for ingress policy "{policy}"',
        f"{reason}; the first interface of prevResult must be the bridge, as the plugin bridge "
        'reports it: put firewall behind that, or drop "ingressPolicy"',
    )


def _named(step: IngressPolicy, kernel: HostAndSandbox) -> IngressPolicy:
    """The step with the name that the kernel has for its bridge. Raises CNIError (code 7)."""
    found = kernel.host.find(step.bridge, altnames=True)
    reason = (
        "the host has no such interface"
        if found is None
        else f"it is a {found.kind or 'hardware interface'}"
    )
    if found is None or found.kind not in _KINDS:
        raise no_bridge(step.bridge, "isolated" if step.isolated else "same-bridge", reason)
    return step.replace(bridge=found.name)


def _chosen(step: IngressPolicy, kernel: HostAndSandbox) -> str:
    """The backend that makes a policy where `firewall` has the one it has.

    A drop in nftables holds whatever other tables accept, so it serves firewalld too.
    """
    name = firewall.chosen(step.backend, step.families, kernel.host.netfilter)
    if name == "firewalld":
        from pycni.kernel.netfilter import nftables

        return "nftables" if nftables.available() else "iptables"
    return "nftables" if name == "nftables" else "iptables"
