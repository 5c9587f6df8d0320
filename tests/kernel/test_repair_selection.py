"""`pycni repair` and `inspect` take a NETNS, as add, check and del do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Host, run_in
from harness.ways import Way
from pycni.runtime import Network

PROGRAM = Path(sys.executable).parent / "pycni"
NAMES = ("one", "two")


@pytest.fixture
def attached(host: Host, tmp_path: Path) -> Iterator[Network]:
    """Two containers, each without the default route that ADD made."""
    way = Way("in process", tmp_path, tmp_path)
    keys = {"type": "bridge", "bridge": "br0", "isDefaultGateway": True}
    network = way.network("lab", {**keys, "ipam": way.host_local("10.77.0.0/24")})
    for name in NAMES:
        run_in(None, ["ip", "netns", "add", name])
        network.add(name, f"/run/netns/{name}")
        run_in(None, ["ip", "-n", name, "route", "delete", "default"])
    yield network
    for name in NAMES:
        network.delete(name, f"/run/netns/{name}")
        run_in(None, ["ip", "netns", "delete", name])


def pycni(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [PROGRAM, *words, "--cache-dir", tmp_path / "cni"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def default_route(name: str) -> bool:
    return "default via" in run_in(None, ["ip", "-n", name, "route"]).stdout


@pytest.mark.parametrize("netns", ["one", "/run/netns/one", "/run/netns/../netns/one"])
def test_one_namespace(attached: Network, tmp_path: Path, netns: str) -> None:
    shown = pycni(tmp_path, "inspect", "lab", netns, "-o", "json")
    assert [one["containerID"] for one in json.loads(shown.stdout)] == ["one"]
    done = pycni(tmp_path, "repair", "lab", netns)
    assert (done.returncode, done.stderr) == (0, "1 attachment, 0 sound, 1 repaired\n")
    assert [default_route(name) for name in NAMES] == [True, False]


def test_a_namespace_of_no_attachment(attached: Network, tmp_path: Path) -> None:
    for command in ("repair", "inspect"):
        done = pycni(tmp_path, command, "lab", "three")
        assert done.returncode != 0
        assert "the namespace three" in done.stderr
    assert [default_route(name) for name in NAMES] == [False, False]
