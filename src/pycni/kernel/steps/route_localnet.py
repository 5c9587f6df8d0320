"""Packets from localhost may leave towards a container (`plan.steps.RouteLocalnet`).

Without this the kernel refuses to route what has a source in 127.0.0.0/8. There is no such setting
for IPv6: ::1 never leaves the host.
"""

from __future__ import annotations

from pycni.kernel import route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.context import Kernel
    from pycni.plan.steps import RouteLocalnet


def apply(step: RouteLocalnet, kernel: Kernel) -> None:
    kernel.host.write_sysctl(_key(step, kernel), "1")


def check(step: RouteLocalnet, kernel: Kernel) -> list[str]:
    key = _key(step, kernel)
    value = kernel.host.read_sysctl(key)
    if value == "1":
        return []
    return [f"{key} is {value}: localhost does not reach the container's ports"]


def _key(step: RouteLocalnet, kernel: Kernel) -> str:
    host = kernel.host
    link = host.link(route.device_towards(host.netlink, step.address))
    return f"net/ipv4/conf/{link.name}/route_localnet"
