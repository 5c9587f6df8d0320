"""The agent that watches: what a flush takes comes back by itself, once, and nothing circles."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import ask, ip_json, run_in, run_plugin, service
from harness.agent import AgentProcess
from harness.configs import host_local
from harness.locks import NOBODY, held
from harness.machines import CLIENT, HOST, Machines
from pycni.agent import server
from pycni.agent.executables import LAUNCHER
from pycni.runtime import Network

TIMEOUT = 15.0
QUIET = 1.5  # longer than a burst and the agent's rest after a repair that was quick


class Watched:
    """A network whose attachments an agent watches over."""

    def __init__(self, agent: AgentProcess, machines: Machines, folder: Path) -> None:
        self.agent = agent
        self.machines = machines
        self.cache = folder / "cache"
        self.names: list[str] = []
        self.boxes: dict[str, Any] = {}
        bridge = {
            "type": "bridge",
            "bridge": "cni0",
            "isDefaultGateway": True,
            "ipMasq": True,
            "ipam": host_local(folder / "leases", "10.1.0.0/16"),
        }
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        self.plugins: list[dict[str, Any]] = [bridge, portmap]

    def add(self, name: str) -> None:
        self.boxes[name] = self.machines.sandbox()
        mapping = {"hostPort": 8080 + len(self.names), "containerPort": 80, "protocol": "tcp"}
        network = Network.from_dict(
            {"cniVersion": "1.1.0", "name": "lab", "plugins": self.plugins},
            plugin_dirs=self.agent.plugins,
            cache_dir=self.cache,
        )
        network.add(name, self.boxes[name].path, capabilities={"portMappings": [mapping]})
        self.names.append(name)
        self.machines.stack.enter_context(service(self.boxes[name], name, 80))

    def start(self) -> None:
        self.agent.start(
            "--watch-rules", "--cache-dir", str(self.cache), "--plugin-dir", str(self.agent.plugins)
        )
        self.wait(lambda: self.repairs()["passes"] == 1)  # for what was before

    def repairs(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(server.ask(self.agent.socket))["repairs"]
        return found

    def answer(self) -> bool:
        """Whether all containers' ports answer."""
        return all(
            ask(self.machines.client, HOST[4], 8080 + number, timeout=0.2) == f"{name} {CLIENT[4]}"
            for number, name in enumerate(self.names)
        )

    def wait(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not ready():
            assert time.monotonic() < deadline, self.repairs()
            time.sleep(0.05)


@pytest.fixture
def watched(machines: Machines, tmp_path: Path) -> Iterator[Watched]:
    if not LAUNCHER.is_file():
        pytest.skip("the launcher was not compiled")
    agent = AgentProcess(tmp_path)
    yield Watched(agent, machines, tmp_path)
    if agent.process is not None and agent.process.poll() is None:
        agent.kill()


def test_a_flush_is_repaired_once(watched: Watched) -> None:
    for name in ("one", "two", "three"):
        watched.add(name)
    run_in(None, ["nft", "flush", "ruleset"])  # before the agent is there
    assert not watched.answer()
    watched.start()
    watched.wait(watched.answer)
    first = watched.repairs()
    assert first["repaired"] > 0
    assert first["failed"] == 0

    for command in (["nft", "flush", "ruleset"], ["nft", "flush map inet pycni port-map4"]):
        before = watched.repairs()
        run_in(None, command)
        assert not watched.answer()
        watched.wait(watched.answer)
        time.sleep(QUIET)
        assert watched.repairs()["repaired"] > before["repaired"]
        # One for the flush, and at most one that found nothing.
        assert watched.repairs()["passes"] - before["passes"] <= 2
    log = watched.agent.stop()
    assert "something in the nftables table pycni gone: " in log
    assert "repaired: lab/one/eth0: portmap: nftables: " in log


def test_a_burst_is_repaired_together(watched: Watched) -> None:
    watched.add("one")
    watched.start()
    before = watched.repairs()["passes"]
    for _ in range(40):
        run_in(None, ["nft", "flush", "ruleset"])
        run_in(None, ["nft", "add", "table", "inet", "pycni"])
    watched.wait(watched.answer)
    assert watched.repairs()["passes"] - before <= 4


@pytest.mark.skipif(
    os.stat("/proc/self/ns/pid").st_ino != 0xEFFFFFFC,  # PROC_PID_INIT_INO
    reason="nf_tables names threads by their numbers in the first process namespace",
)
def test_its_own_work_is_no_reason(watched: Watched, tmp_path: Path) -> None:
    watched.add("one")
    watched.start()
    config: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "bridge",
        "bridge": "cni1",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {"type": "host-local", "subnet": "10.9.0.0/16", "dataDir": str(tmp_path / "more")},
    }
    space = watched.machines.sandbox()
    time.sleep(QUIET)
    before = watched.repairs()["passes"]
    for _ in range(3):
        added = run_plugin(watched.agent.plugins / "bridge", "ADD", config, CNI_NETNS=space.path)
        assert added.code == 0, added.stdout
        deleted = run_plugin(
            watched.agent.plugins / "bridge",
            "DEL",
            {**config, "prevResult": added.result},
            CNI_NETNS=space.path,
        )
        assert deleted.code == 0, deleted.stdout
        time.sleep(QUIET / 3)
    time.sleep(QUIET)
    assert watched.agent.calls()["bridge", "DEL"] == 3  # it was the agent who did it
    assert watched.repairs()["passes"] == before


