"""VLAN membership of bridge ports, for the steps that plug something into a bridge."""

from __future__ import annotations

from pycni.kernel import bridge_vlan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.link import Link
    from pycni.plan.steps import VLANs
    from pycni.steps.namespaces import Netns

NATIVE = 1  # the untagged VLAN of a trunk that names none, as bridges have it


def assign(site: Netns, port: Link, vlans: VLANs) -> None:
    """Make a port a member of these VLANs. Raises NetlinkError."""
    requests = []
    if not vlans.keep_default:
        requests += [
            bridge_vlan.delete(port, entry.first, entry.last)
            for entry in bridge_vlan.dump(site.netlink, port)
        ]
    requests += [bridge_vlan.add(port, first, last) for first, last in vlans.trunk]
    requests.append(bridge_vlan.add(port, vlans.pvid or NATIVE, pvid=True, untagged=True))
    site.request(*requests)


def differences(site: Netns, port: Link, vlans: VLANs) -> list[str]:
    """How a port's membership differs from these VLANs: what is missing."""
    present = bridge_vlan.dump(site.netlink, port)
    missing = []
    pvid = vlans.pvid or NATIVE
    if not any(entry.pvid and entry.untagged and entry.first == pvid for entry in present):
        missing.append(f"host interface {port.name} has not VLAN {pvid} as its untagged one")
    members = {vid for entry in present for vid in range(entry.first, entry.last + 1)}
    for first, last in vlans.trunk:
        if not members.issuperset(range(first, last + 1)):
            missing.append(f"host interface {port.name} lacks VLANs of {first}-{last}")
    return missing
