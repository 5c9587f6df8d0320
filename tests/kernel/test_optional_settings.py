"""A setting that a kernel may lack is drift as soon as it is there with another value."""

from __future__ import annotations

from typing import Any

import pytest

from harness import Namespace, Sandbox, run_in
from harness.ways import Way
from pycni.runtime import Network, PluginError
from pycni.runtime.repair import inspect_all, repair_all

KEY = "net.ipv6.conf.eth0.accept_ra"


def network_of(way: Way, *more: dict[str, Any]) -> Network:
    ipam = way.host_local("10.77.0.0/24")
    return way.network(
        "lab", {"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": ipam}, *more
    )


def sysctl(box: Namespace, *words: str) -> str:
    return run_in(box, ["sysctl", "-n", *words]).stdout.strip()


def shown(way: Way) -> list[str]:
    (found,) = inspect_all(cache_dir=way.folder / "cni", plugin_dirs=way.plugins)
    return [text for step in found.steps for text in step.differences]


def test_an_optional_setting_that_differs(way: Way, sandbox: Sandbox) -> None:
    network, box = network_of(way), sandbox()
    network.add("one", box.path)
    network.check("one")
    assert shown(way) == []
    assert sysctl(box, KEY) == "0"
    sysctl(box, "-w", f"{KEY}=1")
    difference = "net/ipv6/conf/eth0/accept_ra is 1, expected 0"
    with pytest.raises(PluginError) as caught:
        network.check("one")
    assert difference in str(caught.value)
    assert shown(way) == [difference]
    (report,) = repair_all(cache_dir=way.folder / "cni", plugin_dirs=way.plugins)
    assert [finding.what for finding in report.findings] == [difference]
    assert report.ok
    assert sysctl(box, KEY) == "0"
    network.check("one")


def test_what_a_later_tuning_set_is_no_drift(way: Way, sandbox: Sandbox) -> None:
    network, box = network_of(way, {"type": "tuning", "sysctl": {KEY: "1"}}), sandbox()
    network.add("one", box.path)
    assert sysctl(box, KEY) == "1"
    network.check("one")
    assert shown(way) == []
    (report,) = repair_all(cache_dir=way.folder / "cni", plugin_dirs=way.plugins)
    assert report.is_sound
    sysctl(box, "-w", f"{KEY}=2")
    assert shown(way) == [f"{KEY.replace('.', '/')} is 2, expected {value}" for value in "01"]
    repair_all(cache_dir=way.folder / "cni", plugin_dirs=way.plugins)
    assert sysctl(box, KEY) == "1"
    assert shown(way) == []
