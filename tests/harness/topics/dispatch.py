"""Calls by the dispatcher, of plugins that record what they are asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pycni.sdk.dispatch import Outcome, serve
from pycni.sdk.plugin import Plugin
from pycni.sdk.request import Request
from pycni.spec import versions
from pycni.spec.config import Attachment
from pycni.spec.ip import parse_network
from pycni.spec.result import IPConfig, Result

ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "some-container-id",
    "CNI_NETNS": "/nowhere/netns",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "some;extra;args",
    "CNI_PATH": "/some/cni/path:/other",
}


CONFIG = {"name": "skel-test", "some": "config", "cniVersion": "1.1.0"}


class Recorder(Plugin):
    """Remembers its calls; does what it is asked to."""

    type = "recorder"

    def __init__(self, action: Callable[[], None] = lambda: None) -> None:
        self.calls: list[tuple[str, Request]] = []
        self.kept: frozenset[Attachment] | None = None
        self.action = action

    def _called(self, command: str, request: Request) -> None:
        self.calls.append((command, request))
        self.action()

    def add(self, request: Request) -> Result:
        self._called("ADD", request)
        return Result(ips=(IPConfig(address=parse_network("10.1.0.2/24")),))

    def check(self, request: Request) -> None:
        self._called("CHECK", request)

    def delete(self, request: Request) -> None:
        self._called("DEL", request)

    def gc(self, request: Request, keep: frozenset[Attachment]) -> None:
        self._called("GC", request)
        self.kept = keep

    def status(self, request: Request) -> None:
        self._called("STATUS", request)


def call(
    plugin: Plugin, command: str | None, config: Any = None, **env: str | None
) -> tuple[Outcome, Any]:
    """Serve one call; the outcome, and its stdout parsed."""
    given = {**ENVIRON, "CNI_COMMAND": command, **env}
    document = config if isinstance(config, bytes) else json.dumps(config or CONFIG).encode()
    outcome = serve(
        plugin,
        {name: value for name, value in given.items() if value is not None},
        lambda: document,
    )
    return outcome, json.loads(outcome.stdout) if outcome.stdout else None


def refused(plugin: Recorder, command: str | None, config: Any = None, **env: str | None) -> Any:
    """The error object of a call that must fail, before the plugin is reached; no cniVersion."""
    outcome, answer = call(plugin, command, config, **env)
    assert outcome.code == 1
    assert plugin.calls == []
    assert answer.pop("cniVersion") in versions.ALL
    return answer


def gc_config(**more: Any) -> dict[str, Any]:
    return {**CONFIG, "cni.dev/valid-attachments": [], **more}


CONFIGS: dict[str, dict[str, Any]] = {
    "ADD": CONFIG,
    "CHECK": CONFIG,
    "DEL": CONFIG,
    "GC": gc_config(),
    "STATUS": CONFIG,
}
