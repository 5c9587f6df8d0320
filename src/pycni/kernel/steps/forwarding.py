"""The host's packet forwarding (`plan.steps.Forwarding`)."""

from __future__ import annotations

from _socket import AF_INET

from pycni.kernel import netconf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.context import Kernel
    from pycni.kernel.executor import Undo
    from pycni.plan.steps import Forwarding


def apply(step: Forwarding, kernel: Kernel) -> Undo | None:
    if netconf.forwards(kernel.host.netlink, step.family):
        return None
    key = _key(step)
    if kernel.host.write_sysctl(key, "1") == "1":  # another ADD was first
        return None

    def undo() -> None:
        kernel.host.write_sysctl(key, "0")

    return undo


def check(step: Forwarding, kernel: Kernel) -> list[str]:
    if netconf.forwards(kernel.host.netlink, step.family):
        return []
    return [f"{_key(step)} is 0: the host does not forward packets"]


def _key(step: Forwarding) -> str:
    return "net/ipv4/ip_forward" if step.family == AF_INET else "net/ipv6/conf/all/forwarding"
