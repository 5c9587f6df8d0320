"""What a container does to its interface, and what is left of that after DEL, GC or a failed ADD.

It has root in its namespace: it renames its interface, deletes it, hides it in a namespace of its
own, and puts another one in its place, with its name, its index and its MAC address. Afterwards
nothing of it leads to the host, its address is free, and what it made itself is as it was.
"""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from harness import Namespace, Sandbox, ip_json, run_in
from harness.host import forget_attachments
from harness.tricks import ANOTHER, AWAY, TRICKS, do, kind_of, links, own_of_container, play
from harness.ways import Way, notes
from pycni.runtime import Network, PluginError

PLUGINS = ("bridge", "ptp", "macvlan", "tap", "host-device")
DEVICE_MAC = "02:00:00:00:00:55"


@pytest.fixture
def way(way: Way) -> Way:
    for line in (
        "link add up0 index 77 type veth peer up1", "link set up0 up", "link set up1 up",
        f"link add dev0 address {DEVICE_MAC} type veth peer dev1",
    ):  # fmt: skip
        run_in(None, ["ip", *line.split()])
    return way


def maker(way: Way, kind: str, **keys: Any) -> dict[str, Any]:
    own: dict[str, dict[str, Any]] = {
        "bridge": {"bridge": "br1", "isDefaultGateway": True},
        "macvlan": {"master": "up0"},
        "host-device": {"device": "dev0"},
    }
    return {"type": kind, **own.get(kind, {}), "ipam": way.host_local("10.61.0.0/24"), **keys}


def strangers(way: Way, kind: str) -> dict[str, Any]:
    """The same for another network."""
    keys = {"bridge": "br2"} if kind == "bridge" else {}
    return maker(way, kind, ipam=way.host_local("10.62.0.0/24"), **keys)


def others_for(way: Way) -> list[str]:
    """Each kind where calls are quick; elsewhere the one that looks most like the real one."""
    return list(ANOTHER) if way.name == "in process" else ["macvlan"]


def assert_clean(way: Way, kind: str, trick: str, box: Namespace, other: Namespace) -> None:
    """Nothing of the attachment is left anywhere."""
    at_home = {"up0", "up1", "dev0", "dev1"}
    if kind == "host-device" and trick == "deleted":
        at_home -= {"dev0", "dev1"}  # a pair goes with either end
    assert set(links(None)) - {"br1"} == at_home
    for netns in (box, other):
        assert not [link for link in links(netns).values() if "link_netnsid" in link]
        if kind != "tap":
            assert "mine" not in links(netns)
    assert (way.leases("n"), notes(), way.cached()) == ({}, [], [])


def end(network: Network, way: Way, how: str, box: Namespace) -> None:
    if how == "GC":
        network.gc([])
        return
    if how == "DEL without prevResult":
        shutil.rmtree(way.folder / "cni/results")
    if how == "DEL without notes":
        forget_attachments()
    network.delete("a", box.path)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["DEL", "DEL without prevResult", "GC"])
@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("kind", PLUGINS)
def test_container(way: Way, sandbox: Sandbox, kind: str, trick: str, how: str) -> None:
    for another in others_for(way):
        network = way.network("n", maker(way, kind))
        box, other = sandbox(), sandbox()
        network.add("a", box.path)
        do(box, play(trick, another, box, other))
        before = own_of_container(box, other)
        end(network, way, how, box)
        assert own_of_container(box, other) == before, another
        assert kind_of(links(box)["eth0"]) == another
        assert_clean(way, kind, trick, box, other)
        if kind == "host-device" and trick == "deleted":
            run_in(None, ["ip", "link", "add", "dev0", "address", DEVICE_MAC, "type", "veth",
                          "peer", "dev1"])  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.3.1", "1.1.0"])
