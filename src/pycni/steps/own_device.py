"""Knowing a device of the host again, and giving it back as it was.

Inside, its container gives it names and addresses as it likes, moves it away and back, and makes
others that look like it. So all that decides is noted on the host before it is moved
(`spec.identity.OwnDevice`): hardware is known by its permanent address and its place on a bus, a
virtual device by where its other end is. Used by `move_device`, and where an attachment that is
gone is cleared up.
"""

from __future__ import annotations

import errno
import posix
import time

from pycni.kernel import link as links
from pycni.kernel import marks, namespace
from pycni.kernel.netlink.errors import EventsLost, NetlinkError
from pycni.plan.steps import SANDBOX
from pycni.spec.errors import ALREADY_EXISTS, TRY_AGAIN_LATER, CNIError
from pycni.spec.identity import OwnDevice
from pycni.steps.namespaces import Netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pycni.kernel.link import Link
    from pycni.kernel.marks import Marks
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.steps.namespaces import HostAndSandbox

# Kinds without an end that another could hold: one is as good as another.
_ENDLESS = ("dummy", "ifb", "nlmon", "vcan", "wireguard")
_LO = 1  # its index, in every namespace
_TO_COME_BACK = 2.0  # seconds that the kernel may take, once a namespace has gone


def describe(host: Netns, index: int, inside: str) -> OwnDevice:
    """What a device is known by, and what it gets back; it is on the host still."""
    found = marks.get(host.netlink, index)
    return OwnDevice(
        inside,
        found.name,
        found.index,
        found.mac,
        found.mtu,
        found.alias,
        found.altnames,
        found.kind,
        found.permanent_mac,
        found.bus,
        found.bus_address,
        found.link,
        found.link_netnsid,
    )


def put_back(kernel: HostAndSandbox, device: OwnDevice, index: int = 0) -> None:
    """Have the device on the host again as it was there, down; one that is nowhere is no error.

    index: that it got in the sandbox, 0 for the one that is noted.

    Raises CNIError: code 101 if something else has its name meanwhile, code 11 if it is in a
    namespace that it was not put into.
    """
    found = find_inside(kernel, device, index)
    if found is not None:
        _move_home(device, found, kernel.netns(SANDBOX), kernel.host)
    home = find_on_host(kernel.host, device)
    if home is None and found is None and device.kind == "veth" and _has_far_end(kernel, device):
        home = _bring_back(kernel, device)
    if home is None and found is None and _is_elsewhere(device):
        if kernel.sandbox is None:
            home = _await_home(kernel.host, device)
        if home is None and _is_elsewhere(device):
            raise CNIError(
                TRY_AGAIN_LATER,
                f"device {device.name} ({device.bus_address}) is in neither the sandbox nor the "
                "host",
                "its container moved it to another namespace, or that of the container is not "
                "gone yet; it comes back when those have ended",
            )
    if home is not None:
        _restore(device, home, kernel.host)


def find_inside(kernel: HostAndSandbox, device: OwnDevice, index: int = 0) -> Marks | None:
    """The device in the sandbox, whatever it is called there. index: as of `put_back`."""
    sandbox = kernel.sandbox
    if sandbox is None:
        return None
    if not index:
        identity = kernel.identity
        own = None if identity is None else identity.link(SANDBOX, device.inside)
        index = device.index if own is None else own.index
    for found in _candidates(sandbox, index):
        if _is_same(device, found, index, lambda: _far_end(kernel, device)):
            return found
    return None


def find_on_host(host: Netns, device: OwnDevice) -> Marks | None:
    """The device on the host, whatever it is called there."""
    named = host.find(device.name)
    for found in _candidates(host, device.index if named is None else named.index):
        if _is_same(device, found, device.index, lambda: device.link_netnsid):
            return found
    return None


def name_taken(holder: Link, name: str) -> str:
    """That the host has another interface of a device's name by now, and what to do."""
    if holder.name != name:
        hint = links.drop_altname(holder, name)
        return f"{name} is an alternative name of {holder.name} by now; {hint}"
    return (
        f"the host has another interface {name} (index {holder.index}) meanwhile; rename that one"
    )


def came_from_host(kernel: HostAndSandbox, found: Marks) -> bool:
    """Whether a link of the sandbox of which nothing is noted can be a device of the host.

    What is hardware, or has its other end on the host, no container made. Of what has no other end
    it is not known.
    """
    if not found.kind:
        return found.index != _LO
    if found.kind in _ENDLESS:
        return True
    host = namespace.id_seen_from(kernel.netns(SANDBOX).netlink, kernel.host.namespace)
    return found.link_netnsid is not None and found.link_netnsid == host


def _candidates(site: Netns, first: int) -> Iterator[Marks]:
    """All links of a namespace, one that is expected first."""
    try:
        yield marks.get(site.netlink, first)
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
    yield from marks.dump(site.netlink)


def _is_same(
    device: OwnDevice, found: Marks, index: int, far_end: Callable[[], int | None]
) -> bool:
    """Whether a link is the device. index: what it is expected to have, where nothing else says;
    far_end: gives the number of the namespace of its other end."""
    if found.kind != device.kind or found.index == _LO:
        return False
    if device.bus_address or (device.permanent_mac and not device.kind):
        theirs = (found.permanent_mac, found.bus, found.bus_address)
        return theirs == (device.permanent_mac, device.bus, device.bus_address)
    if device.link:
        return found.link == device.link and found.link_netnsid == far_end()
    if device.kind and device.kind not in _ENDLESS and found.link_netnsid != far_end():
        return False
    return found.index == index


