"""CNI_ARGS that another runtime gave to an ADD, and its cache has: they keep nothing from its end.

Plugins that take no arguments never look at them, so that an ADD goes through with any. Each by all
three ways of calling plugins.
"""

from __future__ import annotations

import json

import pytest

from harness import Sandbox, ip_json, nft_list, run_in
from harness.ways import Way, notes, ports_of
from pycni.runtime import Network, PluginError

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables"}
VALUES = pytest.mark.parametrize("value", ["a=b=c", "x;y", "=", "", "z\0"])


def note_arguments(way: Way, network: Network, value: str) -> None:
    """Have the cache hold an argument that pycni's own ADD would not take."""
    path = way.folder / "cni/results" / f"{network.name}-a-eth0"
    cached = json.loads(path.read_text())
    cached["cniArgs"] = [["IgnoreUnknown", "1"], ["K8S_POD_NAME", value]]
    path.write_text(json.dumps(cached))


@VALUES
def test_plugins_that_take_none(way: Way, sandbox: Sandbox, value: str) -> None:
    network = way.network("n", {"type": "loopback"})
    box = sandbox()
    network.add("a", box.path)
    note_arguments(way, network, value)
    network.check("a")
    (report,) = network.repair()
    assert report.ok, report.findings
    network.delete("a")
    assert (way.cached(), notes()) == ([], [])


@VALUES
def test_plugins_that_take_some(way: Way, sandbox: Sandbox, value: str) -> None:
    bridge = {
        "type": "bridge", "bridge": "br1", "isDefaultGateway": True, "ipMasq": True,
        "ipam": way.host_local("10.61.0.0/24"),
    }  # fmt: skip
    network = way.network("n", bridge, PORTMAP, {"type": "tuning", "mtu": 1400})
    box = sandbox()
    network.add("a", box.path, capabilities=ports_of((8080, 80)))
    note_arguments(way, network, value)
    network.check("a")
    run_in(box, ["ip", "link", "set", "eth0", "mtu", "1300"])
    with pytest.raises(PluginError, match="MTU"):
        network.check("a")
    (report,) = network.repair()
    assert report.ok, report.findings
    network.check("a")
    network.delete("a")
    assert [link["ifname"] for link in ip_json("link", "show", netns=box)] == ["lo"]
    assert "10.61.0.2" not in str(nft_list())
    assert (way.leases("n"), way.cached(), notes()) == ({}, [], [])