@pytest.mark.parametrize("trick", ["renamed", "hidden"])
@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_container_where_the_note_is_lost(
    way: Way, sandbox: Sandbox, kind: str, trick: str, version: str
) -> None:
    """The host's end says whose it is by itself."""
    network = way.network("n", maker(way, kind), version=version)
    box, other = sandbox(), sandbox()
    network.add("a", box.path)
    do(box, play(trick, "veth", box, other))
    before = own_of_container(box, other)
    end(network, way, "DEL without notes", box)
    assert own_of_container(box, other) == before
    assert_clean(way, kind, trick, box, other)


@pytest.mark.slow
@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("kind", PLUGINS)
def test_container_during_an_add_that_fails(
    way: Way, sandbox: Sandbox, kind: str, trick: str
) -> None:
    """What was made is taken back, although a plugin behind it finds another in its place."""
    box, other = sandbox(), sandbox()
    script = way.folder / "trick"
    last = {"type": "tuning", "sysctl": {"net.core.nonesuch": "1"}}
    for another in others_for(way):
        # What the interface will be like is not known yet, but for its name.
        plain = way.network("n", maker(way, kind))
        plain.add("a", box.path)
        index = links(box)["eth0"]["ifindex"] + 1
        plain.delete("a")
        lines = play(trick, another, box, other, index)
        script.write_text("exec 2>&1\n" + "\n".join(f"ip {line}" for line in lines))
        hooks = {"type": "debug", "addHooks": [["sh", str(script)]]}
        network = way.network("n", maker(way, kind), hooks, last)
        with pytest.raises(PluginError):
            network.add("a", box.path)
        assert kind_of(links(box)["eth0"]) == another
        assert_clean(way, kind, trick, box, other)
        for netns in (box, other):
            for name in ("eth0", "y0", "mine"):
                run_in(netns, ["ip", "link", "delete", name], check=False)
        if kind == "host-device" and trick == "deleted":
            run_in(None, ["ip", "link", "add", "dev0", "address", DEVICE_MAC, "type", "veth",
                          "peer", "dev1"])  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", ["DEL", "DEL without prevResult", "GC"])
@pytest.mark.parametrize("kind", ["bridge", "ptp", "macvlan", "tap"])
def test_container_that_swaps_two_of_its_interfaces(
    way: Way, sandbox: Sandbox, kind: str, how: str
) -> None:
    """Each network takes its own, whatever they are called."""
    first = way.network("n", maker(way, kind))
    second = way.network("m", strangers(way, kind))
    box = sandbox()
    first.add("a", box.path)
    second.add("a", box.path, "eth1")
    kept = links(box)["eth1"]["ifindex"]
    for line in (
        "link set eth0 down", "link set eth1 down", "link set eth0 name x",
        "link set eth1 name eth0", "link set x name eth1", "link set eth0 up", "link set eth1 up",
    ):  # fmt: skip
        run_in(box, ["ip", *line.split()])
    if how == "DEL without prevResult":
        (way.folder / "cni/results/n-a-eth0").unlink()
    if how == "GC":
        first.gc([])
    else:
        first.delete("a", box.path)
    assert [link["ifindex"] for link in links(box).values()] == [kept]
    assert (way.leases("n"), list(way.leases("m").values())) == ({}, ["a/eth1"])
    second.delete("a", box.path, "eth1")
    assert (links(box), way.leases("m"), notes()) == ({}, {}, [])


# --- repair --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("another", ["veth", "macvlan"])
@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("kind", PLUGINS)
def test_repair_leaves_another_interface_alone(
    way: Way, sandbox: Sandbox, kind: str, trick: str, another: str
) -> None:
    network = way.network("n", maker(way, kind), {"type": "tuning", "mtu": 1300})
    box, other = sandbox(), sandbox()
    network.add("a", box.path)
    do(box, play(trick, another, box, other))
    before = own_of_container(box, other), addresses(box, "eth0")
    with pytest.raises(PluginError):
        network.check("a")
    (report,) = network.repair()
    assert not report.ok
    assert (own_of_container(box, other), addresses(box, "eth0")) == before
    network.delete("a")
    assert_clean(way, kind, trick, box, other)


