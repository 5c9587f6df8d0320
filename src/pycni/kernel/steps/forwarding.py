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
    if _write(key, "1", kernel) == "1":  # another ADD was first
        return None
    return lambda: _turn_off(key, kernel)


def check(step: Forwarding, kernel: Kernel) -> list[str]:
    if netconf.forwards(kernel.host.netlink, step.family):
        return []
    return [f"{_key(step)} is 0: the host does not forward packets"]


def _key(step: Forwarding) -> str:
    return "net/ipv4/ip_forward" if step.family == AF_INET else "net/ipv6/conf/all/forwarding"


def _turn_off(key: str, kernel: Kernel) -> None:
    _write(key, "0", kernel)


def _write(key: str, value: str, kernel: Kernel) -> str:
    """Set a sysctl of the host; returns what it was."""
    from pycni.kernel import sysctl  # hardly ever needed

    with kernel.host.enter():
        return sysctl.write(key, value)
