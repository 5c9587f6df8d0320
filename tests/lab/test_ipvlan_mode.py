"""ipvlans of two modes on one master: Linux would change the mode of those that are there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Namespace, Sandbox, ip_json, run_in
from harness.ways import Way, notes, way_of
from pycni.kernel import namespace
from pycni.runtime import Network, PluginError

NOTED = Path("/run/pycni/masters")


@pytest.fixture(params=["in process", "cold"])  # where the lab's files are is no socket
def way(
    request: pytest.FixtureRequest, host: Host, tmp_path: Path, plugin_dir: Path
) -> Iterator[Way]:
    run_in(None, ["ip", "link", "add", "lan0", "index", "77", "type", "veth", "peer", "lan1"])
    run_in(None, ["ip", "link", "set", "lan0", "up"])
    run_in(None, ["ip", "link", "set", "lan1", "up"])
    with way_of(request.param, tmp_path, plugin_dir) as found:
        yield found


def network(way: Way, name: str, mode: str, subnet: str = "10.61.0.0/24", **keys: Any) -> Network:
    plugin = {"type": "ipvlan", "master": "lan0", "mode": mode, **keys}
    return way.network(name, {**plugin, "ipam": way.host_local(subnet)})


def mode_of(box: Namespace, name: str = "eth0") -> str:
    (link,) = ip_json("-d", "link", "show", "dev", name, netns=box)
    mode: str = link["linkinfo"]["info_data"]["mode"]
    return mode


def refused(network: Network, box: Namespace, present: str, asked: str) -> None:
    with pytest.raises(PluginError) as error:
        network.add("x", box.path)
    reported = str(error.value)
    assert f'"lan0" has ipvlans in mode {present}, and cannot have one in mode {asked}' in reported
    assert f'"mode": "{present}"' in reported
    assert "another" in reported
    assert [link["ifname"] for link in ip_json("link", netns=box) if link["ifname"] != "lo"] == []


def forget() -> None:
    for path in NOTED.iterdir():
        path.unlink()


def test_another_mode_is_refused(way: Way, sandbox: Sandbox) -> None:
    first, second = network(way, "n", "l2"), network(way, "m", "l3", "10.62.0.0/24")
    boxes = [sandbox(), sandbox()]
    for number, box in enumerate(boxes):
        first.add(f"c{number}", box.path)
    other = sandbox()
    # What is noted holds; is lost; is of others by now; is nothing.
    for note in (None, "", "l3s\n", "?"):
        if note is not None:
            forget()
        if note:
            (NOTED / _note()).write_text(note)
        refused(second, other, "l2", "l3")
        assert [mode_of(box) for box in boxes] == ["l2", "l2"]
    run_in(boxes[0], ["ping", "-qc1", "-W3", "10.61.0.3"])
    run_in(boxes[1], ["ping", "-qc1", "-W3", "10.61.0.2"])
    assert (way.leases("m"), len(notes())) == ({}, 2)
    second.delete("x", other.path)
    for number in range(2):
        first.check(f"c{number}")
    run_in(boxes[0], ["ip", "link", "delete", "eth0"])
    reports = first.repair()
    assert [report.ok for report in reports] == [True, True]
    run_in(boxes[0], ["ping", "-qc1", "-W3", "10.61.0.3"])
    # It is taken when the last one of the other mode has gone.
    first.delete("c0")
    refused(second, other, "l2", "l3")
    first.delete("c1")
    second.add("x", other.path)
    assert mode_of(other) == "l3"
    with pytest.raises(PluginError, match="has ipvlans in mode l3"):
        first.add("c0", boxes[0].path)
    second.check("x")
    second.delete("x")


def _note() -> str:
    with namespace.current() as home:
        return f"{home.cookie}-77" if home.cookie else f"{home.device}.{home.inode}-77"


def test_two_at_once(way: Way, sandbox: Sandbox) -> None:
    """Not both: anyone who comes second is refused, and the first one keeps its mode."""
    networks = {mode: network(way, mode, mode) for mode in ("l2", "l3")}
    boxes = {mode: sandbox() for mode in networks}

    def add(mode: str) -> bool:
        try:
            networks[mode].add("a", boxes[mode].path)
        except PluginError:
            return False
        return True

    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            won = [mode for mode, there in zip(networks, pool.map(add, networks), strict=True)
                   if there]  # fmt: skip
        assert len(won) == 1
        assert mode_of(boxes[won[0]]) == won[0]
        networks[won[0]].delete("a")


def test_what_counts_and_what_does_not(way: Way, sandbox: Sandbox) -> None:
    box, other = sandbox(), sandbox()
    first, second = network(way, "n", "l2"), network(way, "m", "l3", "10.62.0.0/24")
    # One of the container's own, on a link of its own with the index of the host's.
    for line in (
        "link add own index 77 type veth peer peer", "link set own up",
        "link add link own name eth7 type ipvlan mode l3",
    ):  # fmt: skip
        run_in(box, ["ip", *line.split()])
    first.add("a", box.path)
    assert (mode_of(box), mode_of(box, "eth7")) == ("l2", "l3")
    first.delete("a")
    # One that somebody else made, which nothing is noted of.
    run_in(None, ["ip", "link", "add", "link", "lan0", "name", "tmp0", "netns", other.name,
                  "type", "ipvlan", "mode", "l2"])  # fmt: skip
    refused(second, sandbox(), "l2", "l3")
    assert mode_of(other, "tmp0") == "l2"
    run_in(other, ["ip", "link", "delete", "tmp0"])
    # One on the host, and a master that is one itself.
    run_in(
        None, ["ip", "link", "add", "link", "lan0", "name", "up7", "type", "ipvlan", "mode", "l2"]
    )
    refused(second, sandbox(), "l2", "l3")
    above = network(way, "o", "l3", master="up7")
    with pytest.raises(PluginError, match='"up7" has ipvlans in mode l2'):
        above.add("a", sandbox().path)
    run_in(None, ["ip", "link", "delete", "up7"])
    third = sandbox()
    second.add("a", third.path)
    second.delete("a")


def test_master_in_the_container(way: Way, sandbox: Sandbox) -> None:
    box = sandbox()
    run_in(box, ["ip", "link", "add", "lan0", "type", "veth", "peer", "lan1"])
    run_in(box, ["ip", "link", "set", "lan0", "up"])
    first = network(way, "n", "l2", linkInContainer=True)
    second = network(way, "m", "l3", "10.62.0.0/24", linkInContainer=True)
    first.add("a", box.path)
    with pytest.raises(PluginError, match='"lan0" has ipvlans in mode l2'):
        second.add("a", box.path, "eth1")
    assert mode_of(box) == "l2"
    first.delete("a")
    second.add("a", box.path, "eth1")
    assert mode_of(box, "eth1") == "l3"
    second.delete("a", box.path, "eth1")


def test_what_the_reference_made(way: Way, sandbox: Sandbox, reference_dir: Path) -> None:
    document = {
        "cniVersion": "1.0.0", "name": "n",
        "plugins": [{"type": "ipvlan", "master": "lan0", "mode": "l2",
                     "ipam": way.host_local("10.61.0.0/24")}],
    }  # fmt: skip
    theirs = Network.from_dict(
        document, plugin_dirs=reference_dir, cache_dir=way.folder / "cni", engine="exec"
    )
    box = sandbox()
    theirs.add("a", box.path)
    refused(network(way, "m", "l3", "10.62.0.0/24"), sandbox(), "l2", "l3")
    assert mode_of(box) == "l2"
    theirs.delete("a")
