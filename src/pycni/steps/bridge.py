"""A bridge on the host (`plan.steps.Bridge`): shared, so made when missing and never removed."""

from __future__ import annotations

import errno
import posix

from pycni.kernel import link as links
from pycni.kernel.netlink.codec import NetlinkRequest
from pycni.kernel.netlink.constants import IFF_PROMISC
from pycni.kernel.netlink.errors import NetlinkError
from pycni.spec.errors import INVALID_CONFIG, KERNEL_REFUSED, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.link import Link
    from pycni.plan.steps import Bridge
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox, Netns


BRIDGE_ALIAS = "made by pycni"


def apply(step: Bridge, kernel: HostAndSandbox) -> Undo | None:
    host = kernel.host
    found = host.find(step.name, altnames=True)
    made = False
    if found is None:
        found, made = _create(step, kernel)
    if found.kind != "bridge":
        raise CNIError(
            INVALID_CONFIG,
            f'"{step.name}" already exists but is not a bridge',
            f"it is {found.kind or 'a hardware interface'}; "
            'name another bridge in "bridge", or remove that interface',
        )
    promiscuous = step.promiscuous and not found.flags & IFF_PROMISC
    changes = promiscuous or not found.is_up
    before = ""

    def undo() -> None:
        if made:
            remove_unused(host, step.name)
            return
        if before not in ("", "0"):
            from pycni.steps import router_advertisements

            router_advertisements.restore(host, found.name, before)
        if changes:
            up = None if found.is_up else False
            promiscuous_too = False if promiscuous else None
            host.request(links.update(found, up=up, promiscuous=promiscuous_too))

    try:
        if found.accept_ra:
            from pycni.steps import router_advertisements

            # What is a LAN of the host's as well keeps its own: the host may need its router.
            ours = made or found.alias == BRIDGE_ALIAS
            if ours or not router_advertisements.has_other_ports(host, found):
                before = router_advertisements.refuse(host, found.name)
        if changes:
            alias = BRIDGE_ALIAS if made else None
            change = links.update(found, up=True, promiscuous=promiscuous or None, alias=alias)
            host.request(change)
    except BaseException:
        undo()
        raise
    return undo if made or changes or before not in ("", "0") else None


def check(step: Bridge, kernel: HostAndSandbox) -> list[str]:
    found = kernel.host.find(step.name, altnames=True)
    if found is None:
        return [f"bridge {step.name} is missing"]
    if found.kind != "bridge":
        return [f"{step.name} is not a bridge any more"]
    differences = []
    if not found.is_up:
        differences.append(f"bridge {step.name} is down")
    if step.promiscuous and not found.flags & IFF_PROMISC:
        differences.append(f"bridge {step.name} is not promiscuous")
    if step.vlan_filtering and not found.vlan_filtering:
        differences.append(f"bridge {step.name} does not filter VLANs")
    return differences


def repair(step: Bridge, kernel: HostAndSandbox) -> None:
    apply(step, kernel)
    found = kernel.host.link(step.name, altnames=True)
    if step.vlan_filtering and not found.vlan_filtering:
        made = links.bridge(found.name, vlan_filtering=True)
        # The same message changes a link that is there, if it may not make one.
        kernel.host.request(
            NetlinkRequest(made.kind, 0, made.body, f"set link {step.name}: filter VLANs")
        )


def remove_unused(host: Netns, name: str) -> None:
    """Delete a bridge that has no ports."""
    found = host.find(name)
    if found is not None and not links.dump(host.netlink, found.index):
        host.discard(found)


def plug_in(site: Netns, bridge: str, change: NetlinkRequest) -> None:
    """Have a change carried out that makes a link a port of a bridge.

    Raises CNIError if the bridge is full, NetlinkError for any other refusal.
    """
    try:
        site.request(change)
    except NetlinkError as error:
        if error.errno == errno.EXFULL:
            raise no_port_left(bridge) from None
        raise


def no_port_left(name: str) -> CNIError:
    """The error for a port that a bridge did not take because it is full (EXFULL)."""
    return CNIError(
        KERNEL_REFUSED,
        f"bridge {name} is full",
        "Linux gives a bridge 1,023 ports at most: delete attachments, or give some of the "
        'containers a network with another "bridge"',
    )


def _create(step: Bridge, kernel: HostAndSandbox) -> tuple[Link, bool]:
    """The bridge, and whether it was us that made it.

    It is made with an address of its own: without, it would take that of its lowest port, and its
    address would change as containers come and go.
    """
    mac = random_mac()
    request = links.bridge(
        step.name,
        mac=mac,
        mtu=step.mtu,
        vlan_filtering=step.vlan_filtering or None,
        mcast_snooping=None if step.mcast_snooping else False,
    )
    try:
        return links.create(kernel.host.netlink, request), True
    except NetlinkError as error:
        if error.errno == errno.EEXIST:  # another ADD was first
            return kernel.host.link(step.name), False
        if error.errno == errno.ENOBUFS:  # the answer was lost: it may be there
            found = kernel.host.find(step.name)
            if found is not None:
                return found, found.mac == mac
        raise


def random_mac() -> str:
    """A random unicast MAC address from the locally administered ones."""
    octets = bytearray(posix.urandom(6))
    octets[0] = octets[0] & 0xFE | 0x02
    return octets.hex(":")
