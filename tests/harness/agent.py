"""An agent of a test's own, and the plugin directory whose launchers know it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from pycni.agent import server
from pycni.cli.install import install

PYCNI = Path(sys.executable).parent / "pycni"


class AgentProcess:
    """`plugins` asks it once it was started, and does without it before and afterwards."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "agent" / "agent.sock"
        self.plugins = folder / "bin"
        self.process: subprocess.Popen[str] | None = None
        install(self.plugins, socket=self.socket)

    def start(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [PYCNI, "agent", "--socket", self.socket, *options],
            stderr=subprocess.PIPE,
            text=True,
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

    def calls(self) -> dict[tuple[str, str], int]:
        """How many calls it has served, by plugin and command."""
        state = json.loads(server.ask(self.socket))
        return {(row["plugin"], row["command"]): row["count"] for row in state["calls"]}

    def refused(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(server.ask(self.socket))["refused"]
        return found
