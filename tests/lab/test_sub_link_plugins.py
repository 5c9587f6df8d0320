"""vlan, ipvlan and dummy on a kernel that has them. Few tests, since Python is slow there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Host, Namespace, Sandbox, ip_json, run_in, snapshot
from harness.faults import each_request_failing
from harness.kernel_state import link_names

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
V4 = {"address": "192.0.2.5/24", "gateway": "192.0.2.1"}
V6 = {"address": "2001:db8::5/64", "gateway": "2001:db8::1"}
VID = 1234

KEYS: dict[str, dict[str, Any]] = {
    "vlan": {"master": "lan0", "vlanId": VID},
    "ipvlan": {"master": "lan0"},
    "macvlan": {"master": "lan0"},
    "dummy": {},
}


@pytest.fixture
def neighbour(host: Host, sandbox: Sandbox) -> Namespace:
    """A machine on the network of the host's interface lan0: untagged, and in a VLAN as eth0.v."""
    other = sandbox()
    run_in(None, ["ip", "link", "add", "lan0", "type", "veth", "peer", "eth0", "netns", other.name])
    # No address of its own, which would come and settle while a test compares.
    run_in(None, ["ip", "link", "set", "lan0", "addrgenmode", "none", "up"])
    run_in(other, ["ip", "link", "set", "eth0", "up"])
    run_in(other, ["ip", "link", "add", "link", "eth0", "eth0.v", "type", "vlan", "id", str(VID)])
    run_in(other, ["ip", "link", "set", "eth0.v", "up"])
    return other


@pytest.fixture
def attach(plugin_dir: Path, sandbox: Sandbox, neighbour: Namespace) -> Attach:
    def make(
        plugin: str, *addresses: dict[str, str], container: str = "one", **keys: Any
    ) -> Attachment:
        config: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": plugin}
        if addresses:
            routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}][: len(addresses)]
            config["ipam"] = {"type": "static", "addresses": addresses, "routes": routes}
        return Attachment(plugin_dir / plugin, config | KEYS[plugin] | keys, sandbox(), container)

    return make


def settle(netns: Namespace, interface: str) -> None:
    """Give the neighbour its addresses on one interface."""
    for address in ("192.0.2.1/24", "2001:db8::1/64"):
        extra = ["nodad"] if ":" in address else []
        run_in(netns, ["ip", "address", "add", address, "dev", interface, *extra])


def test_vlan(attach: Attach, neighbour: Namespace) -> None:
    settle(neighbour, "eth0.v")
    run_in(None, ["ip", "link", "add", "eth0", "type", "bridge"])  # as a host often has
    one = attach("vlan", V4, V6)
    one.add()
    run_in(one.sandbox, ["ping", "-c1", "-W3", "2001:db8::1"])
    run_in(one.sandbox, ["ping", "-c1", "-W3", "192.0.2.1"])
    assert one.link()["linkinfo"]["info_data"]["id"] == VID
    one.check()
    # Another VLAN is another network.
    two = attach("vlan", {"address": "192.0.2.6/24"}, container="two", vlanId=7)
    two.add()
    assert run_in(two.sandbox, ["ping", "-c1", "-W1", "192.0.2.1"], check=False).returncode
    two.config["vlanId"] = 8
    assert "has the id 7, not 8" in two.drift()
    two.delete()
    assert link_names(two.sandbox) == {"lo"}
    # Each part of it that can change.
    assert one.sandbox is not None
    run_in(one.sandbox, ["ip", "route", "del", "default"])
    assert "0.0.0.0/0" in one.drift()
    one.config["mtu"] = 1400
    assert "MTU" in one.drift()
    one.delete()
    assert link_names(one.sandbox) == {"lo"}
    # A master that is down, or is not there, or has no room.
    for keys, reported in (
        ({"master": ""}, '"master" field is required'),
        ({"master": "lan9"}, "lan9"),
        ({"vlanId": 4095}, "invalid VLAN ID 4095"),
        ({"vlanId": -1}, "invalid VLAN ID -1"),
        ({"mtu": 1600}, "invalid MTU 1600, must be [0, master MTU(1500)]"),
        ({"mtu": -100}, "invalid MTU -100, must be [0, master MTU(1500)]"),
        ({"ipam": {}}, "requires an IPAM configuration"),
    ):
        error = attach("vlan", V4, **keys).refused()
        assert error["code"] == 7
        assert reported in error["msg"]
    run_in(None, ["ip", "link", "set", "lan0", "down"])
    three = attach("vlan", V4)
    assert 'master "lan0" is down' in three.refused()["msg"]
    assert three.run("STATUS").code == 0
    assert three.run("STATUS", master="lan9").result["code"] == 50
    # The master in the sandbox.
    assert three.sandbox is not None
    run_in(None, ["ip", "link", "set", "lan0", "netns", three.sandbox.name])
    run_in(three.sandbox, ["ip", "link", "set", "lan0", "up", "mtu", "1200"])
    three.config["linkInContainer"] = True
    three.add()
    assert three.link()["mtu"] == 1200
    run_in(three.sandbox, ["ping", "-c1", "-W3", "192.0.2.1"])
    three.check()
    three.delete()
    assert link_names(three.sandbox) == {"lo", "lan0"}


