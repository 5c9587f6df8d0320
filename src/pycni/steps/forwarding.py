"""The host's packet forwarding (`plan.steps.Forwarding`)."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel import netconf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import Forwarding
    from pycni.steps.context import Kernel
    from pycni.steps.executor import Undo


def apply(step: Forwarding, kernel: Kernel) -> Undo | None:
    if netconf.forwards(kernel.host.netlink, step.family):
        return None
    forget = None
    if step.family == AF_INET6:
        from pycni.steps import router_advertisements  # the host's first IPv6 gateway only

        forget = router_advertisements.keep_learned(kernel.host)
    key = _key(step)
    try:
        before = kernel.host.write_sysctl(key, "1")
    except OSError:
        if forget is not None:
            forget()
        raise
    if before == "1":  # another ADD was first
        return None

    def undo() -> None:
        kernel.host.write_sysctl(key, "0")
        if forget is not None:
            forget()

    return undo


def check(step: Forwarding, kernel: Kernel) -> list[str]:
    if netconf.forwards(kernel.host.netlink, step.family):
        return []
    return [f"{_key(step)} is 0: the host does not forward packets"]


def _key(step: Forwarding) -> str:
    return "net/ipv4/ip_forward" if step.family == AF_INET else "net/ipv6/conf/all/forwarding"
