"""What the kernel refuses is reported by names: the interface, the setting, and the way out."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from harness import Namespace, Sandbox, run_in
from harness.machines import fill_bridge
from harness.ways import Way
from pycni.kernel.netfilter.iptables import IPTablesError, _explain
from pycni.runtime import PluginError
from pycni.steps.executor import translate


def refused(way: Way, box: Namespace, *plugins: dict[str, Any]) -> PluginError:
    with pytest.raises(PluginError) as caught:
        way.network("lab", *plugins).add("one", box.path)
    assert "Errno" not in str(caught.value)
    assert way.leases("lab") == {}
    return caught.value


def bridge(way: Way, **ipam: Any) -> dict[str, Any]:
    return {"type": "bridge", "bridge": "br0", "ipam": way.host_local("10.77.0.0/24", **ipam)}


def test_a_route_by_its_interface(way: Way, sandbox: Sandbox) -> None:
    routes = [{"dst": "10.99.0.0/24", "gw": "192.168.77.1"}]
    error = refused(way, sandbox(), bridge(way, routes=routes))
    assert "10.99.0.0/24 via 192.168.77.1 dev eth0" in error.message
    assert "a gateway must be in the network of an address" in error.details


def test_a_bridge_that_is_full(way: Way, sandbox: Sandbox) -> None:
    run_in(None, ["ip", "link", "add", "br0", "type", "bridge"])
    fill_bridge("br0")
    error = refused(way, sandbox(), bridge(way))
    assert "br0" in error.message
    assert "1,023 ports" in error.details


def test_a_master_that_is_taken(way: Way, sandbox: Sandbox) -> None:
    run_in(None, ["ip", "link", "add", "br0", "type", "bridge"])
    run_in(None, ["ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1"])
    run_in(None, ["ip", "link", "set", "up0", "master", "br0"])
    ipam = way.host_local("10.77.0.0/24")
    error = refused(way, sandbox(), {"type": "macvlan", "master": "up0", "ipam": ipam})
    assert 'create macvlan "eth0" on "up0"' in error.message
    assert "tmp" not in error.message
    assert "take another" in error.details


def test_a_setting_by_key_and_value(way: Way, sandbox: Sandbox) -> None:
    key = "net.ipv4.tcp_congestion_control"
    tuning = {"type": "tuning", "sysctl": {key: "nosuch"}}
    error = refused(way, sandbox(), bridge(way), tuning)
    assert f"sysctl {key}=nosuch: No such file or directory" in error.message
    assert f"`sysctl {key}`" in error.details
    tuning = {"type": "tuning", "sysctl": {"net.ipv4.ip_forward": "nosuch"}}
    error = refused(way, sandbox(), bridge(way), tuning)
    assert "sysctl net.ipv4.ip_forward=nosuch: Invalid argument" in error.message


def test_iptables_that_says_nothing() -> None:
    rules = "*nat\n-A CNI-DN -j RETURN\nCOMMIT\n"
    assert _explain("", rules, 1) == (
        "exit code 1, without a word, for: *nat; -A CNI-DN -j RETURN; COMMIT"
    )
    error = translate(IPTablesError(errno.EIO, "iptables-restore", _explain("", rules, 1)))
    assert error.message.startswith("iptables-restore: exit code 1, without a word")
    assert "by hand" in error.details
