"""Run a plugin's executable as a container runtime does."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PluginRun:
    """How one call ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> Any:
        """What stdout holds, parsed: a result, an error object, or None when it is empty."""
        return json.loads(self.stdout) if self.stdout.strip() else None


def run_plugin(
    path: str | os.PathLike[str],
    command: str,
    config: dict[str, Any] | str | bytes,
    **env: str | None,
) -> PluginRun:
    """Call the plugin at `path` with a config on stdin.

    `env` are variables of the protocol, such as `CNI_NETNS=sandbox.path`; None takes one away.
    By default the container is `pycni-test`, the interface `eth0` and CNI_PATH the plugin's own
    folder. A config given as text or bytes is passed as it is.
    """
    variables: dict[str, str | None] = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "pycni-test",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": os.path.dirname(path),
        **env,
    }
    if isinstance(config, dict):
        config = json.dumps(config)
    if isinstance(config, str):
        config = config.encode()
    done = subprocess.run(
        [os.fspath(path)],
        input=config,
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        check=False,
    )
    return PluginRun(done.returncode, done.stdout.decode(), done.stderr.decode())
