"""Whose is it: paths, names and ids that are used again, and what must not be touched then.

Each sequence by all three ways of calling plugins.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness import Namespace, Sandbox, ip_json, nft_list, run_in
from harness.host import forget_attachments
from harness.ways import Way, notes, ports_of
from pycni.runtime import Network, PluginError
from pycni.spec.errors import CNIError

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables"}


def bridge(way: Way, bridge: str, subnet: str, **keys: Any) -> dict[str, Any]:
    return {
        "type": "bridge",
        "bridge": bridge,
        "isDefaultGateway": True,
        "ipMasq": True,
        "ipam": way.host_local(subnet),
        **keys,
    }


@pytest.fixture
def first(way: Way) -> Network:
    return way.network("n", bridge(way, "br1", "10.61.0.0/24"), PORTMAP)


@pytest.fixture
def second(way: Way) -> Network:
    return way.network("m", bridge(way, "br2", "10.62.0.0/24"), PORTMAP)


def interfaces(netns: Namespace) -> dict[str, int]:
    """Interfaces of a namespace besides lo, with their indexes."""
    found = ip_json("link", "show", netns=netns)
    return {link["ifname"]: link["ifindex"] for link in found if link["ifname"] != "lo"}


def reaches_gateway(netns: Namespace, gateway: str) -> bool:
    return run_in(netns, ["ping", "-qc1", "-W2", gateway], check=False).returncode == 0


def veths() -> list[str]:
    return [link["ifname"] for link in ip_json("link", "show", "type", "veth")]


def names(text: str) -> bool:
    """Whether any rule, set or map of the host has a text in it."""
    return text in str(nft_list())


def elements() -> list[Any]:
    """The elements of all sets and maps."""
    sets = [found.get("set") or found.get("map") or {} for found in nft_list()]
    return [item for found in sets for item in found.get("elem", ())]


def reuse(netns: Namespace) -> None:
    """The namespace goes, and another one gets its path."""
    run_in(None, ["ip", "netns", "delete", netns.name])
    run_in(None, ["ip", "netns", "add", netns.name])


# --- a path that is used again -------------------------------------------------------------------


def test_del_of_the_container_that_had_the_path(way: Way, first: Network, sandbox: Sandbox) -> None:
    box = sandbox()
    first.add("old", box.path, capabilities=ports_of((8080, 80)))
    reuse(box)
    first.add("new", box.path)
    before = interfaces(box)
    first.delete("old", box.path)
    assert interfaces(box) == before
    assert reaches_gateway(box, "10.61.0.1")
    assert list(way.leases("n").values()) == ["new/eth0"]
    assert not names("10.61.0.2")
    first.check("new")
    first.delete("new")
    assert (veths(), notes(), way.leases("n"), way.cached()) == ([], [], {}, [])


def test_gc_that_keeps_the_container_that_has_the_path(
    way: Way, first: Network, sandbox: Sandbox
) -> None:
    box = sandbox()
    first.add("old", box.path, capabilities=ports_of((8080, 80)))
    reuse(box)
    first.add("new", box.path)
    before = interfaces(box)
    first.gc([("new", "eth0")])
    assert interfaces(box) == before
    assert reaches_gateway(box, "10.61.0.1")
    assert not names("10.61.0.2")
    assert list(way.leases("n").values()) == ["new/eth0"]


def test_repair_of_the_container_that_had_the_path(
    way: Way, first: Network, second: Network, sandbox: Sandbox
) -> None:
    box = sandbox()
    first.add("old", box.path, capabilities=ports_of((8080, 80)))
    reuse(box)
    second.add("new", box.path)
    before = interfaces(box)
    run_in(None, ["nft", "flush", "ruleset"])
    (report,) = first.repair()
    assert report.skipped
    assert interfaces(box) == before
    assert not names("10.61.0.2")
    second.delete("new")
    assert interfaces(box) == {}
    first.delete("old")
    assert (veths(), notes(), way.cached()) == ([], [], [])


@pytest.mark.parametrize("kind", ["macvlan", "ptp", "tap", "host-device"])
def test_plugins_whose_interface_is_inside(way: Way, sandbox: Sandbox, kind: str) -> None:
    if kind == "tap" and not Path("/dev/net/tun").exists():
        pytest.skip("no /dev/net/tun")
    run_in(None, ["ip", "link", "add", "up0", "type", "veth", "peer", "up1"])
    run_in(None, ["ip", "link", "set", "up0", "up"])
    keys: dict[str, Any] = {"macvlan": {"master": "up0"}, "host-device": {"device": "up1"}}.get(
        kind, {}
    )
    old = way.network("n", {"type": kind, **keys, "ipam": way.host_local("10.61.0.0/24")})
    plugin = {"type": "bridge", "bridge": "br2", "ipam": way.host_local("10.62.0.0/24")}
    new = way.network("m", plugin)
    box = sandbox()
    old.add("a", box.path)
    reuse(box)
    new.add("b", box.path)
    before = interfaces(box)
    old.delete("a")
    assert interfaces(box) == before
    assert way.leases("n") == {}
    new.check("b")


def test_tuning_sets_nothing_in_the_next_container(way: Way, sandbox: Sandbox) -> None:
    tuning = {
        "type": "tuning",
        "mtu": 1300,
        "sysctl": {"net.core.somaxconn": "500"},
        "dataDir": str(way.folder / "tuning"),
    }
    network = way.network("n", bridge(way, "br1", "10.61.0.0/24"), tuning)
    plain = way.network("n", bridge(way, "br1", "10.61.0.0/24"))
    box = sandbox()
    network.add("old", box.path)
    reuse(box)
    run_in(box, ["sysctl", "-q", "-w", "net.core.somaxconn=777"])
    plain.add("new", box.path)
    run_in(box, ["ip", "link", "set", "eth0", "mtu", "1234"])
    network.delete("old")
    assert run_in(box, ["sysctl", "-n", "net.core.somaxconn"]).stdout == "777\n"
    assert ip_json("link", "show", "eth0", netns=box)[0]["mtu"] == 1234
    assert list((way.folder / "tuning").iterdir()) == []


def test_loopback_stays_up_in_the_next_container(way: Way, sandbox: Sandbox) -> None:
    network = way.network("n", {"type": "loopback"})
    box = sandbox()
    network.add("old", box.path, "lo")
    reuse(box)
    network.add("new", box.path, "lo")
    network.delete("old", box.path, "lo")
    assert "UP" in ip_json("link", "show", "lo", netns=box)[0]["flags"]
    network.delete("new", box.path, "lo")
    assert "UP" not in ip_json("link", "show", "lo", netns=box)[0]["flags"]
    assert notes() == []


def test_bandwidth_of_another_network_keeps_its_queue(way: Way, sandbox: Sandbox) -> None:
    """DEL of a container that is not attached there strips nothing off another's interface."""
    rates = {"type": "bandwidth", "ingressRate": 10**7, "ingressBurst": 10**6}
    one = way.network("n", bridge(way, "br1", "10.61.0.0/24"), rates)
    other = way.network("m", bridge(way, "br2", "10.62.0.0/24"), rates)
    box = sandbox()
    one.add("a", box.path)
    other.delete("a", box.path)
    one.check("a")
    assert reaches_gateway(box, "10.61.0.1")


