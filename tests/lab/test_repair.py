"""Repair where it takes a fuller kernel: VLANs of a bridge, a VRF, sub-interfaces. Few, as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import Host, Sandbox, ip_json, run_in
from harness.configs import host_local
from pycni.runtime import Network


def network_of(folder: Path, plugins: Path, *chain: dict[str, Any]) -> Network:
    return Network.from_dict(
        {"cniVersion": "1.1.0", "name": "lab", "plugins": list(chain)},
        plugin_dirs=plugins,
        cache_dir=folder / "cache",
    )


def ipam(folder: Path) -> dict[str, Any]:
    return host_local(folder / "leases", "10.1.0.0/24", routes=[{"dst": "0.0.0.0/0"}])


def must_be_repaired(network: Network, *commands: str) -> list[str]:
    """Break something, repair it; what was repaired."""
    for command in commands:
        run_in(None, command.split())
    (report,) = network.repair()
    assert report.ok, report
    assert report.findings, commands
    network.check("one")
    assert network.repair()[0].is_sound
    return [finding.what for finding in report.findings]


def test_vlan_and_vrf(host: Host, sandbox: Sandbox, tmp_path: Path, plugin_dir: Path) -> None:
    bridge = {
        "type": "bridge",
        "bridge": "br0",
        "isGateway": True,
        "vlan": 100,
        "vlanTrunk": [{"minID": 200, "maxID": 202}],
        "ipam": ipam(tmp_path),
    }
    network = network_of(tmp_path, plugin_dir, bridge, {"type": "vrf", "vrfname": "blue"})
    box = sandbox()
    network.add("one", box.path)
    veth = next(link["ifname"] for link in ip_json("link") if link.get("link_index") and
                link["ifname"].startswith("veth") and "link_netnsid" in link)  # fmt: skip

    def ping() -> None:
        run_in(None, ["ping", "-c1", "-W5", "-I", "br0.100", "10.1.0.2"])

    ping()
    for commands in (
        [f"bridge vlan del dev {veth} vid 100"],
        ["ip link set br0 type bridge vlan_filtering 0"],
        ["ip link delete br0"],
        [f"ip -n {box.name} link set eth0 nomaster"],
        [f"ip -n {box.name} link delete blue"],
        [f"ip link delete {veth}"],
    ):
        must_be_repaired(network, *commands)
        ping()
    network.delete("one")


def test_sub_interfaces(host: Host, sandbox: Sandbox, tmp_path: Path, plugin_dir: Path) -> None:
    run_in(None, ["ip", "link", "add", "up0", "type", "dummy"])
    run_in(None, ["ip", "link", "set", "up0", "up"])
    for kind in ("macvlan", "ipvlan"):
        plugin = {"type": kind, "master": "up0", "ipam": ipam(tmp_path)}
        network = network_of(tmp_path, plugin_dir, plugin)
        box = sandbox()
        network.add("one", box.path)
        (before,) = ip_json("address", "show", "eth0", netns=box)
        must_be_repaired(network, f"ip -n {box.name} address flush dev eth0")
        must_be_repaired(network, f"ip -n {box.name} link delete eth0")
        (after,) = ip_json("address", "show", "eth0", netns=box)
        assert after["address"] == before["address"]
        assert after["addr_info"][0]["local"] == before["addr_info"][0]["local"]
        network.delete("one")