def test_ipvlan(attach: Attach, neighbour: Namespace) -> None:
    settle(neighbour, "eth0")
    run_in(None, ["ip", "link", "add", "eth0", "type", "bridge"])
    for mode in ("l2", "l3", "l3s"):
        one = attach("ipvlan", V4, V6, mode=mode)
        result = one.add()
        assert one.link()["linkinfo"]["info_data"]["mode"] == mode
        # It shares the master's hardware address.
        assert result["interfaces"][0]["mac"] == ip_json("link", "show", "lan0")[0]["address"]
        if mode == "l2":
            run_in(one.sandbox, ["ping", "-c1", "-W3", "2001:db8::1"])
            run_in(one.sandbox, ["ping", "-c1", "-W3", "192.0.2.1"])
        two = attach("ipvlan", {"address": "192.0.2.6/24"}, container="two", mode=mode)
        two.add()
        run_in(one.sandbox, ["ping", "-c1", "-W3", "192.0.2.6"])
        one.check()
        one.config["mode"] = "l3" if mode == "l2" else "l2"
        assert f"is in mode {mode}" in one.drift()
        two.delete()
        one.delete()
        assert link_names(one.sandbox) == link_names(two.sandbox) == {"lo"}
    for keys, reported in (
        ({"mode": "l4"}, 'unknown ipvlan mode: "l4"'),
        ({"mtu": 1600}, "invalid MTU 1600"),
        ({"ipam": {}}, "requires an IPAM configuration"),
        ({"master": ""}, "no default route interface found"),
    ):
        assert reported in attach("ipvlan", V4, **keys).refused()["msg"]
    run_in(None, ["ip", "address", "add", "192.0.2.9/24", "dev", "lan0"])
    run_in(None, ["ip", "route", "add", "default", "via", "192.0.2.1"])
    one = attach("ipvlan", V4, master="")
    one.add()
    one.check()  # the reference cannot without a master
    run_in(None, ["ip", "route", "del", "default"])
    one.delete()  # nor could it do this
    assert link_names(one.sandbox) == {"lo"}


