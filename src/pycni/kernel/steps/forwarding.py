"""The host's packet forwarding (`plan.steps.Forwarding`)."""

from __future__ import annotations

from _socket import AF_INET

from pycni.kernel import sysctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.context import Kernel
    from pycni.kernel.executor import Undo
    from pycni.plan.steps import Forwarding


def apply(step: Forwarding, kernel: Kernel) -> Undo | None:
    key = _key(step)
    with kernel.host.enter():
        if sysctl.write(key, "1") == "1":
            return None
    return lambda: _turn_off(key, kernel)


def check(step: Forwarding, kernel: Kernel) -> list[str]:
    key = _key(step)
    with kernel.host.enter():
        value = sysctl.read(key)
    return [] if value == "1" else [f"{key} is {value}: the host does not forward packets"]


def remove(step: Forwarding, kernel: Kernel) -> None:
    """Nothing: other networks of the host rely on it."""


def _key(step: Forwarding) -> str:
    return "net/ipv4/ip_forward" if step.family == AF_INET else "net/ipv6/conf/all/forwarding"


def _turn_off(key: str, kernel: Kernel) -> None:
    with kernel.host.enter():
        sysctl.write(key, "0")
