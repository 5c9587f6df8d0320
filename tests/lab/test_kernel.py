"""The lab's kernel has the link types that plugins make and many running kernels lack."""

from __future__ import annotations

from harness import Host, Sandbox, run_in
from harness.kernel_state import link


def add(*args: str) -> None:
    run_in(None, ["ip", "link", "add", *args])


def test_dummy(host: Host) -> None:
    add("d0", "type", "dummy")
    assert link("d0")["linkinfo"]["info_kind"] == "dummy"


def test_vlan(host: Host) -> None:
    add("d0", "type", "dummy")
    add("link", "d0", "name", "d0.5", "type", "vlan", "id", "5")
    assert link("d0.5")["link"] == "d0"
    assert link("d0.5")["linkinfo"]["info_data"]["id"] == 5


def test_ipvlan_modes(host: Host) -> None:
    add("d0", "type", "dummy")
    for mode in ("l2", "l3", "l3s"):
        add("link", "d0", "name", f"ip-{mode}", "type", "ipvlan", "mode", mode)
        assert link(f"ip-{mode}")["linkinfo"]["info_data"]["mode"] == mode
        run_in(None, ["ip", "link", "delete", f"ip-{mode}"])


def test_ipvlan_carries_packets(host: Host, sandbox: Sandbox) -> None:
    add("d0", "type", "dummy")
    run_in(None, ["ip", "link", "set", "d0", "up"])
    ends = [sandbox(), sandbox()]
    for number, end in enumerate(ends, start=1):
        add("link", "d0", "name", "eth0", "netns", end.name, "type", "ipvlan", "mode", "l2")
        run_in(end, ["ip", "address", "add", f"10.1.0.{number}/24", "dev", "eth0"])
        run_in(end, ["ip", "link", "set", "eth0", "up"])
    run_in(ends[0], ["ping", "-c", "1", "-W", "5", "10.1.0.2"])


def test_vrf_takes_a_link(host: Host) -> None:
    add("blue", "type", "vrf", "table", "100")
    add("d0", "type", "dummy")
    run_in(None, ["ip", "link", "set", "d0", "master", "blue"])
    assert link("blue")["linkinfo"]["info_data"]["table"] == 100
    assert link("d0")["master"] == "blue"


def test_bridge_filters_vlans(host: Host) -> None:
    add("br0", "type", "bridge", "vlan_filtering", "1")
    add("d0", "type", "dummy")
    run_in(None, ["ip", "link", "set", "d0", "master", "br0"])
    run_in(None, ["bridge", "vlan", "add", "dev", "d0", "vid", "7", "pvid", "untagged"])
    assert link("br0")["linkinfo"]["info_data"]["vlan_filtering"] == 1
    assert "7 PVID Egress Untagged" in run_in(None, ["bridge", "vlan", "show"]).stdout