def test_a_process_id_that_is_used_again(way: Way, first: Network, sandbox: Sandbox) -> None:
    """A namespace may live on where its process has gone, and the path be another's."""
    one, two = sandbox(), sandbox()
    second = way.network("m", bridge(way, "br2", "10.62.0.0/24"))
    link = way.folder / "ns"
    link.symlink_to(one.path)
    first.add("A", link)
    second.add("B", two.path)
    link.unlink()
    link.symlink_to(two.path)
    before = interfaces(two)
    first.delete("A")
    assert interfaces(two) == before
    assert reaches_gateway(two, "10.62.0.1")
    assert interfaces(one) == {}
    assert (way.leases("n"), list(way.leases("m").values())) == ({}, ["B/eth0"])


# --- a name that is used again -------------------------------------------------------------------


@pytest.mark.parametrize("container", ["a", "b"])
def test_refused_add_of_another_network_undoes_nothing_of_the_first(
    way: Way, first: Network, second: Network, sandbox: Sandbox, container: str
) -> None:
    box = sandbox()
    first.add("a", box.path)
    before = interfaces(box)
    with pytest.raises(PluginError):
        second.add(container, box.path)
    assert interfaces(box) == before
    assert reaches_gateway(box, "10.61.0.1")
    first.check("a")
    assert (way.leases("m"), way.cached()) == ({}, ["n-a-eth0"])
    assert [note["network"] for note in notes()] == ["n"]


