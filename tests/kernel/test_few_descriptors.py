"""A program that may open few files: nothing is left half-way, and nothing is taken for drift."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness import Host, Sandbox
from harness.kernel_state import filled_sets, veths
from harness.ways import Way, notes, ports_of
from pycni.runtime import Network
from pycni.spec.errors import CHECK_FAILED, INVALID_CONFIG, UNKNOWN_CONTAINER, CNIError

MAPPED = ports_of((8080, 80))

# With a limit on descriptors, for each operation that it is given; prints how that went.
PROGRAM = """
import json, os, resource, sys
import pycni.steps.refusals  # which needs a descriptor to be loaded, and few have
from pycni.runtime import Network
from pycni.spec.errors import CNIError
document, cache, path, command, more, warm, capabilities = json.loads(sys.argv[1])
network = Network.from_dict(document, cache_dir=cache)
calls = {
    "add": lambda: network.add("c", path, capabilities=capabilities),
    "check": lambda: network.check("c"),
    "delete": lambda: network.delete("c"),
}
for name in warm:
    calls[name]()
used = len(os.listdir("/proc/self/fd")) - 1
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, hard))
try:
    calls[command]()
    said = None
except CNIError as error:
    said = [error.code, error.message, error.details]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
print(json.dumps(said))
"""


class Lab:
    def __init__(self, folder: Path, path: str) -> None:
        self.folder = folder
        self.path = path
        way = Way("in process", folder, folder)
        bridge = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True}
        plugins = [
            {**bridge, "ipam": way.host_local("10.66.0.0/24")},
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "firewall"},
            {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
            {"type": "bandwidth", "ingressRate": 1000000, "ingressBurst": 1000000},
        ]
        self.document = {"cniVersion": "1.1.0", "name": "n", "plugins": plugins}
        self.network: Network = way.network("n", *plugins)

    def add(self) -> None:
        self.network.add("c", self.path, capabilities=MAPPED)

    def limited(self, command: str, more: int, *warm: str) -> tuple[int, str, str] | None:
        """What an operation fails with where that many descriptors are free; warm: done before."""
        given = self.document, str(self.folder / "cni"), self.path, command, more, warm, MAPPED
        argv = [sys.executable, "-c", PROGRAM, json.dumps(given)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        return said and tuple(said)

    def left(self) -> list[object]:
        leases = Way("", self.folder, self.folder).leases("n")
        cached = Way("", self.folder, self.folder).cached()
        return [*leases, *cached, *filled_sets(), *veths(), *notes()]


@pytest.fixture
def lab(host: Host, sandbox: Sandbox, tmp_path: Path) -> Lab:
    lab = Lab(tmp_path, sandbox().path)
    lab.add()
    lab.network.delete("c")
    return lab


LIMITS = range(21)
TAKEN_FOR_DRIFT = (CHECK_FAILED, UNKNOWN_CONTAINER, INVALID_CONFIG)


@pytest.mark.parametrize("warm", [(), ("add", "delete")], ids=["first", "later"])
def test_add(lab: Lab, warm: tuple[str, ...]) -> None:
    outcomes = set()
    for more in LIMITS:
        said = lab.limited("add", more, *warm)
        outcomes.add(said is None)
        if said is None:
            lab.network.check("c")
        elif "not all could be undone" not in said[2]:
            assert lab.left() == [], (more, said)
        assert said is None or said[0] != 999, (more, said)
        lab.network.delete("c")
        assert lab.left() == [], (more, said)
    assert outcomes == {True, False}


@pytest.mark.parametrize("warm", [(), ("check",)], ids=["first", "later"])
def test_check(lab: Lab, warm: tuple[str, ...]) -> None:
    lab.add()
    outcomes = set()
    for more in LIMITS:
        said = lab.limited("check", more, *warm)
        outcomes.add(said is None)
        assert said is None or said[0] not in (*TAKEN_FOR_DRIFT, 999), (more, said)
    assert outcomes == {True, False}
    lab.network.check("c")


@pytest.mark.parametrize("warm", [(), ("check",)], ids=["first", "later"])
def test_delete(lab: Lab, warm: tuple[str, ...]) -> None:
    outcomes = set()
    for more in LIMITS:
        lab.add()
        said = lab.limited("delete", more, *warm)
        outcomes.add(said is None)
        if said is not None:
            assert said[0] != 999, (more, said)
            lab.network.delete("c")
        assert lab.left() == [], (more, said)
    assert outcomes == {True, False}


def test_drift_is_still_drift(lab: Lab) -> None:
    lab.add()
    subprocess.run(["ip", "link", "set", "br0", "down"], check=True)
    with pytest.raises(CNIError) as caught:
        lab.network.check("c")
    assert caught.value.code == CHECK_FAILED
