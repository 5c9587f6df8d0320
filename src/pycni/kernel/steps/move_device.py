"""A device of the host in the sandbox (`plan.steps.MoveDevice`).

It changes namespace, name and alias in one request, which the kernel carries out under one lock:
nobody sees it half done, and a name that is taken on the other side does not matter. The alias
holds its own name, as with the reference. A device of hardware outlives its sandbox: the kernel
puts it into the first namespace, still under the sandbox's name for it, or another.
"""

from __future__ import annotations

from pycni.kernel import address as addresses
from pycni.kernel import device as devices
from pycni.kernel import link as links
from pycni.kernel import route as routes
from pycni.kernel.netlink.constants import IFA_F_PERMANENT, RT_SCOPE_LINK, RTPROT_KERNEL
from pycni.kernel.steps.sub_link import require_free
from pycni.plan.steps import SANDBOX
from pycni.spec.errors import ALREADY_EXISTS, CNIError
from pycni.spec.names import check_interface_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pycni.kernel.context import Kernel, Site
    from pycni.kernel.executor import Undo
    from pycni.kernel.link import Link
    from pycni.plan.steps import MoveDevice


def apply(step: MoveDevice, kernel: Kernel) -> Undo:
    host, sandbox = kernel.host, kernel.site(SANDBOX)
    device = devices.locate(host, step.device)
    require_free(step.name, sandbox)
    # The kernel takes them from a device that leaves its namespace.
    kept = _Kept(device, host)
    others = {link.index for link in links.dump(sandbox.netlink)}

    def undo() -> None:
        for name in (step.name, device.name):
            moved = sandbox.find(name)
            if moved is not None and moved.index not in others:
                back = links.update(
                    moved, netns=host.namespace.fd, name=device.name, alias=device.alias
                )
                sandbox.request(back)
                break
        kept.restore()

    try:
        host.request(
            links.update(device, netns=sandbox.namespace.fd, name=step.name, alias=device.name)
        )
    except BaseException:
        undo()
        raise
    host.forget(device.name)
    return undo


def check(step: MoveDevice, kernel: Kernel) -> list[str]:
    found = kernel.site(SANDBOX).find(step.name)
    if found is None or _own_name(found):
        return []  # a missing one is told where the interfaces of the result are checked
    return [f"interface {step.name} has lost its alias, the name that the host knows it by"]


def remove(step: MoveDevice, kernel: Kernel) -> None:
    """Give the device back to the host under its own name, down."""
    if kernel.sandbox is not None:
        found = _moved(step, kernel.sandbox)
        if found is not None:
            # What the container made of the alias does not count where the name is known.
            own = step.device.name or _own_name(found)
            _give_back(found, own, kernel.sandbox, kernel.host)
        if found is not None or kernel.sandbox.find(step.name) is not None:
            return
    for stray in _strays(step, kernel.host):
        _give_back(stray, _own_name(stray), kernel.host, kernel.host)


class _Kept:
    """What the host has set on a device: that it is up, its addresses, its routes."""

    def __init__(self, device: Link, host: Site) -> None:
        self._device = device
        self._host = host
        self._addresses = [
            found.network
            for found in addresses.dump(host.netlink, device.index)
            if found.flags & IFA_F_PERMANENT and found.scope != RT_SCOPE_LINK
        ]
        self._routes = [
            found
            for found in routes.dump(host.netlink, index=device.index)
            if found.protocol != RTPROT_KERNEL
        ]

    def restore(self) -> None:
        device = self._host.link(self._device.name)
        if self._device.is_up and not device.is_up:
            self._host.request(links.update(device, up=True))
        self._host.request(
            *(addresses.add(device.index, network, replace=True) for network in self._addresses),
            *(routes.replace(route.replace(index=device.index)) for route in self._routes),
        )


def _own_name(link: Link) -> str:
    """The name that a device goes by on the host, "" if it was not put here by host-device."""
    try:
        check_interface_name(link.alias)
    except CNIError:
        return ""
    return link.alias


def _moved(step: MoveDevice, sandbox: Site) -> Link | None:
    """The device in the sandbox, also if the container has renamed it.

    Without an alias it was somebody else who put it there.
    """
    found = sandbox.find(step.name)
    if found is not None and _own_name(found):
        return found
    renamed = (link for link in links.dump(sandbox.netlink) if _own_name(link) == step.device.name)
    return next(renamed, None) if step.device.name else None


def _strays(step: MoveDevice, host: Site) -> Iterator[Link]:
    """The device, if it came back by itself: on the host, with an alias that is not its name."""
    known = devices.find(host, step.device)
    for link in links.dump(host.netlink):
        own = _own_name(link)
        meant = own == step.device.name or (known is not None and known.index == link.index)
        if own and own != link.name and meant:
            yield link


def _give_back(found: Link, own: str, site: Site, host: Site) -> None:
    holder = host.find(own)
    if holder is not None:
        raise CNIError(
            ALREADY_EXISTS,
            f'failed to move "{own}" to hostNS: file exists',
            f"the host has another interface {own} (index {holder.index}) meanwhile; rename that "
            f"one. Until then the device stays {found.name} in "
            f"{site.path or 'the host'}",
        )
    netns = None if site is host else host.namespace.fd
    site.request(links.update(found, netns=netns, name=own, alias=""))
