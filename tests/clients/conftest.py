"""Fixtures of the tests with real container engines.

A test takes an engine and gets it three times: with our plugins, with ours and the agent behind
the launcher, and with the reference's. So what it asserts is the same for all of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Namespace, Sandbox, run_in
from harness.agent import AgentProcess
from harness.clients import Plugins, private_machine
from harness.containerd import Containerd, Kubelet
from harness.podman import Podman

NETWORK = {
    "cniVersion": "1.0.0",
    "name": "lab",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.88.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ],
}


@pytest.fixture
def machine(host: Host, tmp_path: Path) -> Iterator[None]:
    """A machine for container engines; nothing of theirs may be left on it."""
    with private_machine(tmp_path):
        yield


@pytest.fixture(params=["ours", "agent", "reference"])
def plugins(
    request: pytest.FixtureRequest,
    machine: None,
    plugin_dir: Path,
    reference_dir: Path,
    tmp_path: Path,
) -> Iterator[Plugins]:
    if request.param == "ours":
        yield Plugins("ours", plugin_dir)
    elif request.param == "reference":
        yield Plugins("reference", reference_dir)
    else:
        agent = AgentProcess(tmp_path)
        agent.start()
        try:
            yield (asked := Plugins("agent", agent.plugins, agent))
            asked.prove()
        finally:
            agent.kill()


@pytest.fixture
def podman(plugins: Plugins, tmp_path: Path) -> Iterator[Podman]:
    """podman, and buildah on the same folders."""
    _needs("podman", "buildah", "crun", "conmon")
    podman = Podman(tmp_path, plugins)
    yield podman
    podman("rm", "--all", "--force", "--time", "0")


@pytest.fixture
def network() -> dict[str, Any]:
    """The network that containerd and `pycni` are given."""
    return NETWORK


@pytest.fixture
def containerd(plugins: Plugins, network: dict[str, Any], tmp_path: Path) -> Iterator[Containerd]:
    _needs("containerd", "ctr", "crun")
    daemon = Containerd(tmp_path, plugins, network)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
def kubelet(containerd: Containerd, tmp_path: Path) -> Iterator[Kubelet]:
    kubelet = Kubelet(containerd.socket, tmp_path)
    # Newer releases have conditions of their own besides.
    assert kubelet.conditions().items() >= {"RuntimeReady": True, "NetworkReady": True}.items()
    yield kubelet
    kubelet.close()


@pytest.fixture
def outside(machine: None, sandbox: Sandbox) -> Namespace:
    """Another machine, 192.0.2.2, that reaches the host as 192.0.2.1."""
    outside = sandbox()
    run_in(None, ["ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0",
                  "netns", outside.name])  # fmt: skip
    run_in(None, ["ip", "address", "add", "192.0.2.1/24", "dev", "uplink"])
    run_in(None, ["ip", "link", "set", "uplink", "up"])
    run_in(outside, ["ip", "address", "add", "192.0.2.2/24", "dev", "eth0"])
    run_in(outside, ["ip", "link", "set", "eth0", "up"])
    return outside


def _needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