def _far_end(kernel: HostAndSandbox, device: OwnDevice) -> int | None:
    """The number that the sandbox has for the namespace of the device's other end.

    None if it is the sandbox itself.
    """
    host, sandbox = kernel.host, kernel.netns(SANDBOX)
    if device.link_netnsid is None:
        return namespace.id_seen_from(sandbox.netlink, host.namespace)
    here = namespace.id_seen_from(host.netlink, sandbox.namespace)
    if here is None:
        here = namespace.assign_id(host.netlink, sandbox.namespace)
    if here is None or here == device.link_netnsid:
        return None
    return namespace.id_translated(host.netlink, device.link_netnsid, here)


def _has_far_end(kernel: HostAndSandbox, device: OwnDevice) -> bool:
    """Whether the other end of a pair is on the host, and leads to another namespace."""
    end = kernel.host.find(device.link) if device.link_netnsid is None else None
    return end is not None and end.kind == "veth" and end.link_netnsid is not None


def _bring_back(kernel: HostAndSandbox, device: OwnDevice) -> Marks | None:
    """The end of a pair on the host again, from wherever its container has put it.

    All namespaces are looked at; None if it is in one that nothing leads to.
    """
    from pycni.kernel import all_addresses  # rarely: a container has hidden its device

    for space, netlink, end in all_addresses.links_on(device.link, (device.kind,)):
        place = Netns(namespace.from_fd(space.fd), space.path, host_ns=kernel.host.namespace)
        try:
            _move_home(device, marks.get(netlink, end.index), place, kernel.host)
        finally:
            place.close()
        return find_on_host(kernel.host, device)
    return None


def _move_home(device: OwnDevice, found: Marks, sandbox: Netns, host: Netns) -> None:
    """Move the device to the host. Raises CNIError, NetlinkError; then it is where it was."""
    holder = host.find(device.name, altnames=True)
    if holder is not None:
        raise CNIError(
            ALREADY_EXISTS,
            f'failed to move "{device.name}" to hostNS: file exists',
            f"{name_taken(holder, device.name)}. "
            f"Until then the device stays {found.name} in {sandbox.path}",
        )
    foreign = [name for name in found.altnames if name not in device.altnames]
    try:
        sandbox.request(
            *(marks.delete_altname(found.index, name) for name in foreign),
            links.update(
                found.index, netns=host.namespace.fd, name=device.name, alias=device.alias
            ),
        )
    except NetlinkError as error:
        if find_on_host(host, device) is not None:
            return  # it is there, and `_restore` does what is missing
        if error.errno not in (errno.EEXIST, errno.ENOENT, errno.EINVAL):
            raise
        _move_by_station(device, found, sandbox, host)


def _move_by_station(device: OwnDevice, found: Marks, sandbox: Netns, host: Netns) -> None:
    """The same by a namespace in between, where its container cannot give it names.

    It has given it one that something on the host has, faster than that can be taken away.
    """
    station = Netns(namespace.create(), host_ns=host.namespace)
    try:
        station.request(links.update(_LO, name=f"lo{posix.urandom(5).hex()}"))
        sandbox.request(links.update(found.index, netns=station.namespace.fd))
        (moved,) = (one for one in marks.dump(station.netlink) if one.index != _LO)
        try:
            for name in moved.altnames:
                station.request(marks.delete_altname(moved.index, name))
            station.request(
                links.update(
                    moved.index, netns=host.namespace.fd, name=device.name, alias=device.alias
                )
            )
        except BaseException:
            if find_on_host(host, device) is None:
                station.request(links.update(moved.index, netns=sandbox.namespace.fd))
            raise
    finally:
        station.close()


def _restore(device: OwnDevice, home: Marks, host: Netns) -> None:
    """Give the device on the host the names and addresses that it had."""
    for name in home.altnames:
        if name not in device.altnames:
            host.request(marks.delete_altname(home.index, name))
    if home.name != device.name:
        holder = host.find(device.name, altnames=True)
        if holder is not None and holder.index != home.index:
            raise CNIError(
                ALREADY_EXISTS,
                f'failed to rename "{home.name}" to "{device.name}": file exists',
                f"{name_taken(holder, device.name)}. Until then the device is {home.name}",
            )
        host.request(
            links.update(home.index, up=False),
            links.update(home.index, name=device.name, alias=device.alias),
        )
    elif home.alias != device.alias:
        host.request(links.update(home.index, alias=device.alias))
    for name in device.altnames:
        if name not in home.altnames:
            _try(host, marks.add_altname(home.index, name))
    if home.mac != device.mac:
        _try(host, links.update(home.index, mac=device.mac))
    if home.mtu != device.mtu:
        _try(host, links.update(home.index, mtu=device.mtu))


def _try(host: Netns, request: NetlinkRequest) -> None:
    try:
        host.request(request)
    except NetlinkError:
        pass  # its driver does not let that be set, or another has the name by now


def _is_elsewhere(device: OwnDevice) -> bool:
    """Whether the device has an interface in some namespace: its bus shows that in each."""
    return bool(device.bus) and posix.access(
        f"/sys/bus/{device.bus}/devices/{device.bus_address}/net", posix.F_OK
    )


def _await_home(host: Netns, device: OwnDevice) -> Marks | None:
    """The device, when the kernel has put it back: its namespace has gone."""
    from pycni.kernel.netlink.constants import RTNLGRP_LINK

    deadline = time.monotonic() + _TO_COME_BACK
    host.netlink.subscribe((RTNLGRP_LINK,))
    try:
        while (home := find_on_host(host, device)) is None:
            try:
                if not host.netlink.events(deadline):
                    break
            except EventsLost:
                continue
    finally:
        host.netlink.unsubscribe()
    return home
