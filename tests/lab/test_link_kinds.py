"""The links that many running kernels lack, as `ip -d` and `bridge` show what we make."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness import Sandbox, run_in
from harness.kernel_state import link as shown
from pycni.kernel import bridge_vlan, link, link_kinds, namespace
from pycni.kernel.bridge_vlan import PortVlan
from pycni.kernel.link import Link
from pycni.kernel.netlink import NetlinkSocket


@pytest.fixture
def parent(netlink: NetlinkSocket) -> Link:
    return link.create(netlink, link_kinds.dummy("d0", mac="02:00:00:00:00:01", mtu=1400))


def test_dummy(parent: Link) -> None:
    there = shown("d0")
    assert there["linkinfo"]["info_kind"] == parent.kind == "dummy"
    assert (there["address"], there["mtu"]) == ("02:00:00:00:00:01", 1400)


def test_vlan(netlink: NetlinkSocket, parent: Link, sandbox: Sandbox) -> None:
    made = link.create(netlink, link_kinds.vlan("d0.100", parent.index, 100, mtu=1300))
    there = shown("d0.100")
    assert there["linkinfo"]["info_data"] == {
        "protocol": "802.1Q",
        "id": 100,
        "flags": ["REORDER_HDR"],
    }
    assert (there["link"], there["mtu"]) == ("d0", 1300)
    assert (made.kind, made.vlan_id, made.link) == ("vlan", 100, parent.index)
    box = sandbox()
    with namespace.open_path(box.path) as space, space.netlink() as inside:
        request = link_kinds.vlan("eth0", parent.index, 4094, netns=space.fd)
        made = link.create(netlink, request, inside)
    assert (made.vlan_id, made.link) == (4094, parent.index)
    assert shown("eth0", box)["linkinfo"]["info_data"]["id"] == 4094


@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
def test_ipvlan(netlink: NetlinkSocket, parent: Link, sandbox: Sandbox, mode: str) -> None:
    box = sandbox()
    with namespace.open_path(box.path) as space, space.netlink() as inside:
        request = link_kinds.ipvlan("eth0", parent.index, mode, mtu=1300, netns=space.fd)
        made = link.create(netlink, request, inside)
    there = shown("eth0", box)
    assert there["linkinfo"]["info_data"]["mode"] == mode == made.ipvlan_mode
    assert there["mtu"] == 1300
    assert made.macvlan_mode is None


def test_vrf(netlink: NetlinkSocket, parent: Link) -> None:
    made = link.create(netlink, link_kinds.vrf("red", 1000, up=True))
    there = shown("red")
    assert there["linkinfo"]["info_data"]["table"] == 1000 == made.vrf_table
    assert "UP" in there["flags"]
    netlink.request(link.update(parent, master=made.index))
    assert shown("d0")["master"] == "red"
    assert [one.name for one in link.dump(netlink, master=made.index)] == ["d0"]


def bridge_vlans(name: str) -> list[dict[str, Any]]:
    listing = json.loads(run_in(None, ["bridge", "-j", "vlan", "show", "dev", name]).stdout)
    found: list[dict[str, Any]] = [] if not listing else listing[0].get("vlans", [])
    return found


@pytest.fixture
def port(netlink: NetlinkSocket) -> Link:
    """A port of a bridge with VLAN filtering."""
    bridge = link.create(netlink, link.bridge("br0", vlan_filtering=True))
    assert bridge.vlan_filtering is True
    assert shown("br0")["linkinfo"]["info_data"]["vlan_filtering"] == 1
    return link.create(netlink, link.veth("v0", "v1", master=bridge.index))


def test_vlans_of_a_port(netlink: NetlinkSocket, port: Link) -> None:
    assert bridge_vlan.dump(netlink, port) == [PortVlan(1, 1, pvid=True, untagged=True)]
    netlink.batch(
        [
            bridge_vlan.delete(port, 1),
            bridge_vlan.add(port, 7, pvid=True, untagged=True),
            bridge_vlan.add(port, 100, 4094),
        ]
    )
    native, *tagged = bridge_vlans("v0")
    assert native == {"vlan": 7, "flags": ["PVID", "Egress Untagged"]}
    assert tagged == [{"vlan": vid} for vid in range(100, 4095)]
    assert bridge_vlan.dump(netlink, port) == [
        PortVlan(7, 7, pvid=True, untagged=True),
        PortVlan(100, 4094),
    ]
    netlink.request(bridge_vlan.delete(port, 200, 300))
    assert bridge_vlan.dump(netlink, port.index)[1:] == [PortVlan(100, 199), PortVlan(301, 4094)]


def test_vlans_of_one_port_only(netlink: NetlinkSocket, port: Link) -> None:
    other = link.create(netlink, link.veth("w0", "w1", master=port.master))
    netlink.request(bridge_vlan.add(other, 55))
    assert bridge_vlan.dump(netlink, port) == [PortVlan(1, 1, pvid=True, untagged=True)]


def test_vlans_of_the_bridge_itself(netlink: NetlinkSocket, port: Link) -> None:
    netlink.request(bridge_vlan.add(port.master, 30, 31, on_bridge=True))
    assert {entry["vlan"] for entry in bridge_vlans("br0")} == {1, 30, 31}
    assert PortVlan(30, 31) in bridge_vlan.dump(netlink, port.master)
    netlink.request(bridge_vlan.delete(port.master, 30, 31, on_bridge=True))
    assert bridge_vlan.dump(netlink, port.master) == [PortVlan(1, 1, pvid=True, untagged=True)]
