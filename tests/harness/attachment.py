"""One attachment of a test: its network, container and interface, and the calls about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.host import run_in
from harness.kernel_state import link
from harness.namespaces import Namespace
from harness.plugin import PluginRun, call_plugin

Attach = Callable[..., "Attachment"]  # what makes one, not yet added


@dataclass
class Attachment:
    """Calls of one plugin for one attachment; `call` is `call_plugin` or `run_plugin`.

    plugin: the executable; path: CNI_PATH, by default the plugin's folder. `result` is what the
    last ADD gave, handed on as prevResult from then on.
    """

    plugin: Path
    config: dict[str, Any]
    sandbox: Namespace | None
    container: str = "pycni-test"
    ifname: str = "eth0"
    args: str | None = None
    path: str | None = None
    call: Callable[..., PluginRun] = call_plugin
    result: Any = None
    env: dict[str, str | None] = field(default_factory=dict)

    def run(self, command: str, **keys: Any) -> PluginRun:
        """One call, however it ends; `keys` are added to the configuration."""
        return self.call(
            self.plugin,
            command,
            {**self.config, **keys},
            **{
                "CNI_CONTAINERID": self.container,
                "CNI_IFNAME": self.ifname,
                "CNI_NETNS": self.sandbox.path if self.sandbox else None,
                "CNI_ARGS": self.args,
                "CNI_PATH": self.path or os.fspath(self.plugin.parent),
                **self.env,
            },
        )

    def add(self) -> Any:
        """ADD; returns and remembers the result."""
        run = self.run("ADD")
        assert run.code == 0, run.stdout + run.stderr
        self.result = run.result
        return self.result

    def check(self) -> None:
        """CHECK, with the last result; must find nothing."""
        run = self.run("CHECK", **self._previous())
        assert (run.code, run.stdout) == (0, ""), run.stdout

    def drift(self) -> str:
        """CHECK, with the last result; must find something. Returns its message."""
        run = self.run("CHECK", **self._previous())
        assert run.code == 1, "CHECK found nothing"
        message: str = run.result["msg"]
        return message

    def drifts_by(self, damage: str, words: str) -> None:
        """ADD, and a change by `ip` in the sandbox, which CHECK must describe with these words."""
        self.add()
        self.check()
        assert self.sandbox is not None
        run_in(None, ["ip", "-n", self.sandbox.name, *damage.split()])
        assert words in self.drift()

    def delete(self) -> None:
        """DEL, with the last result if there is one."""
        run = self.run("DEL", **self._previous())
        assert (run.code, run.stdout) == (0, ""), run.stdout + run.stderr

    def link(self) -> dict[str, Any]:
        """What `ip -d` shows of its interface."""
        return link(self.ifname, self.sandbox)

    def refused(self, command: str = "ADD") -> Any:
        """A call that must fail; returns the error object."""
        run = self.run(command, **self._previous())
        assert run.code == 1, run.stdout
        return run.result

    def _previous(self) -> dict[str, Any]:
        return {} if self.result is None else {"prevResult": self.result}
