"""The host's packet forwarding (`plan.steps.Forwarding`)."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel import forwarding_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import Forwarding
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox


def apply(step: Forwarding, kernel: HostAndSandbox) -> Undo | None:
    if forwarding_events.forwards(kernel.host.netlink, step.family):
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


def check(step: Forwarding, kernel: HostAndSandbox) -> list[str]:
    if forwarding_events.forwards(kernel.host.netlink, step.family):
        return []
    return [f"{_key(step)} is 0: the host does not forward packets"]


def _key(step: Forwarding) -> str:
    return "net/ipv4/ip_forward" if step.family == AF_INET else "net/ipv6/conf/all/forwarding"
