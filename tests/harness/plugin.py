"""Call plugins as a container runtime does: as processes, or in this process."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pycni import plugins
from pycni.sdk.allowed_paths import VARIABLE
from pycni.sdk.dispatch import serve


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
    *,
    prefix: Sequence[str] = (),
    timeout: float | None = None,
    **env: str | None,
) -> PluginRun:
    """Call the plugin at `path` with a config on stdin.

    `env` are variables of the protocol, such as `CNI_NETNS=sandbox.path`; None takes one away.
    By default the container is `pycni-test`, the interface `eth0` and CNI_PATH the plugin's own
    folder. A config given as text or bytes is passed as it is. prefix: a program, with its
    arguments, that runs it; timeout: seconds, after which subprocess.TimeoutExpired is raised.
    """
    done = subprocess.run(
        [*prefix, os.fspath(path)],
        timeout=timeout,
        input=_stdin(config),
        env=_environ(command, {"CNI_PATH": os.path.dirname(path), **env}),
        capture_output=True,
        check=False,
    )
    return PluginRun(done.returncode, done.stdout.decode(), done.stderr.decode())


def call_plugin(
    path: str | os.PathLike[str],
    command: str,
    config: dict[str, Any] | str | bytes,
    **env: str | None,
) -> PluginRun:
    """The same call of one of our plugins, without a process; so are the plugins it delegates to.

    An executable on CNI_PATH that `pycni install` wrote is not started, all others are.
    """
    plugin = plugins.resolve(os.fspath(path))
    assert plugin is not None, f"{path} is none of our executables"
    done = serve(
        plugin,
        _environ(command, {"CNI_PATH": os.path.dirname(path), **env}),
        lambda: _stdin(config),
        resolve=plugins.resolve,
    )
    return PluginRun(done.code, done.stdout, done.stderr)


def _environ(command: str, given: dict[str, str | None]) -> dict[str, str]:
    variables: dict[str, str | None] = {
        "PATH": os.environ["PATH"],
        VARIABLE: os.environ.get(VARIABLE),
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "pycni-test",
        "CNI_IFNAME": "eth0",
        **given,
    }
    return {name: value for name, value in variables.items() if value is not None}


def _stdin(config: dict[str, Any] | str | bytes) -> bytes:
    if isinstance(config, dict):
        config = json.dumps(config)
    return config.encode() if isinstance(config, str) else config