def test_second_add_of_what_is_attached_undoes_nothing(
    way: Way, first: Network, sandbox: Sandbox
) -> None:
    """Not even where an earlier plugin of the list had nothing against it."""
    network = way.network("n", {"type": "loopback"}, bridge(way, "br1", "10.61.0.0/24"), PORTMAP)
    box = sandbox()
    network.add("a", box.path, capabilities=ports_of((8080, 80)))
    before = interfaces(box)
    with pytest.raises(PluginError):
        network.add("a", box.path, capabilities=ports_of((8080, 80)))
    assert interfaces(box) == before
    network.check("a")
    assert list(way.leases("n").values()) == ["a/eth0"]


def test_second_add_with_a_taken_port(way: Way, first: Network, sandbox: Sandbox) -> None:
    one, two = sandbox(), sandbox()
    first.add("a", one.path, capabilities=ports_of((8080, 80)))
    with pytest.raises(PluginError, match="8080"):
        first.add("b", two.path, capabilities=ports_of((8080, 80)))
    assert interfaces(two) == {}
    first.check("a")
    assert list(way.leases("n").values()) == ["a/eth0"]


def test_del_with_the_namespace_of_another_container(
    way: Way, first: Network, sandbox: Sandbox
) -> None:
    """The attachment's own goes, wherever the path leads; the other's stays."""
    one, two = sandbox(), sandbox()
    first.add("a", one.path)
    first.add("b", two.path)
    before = interfaces(two)
    first.delete("a", two.path)
    assert interfaces(two) == before
    assert interfaces(one) == {}
    assert list(way.leases("n").values()) == ["b/eth0"]
    assert not names("10.61.0.2")


def test_network_that_was_renamed(way: Way, first: Network, sandbox: Sandbox) -> None:
    """What was attached to it under its old name is that network's."""
    box = sandbox()
    first.add("a", box.path)
    before = interfaces(box)
    way.network("renamed", bridge(way, "br1", "10.61.0.0/24"), PORTMAP).delete("a", box.path)
    assert interfaces(box) == before
    first.check("a")
    first.delete("a")
    assert (interfaces(box), way.leases("n"), notes()) == ({}, {}, [])


def test_one_container_attached_again_elsewhere(way: Way, first: Network, sandbox: Sandbox) -> None:
    """Its id is not free while it is attached: the first one keeps what it has."""
    l2 = way.network("l2", {"type": "bridge", "bridge": "br3"})
    one, two = sandbox(), sandbox()
    l2.add("a", one.path)
    before = interfaces(one)
    with pytest.raises(CNIError, match="attached to network l2"):
        l2.add("a", two.path)
    assert (interfaces(one), interfaces(two)) == (before, {})
    l2.check("a")


def test_one_container_started_again_without_del(way: Way, sandbox: Sandbox) -> None:
    l2 = way.network("l2", {"type": "bridge", "bridge": "br3"})
    box = sandbox()
    l2.add("a", box.path)
    reuse(box)
    l2.add("a", box.path)
    assert list(interfaces(box)) == ["eth0"]
    l2.check("a")
    l2.delete("a")
    assert (interfaces(box), veths(), notes()) == ({}, [], [])


