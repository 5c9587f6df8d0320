"""An agent of a test's own, and the plugin directory whose launchers know it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pycni.agent import server
from pycni.agent.executables import install

TIMEOUT_MS = 60_000  # however slow the machine, an agent that can begin will
PYCNI = Path(sys.executable).parent / "pycni"


def socket_in(folder: Path) -> Path:
    """Where an agent of this folder listens."""
    return folder / "agent" / "agent.sock"


class AgentProcess:
    """`plugins` asks it once it was started, and does without it before and afterwards."""

    def __init__(self, folder: Path, begin_ms: int = TIMEOUT_MS) -> None:
        self.socket = socket_in(folder)
        self.plugins = folder / "bin"
        self.process: subprocess.Popen[str] | None = None
        install(self.plugins, socket=self.socket, begin_ms=begin_ms)

    def start(self, *options: str, limit: str = "", package: Path | None = None) -> None:
        """limit: of `ulimit`, for the agent; package: a folder to import pycni from."""
        argv: list[str] = [str(PYCNI), "agent", "--socket", str(self.socket), *options]
        environ = {**os.environ, "PYTHONPATH": str(package)} if package else None
        self.process = subprocess.Popen(
            ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *argv] if limit else argv,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        )
        while not self.answers():
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.01)

    def answers(self) -> bool:
        try:
            server.ask(self.socket)
        except OSError:
            return False
        return True

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def stop(self) -> str:
        """End it as systemd does; what it wrote to stderr."""
        assert self.process is not None
        self.process.terminate()
        return self.process.communicate(timeout=20)[1]

    def state(self) -> dict[str, Any]:
        """What it says of itself, however long that takes on a busy machine."""
        while True:
            try:
                found: dict[str, Any] = json.loads(server.ask(self.socket))
            except TimeoutError:
                continue
            return found

    def calls(self) -> dict[tuple[str, str], int]:
        """How many calls it has served, by plugin and command."""
        return {(row["plugin"], row["command"]): row["count"] for row in self.state()["calls"]}

    def refused(self) -> dict[str, int]:
        found: dict[str, int] = self.state()["refused"]
        return found
