"""VLANs of bridge ports, on a kernel whose bridges filter them. Few tests: Python is slow there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Host, Sandbox, ip_json, run_in
from harness.machines import fill_bridge

RANGES = [[{"subnet": "10.8.0.0/24"}], [{"subnet": "fd00:8::/64"}]]


@pytest.fixture
def attach(host: Host, plugin_dir: Path, sandbox: Sandbox, tmp_path: Path) -> Attach:
    def make(container: str = "one", *, addresses: bool = False, **keys: Any) -> Attachment:
        config: dict[str, Any] = {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "bridge",
            "bridge": "br0",
        }
        if addresses:
            data_dir = str(tmp_path / "leases")
            config["ipam"] = {"type": "host-local", "ranges": RANGES, "dataDir": data_dir}
        return Attachment(plugin_dir / "bridge", config | keys, sandbox(), container)

    return make


def members(port: str) -> dict[int, set[str]]:
    """The VLANs of a bridge port, with their flags."""
    found = json.loads(run_in(None, ["bridge", "-j", "vlan", "show", "dev", port]).stdout)
    vlans: dict[int, set[str]] = {}
    for entry in found[0]["vlans"]:
        for vid in range(entry["vlan"], entry.get("vlanEnd", entry["vlan"]) + 1):
            vlans[vid] = set(entry.get("flags", ()))
    return vlans


NATIVE = {"PVID", "Egress Untagged"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"vlan": 100}, {100: NATIVE}),
        (
            {"vlan": 100, "preserveDefaultVlan": True},
            {1: {"Egress Untagged"}, 100: NATIVE},
        ),
        (
            {"vlanTrunk": [{"id": 101}, {"minID": 200, "maxID": 210}]},
            {1: NATIVE, 101: set(), **{vid: set() for vid in range(200, 211)}},
        ),
        (
            {"vlan": 100, "vlanTrunk": [{"minID": 7, "maxID": 9}]},
            {100: NATIVE, 7: set(), 8: set(), 9: set()},
        ),
        ({"vlanTrunk": []}, {1: NATIVE}),
    ],
    ids=["vlan", "vlan and default", "trunk", "vlan and trunk", "empty trunk"],
)
def test_port_is_a_member(
    attach: Attach, keys: dict[str, Any], expected: dict[int, set[str]]
) -> None:
    one = attach(**keys)
    port = one.add()["interfaces"][1]["name"]
    assert members(port) == expected
    bridge = ip_json("-d", "link", "show", "br0")[0]
    assert bridge["linkinfo"]["info_data"]["vlan_filtering"] == 1
    one.check()
    vid = max(expected)
    if vid != 1:
        run_in(None, ["bridge", "vlan", "del", "dev", port, "vid", str(vid)])
        assert port in one.drift()
    one.delete()
    assert [link["ifname"] for link in ip_json("link") if link["ifname"].startswith("veth")] == []


def test_frames_stay_in_their_vlan(attach: Attach) -> None:
    """Two containers of one VLAN reach each other, one of another VLAN does not."""
    those = [attach("a", vlan=100), attach("b", vlan=100), attach("c", vlan=200)]
    for number, one in enumerate(those, 1):
        one.add()
        run_in(one.sandbox, ["ip", "address", "add", f"192.0.2.{number}/24", "dev", "eth0"])
    ping = ["ping", "-c1", "-W2", "192.0.2.1"]
    assert run_in(those[1].sandbox, ping, check=False).returncode == 0
    assert run_in(those[2].sandbox, ping, check=False).returncode == 1


@pytest.mark.parametrize("preserve", [False, True], ids=["alone", "beside the default"])
def test_gateway_of_a_vlan(attach: Attach, preserve: bool) -> None:
    """The gateway's addresses are on a veth into the VLAN, made once and shared."""
    keys = {"addresses": True, "isGateway": True, "vlan": 100, "preserveDefaultVlan": preserve}
    one, two = attach("one", **keys), attach("two", **keys)
    result = one.add()
    assert [item["name"] for item in result["interfaces"][::3]] == ["br0", "br0.100"]
    two.add()
    gateway = ip_json("-d", "address", "show", "br0.100")[0]
    assert gateway["linkinfo"]["info_kind"] == "veth"
    addresses = {f"{item['local']}/{item['prefixlen']}" for item in gateway["addr_info"]}
    assert {"10.8.0.1/24", "fd00:8::1/64"} <= addresses
    assert not any(
        item["family"] == "inet" for item in ip_json("address", "show", "br0")[0]["addr_info"]
    )
    port = ip_json("link", "show", "br0.100")[0]["link"]
    expected = {100: NATIVE} | ({1: {"Egress Untagged"}} if preserve else {})
    assert members(port) == expected
    # Above that of any hardware, so that the bridge does not take it on from this port.
    assert ip_json("link", "show", port)[0]["address"].startswith("fe:")
    for address in ("10.8.0.1", "fd00:8::1"):
        assert run_in(one.sandbox, ["ping", "-c1", "-W5", address]).returncode == 0
    one.check()
    run_in(None, ["bridge", "vlan", "del", "dev", port, "vid", "100"])
    assert "VLAN 100" in one.drift()
    run_in(None, ["bridge", "vlan", "add", "dev", port, "vid", "100", "pvid", "untagged"])
    one.delete()
    two.delete()
    assert {link["ifname"] for link in ip_json("link")} == {"lo", "br0", "br0.100", port}


def test_no_port_left_for_the_gateway_of_a_vlan(attach: Attach) -> None:
    attach("one", vlan=100).add()
    fill_bridge("br0")
    two = attach("two", addresses=True, isGateway=True, vlan=200)
    error = two.refused()
    assert error["code"] == 100
    assert error["msg"] == "bridge br0 is full"
    assert "1,023 ports" in error["details"]
    assert "br0.200" not in {link["ifname"] for link in ip_json("link")}
    run_in(None, ["ip", "link", "delete", "a0"])
    two.add()