# --- what a container does -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_container_that_renames_its_interface(way: Way, sandbox: Sandbox, kind: str) -> None:
    network = way.network("n", {"type": kind, "ipam": way.host_local("10.61.0.0/24")})
    box = sandbox()
    network.add("a", box.path)
    for line in (
        "ip link set eth0 down", "ip link set eth0 name mine", "ip link set mine up",
        "ip link add eth0 type veth peer name x",
    ):  # fmt: skip
        run_in(box, line.split())
    with pytest.raises(CNIError):
        network.check("a")
    network.delete("a")
    assert sorted(interfaces(box)) == ["eth0", "x"]  # the container's own pair
    assert (veths(), way.leases("n")) == ([], {})


def test_container_that_renames_its_macvlan(way: Way, sandbox: Sandbox) -> None:
    run_in(None, ["ip", "link", "add", "up0", "type", "veth", "peer", "up1"])
    run_in(None, ["ip", "link", "set", "up0", "up"])
    network = way.network(
        "n", {"type": "macvlan", "master": "up0", "ipam": way.host_local("10.61.0.0/24")}
    )
    box = sandbox()
    network.add("a", box.path)
    for line in (
        "ip link set eth0 down", "ip link set eth0 name mine", "ip link set mine up",
        "ip link add eth0 type veth peer name x",
    ):  # fmt: skip
        run_in(box, line.split())
    network.delete("a")
    assert sorted(interfaces(box)) == ["eth0", "x"]
    assert way.leases("n") == {}


def test_container_that_forges_the_index_of_its_interface(
    way: Way, first: Network, second: Network, sandbox: Sandbox
) -> None:
    """An index means nothing without its namespace: repair plugs no stranger's link in."""
    victim, box = sandbox(), sandbox()
    second.add("victim", victim.path)
    (outer,) = ip_json("-d", "link", "show", "type", "veth")
    first.add("a", box.path)
    # A pair inside, whose ends have the indexes that the victim's pair has on both sides.
    run_in(box, ["ip", "link", "delete", "eth0"])
    made = run_in(
        box,
        ["ip", "link", "add", "eth0", "index", str(outer["link_index"]), "type", "veth",
         "peer", "name", "x", "index", str(outer["ifindex"])],
        check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    first.repair()
    (now,) = [link for link in ip_json("link", "show") if link["ifname"] == outer["ifname"]]
    assert now["master"] == "br2"
    first.delete("a")
    assert reaches_gateway(victim, "10.62.0.1")
    second.check("victim")


# --- where notes are lost, or there never were any -----------------------------------------------


def test_without_notes_the_alias_decides(way: Way, first: Network, sandbox: Sandbox) -> None:
    box = sandbox()
    first.add("a", box.path, capabilities=ports_of((8080, 80)))
    forget_attachments()
    with pytest.raises(PluginError):
        way.network("m", bridge(way, "br2", "10.62.0.0/24")).add("x", box.path)
    first.check("a")
    first.delete("a")
    assert (interfaces(box), veths(), way.leases("n"), notes()) == ({}, [], {}, [])
    assert not names("10.61.0.2")


REFERENCE = Path("/usr/lib/cni")


@pytest.mark.parametrize("kind", ["bridge", "macvlan"])
def test_what_the_reference_made(way: Way, sandbox: Sandbox, kind: str) -> None:
    """prevResult decides; what it does not list is not touched."""
    run_in(None, ["ip", "link", "add", "up0", "type", "veth", "peer", "up1"])
    run_in(None, ["ip", "link", "set", "up0", "up"])
    plugin = {"type": kind, "ipam": way.host_local("10.61.0.0/24")}
    if kind == "macvlan":
        plugin["master"] = "up0"
    document = {"cniVersion": "1.0.0", "name": "n", "plugins": [plugin]}
    theirs = Network.from_dict(document, plugin_dirs=REFERENCE, cache_dir=way.folder / "cni")
    ours = way.network("n", plugin, version="1.0.0")
    box = sandbox()
    theirs.add("a", box.path)
    forget_attachments()  # as a runtime that is not pycni's
    before = interfaces(box)
    way.network("m", {**plugin, "ipam": way.host_local("10.62.0.0/24")}).delete("a", box.path)
    ours.delete("b", box.path)
    assert interfaces(box) == before
    ours.check("a")
    ours.delete("a")
    left = sorted(veths())
    assert (interfaces(box), left, way.leases("n")) == ({}, ["up0", "up1"], {})


def test_a_path_of_the_references_that_is_used_again(way: Way, sandbox: Sandbox) -> None:
    plugin = {"type": "bridge", "bridge": "br1", "ipam": way.host_local("10.61.0.0/24")}
    document = {"cniVersion": "1.0.0", "name": "n", "plugins": [plugin]}
    theirs = Network.from_dict(document, plugin_dirs=REFERENCE, cache_dir=way.folder / "cni")
    box = sandbox()
    theirs.add("old", box.path)
    reuse(box)
    theirs.add("new", box.path)
    before = interfaces(box)
    theirs.delete("old")
    assert interfaces(box) == before
    assert list(way.leases("n").values()) == ["new/eth0"]


# --- at the same time ----------------------------------------------------------------------------


def call_at_once(way: Way, plugin: dict[str, Any], calls: list[tuple[str, str, str]]) -> None:
    """Calls of one plugin without a runtime between: command, container, path. None may hang."""
    running = []
    for command, container, path in calls:
        env = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CNI_PATH": str(way.plugins),
            "CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": path,
            "CNI_IFNAME": "eth0",
        }  # fmt: skip
        running.append(
            subprocess.Popen(
                [way.plugins / plugin["type"]], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                env=env,
            )
        )  # fmt: skip
    data = json.dumps(plugin).encode()
    for one in running:
        assert one.stdin is not None
        one.stdin.write(data)
        one.stdin.close()
    for one in running:
        one.wait(60)


