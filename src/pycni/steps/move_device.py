"""A device of the host in the sandbox (`plan.steps.MoveDevice`).

It changes namespace, name and alias in one request, which the kernel carries out under one lock:
no one sees it half done, and a name that is taken on the other side does not matter. The alias
holds its own name, by which the reference knows it; pycni goes by what it noted before
(`own_device`). A device of hardware outlives its sandbox: the kernel puts it into the first
namespace, still under the sandbox's name for it, or another.
"""

from __future__ import annotations

from pycni.kernel import address as addresses
from pycni.kernel import link as links
from pycni.kernel import marks
from pycni.kernel import route as routes
from pycni.kernel.netlink.constants import IFA_F_PERMANENT, RT_SCOPE_LINK, RTPROT_KERNEL
from pycni.plan.steps import SANDBOX
from pycni.spec.errors import ALREADY_EXISTS, CNIError
from pycni.spec.names import check_interface_name
from pycni.steps import device as devices
from pycni.steps import own_device, ownership
from pycni.steps.child_link import require_free

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pycni.kernel.link import Link
    from pycni.kernel.marks import Marks
    from pycni.plan.steps import MoveDevice
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox, Netns


def apply(step: MoveDevice, kernel: HostAndSandbox) -> Undo:
    host, sandbox = kernel.host, kernel.netns(SANDBOX)
    device = devices.locate(host, step.device)
    require_free(step.name, sandbox)
    # The kernel takes them from a device that leaves its namespace.
    kept = _Kept(device, host)
    own = own_device.describe(host, device.index, step.name)
    ownership.note_device(kernel, own)

    def undo() -> None:
        own_device.put_back(kernel, own)
        kept.restore()

    try:
        host.request(
            links.update(device, netns=sandbox.namespace.fd, name=step.name, alias=device.name)
        )
        host.forget(device.name)
        moved = own_device.find_inside(kernel, own)
        if moved is None:
            raise CNIError(ALREADY_EXISTS, f"device {device.name} was moved out of the sandbox")
        sandbox.remember(device.replace(index=moved.index, name=step.name, alias=device.name))
    except BaseException:
        undo()
        raise
    return undo


def check(step: MoveDevice, kernel: HostAndSandbox) -> list[str]:
    found = kernel.netns(SANDBOX).find(step.name)
    if found is None:
        return []  # reported where the interfaces of the result are checked
    own = ownership.noted_device(kernel, step.name)
    if own is None:
        known = bool(_own_name(found.alias))
    else:
        moved = own_device.find_inside(kernel, own)
        if moved is None or moved.index != found.index:
            return [f"interface {step.name} is not the device {own.name} of the host"]
        known = found.alias == own.name
    if known:
        return []
    return [f"interface {step.name} has lost its alias, the name that the host knows it by"]


def repair(step: MoveDevice, kernel: HostAndSandbox) -> None:
    from pycni.plan.difference import unrepairable

    sandbox = kernel.netns(SANDBOX)
    found = sandbox.find(step.name)
    own = ownership.noted_device(kernel, step.name)
    name = step.device.name if own is None else own.name
    if found is None:
        apply(step, kernel)
    elif not name:
        raise unrepairable(step)
    elif check(step, kernel):
        sandbox.request(links.update(found, alias=name))


def remove(step: MoveDevice, kernel: HostAndSandbox) -> None:
    """Give the device back to the host as it was there, down."""
    own = ownership.noted_device(kernel, step.name)
    if own is not None:
        own_device.put_back(kernel, own)
    else:
        _remove_unnoted(step, kernel)


class _Kept:
    """What the host has set on a device: that it is up, its addresses, its routes."""

    def __init__(self, device: Link, host: Netns) -> None:
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


# --- what nothing is noted of: the reference attached it, or the note was lost --------------------


def _remove_unnoted(step: MoveDevice, kernel: HostAndSandbox) -> None:
    """Give a device back by its alias, and by the name that the configuration has."""
    sandbox = kernel.sandbox
    if sandbox is not None:
        found = _moved(step, kernel)
        if found is not None:
            # What the container made of the alias does not count where the name is known.
            configured = "" if step.device.name in found.altnames else step.device.name
            own = configured or _own_name(found.alias)
            _return_device(found, own, sandbox, kernel.host)
        if found is not None or ownership.own_link(kernel, step.name) is not None:
            return
    for stray in _strays(step, kernel):
        _return_device(stray, _own_name(stray.alias), kernel.host, kernel.host)


def _own_name(alias: str) -> str:
    """The name that a device goes by on the host, "" if it was not put here by host-device."""
    try:
        check_interface_name(alias)
    except CNIError:
        return ""
    return alias


def _moved(step: MoveDevice, kernel: HostAndSandbox) -> Marks | None:
    """The device in the sandbox, also if the container has renamed it.

    Without an alias another program put it there.
    """
    sandbox = kernel.netns(SANDBOX)
    own = ownership.own_link(kernel, step.name)
    if own is not None and _own_name(own.alias):
        found = marks.get(sandbox.netlink, own.index)
        if own_device.came_from_host(kernel, found):
            return found
    if not step.device.name:
        return None
    for found in marks.dump(sandbox.netlink):
        if found.alias == step.device.name and own_device.came_from_host(kernel, found):
            return found
    return None


def _strays(step: MoveDevice, kernel: HostAndSandbox) -> Iterator[Link]:
    """The device, if it came back by itself: on the host, with an alias that is not its name."""
    known = devices.find(kernel.host, step.device)
    for link in links.dump(kernel.host.netlink):
        own = _own_name(link.alias)
        meant = own == step.device.name or (known is not None and known.index == link.index)
        if own and own != link.name and meant and not _is_noted(link, kernel):
            yield link


def _is_noted(link: Link, kernel: HostAndSandbox) -> bool:
    """Whether an attachment is noted with a device of the host, whose DEL gives it its name."""
    return kernel.claim is not None and any(
        found is not None and found.index == link.index
        for other in kernel.claim.others()
        for device in other.devices
        for found in (own_device.find_on_host(kernel.host, device),)
    )


def _return_device(found: Link | Marks, own: str, site: Netns, host: Netns) -> None:
    holder = host.find(own, altnames=True)
    if holder is not None:
        raise CNIError(
            ALREADY_EXISTS,
            f'failed to move "{own}" to hostNS: file exists',
            f"{own_device.name_taken(holder, own)}. "
            f"Until then the device stays {found.name} in {site.path or 'the host'}",
        )
    netns = None if site is host else host.namespace.fd
    names = found.altnames if isinstance(found, marks.Marks) else ()
    site.request(
        *(marks.delete_altname(found.index, name) for name in names),
        links.update(found.index, netns=netns, name=own, alias=""),
    )
