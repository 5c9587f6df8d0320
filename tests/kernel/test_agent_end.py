"""An agent that ends, the next one, and upgrades of the package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from harness import Sandbox, run_plugin
from harness.agent import AgentProcess
from harness.configs import host_local
from harness.topics.callers import LOOPBACK, Caller, held, lock_of, running, version, wait_for
from pycni.agent import server

# --- an agent that ends, and the next ------------------------------------------------------------


def test_a_stopping_agent_takes_no_call_and_lets_the_next_in(
    agent: AgentProcess, tmp_path: Path
) -> None:
    agent.start()
    first = agent.process
    assert first is not None
    with held(lock_of(tmp_path, "a")):
        stuck = Caller(agent, "a", 0)
        wait_for(lambda: running(agent) == 1)
        first.terminate()
        wait_for(lambda: not agent.socket.exists())
        assert version(agent).code == 0
        agent.start()
        assert version(agent).code == 0
        assert agent.calls() == {("loopback", "VERSION"): 1}
        assert first.poll() is None
        assert stuck.is_waiting
    assert stuck.result()["ips"]
    assert first.wait(timeout=20) == 0
    assert agent.answers()  # the socket is its own
    assert version(agent).code == 0


def test_a_socket_that_was_removed_is_the_next_agent_s(agent: AgentProcess) -> None:
    agent.start()
    first = agent.process
    assert first is not None
    agent.socket.unlink()
    agent.start()
    first.terminate()
    assert first.wait(timeout=20) == 0
    assert agent.answers()


# --- an upgrade ----------------------------------------------------------------------------------


@pytest.fixture
def copied(agent: AgentProcess, tmp_path: Path) -> Path:
    """A copy of the package, for an agent whose launchers are of the original."""
    copy = tmp_path / "copy"
    shutil.copytree(Path(server.__file__).parents[1], copy / "pycni")
    agent.start(package=copy)
    return copy / "pycni"


def test_an_upgrade_in_place_mixes_nothing(
    copied: Path, agent: AgentProcess, sandbox: Sandbox, tmp_path: Path
) -> None:
    """Whatever a call needs was loaded before: the files may be anything by now."""
    for path in copied.rglob("*.py"):
        if path != copied / "__init__.py":
            path.write_text("raise SystemExit('of another release')\n")
    space = sandbox()
    bridge = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "bridge",
        "bridge": "br0",
        "isDefaultGateway": True,
        "ipMasq": True,
        "ipam": host_local(tmp_path / "leases", subnet="10.9.0.0/16"),
    }
    portmap = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "portmap",
        "runtimeConfig": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
        },
    }
    tuning = {**LOOPBACK, "cniVersion": "1.1.0", "name": "net", "type": "tuning", "mtu": 1400}
    sbr = {**LOOPBACK, "cniVersion": "1.1.0", "name": "net", "type": "sbr"}
    firewall = {**LOOPBACK, "cniVersion": "1.1.0", "name": "net", "type": "firewall"}
    previous: dict[str, Any] = {}
    served = 0
    plugins = (bridge, portmap, firewall, tuning, sbr)
    for document in plugins:
        run = run_plugin(
            agent.plugins / str(document["type"]),
            "ADD",
            {**document, **previous},
            CNI_NETNS=space.path,
        )
        assert run.code == 0, run
        previous = {"prevResult": run.result}
        served += 1
    for command in ("CHECK", "DEL"):
        for document in plugins if command == "CHECK" else reversed(plugins):
            run = run_plugin(
                agent.plugins / str(document["type"]),
                command,
                {**document, **previous},
                CNI_NETNS=space.path,
            )
            assert run.code == 0, run
            served += 1
    assert sum(agent.calls().values()) == served


def test_an_agent_whose_package_was_replaced_leaves(copied: Path, agent: AgentProcess) -> None:
    assert version(agent).code == 0
    assert sum(agent.calls().values()) == 1
    before = (copied / "__init__.py").read_text()
    (copied / "__init__.py").unlink()
    (copied / "__init__.py").write_text(before)
    assert version(agent).code == 0  # by its launcher
    assert agent.process is not None
    said = agent.process.communicate(timeout=20)[1]
    assert agent.process.returncode == 1
    assert "the package has been replaced" in said
    assert not agent.socket.exists()
