"""Callers of the agent that stop, go away, or are held."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import PluginRun, run_plugin
from harness.agent import AgentProcess
from pycni.agent.executables import LAUNCHER, install

LOOPBACK = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}


def leases(tmp_path: Path, network: str) -> list[str]:
    folder = tmp_path / "leases" / network
    return [name for name in os.listdir(folder) if name[0].isdigit()] if folder.exists() else []


class Caller:
    """A launcher that was started, for an address plugin's network of this name."""

    def __init__(
        self, agent: AgentProcess, network: str, number: int, command: str = "ADD"
    ) -> None:
        folder = agent.socket.parents[1] / "leases"
        document = {
            "cniVersion": "1.1.0",
            "name": network,
            "type": "host-local",
            "ipam": {"type": "host-local", "subnet": "10.9.0.0/16", "dataDir": str(folder)},
        }
        self.process = subprocess.Popen(
            [agent.plugins / "host-local"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": f"c{number}",
                "CNI_NETNS": "/nowhere",
                "CNI_IFNAME": "eth0",
                "CNI_PATH": str(agent.plugins),
            },
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(document).encode())
        self.process.stdin.close()

    @property
    def is_waiting(self) -> bool:
        return self.process.poll() is None

    def result(self) -> Any:
        assert self.process.stdout is not None
        output = self.process.stdout.read()
        assert self.process.wait() == 0, output
        return json.loads(output) if output else None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """A lock file that somebody else has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def lock_of(tmp_path: Path, network: str) -> Path:
    return tmp_path / "leases" / network / "lock"


def running(agent: AgentProcess) -> int:
    """How many calls are at work."""
    found: int = agent.state()["running"]
    return found


def wait_for(ready: Callable[[], bool]) -> None:
    for _ in range(3000):
        if ready():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come")


def version(agent: AgentProcess) -> PluginRun:
    return run_plugin(agent.plugins / "loopback", "VERSION", LOOPBACK)


@contextmanager
def in_the_agents_place(folder: Path, backlog: int = 10) -> Iterator[socket.socket]:
    """A socket that listens where the launchers in `folder / "bin"` look for their agent."""
    if not LAUNCHER.is_file():
        pytest.skip("the launcher was not compiled")
    path = folder / "agent.sock"
    install(folder / "bin", socket=path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(backlog)
        yield listener


def ask_version(folder: Path) -> subprocess.Popen[str]:
    """Start a launcher that asks for the versions of loopback."""
    return subprocess.Popen(
        [folder / "bin" / "loopback"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={"CNI_COMMAND": "VERSION", "CNI_PATH": "/"},
        text=True,
    )
