"""Our host-local and the reference's on one data directory, and side by side on two."""

from __future__ import annotations

import json
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness import PluginRun, run_plugin
from harness.configs import host_local

NETNS = "/run/netns/none"  # host-local does not look at it
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0")


@pytest.fixture
def ours(plugin_dir: Path) -> Path:
    return plugin_dir / "host-local"


@pytest.fixture
def reference(reference_dir: Path) -> Path:
    return reference_dir / "host-local"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "networks"


def config(data_dir: Path, version: str = "1.0.0", **ipam: Any) -> dict[str, Any]:
    return {
        "cniVersion": version,
        "name": "net",
        "type": "bridge",
        "ipam": host_local(data_dir, **ipam or {"subnet": "10.1.2.0/24"}),
    }


def run(
    plugin: Path, command: str, document: dict[str, Any], container: str = "c1", **env: str
) -> PluginRun:
    return run_plugin(plugin, command, document, CNI_NETNS=NETNS, CNI_CONTAINERID=container, **env)


def addresses(done: PluginRun) -> list[str]:
    assert done.code == 0, done.stdout
    return [entry["address"] for entry in done.result["ips"]]


def state(data_dir: Path) -> dict[str, bytes]:
    """The files of the network, as the reference sees them."""
    folder = data_dir / "net"
    return {item.name: item.read_bytes() for item in folder.iterdir()} if folder.exists() else {}


# --- results -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_results_are_equal(ours: Path, reference: Path, tmp_path: Path, version: str) -> None:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("domain example.org\nnameserver 192.0.2.3\noptions ndots:2\n")
    ipam = {
        "ranges": [
            [{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9"}],
            [{"subnet": "2001:db8:1::/64", "gateway": "2001:db8:1::ff"}],
        ],
        "routes": [
            {"dst": "0.0.0.0/0"},
            {"dst": "192.168.0.0/16", "gw": "10.1.2.5"},
            {"dst": "::/0"},
        ],
        "resolvConf": str(resolv_conf),
    }
    theirs = run(reference, "ADD", config(tmp_path / "theirs", version, **ipam))
    mine = run(ours, "ADD", config(tmp_path / "mine", version, **ipam))
    assert (mine.code, mine.stderr) == (theirs.code, theirs.stderr) == (0, "")
    assert mine.result == theirs.result
    assert state(tmp_path / "mine") == state(tmp_path / "theirs")


def test_errors_are_equal(ours: Path, reference: Path, tmp_path: Path) -> None:
    small = {"subnet": "10.1.2.0/30"}
    attempts: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, str]]] = [
        ("ADD", small, {}, {"CNI_CONTAINERID": "c1"}),
        ("ADD", small, {}, {"CNI_CONTAINERID": "c1"}),
        ("ADD", small, {}, {"CNI_CONTAINERID": "c2"}),
        ("ADD", small, {}, {"CNI_CONTAINERID": "c2", "CNI_ARGS": "IP=10.1.2.1"}),
        ("ADD", small, {}, {"CNI_CONTAINERID": "c2", "CNI_ARGS": "IP=10.1.2.2"}),
        ("ADD", small, {"runtimeConfig": {"ips": ["10.9.9.9"]}}, {"CNI_CONTAINERID": "c2"}),
        ("ADD", {"ranges": []}, {}, {}),
        ("ADD", {"ranges": [[]]}, {}, {}),
        ("ADD", {"subnet": "10.1.2.3/24"}, {}, {}),
        ("ADD", {"subnet": "10.1.2.0/31"}, {}, {}),
        ("ADD", {**small, "rangeStart": "10.9.9.9"}, {}, {}),
        ("ADD", {**small, "rangeEnd": "10.9.9.9"}, {}, {}),
        ("ADD", {"subnet": "10.1.2.0/24", "ranges": [[small]]}, {}, {}),
        ("ADD", {"ranges": [[{"subnet": "10.1.2.0/24"}, small]]}, {}, {}),
        ("ADD", {"ranges": [[small, {"subnet": "fd00::/64"}]]}, {}, {}),
        ("CHECK", small, {}, {"CNI_CONTAINERID": "c9"}),
    ]
    for command, ipam, top, env in attempts:
        said = []
        for plugin in (reference, ours):
            document = {**config(tmp_path / plugin.parent.name, **ipam), **top}
            done = run_plugin(plugin, command, document, **{"CNI_NETNS": NETNS, **env})
            said.append((done.code, done.stdout and done.result.get("msg")))
        if ipam is small and "IP=10.1.2.2" in env.get("CNI_ARGS", ""):
            assert "is not available in range set 10.1.2.1-10.1.2.2" in said[0][1]
        assert said[1] == said[0], (command, ipam, top, env)


# --- one directory, both plugins ---------------------------------------------------------------


