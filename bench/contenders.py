"""Who does the work: plugins as processes from a directory, or our plugins in this process."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pycni.plugins import load, resolve
from pycni.sdk.dispatch import serve


class Contender:
    """One way of calling plugins; `name` heads its columns in the table."""

    name: str
    directory: Path

    def call(self, command: str, config: dict[str, Any], attachment: Attachment) -> Any:
        """One call of the plugin that the config names; its result. Fails the run on an error."""
        code, stdout = self._call(config["type"], self._environ(command, attachment), config)
        if code != 0:
            raise RuntimeError(f"{self.name}: {command} {config['type']}: {stdout}")
        return json.loads(stdout) if stdout else None

    def _environ(self, command: str, attachment: Attachment) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": attachment.container_id,
            "CNI_NETNS": attachment.netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.directory),
        }

    def _call(self, plugin: str, environ: dict[str, str], config: Any) -> tuple[int, str]:
        raise NotImplementedError


class Attachment:
    """A container to attach: its id and its namespace's path."""

    def __init__(self, container_id: str) -> None:
        self.container_id = container_id
        self.netns = f"/run/netns/{container_id}"


class Processes(Contender):
    """A process for each call, as a container runtime does it."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory

    def _call(self, plugin: str, environ: dict[str, str], config: Any) -> tuple[int, str]:
        done = subprocess.run(
            [self.directory / plugin],
            input=json.dumps(config),
            env=environ,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout


class WithAgent(Processes):
    """The same with an agent of our own behind the launcher; it ends with the benchmark."""

    def __init__(self, name: str, directory: Path, socket: Path) -> None:
        super().__init__(name, directory)
        program = Path(sys.executable).parent / "pycni"
        self._agent = subprocess.Popen([program, "agent", "--socket", socket])
        atexit.register(self._agent.terminate)
        while not socket.exists():
            if self._agent.poll() is not None:
                raise RuntimeError("the agent did not start")
            time.sleep(0.05)


class InProcess(Contender):
    """A function call, with the same environment and stdin."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory

    def _call(self, plugin: str, environ: dict[str, str], config: Any) -> tuple[int, str]:
        stdin = json.dumps(config).encode()
        outcome = serve(load(plugin), environ, lambda: stdin, resolve=resolve)
        return outcome.code, outcome.stdout
