"""A configuration that brings a result of its own: runtimes hand that on to the first plugin.

What it lists of the host is not the attachment's by that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, Sandbox, ip_json, run_in
from harness.chained import make_veth


def forged(*host_links: str) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0",
        "interfaces": [
            *({"name": name} for name in host_links),
            {"name": "eth0", "sandbox": "/nowhere"},
        ],
        "ips": [{"address": "10.8.0.2/24", "interface": len(host_links)}],
    }


@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
def test_del_leaves_a_pair_of_the_host_s_own(
    host: Host, sandbox: Sandbox, plugin_dir: Path, plugin: str
) -> None:
    run_in(None, ["ip", "link", "add", "lan0", "type", "veth", "peer", "lan1"])
    config = {"cniVersion": "1.1.0", "name": "net", "type": plugin, "prevResult": forged("lan0")}
    one = Attachment(plugin_dir / plugin, config, sandbox())
    assert one.run("DEL").code == 0
    assert {"lan0", "lan1"} <= {link["ifname"] for link in ip_json("link")}


def test_ports_of_others_are_not_isolated(host: Host, sandbox: Sandbox, plugin_dir: Path) -> None:
    run_in(None, ["ip", "link", "add", "br0", "type", "bridge"])
    one, other = sandbox(), sandbox()
    for name, where in (("veth1", one), ("veth2", other)):
        make_veth(where, host_name=name)
        run_in(None, ["ip", "link", "set", name, "master", "br0"])
    config = {
        "cniVersion": "1.1.0", "name": "net", "type": "firewall", "ingressPolicy": "isolated",
        "prevResult": forged("br0", "veth1", "veth2"),
    }  # fmt: skip
    firewall = Attachment(plugin_dir / "firewall", config, one)
    assert firewall.run("ADD").code == 0
    isolated = {
        link["ifname"]: link["linkinfo"]["info_slave_data"]["isolated"]
        for link in ip_json("-d", "link", "show", "master", "br0")
    }
    assert isolated == {"veth1": True, "veth2": False}
    held = run_in(None, ["nft", "list", "ruleset"]).stdout
    assert "veth2" not in held
    assert firewall.run("DEL").code == 0
