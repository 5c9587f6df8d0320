"""Attributes of an interface that exists (`plan.steps.LinkSettings`), set in one request."""

from __future__ import annotations

from pycni.kernel import link as links
from pycni.kernel.netlink.constants import IFF_ALLMULTI, IFF_PROMISC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.link import Link
    from pycni.plan.steps import LinkSettings
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox


def apply(step: LinkSettings, kernel: HostAndSandbox) -> Undo | None:
    before = current(step, kernel)
    if before == step:
        return None
    try:
        _set(step, kernel)
    except OSError:
        # The kernel stops at the attribute it refuses, and keeps those before it.
        _set(before, kernel)
        raise
    return lambda: _set(before, kernel)


def current(step: LinkSettings, kernel: HostAndSandbox) -> LinkSettings:
    """The same attributes with the values they have now. Raises OSError without the interface."""
    found = kernel.netns(step.where).link(step.link)
    return step.replace(
        mac=found.mac if step.mac else "",
        mtu=found.mtu if step.mtu else 0,
        promiscuous=None if step.promiscuous is None else is_promiscuous(found),
        allmulti=None if step.allmulti is None else bool(found.flags & IFF_ALLMULTI),
        txqlen=None if step.txqlen is None else found.txqlen,
    )


def check(step: LinkSettings, kernel: HostAndSandbox) -> list[str]:
    found = current(step, kernel)
    return [
        f"{what} of {step.link} is {_shown(actual)}, expected {_shown(wanted)}"
        for what, wanted, actual in (
            ("MAC address", step.mac, found.mac),
            ("MTU", step.mtu, found.mtu),
            ("promiscuous mode", step.promiscuous, found.promiscuous),
            ("all-multicast mode", step.allmulti, found.allmulti),
            ("transmit queue length", step.txqlen, found.txqlen),
        )
        if wanted != actual
    ]


def is_promiscuous(link: Link) -> bool:
    """Whether it was set so; that a packet capture or a bridge has it so is another matter."""
    return bool(link.flags & IFF_PROMISC)


def _set(step: LinkSettings, kernel: HostAndSandbox) -> None:
    site = kernel.netns(step.where)
    site.request(
        links.update(
            site.index(step.link),
            mac=step.mac or None,
            mtu=step.mtu or None,
            promiscuous=step.promiscuous,
            allmulti=step.allmulti,
            txqlen=step.txqlen,
        )
    )


def _shown(value: object) -> object:
    return value if not isinstance(value, bool) else "on" if value else "off"
