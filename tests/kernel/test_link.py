"""Links on the real kernel: what we make as `ip -d` shows it, and what `ip` makes as we read it."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from harness import Namespace, Sandbox, ip_json, run_in
from harness.kernel_state import link as shown
from pycni.kernel import link, link_kinds, namespace
from pycni.kernel.netlink import NetlinkError, NetlinkSocket


@pytest.fixture
def box(sandbox: Sandbox) -> Namespace:
    return sandbox()


def ip(*args: str) -> None:
    run_in(None, ["ip", *args])


def data(name: str, netns: Namespace | None = None) -> dict[str, Any]:
    found: dict[str, Any] = shown(name, netns)["linkinfo"].get("info_data", {})
    return found


# --- reading -----------------------------------------------------------------------------------


def test_loopback(netlink: NetlinkSocket) -> None:
    found = link.get(netlink, "lo")
    assert found == link.get(netlink, 1)
    assert (found.index, found.name, found.kind, found.mac) == (1, "lo", "", "00:00:00:00:00:00")
    assert (found.mtu, found.master, found.link, found.link_netnsid) == (65536, 0, 0, None)
    assert found.is_up
    assert found.operstate == "unknown"


def test_every_field(netlink: NetlinkSocket) -> None:
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "add", "v0", "mtu", "1400", "txqueuelen", "77", "type", "veth", "peer", "name", "v1")
    ip("link", "set", "v0", "alias", "for tests", "promisc", "on", "allmulticast", "on")
    ip("link", "set", "v0", "address", "02:00:00:00:00:0a", "master", "br0")
    found = link.get(netlink, "v0")
    there = shown("v0")
    assert found == link.Link(
        index=there["ifindex"],
        name="v0",
        kind="veth",
        mac="02:00:00:00:00:0a",
        mtu=1400,
        flags=found.flags,
        operstate="down",
        master=shown("br0")["ifindex"],
        link=shown("v1")["ifindex"],
        alias="for tests",
        promiscuity=2,  # one from us, one from the bridge
        allmulti=2,
        txqlen=77,
        details=found.details,
        port=found.port,
        families=found.families,
    )
    assert (found.accept_ra, found.hairpin, found.isolated) == (1, False, False)
    assert (found.vlan_filtering, found.bridge_id, found.vlan_id) == (None, "", None)
    assert there["promiscuity"] == found.promiscuity
    assert found.flags & 0x301 == 0x300
    assert link.get(netlink, "br0").vlan_filtering in (False, None)


def test_accept_ra(netlink: NetlinkSocket) -> None:
    ip("link", "add", "br0", "type", "bridge")
    for value in (0, 2):
        run_in(None, ["sh", "-c", f"echo {value} > /proc/sys/net/ipv6/conf/br0/accept_ra"])
        assert link.get(netlink, "br0").accept_ra == value
    ip("link", "set", "br0", "mtu", "1279")  # less than IPv6 takes
    assert link.get(netlink, "br0").accept_ra is None


def test_no_link_local(netlink: NetlinkSocket) -> None:
    netlink.batch([link.bridge("br0"), link.no_link_local("br0")])
    assert shown("br0")["inet6_addr_gen_mode"] == "none"


def test_altname(netlink: NetlinkSocket) -> None:
    long = "a-name-of-more-than-fifteen-characters"
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "property", "add", "dev", "br0", "altname", long, "altname", "short")
    for name in (long, "short"):
        assert link.get(netlink, name, altnames=True).name == "br0"
        assert link.find(netlink, name) is None
        with pytest.raises(NetlinkError, match="it is an alternative name of br0") as caught:
            link.get(netlink, name)
        assert f"ip link property del dev br0 altname {name}" in caught.value.way_out
    netlink.request(link.update(long, mtu=1300))
    assert shown("br0")["mtu"] == 1300


@pytest.mark.parametrize(
    "target", ["nothing", "no-link-has-a-name-of-this-length", "x" * 127, "x" * 128, "é" * 64, 9999]
)
def test_missing(netlink: NetlinkSocket, target: str | int) -> None:
    assert link.find(netlink, target) is None
    for act in (
        lambda: link.get(netlink, target),
        lambda: netlink.request(link.update(target, up=True)),
        lambda: netlink.request(link.delete(target)),
    ):
        with pytest.raises(NetlinkError) as caught:
            act()
        assert caught.value.errno == errno.ENODEV
        assert str(target) in str(caught.value)


def test_dump(netlink: NetlinkSocket) -> None:
    made = link.create(netlink, link.bridge("br0"))
    for number in range(40):
        netlink.request(link.veth(f"v{number}", f"w{number}", master=made.index))
    assert {one.name for one in link.dump(netlink)} == {one["ifname"] for one in ip_json("link")}
    ports = link.dump(netlink, master=made.index)
    assert {one.name for one in ports} == {f"v{number}" for number in range(40)}


# --- creating ----------------------------------------------------------------------------------


def test_bridge(netlink: NetlinkSocket) -> None:
    made = link.create(netlink, link.bridge("br0", mac="02:00:00:00:00:01", mtu=1400))
    there = shown("br0")
    assert (made.index, made.name, made.kind) == (there["ifindex"], "br0", "bridge")
    assert there["linkinfo"]["info_kind"] == "bridge"
    assert there["address"] == made.mac == "02:00:00:00:00:01"
    assert there["mtu"] == made.mtu == 1400
    with pytest.raises(NetlinkError) as caught:
        link.create(netlink, link.bridge("br0"))
    assert caught.value.errno == errno.EEXIST


def test_veth_into_a_namespace(netlink: NetlinkSocket, box: Namespace) -> None:
    bridge = link.create(netlink, link.bridge("br0"))
    with namespace.open_path(box.path) as space:
        request = link.veth(
            "veth0",
            "eth0",
            peer_netns=space.fd,
            mac="02:00:00:00:00:01",
            peer_mac="02:00:00:00:00:02",
            mtu=1400,
            master=bridge.index,
        )
        made = link.create(netlink, request)
    here, there = shown("veth0"), shown("eth0", box)
    assert here["linkinfo"]["info_kind"] == there["linkinfo"]["info_kind"] == "veth"
    assert here["linkinfo"]["info_slave_kind"] == "bridge"
    assert (here["master"], here["mtu"], there["mtu"]) == ("br0", 1400, 1400)
    assert (here["address"], there["address"]) == ("02:00:00:00:00:01", "02:00:00:00:00:02")
    assert (made.index, made.link) == (here["ifindex"], there["ifindex"])
    assert made.link_netnsid == here["link_netnsid"]
    assert made.master == bridge.index
    assert "UP" not in here["flags"] + there["flags"]


def test_veth_made_up(netlink: NetlinkSocket) -> None:
    made = link.create(netlink, link.veth("v0", "v1", up=True))
    assert made.is_up
    assert "UP" in shown("v0")["flags"]
    for end in (shown("v0"), shown("v1")):
        assert (end["num_tx_queues"], end["num_rx_queues"]) == (1, 1)
    assert "UP" not in shown("v1")["flags"]


def test_veth_whose_peer_name_is_taken(netlink: NetlinkSocket, box: Namespace) -> None:
    with namespace.open_path(box.path) as space:
        netlink.request(link.veth("v0", "eth0", peer_netns=space.fd))
        with pytest.raises(NetlinkError) as caught:
            netlink.request(link.veth("v1", "eth0", peer_netns=space.fd))
    assert caught.value.errno == errno.EEXIST
    assert link.find(netlink, "v1") is None


@pytest.mark.parametrize("mode", ["private", "vepa", "bridge", "passthru", "source"])
def test_macvlan(netlink: NetlinkSocket, mode: str) -> None:
    parent = link.create(netlink, link.veth("v0", "v1"))
    mac = None if mode == "passthru" else "02:00:00:00:00:05"
    made = link.create(netlink, link_kinds.macvlan("m0", parent.index, mode, mac=mac, mtu=1300))
    there = shown("m0")
    assert there["linkinfo"]["info_data"]["mode"] == mode == made.macvlan_mode
    assert (there["link"], made.link, there["mtu"]) == ("v0", parent.index, 1300)
    assert there["address"] == (mac or shown("v0")["address"])


def test_macvlan_made_inside_a_namespace(netlink: NetlinkSocket, box: Namespace) -> None:
    parent = link.create(netlink, link.veth("v0", "v1"))
    with namespace.open_path(box.path) as space, space.netlink() as inside:
        request = link_kinds.macvlan(
            "eth0", parent.index, mac="02:00:00:00:00:05", broadcast_queue=500, netns=space.fd
        )
        made = link.create(netlink, request, inside)
    assert (made.name, made.kind, made.link) == ("eth0", "macvlan", parent.index)
    assert made.link_netnsid is not None
    assert data("eth0", box)["mode"] == "bridge"
    assert data("eth0", box)["bcqueuelen"] == 500
    assert link.find(netlink, "eth0") is None


def test_ifb(netlink: NetlinkSocket) -> None:
    made = link.create(netlink, link_kinds.ifb("ifb0", mtu=1400, txqlen=99, up=True))
    there = shown("ifb0")
    assert there["linkinfo"]["info_kind"] == made.kind == "ifb"
    assert (there["mtu"], there["txqlen"], made.is_up) == (1400, 99, True)


# --- changing ----------------------------------------------------------------------------------


def test_update(netlink: NetlinkSocket) -> None:
    bridge = link.create(netlink, link.bridge("br0"))
    made = link.create(netlink, link.veth("v0", "v1"))
    netlink.request(
        link.update(
            made,
            up=True,
            promiscuous=True,
            allmulti=True,
            mtu=1300,
            mac="02:00:00:00:00:07",
            txqlen=33,
            master=bridge.index,
            alias="mine",
        )
    )
    there = shown("v0")
    assert {"UP", "PROMISC", "ALLMULTI"}.issubset(there["flags"])
    assert (there["mtu"], there["address"], there["txqlen"]) == (1300, "02:00:00:00:00:07", 33)
    assert (there["master"], there["ifalias"]) == ("br0", "mine")
    netlink.request(
        link.update("v0", up=False, promiscuous=False, allmulti=False, master=0, alias="")
    )
    there = shown("v0")
    assert not {"UP", "PROMISC", "ALLMULTI"}.intersection(there["flags"])
    assert "master" not in there
    assert "ifalias" not in there
    assert there["mtu"] == 1300


def test_bridge_port_flags(netlink: NetlinkSocket) -> None:
    bridge = link.create(netlink, link.bridge("br0"))
    made = link.create(netlink, link.veth("v0", "v1", master=bridge.index))
    netlink.request(link.update(made, hairpin=True))
    port = shown("v0")["linkinfo"]["info_slave_data"]
    assert (port["hairpin"], port["isolated"]) == (True, False)
    netlink.request(link.update("v0", hairpin=False, isolated=True))
    port = shown("v0")["linkinfo"]["info_slave_data"]
    assert (port["hairpin"], port["isolated"]) == (False, True)
    found = link.get(netlink, "v0")
    assert (found.hairpin, found.isolated) == (False, True)


def test_move_to_a_namespace_under_another_name(netlink: NetlinkSocket, box: Namespace) -> None:
    made = link.create(netlink, link.veth("v0", "v1"))
    with namespace.open_path(box.path) as space:
        netlink.request(link.update(made, netns=space.fd, name="eth7"))
    assert shown("eth7", box)["linkinfo"]["info_kind"] == "veth"
    assert link.find(netlink, "v0") is None


def test_delete(netlink: NetlinkSocket) -> None:
    made = link.create(netlink, link.veth("v0", "v1"))
    netlink.request(link.delete(made))
    assert {one["ifname"] for one in ip_json("link")} == {"lo"}
    link.create(netlink, link.veth("v0", "v1"))
    netlink.request(link.delete("v1"))
    assert {one["ifname"] for one in ip_json("link")} == {"lo"}


# --- waiting -----------------------------------------------------------------------------------


def later(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Timer(0.05, action)
    thread.start()
    return thread


def test_wait_for_a_link_that_runs_already(netlink: NetlinkSocket) -> None:
    link.create(netlink, link.veth("v0", "v1", up=True))
    netlink.request(link.update("v1", up=True))
    link.wait_running(netlink, "v0", time.monotonic() + 10)
    assert link.get(netlink, "v0").operstate == "up"
    link.wait_running(netlink, "v0", time.monotonic() - 1)


def test_wait_until_the_carrier_comes(netlink: NetlinkSocket) -> None:
    made = link.create(netlink, link.veth("v0", "v1", up=True))
    with NetlinkSocket() as other:
        thread = later(lambda: other.request(link.update("v1", up=True)))
        link.wait_running(netlink, made.index, time.monotonic() + 10)
        thread.join()
    assert shown("v0")["operstate"] == "UP"
    # Nothing is left on the socket.
    assert netlink.events(time.monotonic() + 0.02) == []


def test_wait_in_a_flood_of_notifications(netlink: NetlinkSocket) -> None:
    link.create(netlink, link.veth("v0", "v1", up=True))
    noise = link.create(netlink, link.bridge("br0"))
    netlink.request(link.update(noise, up=True))

    class Flooded(NetlinkSocket):
        def subscribe(self, groups: Any) -> None:
            super().subscribe(groups)
            with NetlinkSocket() as other:
                for number in range(500):
                    other.request(link.update(noise, alias=f"change {number}"))
                other.request(link.update("v1", up=True))

    with Flooded() as flooded:
        link.wait_running(flooded, "v0", time.monotonic() + 10)
    assert link.get(netlink, "v0").operstate == "up"


def test_wait_that_ends_at_the_deadline(netlink: NetlinkSocket) -> None:
    link.create(netlink, link.veth("v0", "v1", up=True))
    with pytest.raises(NetlinkError) as caught:
        link.wait_running(netlink, "v0", time.monotonic() + 0.05)
    assert caught.value.errno == errno.ETIMEDOUT
    assert caught.value.what == 'wait for link "v0"'
    # Until the kernel's link watch gets to it, the state of a new link is unknown.
    assert caught.value.text in ("it is lower-layer-down", "it is down", "it is unknown")


def test_wait_for_a_link_that_goes_away(netlink: NetlinkSocket) -> None:
    link.create(netlink, link.veth("v0", "v1", up=True))
    with NetlinkSocket() as other:
        thread = later(lambda: other.request(link.delete("v1")))
        with pytest.raises(NetlinkError) as caught:
            link.wait_running(netlink, "v0", time.monotonic() + 10)
        thread.join()
    assert caught.value.errno == errno.ENODEV


def test_delete_together(netlink: NetlinkSocket) -> None:
    for number in range(40):
        netlink.request(link.veth(f"v{number}", f"w{number}"))
    gone, *rest = [item for item in link.dump(netlink) if item.name.startswith("v")]
    netlink.request(link.delete(gone))
    link.delete_together(netlink, [gone, *rest[:-1]])
    assert {item.name for item in link.dump(netlink)} == {"lo", "v39", "w39"}
    link.delete_together(netlink, [gone])
    link.delete_together(netlink, [])