def masquerading_bridge(way: Way) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0", "name": "n", "type": "bridge", "bridge": "br1", "ipMasq": True,
        "ipam": way.host_local("10.61.0.0/24"),
    }  # fmt: skip


def test_two_operations_on_one_attachment_at_once(way: Way, sandbox: Sandbox) -> None:
    """In the end all is there, or nothing."""
    box = sandbox()
    calls = [(command, "a", box.path) for command in ("ADD", "DEL", "ADD", "DEL")]
    for _ in range(15):
        call_at_once(way, masquerading_bridge(way), calls)
        there = [bool(interfaces(box)), bool(way.leases("n")), bool(veths()), bool(notes())]
        assert there in ([True] * 4, [False] * 4)
        assert bool(elements()) == there[0]


def test_a_gc_that_keeps_nothing_beside_adds(way: Way, sandbox: Sandbox) -> None:
    """Each container is attached, with its address reserved, or not attached at all."""
    plugin = {**masquerading_bridge(way), "cni.dev/valid-attachments": []}
    boxes = {f"c{number}": sandbox() for number in range(4)}
    for _ in range(6):
        calls = [("ADD", name, box.path) for name, box in boxes.items()]
        calls[2:2] = [("GC", "", "")]
        call_at_once(way, plugin, [*calls, ("GC", "", "")])
        attached = {name for name, box in boxes.items() if interfaces(box)}
        assert {holder.partition("/")[0] for holder in way.leases("n").values()} == attached
        assert {note["containerID"] for note in notes()} == attached
        assert len(veths()) == len(elements()) == len(attached)
        call_at_once(way, plugin, [("GC", "", "")])
        assert not any(map(interfaces, boxes.values()))
        assert (way.leases("n"), elements(), notes()) == ({}, [], [])