def addresses(netns: Namespace, name: str) -> list[str]:
    (link,) = ip_json("address", "show", "dev", name, netns=netns)
    return sorted(one["local"] for one in link["addr_info"] if one["scope"] == "global")


@pytest.mark.parametrize("kind", ["bridge", "ptp", "macvlan", "tap"])
def test_repair_of_an_interface_that_was_renamed(way: Way, sandbox: Sandbox, kind: str) -> None:
    """There is one afterwards: the earlier one is not left beside it."""
    network = way.network("n", maker(way, kind))
    box = sandbox()
    network.add("a", box.path)
    do(box, [*AWAY, "link set mine up"])
    (report,) = network.repair()
    assert report.ok, report
    assert list(links(box)) == ["eth0"]
    network.check("a")
    network.delete("a")
    assert_clean(way, kind, "renamed", box, box)


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_repair_plugs_no_stranger_in(way: Way, sandbox: Sandbox, kind: str) -> None:
    """A pair inside has the indexes that another container's pair has on both sides."""
    rates = {"type": "bandwidth", "ingressRate": 10**7, "ingressBurst": 10**6}
    network = way.network("n", maker(way, kind), rates)
    theirs = way.network("m", strangers(way, kind))
    victim, box = sandbox(), sandbox()
    theirs.add("victim", victim.path)
    (outer,) = (one for one in links(None).values() if "link_netnsid" in one)
    network.add("a", box.path)
    run_in(box, ["ip", "link", "delete", "eth0"])
    forged = f"link add eth0 index {outer['link_index']} type veth peer x index {outer['ifindex']}"
    run_in(box, ["ip", *forged.split()])

    def seen() -> list[Any]:
        now = links(None)[outer["ifname"]]
        queue = run_in(None, ["tc", "qdisc", "show", "dev", outer["ifname"]]).stdout
        return [now.get("master"), now["mtu"], now["flags"], now.get("ifalias"), queue]

    before = seen()
    network.repair()
    network.delete("a")
    assert seen() == before
    theirs.check("victim")
    assert sorted(links(box)) == ["eth0", "x"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["DEL", "DEL without notes", "GC"])
def test_bandwidth_of_a_stranger_stays(way: Way, sandbox: Sandbox, how: str) -> None:
    """The same, the pair's far end in another namespace of the container's."""
    limits = {"Rate": 10**7, "Burst": 10**6}
    rates = {f"{to}{key}": limits[key] for to in ("ingress", "egress") for key in limits}
    network = way.network("n", maker(way, "bridge"), {"type": "bandwidth", **rates})
    theirs = way.network("m", strangers(way, "bridge"), {"type": "bandwidth", **rates})
    victim, box, other = sandbox(), sandbox(), sandbox()
    theirs.add("victim", victim.path)
    made = set(links(None))
    (outer,) = (one for one in links(None).values() if "link_netnsid" in one)
    network.add("a", box.path)
    forged = f"index {outer['link_index']} type veth peer x index {outer['ifindex']}"
    do(box, ["link delete eth0", f"link add eth0 {forged} netns {other.name}"])

    def seen() -> list[Any]:
        (ifb,) = (one for one in made if one.startswith("bwp"))
        where = ["dev", outer["ifname"]]
        commands = (["qdisc", "show", *where], ["qdisc", "show", "dev", ifb],
                    ["filter", "show", *where, "ingress"])  # fmt: skip
        return [run_in(None, ["tc", *command]).stdout for command in commands]

    before = seen()
    assert ["tbf" in before[0], "tbf" in before[1], "mirred" in before[2]] == [True] * 3
    end(network, way, how, box)
    assert seen() == before
    theirs.check("victim", victim.path)
    assert set(links(None)) - {"br1"} == made
    assert (way.leases("n"), list(links(box))) == ({}, ["eth0"])