def test_one_adds_and_the_other_deletes(ours: Path, reference: Path, data_dir: Path) -> None:
    document = config(data_dir, ranges=[[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/64"}]])
    for adding, deleting in ((ours, reference), (reference, ours)):
        assert run(adding, "ADD", document).code == 0
        assert run(deleting, "CHECK", document).code == 0
        assert run(deleting, "DEL", document).code == 0
        assert sorted(state(data_dir)) == ["last_reserved_ip.0", "last_reserved_ip.1", "lock"]
        assert run(adding, "CHECK", document).code == 1
        assert run(adding, "DEL", document).code == 0


def test_neither_gives_what_the_other_gave(ours: Path, reference: Path, data_dir: Path) -> None:
    document = config(data_dir, subnet="10.1.2.0/28")
    plugins = (ours, reference, reference, ours, ours, reference)
    given = [
        addresses(run(plugin, "ADD", document, f"c{number}"))
        for number, plugin in enumerate(plugins)
    ]
    assert given == [[f"10.1.2.{number}/28"] for number in range(2, 8)]
    for plugin in (ours, reference):
        done = run(plugin, "ADD", document, "c0")
        assert done.code == 1
        assert "10.1.2.2 has been allocated to c0" in done.result["msg"]


def test_thirty_two_at_once(ours: Path, reference: Path, data_dir: Path) -> None:
    document = config(data_dir)

    def attach(number: int) -> list[str]:
        return addresses(run((ours, reference)[number % 2], "ADD", document, f"c{number}"))

    with ThreadPoolExecutor(32) as pool:
        given = [address for one in pool.map(attach, range(32)) for address in one]
    assert sorted(given) == sorted(f"10.1.2.{number}/24" for number in range(2, 34))

    def detach(number: int) -> int:
        return run((reference, ours)[number % 2], "DEL", document, f"c{number}").code

    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(detach, range(32))) == {0}
    assert sorted(state(data_dir)) == ["last_reserved_ip.0", "lock"]


def test_a_killed_reference_costs_no_address(ours: Path, reference: Path, data_dir: Path) -> None:
    document = config(data_dir, subnet="10.1.2.0/30")
    assert run(reference, "ADD", document, "c1").code == 0
    os.truncate(data_dir / "net" / "10.1.2.2", 0)  # as a kill before its write leaves it
    assert run(reference, "ADD", document, "c2").code == 1
    done = run(ours, "ADD", document, "c2")
    assert addresses(done) == ["10.1.2.2/30"]
    assert "10.1.2.2: an empty file" in done.stderr


# --- the order of hand-out ---------------------------------------------------------------------

RANGES: list[list[list[dict[str, str]]]] = [
    [[{"subnet": "10.1.2.0/28"}]],
    [[{"subnet": "10.1.2.0/28", "gateway": "10.1.2.7"}]],
    [[{"subnet": "10.1.2.0/28", "rangeStart": "10.1.2.5", "rangeEnd": "10.1.2.9"}]],
    [[{"subnet": "10.1.2.0/29"}, {"subnet": "10.1.3.0/29", "gateway": "10.1.3.6"}]],
    [
        [
            {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.20", "rangeEnd": "10.1.2.23"},
            {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.1", "rangeEnd": "10.1.2.3"},
            {"subnet": "10.1.0.0/30"},
        ]
    ],
    [[{"subnet": "10.1.2.0/28"}], [{"subnet": "fd00::/124"}, {"subnet": "fd00:1::/126"}]],
    [[{"subnet": "fd00::/125"}], [{"subnet": "10.1.2.0/28"}], [{"subnet": "10.1.3.0/29"}]],
]


@pytest.mark.parametrize("ranges", RANGES, ids=range(len(RANGES)))
def test_the_order_is_the_same(
    ours: Path, reference: Path, tmp_path: Path, ranges: list[list[dict[str, str]]]
) -> None:
    choose = random.Random(json.dumps(ranges))
    held: list[str] = []
    for number in range(40):
        attempt = held and choose.random() < 0.4
        container = choose.choice(held) if attempt else f"c{number}"
        command = "DEL" if attempt else "ADD"
        env = {}
        if command == "ADD" and choose.random() < 0.2:
            env["CNI_ARGS"] = f"IP={choose.choice(['10.1.2.', '10.1.3.'])}{choose.randrange(1, 9)}"
        runs = [
            run(plugin, command, config(tmp_path / name, ranges=ranges), container, **env)
            for name, plugin in (("theirs", reference), ("mine", ours))
        ]
        theirs, mine = runs
        assert (mine.code, mine.result and mine.result.get("ips")) == (
            theirs.code,
            theirs.result and theirs.result.get("ips"),
        ), (number, command, env, theirs.stdout, mine.stdout)
        assert state(tmp_path / "mine") == state(tmp_path / "theirs")
        if command == "DEL":
            held.remove(container)
        elif mine.code == 0:
            held.append(container)


def test_a_foreign_change_is_seen_however_soon_it_comes(
    ours: Path, reference: Path, data_dir: Path
) -> None:
    """One process after the other, in one shell, within a tick of a coarse clock."""
    document = json.dumps(config(data_dir, subnet="10.1.2.0/24"))
    script = """
        for i in 1 2 3 4 5 6 7 8 9 10; do
            CNI_COMMAND=ADD CNI_CONTAINERID=a$i "$OURS" <<< "$CONF" > /dev/null || exit 1
            CNI_COMMAND=ADD CNI_CONTAINERID=b$i "$THEIRS" <<< "$CONF" > /dev/null || exit 2
            CNI_COMMAND=DEL CNI_CONTAINERID=b$i "$OURS" <<< "$CONF" || exit 3
            CNI_COMMAND=DEL CNI_CONTAINERID=a$i "$THEIRS" <<< "$CONF" || exit 4
            CNI_COMMAND=CHECK CNI_CONTAINERID=a$i "$OURS" <<< "$CONF" > /dev/null && exit 5
        done
        exit 0
    """
    env = {
        "PATH": os.environ["PATH"],
        "OURS": str(ours),
        "THEIRS": str(reference),
        "CONF": document,
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": NETNS,
        "CNI_PATH": str(ours.parent),
    }
    done = subprocess.run(["/bin/bash", "-c", script], env=env, capture_output=True, check=False)
    assert done.returncode == 0, done
    assert sorted(state(data_dir)) == ["last_reserved_ip.0", "lock"]
