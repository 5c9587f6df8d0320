"""The three ways of calling the same plugins: in process, as processes, by an agent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.agent import AgentProcess
from pycni.runtime import Network

WAYS = ("in process", "cold", "agent")


@dataclass
class Way:
    """How plugins are called, and the state of the networks of one test.

    plugins: the directory of executables, for calls without the runtime.
    """

    name: str
    folder: Path
    plugins: Path

    def network(self, name: str, *plugins: dict[str, Any], version: str = "1.1.0") -> Network:
        """A network with these plugins, whose leases and cache are below the folder."""
        document = {"cniVersion": version, "name": name, "plugins": list(plugins)}
        settings: dict[str, Any] = {"cache_dir": self.folder / "cni"}
        if self.name != "in process":
            settings |= {"plugin_dirs": self.plugins, "engine": "exec"}
        return Network.from_dict(document, **settings)

    def host_local(self, subnet: str, **keys: Any) -> dict[str, Any]:
        """The `ipam` of a plugin."""
        data_dir = str(self.folder / "cni/networks")
        return {"type": "host-local", "dataDir": data_dir, "ranges": [[{"subnet": subnet}]], **keys}

    def leases(self, network: str) -> dict[str, str]:
        """Who has which address."""
        folder = self.folder / "cni/networks" / network
        found = [path for path in folder.glob("*") if path.name[:1].isdigit() or ":" in path.name]
        return {path.name: path.read_bytes().decode().replace("\r\n", "/") for path in found}

    def cached(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "cni/results").glob("*"))


@contextmanager
def way_of(name: str, folder: Path, plugin_dir: Path) -> Iterator[Way]:
    """One of WAYS; the agent runs until the end of the block."""
    if name != "agent":
        yield Way(name, folder, plugin_dir)
        return
    process = AgentProcess(folder)
    process.start()
    try:
        yield Way(name, folder, process.plugins)
    finally:
        process.stop()


def ports_of(*pairs: tuple[int, int], protocol: str = "tcp") -> dict[str, Any]:
    """Capability arguments that publish host ports."""
    return {
        "portMappings": [
            {"hostPort": outer, "containerPort": inner, "protocol": protocol}
            for outer, inner in pairs
        ]
    }


def notes() -> list[dict[str, Any]]:
    """What is noted of attachments on this host."""
    folder = Path("/run/pycni/attachments")
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*"))]
