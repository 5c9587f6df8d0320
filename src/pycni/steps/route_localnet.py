"""Packets from localhost may leave towards a container (`plan.steps.RouteLocalnet`).

Without this the kernel refuses to route what has a source in 127.0.0.0/8. There is no such setting
for IPv6: ::1 never leaves the host.
"""

from __future__ import annotations

from pycni.kernel import route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import RouteLocalnet
    from pycni.steps.namespaces import HostAndSandbox


def apply(step: RouteLocalnet, kernel: HostAndSandbox) -> None:
    key = _key(step, kernel)
    if key:
        kernel.host.write_sysctl(key, "1")


def check(step: RouteLocalnet, kernel: HostAndSandbox) -> list[str]:
    key = _key(step, kernel)
    value = kernel.host.read_sysctl(key) if key else "1"
    if value == "1":
        return []
    return [f"{key} is {value}: localhost does not reach the container's ports"]


def _key(step: RouteLocalnet, kernel: HostAndSandbox) -> str:
    """The setting of the link towards the container, "" where the host has no way to it."""
    host = kernel.host
    index = route.device_towards(host.netlink, step.address)
    return f"net/ipv4/conf/{host.link(index).name}/route_localnet" if index else ""
