"""Requests for new links of the kinds that few attachments need; `link` has bridges and veths.

With `netns`, a descriptor, a link is created inside that namespace. Formats:
include/uapi/linux/if_link.h. Used by the steps that make such links.
"""

from __future__ import annotations

from pycni.kernel.link import IPVLAN_MODES, MACVLAN_MODES, NewLink, new


def macvlan(
    name: str,
    parent: int,
    mode: str = "bridge",
    *,
    mac: str | None = None,
    mtu: int = 0,
    broadcast_queue: int | None = None,
    netns: int | None = None,
) -> NewLink:
    """A macvlan on the link with index `parent`; mode is a key of MACVLAN_MODES."""
    data = {"mode": MACVLAN_MODES[mode], "broadcast_queue": broadcast_queue}
    return new("macvlan", name, data, link=parent, mac=mac, mtu=mtu, netns=netns)


def ipvlan(
    name: str, parent: int, mode: str = "l2", *, mtu: int = 0, netns: int | None = None
) -> NewLink:
    """An ipvlan on the link with index `parent`; mode is a key of IPVLAN_MODES."""
    return new("ipvlan", name, {"mode": IPVLAN_MODES[mode]}, link=parent, mtu=mtu, netns=netns)


def vlan(name: str, parent: int, vid: int, *, mtu: int = 0, netns: int | None = None) -> NewLink:
    """An 802.1Q VLAN on the link with index `parent`."""
    return new("vlan", name, {"id": vid}, link=parent, mtu=mtu, netns=netns)


def dummy(name: str, *, mac: str | None = None, mtu: int = 0, netns: int | None = None) -> NewLink:
    """A dummy link."""
    return new("dummy", name, None, mac=mac, mtu=mtu, netns=netns)


def ifb(name: str, *, mtu: int = 0, txqlen: int | None = None, up: bool = False) -> NewLink:
    """An intermediate functional block: shapes traffic that is redirected to it."""
    return new("ifb", name, None, mtu=mtu, txqlen=txqlen, up=up)


def vrf(name: str, table: int, *, up: bool = False) -> NewLink:
    """A VRF: links with it as master route by `table`."""
    return new("vrf", name, {"table": table}, up=up)
