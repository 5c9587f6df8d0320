"""Finding a noted link again, wherever its container has put it and whatever it is called.

A container renames its interface, moves it to a namespace of its own and back, and makes another
with its name, its index and its MAC address. What it cannot choose is where a link leads: the other
end of a pair is on the host, and a macvlan, ipvlan or vlan is on a link there. Used by `ownership`,
by steps that remove such links, and where an attachment that is gone is cleared up.
"""

from __future__ import annotations

import errno

from pycni.kernel import link, namespace
from pycni.kernel.netlink.errors import NetlinkError
from pycni.plan.steps import HOST, SANDBOX
from pycni.spec.identity import FOUND, Identity, NetnsID

_LOOKS = 2  # through all namespaces: what is moved meanwhile can be missed once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pycni.kernel.link import Link
    from pycni.kernel.netlink.socket import NetlinkSocket
    from pycni.spec.identity import OwnLink
    from pycni.steps.namespaces import HostAndSandbox


def find(kernel: HostAndSandbox, identity: Identity, noted: OwnLink) -> Link | None:
    """A noted link of the sandbox, if it is there still."""
    sandbox = kernel.netns(SANDBOX)
    if noted.kind:
        found = sandbox.find(noted.index)
        is_same = found is not None and found.kind == noted.kind
        if not is_same or (noted.parent and not _is_on(kernel, found, noted.parent)):
            return None
        return found
    device = identity.device(noted.name)
    if device is not None:
        from pycni.steps import own_device

        moved = own_device.find_inside(kernel, device, noted.index)
        return None if moved is None else sandbox.find(moved.index)
    outer = [own.index for own in identity.links if own.where == HOST]
    if noted.where == FOUND or not outer:
        return sandbox.find(noted.index)
    for index in outer:
        end = kernel.host.find(index)
        if end is not None and end.kind == "veth" and leads_to_sandbox(kernel, end):
            return sandbox.find(end.link)
    return None


def remove_hidden(
    kernel: HostAndSandbox,
    identity: Identity,
    noted: OwnLink,
    others: Callable[[], Iterator[Identity]],
) -> None:
    """Delete a link that `find` does not find, if it is on a link of the host from elsewhere.

    others: gives the identities of all attachments. In the sandbox what is on the host's link and
    no other attachment's is its own. In other namespaces, where the reference's plugins may have
    made such links, it is known by its inode in sysfs; where none was noted, by its MAC address or
    an address of the attachment. All namespaces are looked at. Raises NetlinkError.
    """
    from pycni.kernel import (
        all_addresses,  # rarely: a container deleted or hid its interface
        sysfs,  # rarely: a container deleted or hid its interface
    )

    if not noted.parent:
        return
    taken: list[tuple[NetnsID, int]] | None = None
    for space, netlink, found in all_addresses.links_on(noted.parent, (noted.kind,)):
        here = NetnsID(space.device, space.inode, netlink.netns_cookie)
        if taken is None:
            taken = [
                (other.netns, own.index)
                for other in others()
                if other.owner != identity.owner and other.netns is not None
                for own in other.links
                if own.where == SANDBOX
            ]
        if any(found.index == index and here.is_same(netns) for netns, index in taken):
            continue
        is_inside = identity.netns is not None and here.is_same(identity.netns)
        if is_inside or (
            sysfs.link_inode(found, space, kernel.host.namespace) == noted.inode
            if noted.inode
            else _is_known(kernel, found, noted, identity, netlink)
        ):
            _delete(netlink, found)


def discard(kernel: HostAndSandbox, made: Link, inode: int) -> None:
    """Delete a link that was just made on one of the host, wherever its container has put it since.

    inode: in sysfs, 0 where that is not known. Raises NetlinkError.
    """
    from pycni.kernel import all_addresses, sysfs

    sandbox, host_ns = kernel.netns(SANDBOX), kernel.host.namespace
    found = sandbox.find(made.index)
    if not inode or (
        found is not None and sysfs.link_inode(found, sandbox.namespace, host_ns) == inode
    ):
        sandbox.discard(made)
        if not inode or sandbox.find(made.index) is None:
            return
    for _ in range(_LOOKS):
        for space, netlink, one in all_addresses.links_on(made.link, (made.kind,)):
            if sysfs.link_inode(one, space, host_ns) == inode:
                _delete(netlink, one)
                return


def leads_to_sandbox(kernel: HostAndSandbox, outer: Link) -> bool:
    """Whether the other end of a host's veth is in the request's sandbox."""
    if outer.link_netnsid is None or kernel.sandbox is None:
        return False
    seen_as = namespace.id_seen_from(kernel.host.netlink, kernel.sandbox.namespace)
    return seen_as == outer.link_netnsid


def leads_to_host(kernel: HostAndSandbox, inner: Link) -> bool:
    """Whether a sandbox's link has its other end, or what it is on, on the host."""
    if inner.link_netnsid is None or kernel.sandbox is None:
        return False
    seen_as = namespace.id_seen_from(kernel.sandbox.netlink, kernel.host.namespace)
    return seen_as == inner.link_netnsid


def _is_on(kernel: HostAndSandbox, found: Link | None, parent: int) -> bool:
    return found is not None and found.link == parent and leads_to_host(kernel, found)


def _delete(netlink: NetlinkSocket, found: Link) -> None:
    """Delete a link; one that has gone already is no error."""
    try:
        netlink.request(link.delete(found))
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise


def _is_known(
    kernel: HostAndSandbox, found: Link, noted: OwnLink, identity: Identity, netlink: NetlinkSocket
) -> bool:
    """Whether a link outside of the sandbox has what the noted one had and no other has."""
    if found.mac == noted.mac:
        parent = kernel.host.find(noted.parent)
        if parent is not None and parent.mac != found.mac:  # which an ipvlan and a vlan share
            return True
    from pycni.kernel import address

    present = address.dump(netlink, found.index)
    return any(str(one.network.address) in identity.addresses for one in present)
