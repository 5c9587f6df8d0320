"""Ports of a bridge do not reach each other (`plan.steps.PortIsolation`).

The bridge itself keeps them apart, so it does not take br_netfilter. Ports that are not isolated
reach them, as does the host.
"""

from __future__ import annotations

from pycni.kernel import link as links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.context import Kernel
    from pycni.kernel.executor import Undo
    from pycni.kernel.link import Link
    from pycni.plan.steps import PortIsolation


def apply(step: PortIsolation, kernel: Kernel) -> Undo | None:
    host = kernel.host
    changed = [port for port in _ports(step, kernel) if not port.isolated]
    host.request(*(links.update(port, isolated=True) for port in changed))
    if not changed:
        return None
    return lambda: host.request(*(links.update(port, isolated=False) for port in changed))


def check(step: PortIsolation, kernel: Kernel) -> list[str]:
    return [
        f"port {port.name} of bridge {step.bridge} is not isolated"
        for port in _ports(step, kernel)
        if not port.isolated
    ]


def _ports(step: PortIsolation, kernel: Kernel) -> list[Link]:
    """Those of the links that are ports of the bridge."""
    host = kernel.host
    bridge = host.find(step.bridge)
    found = [host.find(name) for name in step.links if name != step.bridge]
    return [
        port
        for port in found
        if port is not None and bridge is not None and port.master == bridge.index
    ]
