"""Plugins as processes that are killed at any moment: whom they started goes with them.

host-local is run by bridge as an executable of somebody else's would be: as a process of its own.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import Host, Sandbox
from harness.kernel_state import filled_sets, veths
from harness.process import of_this_process
from harness.ways import Way, notes
from pycni.runtime import Network
from pycni.runtime.errors import TimedOut
from pycni.spec.errors import CNIError

TRIES = int(os.environ.get("PYCNI_INTERRUPTS", "30"))

# What bridge finds as its address plugin: pycni's own, but not to be recognised as such.
WRAPPER = """#!/bin/sh
sleep 0.0$(($$ % 10))
{path} && sleep 0.0$(($$ % 10))
"""


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """Executables by `pycni install`, whose host-local is another program's child."""
    folder = tmp_path / "bin"
    install = [Path(sys.executable).parent / "pycni", "install", folder]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
    real = tmp_path / "real"
    real.mkdir()
    (folder / "host-local").rename(real / "host-local")
    (folder / "host-local").write_text(WRAPPER.format(path=real / "host-local"))
    (folder / "host-local").chmod(0o755)
    return folder


@pytest.fixture(params=["cold", "in process"])
def network(request: pytest.FixtureRequest, host: Host, tmp_path: Path, plugins: Path) -> Network:
    """In process only host-local is a process."""
    way = Way("cold", tmp_path, plugins)
    bridge = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True}
    found = way.network("n", {**bridge, "ipam": way.host_local("10.66.0.0/24")})
    if request.param == "in process":
        return Network(found.config, plugin_dirs=plugins, cache_dir=tmp_path / "cni")
    return found


def left(tmp_path: Path) -> list[object]:
    """What is there of attachments."""
    way = Way("", tmp_path, tmp_path)
    return [*way.leases("n"), *way.cached(), *filled_sets(), *veths(), *notes()]


@pytest.mark.slow
def test_time_outs_at_many_moments(network: Network, sandbox: Sandbox, tmp_path: Path) -> None:
    box = sandbox()
    begin = time.monotonic()
    network.add("c", box.path)
    took = time.monotonic() - begin
    network.delete("c")
    before = of_this_process()
    timed_out = 0
    for _ in range(TRIES):
        try:
            network.add("c", box.path, timeout=random.uniform(0.005, took))
        except TimedOut as error:
            timed_out += 1
            if "not all could be undone" not in error.details:
                assert left(tmp_path) == [], error.details
        network.delete("c")
        assert left(tmp_path) == []
    assert timed_out
    descriptors, children = of_this_process()
    assert descriptors <= before[0]
    assert children <= before[1]
    assert list(tmp_path.rglob("*.new*")) == []


@pytest.mark.slow
def test_failed_calls_leave_nothing_in_this_process(
    host: Host, sandbox: Sandbox, tmp_path: Path
) -> None:
    """PYCNI_FAILURES is how many; `make interrupts` tries more."""
    plugins = tmp_path / "bin"
    plugins.mkdir()
    (plugins / "a").write_text("#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit\nsleep 60 & wait\n")
    (plugins / "b").write_text("#!/bin/sh\n[ $CNI_COMMAND = DEL ] || exit 1\n")
    for name in "ab":
        (plugins / name).chmod(0o755)
    networks = [
        Way("cold", tmp_path, plugins).network(f"network-{name}", {"type": name}) for name in "ab"
    ]
    path = sandbox().path
    in_process = Way("in process", tmp_path, plugins)
    bridge = {"type": "bridge", "bridge": "br0", "ipam": in_process.host_local("10.66.0.0/24")}
    networks.append(in_process.network("n", bridge))
    networks[-1].add("c", path)
    networks[-1].delete("c")

    def fail(number: int) -> None:
        network = networks[number % 3]
        try:
            network.add("c", path, timeout=0.001 * (number % 20))
        except CNIError:
            pass
        network.delete("c")

    for number in range(30):
        fail(number)
    before = of_this_process()
    for number in range(int(os.environ.get("PYCNI_FAILURES", "300"))):
        fail(number)
    descriptors, children = of_this_process()
    assert descriptors <= before[0]
    assert children <= before[1]
    assert list(tmp_path.rglob("*.new*")) == []
    assert left(tmp_path) == []
