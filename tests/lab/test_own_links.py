"""vlan, ipvlan and dummy of a container that puts others in their place.

In short: tests/kernel/test_own_links.py has the plugins that any kernel has the links of.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Namespace, Sandbox, run_in
from harness.tricks import AWAY, TRICKS, do, kind_of, links, own_of_container, play
from harness.ways import Way, notes, way_of
from pycni.runtime import PluginError
from pycni.spec.errors import CNIError

PLUGINS: dict[str, dict[str, Any]] = {
    "vlan": {"master": "up0", "vlanId": 7},
    "ipvlan": {"master": "up0"},
    "dummy": {},
}


@pytest.fixture
def way(host: Host, tmp_path: Path, plugin_dir: Path) -> Iterator[Way]:
    for line in ("link add up0 index 77 type veth peer up1", "link set up0 up", "link set up1 up"):
        run_in(None, ["ip", *line.split()])
    with way_of("in process", tmp_path, plugin_dir) as found:
        yield found


def maker(way: Way, kind: str) -> dict[str, Any]:
    return {"type": kind, **PLUGINS[kind], "ipam": way.host_local("10.61.0.0/24")}


def assert_clean(way: Way, kind: str, *where: Namespace) -> None:
    assert set(links(None)) == {"up0", "up1"}
    for netns in where:
        assert not [link for link in links(netns).values() if "link_netnsid" in link]
        if kind != "dummy":  # which leads nowhere
            assert "mine" not in links(netns)
    assert (way.leases("n"), notes(), way.cached()) == ({}, [], [])


@pytest.mark.parametrize("kind", PLUGINS)
def test_container(way: Way, sandbox: Sandbox, kind: str) -> None:
    network = way.network("n", maker(way, kind))
    for trick in TRICKS:
        for how in ("DEL", "DEL without prevResult", "GC"):
            box, other = sandbox(), sandbox()
            network.add("a", box.path)
            lines = play(trick, "macvlan", box, other)
            if kind == "ipvlan":  # which has its master's for good
                lines = [line for line in lines if "set mine address" not in line]
            do(box, lines)
            before = own_of_container(box, other)
            if how == "GC":
                network.gc([])
            else:
                if how == "DEL without prevResult":
                    (way.folder / "cni/results/n-a-eth0").unlink()
                network.delete("a", box.path)
            assert own_of_container(box, other) == before, (trick, how)
            assert kind_of(links(box)["eth0"]) == "macvlan"
            assert_clean(way, kind, box, other)
            box.delete()
            other.delete()


@pytest.mark.parametrize("kind", PLUGINS)
def test_others_on_the_same_master_stay(way: Way, sandbox: Sandbox, kind: str) -> None:
    """Of attachments, and of no one's: those have the master's MAC address too."""
    network = way.network("n", maker(way, kind))
    # A master has one VLAN of each number.
    second, third = (
        way.network(
            name,
            {**maker(way, kind), "ipam": way.host_local(f"10.6{number}.0.0/24")}
            | ({"vlanId": 10 + number} if kind == "vlan" else {}),
        )
        for number, name in enumerate("mo", 2)
    )
    box, other = sandbox(), sandbox()
    network.add("a", box.path)
    second.add("a", box.path, "eth1")
    third.add("b", other.path)
    if kind != "dummy":
        extra = ["id", "9"] if kind == "vlan" else ["mode", "l2"]
        run_in(None, ["ip", "link", "add", "link", "up0", "name", "eth5", "netns", other.name,
                      "type", kind, *extra])  # fmt: skip
    run_in(box, ["ip", "link", "delete", "eth0"])
    before = sorted(links(box)), sorted(links(other))
    network.delete("a")
    assert (sorted(links(box)), sorted(links(other))) == before
    third.check("b")
    assert way.leases("n") == {}


@pytest.mark.parametrize("kind", PLUGINS)
def test_check_and_repair(way: Way, sandbox: Sandbox, kind: str) -> None:
    network = way.network("n", maker(way, kind))
    box, other = sandbox(), sandbox()
    network.add("a", box.path)
    do(box, [*AWAY, "link set mine up"])
    (report,) = network.repair()
    assert report.ok, report
    assert list(links(box)) == ["eth0"]
    network.check("a")
    do(box, play("renamed", "veth", box, other))
    before = own_of_container(box, other)
    with pytest.raises(CNIError):
        network.check("a")
    (report,) = network.repair()
    assert not report.ok
    assert own_of_container(box, other) == before
    network.delete("a")
    assert own_of_container(box, other) == before
    assert_clean(way, kind, box, other)


@pytest.mark.parametrize("kind", PLUGINS)
def test_alternative_name(way: Way, sandbox: Sandbox, kind: str) -> None:
    network = way.network("n", maker(way, kind))
    box = sandbox()
    for line in ("link add x0 type veth peer y0", "link property add dev x0 altname eth0"):
        run_in(box, ["ip", *line.split()])
    before = own_of_container(box, box)
    with pytest.raises(PluginError, match="an alternative name of x0"):
        network.add("a", box.path)
    network.delete("a", box.path)
    assert own_of_container(box, box) == before
    assert_clean(way, kind, box)


def test_alternative_name_of_a_vrf(way: Way, sandbox: Sandbox) -> None:
    network = way.network("n", maker(way, "dummy"), {"type": "vrf", "vrfname": "blue"})
    box = sandbox()
    for line in ("link add x0 type vrf table 77", "link property add dev x0 altname blue"):
        run_in(box, ["ip", *line.split()])
    with pytest.raises(PluginError, match="blue is an alternative name of x0"):
        network.add("a", box.path)
    assert sorted(links(box)) == ["x0"]
    run_in(box, ["ip", "link", "property", "del", "dev", "x0", "altname", "blue"])
    network.add("a", box.path)
    do(box, AWAY)
    run_in(box, ["ip", "link", "property", "add", "dev", "x0", "altname", "eth0"])
    with pytest.raises(CNIError, match="eth0"):
        network.check("a")
    network.delete("a")
    assert sorted(links(box)) == ["x0"]


def test_alternative_name_of_a_vlan_s_gateway(way: Way, sandbox: Sandbox) -> None:
    plugin = {"type": "bridge", "bridge": "br0", "vlan": 100, "isGateway": True,
              "ipam": way.host_local("10.61.0.0/24")}  # fmt: skip
    run_in(None, ["ip", "link", "property", "add", "dev", "up0", "altname", "br0.100"])
    box = sandbox()
    with pytest.raises(PluginError, match=r"br0\.100 is an alternative name of up0 on the host"):
        way.network("n", plugin).add("a", box.path)
    assert set(links(None)) == {"up0", "up1"}
    assert (links(box), way.leases("n"), notes()) == ({}, {}, [])