def test_ipvlan_behind_another_plugin(attach: Attach, neighbour: Namespace) -> None:
    settle(neighbour, "eth0")
    previous: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "lan0"}],
        "ips": [{**V4, "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["192.0.2.1"]},
    }
    one = attach("ipvlan", master="", prevResult=previous)
    result = one.add()
    assert one.sandbox is not None
    assert result == {
        **previous,
        "interfaces": [
            {"name": "lan0"},
            {"name": "eth0", "mac": one.link()["address"], "sandbox": one.sandbox.path},
        ],
        "ips": [{**V4, "interface": 1}],
    }
    run_in(one.sandbox, ["ping", "-c1", "-W3", "192.0.2.1"])
    one.check()
    one.delete()
    assert link_names(one.sandbox) == {"lo"}
    for interfaces in ([], [{"name": "a"}, {"name": "b"}]):
        broken = {**previous, "interfaces": interfaces, "ips": [V4]}
        reported = attach("ipvlan", master="", prevResult=broken).refused()["msg"]
        assert reported == "chained master failure. PrevResult lacks a single named interface"
    for version in ("0.2.0", "0.4.0"):
        old: dict[str, Any] = {"cniVersion": version, "ip4": {"ip": "192.0.2.7/24"}}
        if version == "0.4.0":
            old = {"cniVersion": version, "ips": [{"version": "4", "address": "192.0.2.7/24"}]}
        two = attach("ipvlan", cniVersion=version, prevResult=old)
        two.add()
        run_in(two.sandbox, ["ping", "-c1", "-W3", "192.0.2.1"])
        two.delete()


def test_dummy(attach: Attach) -> None:
    run_in(None, ["ip", "link", "add", "eth0", "type", "bridge"])
    one = attach("dummy", V4, V6, dns={"search": ["example"]})
    result = one.add()
    assert result["dns"] == {"search": ["example"]}
    run_in(one.sandbox, ["ping", "-c1", "-W1", "192.0.2.5"], check=False)
    addresses = ip_json("address", "show", "dev", "eth0", netns=one.sandbox)[0]["addr_info"]
    assert not any(entry.get("tentative") for entry in addresses)
    assert {"192.0.2.5", "2001:db8::5"} <= {entry["local"] for entry in addresses}
    one.check()
    run_in(one.sandbox, ["ip", "link", "set", "eth0", "down"])
    assert "eth0 is down" in one.drift()
    run_in(one.sandbox, ["ip", "link", "delete", "eth0"])
    run_in(one.sandbox, ["ip", "link", "add", "eth0", "type", "bridge"])
    assert "not of type dummy" in one.drift()
    one.delete()
    assert link_names(one.sandbox) == {"lo", "eth0"}
    none = attach("dummy")
    none.sandbox = Namespace("nowhere")
    assert none.refused()["msg"] == "dummy interface requires an IPAM configuration"


@pytest.mark.parametrize("plugin", ["vlan", "ipvlan", "dummy"])
def test_results_and_deletions(attach: Attach, plugin: str) -> None:
    for version in VERSIONS:
        one = attach(plugin, V4, cniVersion=version)
        result = one.add()
        assert one.sandbox is not None
        if version in VERSIONS[:2]:
            slot = {"ip": V4["address"], "gateway": V4["gateway"]}
            slot["routes"] = [{"dst": "0.0.0.0/0"}]  # type: ignore[assignment]
            assert result == {"cniVersion": version, "ip4": slot, "dns": {}}
        else:
            interface = {"name": "eth0", "mac": one.link()["address"], "sandbox": one.sandbox.path}
            assert result["interfaces"] == [interface]
            assert result["ips"][0].items() >= {"interface": 0, **V4}.items()
            if version in VERSIONS[4:]:
                one.check()
        one.delete()
        one.delete()
        assert link_names(one.sandbox) == {"lo"}
    one = attach(plugin, V4)
    one.add()
    if plugin != "dummy":
        run_in(None, ["ip", "link", "delete", "lan0"])
    one.config = {**one.config, "mtu": 9999, "vlanId": "x", "mode": 4}
    before = snapshot()
    one.delete()
    assert link_names(one.sandbox) == {"lo"}
    assert one.sandbox is not None
    one.sandbox.delete()
    one.delete()
    one.sandbox = None
    one.delete()
    assert snapshot() == before


@pytest.mark.parametrize("plugin", ["vlan", "ipvlan", "macvlan", "dummy"])
def test_each_failure_leaves_everything_as_it_was(attach: Attach, plugin: str) -> None:
    run_in(None, ["ip", "link", "add", "eth0", "type", "bridge"])
    one = attach(plugin, V4)
    before, inside = snapshot(), ip_json("-d", "address", netns=one.sandbox)
    refused = []
    for what in each_request_failing(lambda: one.run("ADD")):
        refused.append(what)
        assert snapshot() == before, what
        assert ip_json("-d", "address", netns=one.sandbox) == inside, what
    assert any(f"create {plugin}" in what for what in refused)
    one.delete()
