"""What an operator does to containers of real engines: inspect, repair, watch, reclaim.

The libcni of podman 4.3 and containerd 1.6 notes no network namespace beside its results.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from harness import run_in
from harness.agent import PYCNI, AgentProcess
from harness.clients import PAGE, Plugins, leases, mentions, output, page, served
from harness.containerd import Kubelet
from harness.dhcp import eventually
from harness.podman import Podman

our_plugins = pytest.mark.parametrize("plugins", ["ours", "agent"], indirect=True)


def pycni(*words: str | Path) -> str:
    return output(PYCNI, *words)


def flush() -> None:
    run_in(None, ["nft", "flush", "ruleset"])
    assert not served("127.0.0.1", 8088)


def no_netns_is_noted() -> bool:
    files = Path("/var/lib/cni/results").glob("*-eth0")
    return all("netns" not in json.loads(path.read_text()) for path in files)


def look_and_repair(plugins: Plugins, network: str, container: str, pod: str) -> None:
    """inspect, and repair --all after a flush, of the one container that is attached."""
    where = ("--plugin-dir", plugins.folder)
    (found,) = json.loads(pycni("inspect", network, *where, "-o", "json"))
    assert (found["containerID"], found["pod"], found["skipped"]) == (container, pod, "")
    assert {step["plugin"] for step in found["steps"]} >= {"bridge", "portmap"}
    assert not any(step["differences"] for step in found["steps"])
    assert pycni("inspect", network, *where).splitlines()[0] == (
        f"{network} {container} eth0, pod {pod}"
    )
    flush()
    found = json.loads(pycni("repair", "--all", *where, "-o", "json"))
    states = {item["containerID"]: {one["state"] for one in item["findings"]} for item in found}
    assert states[container] == {"repaired"}
    assert page("127.0.0.1", 8088) == PAGE
    assert pycni("repair", "--all", *where) == ""


def watch(plugins: Plugins, folder: Path, container: str, pod: str) -> None:
    """An agent that watches puts back what a flush took."""
    folder.mkdir()
    agent = AgentProcess(folder)
    agent.start("--watch-rules", "--plugin-dir", str(plugins.folder))
    flush()
    assert page("127.0.0.1", 8088) == PAGE
    log = agent.stop()
    assert any(f"{container}/eth0 ({pod}): " in line for line in log.splitlines()), log


def reclaimed(plugins: Plugins) -> list[tuple[str, str, str]]:
    found = json.loads(pycni("ipam", "reclaim", "--plugin-dir", plugins.folder, "-o", "json"))
    return [(item["address"], item["containerID"], item["pod"]) for item in found]


@our_plugins
def test_podman(podman: Podman, tmp_path: Path) -> None:
    podman("network", "create", "--subnet", "10.89.0.0/24", "lab")
    web = podman.serve("web", "--network", "lab", "--publish", "8088:80")
    assert page("127.0.0.1", 8088) == PAGE
    assert no_netns_is_noted()
    look_and_repair(podman.plugins, "lab", web, "web")
    watch(podman.plugins, tmp_path / "watch", web, "web")
    assert reclaimed(podman.plugins) == []
    assert leases() == ["10.89.0.2"]

    # Killed, with no one to call DEL (conmon would), and its namespace removed.
    pid, conmon = (
        int(podman("inspect", "--format", f"{{{{.State.{key}}}}}", "web"))
        for key in ("Pid", "ConmonPid")
    )
    name = os.path.basename(podman.inspect("web")["NetworkSettings"]["SandboxKey"])
    os.kill(conmon, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        run_in(None, ["ip", "netns", "delete", name])
        eventually(lambda: not os.path.exists(f"/proc/{pid}/root"), "the container lives")
        assert reclaimed(podman.plugins) == [("10.89.0.2", web, "web")]
        assert leases() == []
        assert mentions("10.89.0.2", web, "8088") == []
    finally:
        # Without it podman would not remove the container.
        run_in(None, ["ip", "netns", "add", name])
        os.kill(conmon, signal.SIGCONT)


@our_plugins
def test_containerd(kubelet: Kubelet, plugins: Plugins, tmp_path: Path) -> None:
    pod = kubelet.run("web", [(8088, 80)])
    assert page("127.0.0.1", 8088) == PAGE
    assert no_netns_is_noted()
    look_and_repair(plugins, "lab", pod.id, "tests/web")
    watch(plugins, tmp_path / "watch", pod.id, "tests/web")
    assert reclaimed(plugins) == []
    assert leases() == [pod.address]

    for process in run_in(None, ["ip", "netns", "pids", pod.netns.name]).stdout.split():
        os.kill(int(process), signal.SIGKILL)
    pod.netns.delete()
    assert reclaimed(plugins) == [(pod.address, pod.id, "tests/web")]
    assert leases() == []
    assert mentions(pod.address) == []  # of the pod's loopback, which has no lease, a file is left