@pytest.mark.parametrize(
    "command",
    [
        ["ip", "link", "set", "{veth}", "nomaster"],
        ["ip", "link", "set", "{veth}", "down"],
        ["ip", "address", "flush", "dev", "cni0"],
        ["ip", "link", "delete", "cni0"],
        ["sysctl", "-w", "net.ipv4.ip_forward=0"],
    ],
    ids=" ".join,
)
def test_other_things_that_go(watched: Watched, command: list[str]) -> None:
    watched.add("one")
    watched.start()
    assert watched.answer()
    veth = next(link["ifname"] for link in ip_json("link", "show", "master", "cni0"))
    run_in(None, [word.format(veth=veth) for word in command])
    watched.wait(lambda: watched.repairs()["repaired"] > 0)
    watched.wait(watched.answer)


def test_it_stops_although_an_attachment_is_busy(watched: Watched) -> None:
    """An operation that hangs holds the attachment's lock, which a repair waits for."""
    watched.add("one")
    (lock,) = Path("/run/pycni/attachments").iterdir()
    with lock.open() as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        watched.agent.start(
            "--watch-rules", "--cache-dir", str(watched.cache),
            "--plugin-dir", str(watched.agent.plugins),
        )  # fmt: skip
        watched.agent.stop()  # while it is still held
        assert watched.agent.process is not None
        assert watched.agent.process.returncode == 0


def test_a_namespace_that_somebody_else_has_locked(watched: Watched) -> None:
    """It is repaired, inside too, and the agent ends when it is asked to."""
    watched.plugins.append({"type": "sbr"})
    watched.add("one")
    box = watched.boxes["one"]

    def lose() -> None:
        run_in(box, ["ip", "rule", "del", "from", "10.1.0.2"])
        run_in(None, ["nft", "flush", "ruleset"])

    with held(box.path, *NOBODY):
        watched.start()
        lose()
        watched.wait(watched.answer)
        watched.wait(lambda: "from 10.1.0.2 lookup" in run_in(box, ["ip", "rule"]).stdout)
        assert watched.repairs()["failed"] == 0
        lose()
        watched.agent.stop()
        assert watched.agent.process is not None
        assert watched.agent.process.returncode == 0


def test_an_interface_that_went_is_left_alone(watched: Watched) -> None:
    """A DEL by another process may be at work."""
    watched.add("one")
    watched.start()
    run_in(watched.boxes["one"], ["ip", "link", "delete", "eth0"])
    run_in(None, ["nft", "flush", "ruleset"])
    watched.wait(lambda: watched.repairs()["failed"] > 0)
    assert "eth0" not in [
        link["ifname"] for link in ip_json("link", "show", netns=watched.boxes["one"])
    ]
    assert "port-map" not in run_in(None, ["nft", "list", "ruleset"]).stdout
    assert "it may be on its way out" in watched.agent.stop()
