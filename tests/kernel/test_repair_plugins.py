"""Repair of what other plugins than bridge make, ours and those of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import ip_json, run_in
from harness.configs import host_local
from harness.topics import repair as kit
from harness.topics.repair import (
    MASQUERADED,
    Lab,
    drift,
    findings,
    firewall,
    flush_ruleset,
    host_end,
    must_be_repaired,
    must_be_sound,
    reported,
)
from pycni.plan.difference import FAILED
from pycni.runtime import Network, PluginError
from pycni.runtime.repair import repair_all

lab = kit.lab


# --- routing -------------------------------------------------------------------------------------


SBR_BREAKAGES = {
    "rules": ["ip -n {box} rule delete from {four}", "ip -n {box} -6 rule delete from {six}"],
    "table": ["ip -n {box} route flush table 100"],
    "default": ["ip -n {box} route delete default table 100"],
    "link": ["ip -n {box} link set eth0 down", "ip -n {box} link set eth0 up"],
    "all": ["ip -n {box} link delete eth0"],
}


@pytest.mark.parametrize("name", SBR_BREAKAGES)
def test_source_routing(lab: Lab, name: str) -> None:
    network = lab.network({"type": "sbr"})
    own = lab.add(network, "one")
    box = lab.sandboxes["one"].name
    assert lab.reaches("one", own) == MASQUERADED
    before = routing(box)
    for command in SBR_BREAKAGES[name]:
        run_in(None, command.format(box=box, four=own[4], six=own[6]).split())
    drift(network, "one")
    must_be_repaired(network)
    assert lab.reaches("one", own) == MASQUERADED
    assert routing(box) == before
    network.delete("one")


def routing(box: str) -> list[Any]:
    """Rules, and routes of all tables but the kernel's own for addresses."""
    found: list[Any] = []
    for family in ("-4", "-6"):
        found += [
            (rule.get("src"), rule["table"], rule["priority"])
            for rule in ip_json(family, "rule", "show", netns=box)
        ]
        found += sorted(
            str((route["dst"], route.get("gateway"), route.get("table", "main")))
            for route in ip_json(family, "route", "show", "table", "all", netns=box)
            if route.get("type") not in ("local", "broadcast", "multicast", "anycast")
            and not route["dst"].startswith("fe80")
        )
    return found


# --- other plugins -------------------------------------------------------------------------------


def test_ptp_and_loopback(lab: Lab) -> None:
    network = Network.from_dict(
        {
            "cniVersion": "1.1.0",
            "name": "lab",
            "plugins": [
                {"type": "loopback"},
                {
                    "type": "ptp",
                    "ipMasq": True,
                    "ipam": host_local(
                        lab.folder / "leases",
                        "10.1.0.0/16",
                        "fd00:1::/64",
                        routes=[{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                    ),
                },
            ],
        },
        cache_dir=lab.folder / "cache",
    )
    own = lab.add(network, "one")
    veth, box = host_end(lab), lab.sandboxes["one"].name
    assert lab.reaches("one") == MASQUERADED
    for command in (
        f"ip -n {box} link set lo down",
        f"ip address delete 10.1.0.1/32 dev {veth}",
        f"ip route delete {own[4]} dev {veth}",
        f"ip link set {veth} down",
        f"ip link delete {veth}",
        "nft flush ruleset",
    ):
        run_in(None, command.split())
        with pytest.raises(PluginError):
            network.check("one")
        must_be_repaired(network)
        assert lab.reaches("one") == MASQUERADED, command
    assert host_end(lab) == veth


def test_flannel(lab: Lab) -> None:
    """The delegate repairs."""
    environment = lab.folder / "subnet.env"
    environment.write_text(
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_MTU=1450\n"
        "FLANNEL_IPMASQ=false\n"
    )
    network = Network.from_dict(
        {
            "cniVersion": "1.0.0",
            "name": "lab",
            "plugins": [
                {
                    "type": "flannel",
                    "subnetFile": str(environment),
                    "dataDir": str(lab.folder / "flannel"),
                    "ipam": {"dataDir": str(lab.folder / "leases")},
                    "delegate": {"isDefaultGateway": True},
                }
            ],
        },
        cache_dir=lab.folder / "cache",
    )
    lab.add(network, "one")
    assert lab.reaches("one")[0] == MASQUERADED[0]
    flush_ruleset()
    drift(network, "one")
    must_be_repaired(network)
    assert lab.reaches("one")[0] == MASQUERADED[0]


def test_plugins_of_others(lab: Lab, reference_dir: Path) -> None:
    """They can be asked only, and what they made is reported as lost."""
    plugins = lab.folder / "mixed"
    plugins.mkdir()
    for name in ("bridge", "host-local"):
        (plugins / name).symlink_to(lab.plugins / name)
    (plugins / "firewall").symlink_to(reference_dir / "firewall")
    lab.plugins = plugins
    network = lab.network(firewall("iptables"), version="1.0.0")
    lab.add(network, "one")
    must_be_sound(network)
    flush_ruleset()
    for _ in range(2):
        (report,) = network.repair()
        assert not report.ok
        assert ("firewall", FAILED) in findings([report])
    assert findings([report]) == [("firewall", FAILED)]
    assert "firewall is not pycni's" in reported([report])
    assert "delete the attachment and add it again" in reported([report])
    assert lab.reaches("one") == MASQUERADED


def test_what_the_reference_made(lab: Lab, reference_dir: Path) -> None:
    """Not repaired by pycni's plugins unless those are the runtime's now."""
    config = network_config(lab)
    made = Network.from_dict(config, plugin_dirs=reference_dir, cache_dir=lab.folder / "cache")
    lab.add(made, "one")
    run_in(lab.sandboxes["one"], ["ip", "route", "delete", "default"])
    (report,) = repair_all(cache_dir=lab.folder / "cache")
    assert "made by a plugin that is not pycni's" in reported([report])
    assert "--plugin-dir" in reported([report])
    (report,) = made.repair()
    assert ("bridge", FAILED) in findings([report])
    assert "bridge is not pycni's" in reported([report])
    # Once pycni's are in their place, they repair what those left.
    moved = Network.from_dict(config, plugin_dirs=lab.plugins, cache_dir=lab.folder / "cache")
    must_be_repaired(moved)
    flush_ruleset()
    must_be_repaired(moved)
    assert lab.reaches("one")[0] == MASQUERADED[0]
    moved.delete("one")


def network_config(lab: Lab) -> dict[str, Any]:
    ipam = host_local(lab.folder / "leases", "10.1.0.0/16")
    bridge = {"type": "bridge", "bridge": "cni0", "isDefaultGateway": True, "ipMasq": True}
    return {"cniVersion": "1.0.0", "name": "lab", "plugins": [{**bridge, "ipam": ipam}]}
