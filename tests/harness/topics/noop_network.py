"""A network of noops, which note what they are asked and answer what they were given."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from pycni.runtime import Network

CONTAINER = "some-container-id"


NETNS = "/some/netns/path"


IFNAME = "some-eth0"


ARGS = (("A", "B"), ("C", "D"))


CAPABILITIES = {"portMappings": [{"hostPort": 8080, "containerPort": 80}], "unasked": 1}


ADDRESS = "10.1.2.3/24"


class Lab:
    """A network of noops, and what they were asked."""

    def __init__(self, folder: Path, plugin_dir: Path, engine: str) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.cache = folder / "cache"
        self.plugin_dir = plugin_dir
        self.engine = engine
        self.log.touch()

    def network(self, version: str = "1.1.0", number: int = 3, **keys: Any) -> Network:
        address = {"address": ADDRESS}
        if version < "1.0.0":
            address["version"] = "4"
        result = {"cniVersion": version, "ips": [address]}
        reports = [json.dumps(result), "PASSTHROUGH", "INJECT-DNS"]
        plugins = []
        for index in range(number):
            self.say(index, ReportResult=reports[index])
            plugins.append(
                {
                    "type": "noop",
                    "debugFile": str(self.debug(index)),
                    "commandLog": str(self.log),
                    "index": index,
                    "capabilities": {"portMappings": index == 0, "mac": True},
                }
            )
        document = {"cniVersion": version, "name": "lab", "plugins": plugins, **keys}
        return Network.from_dict(
            document, plugin_dirs=self.plugin_dir, engine=self.engine, cache_dir=self.cache
        )

    def debug(self, index: int) -> Path:
        return self.folder / f"debug-{index}"

    def say(self, index: int, **keys: Any) -> None:
        """What a noop is to answer from now on, in addition."""
        path = self.debug(index)
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, **keys}))

    def hush(self) -> None:
        """Have the noops answer nothing from now on: GC and STATUS hand them no result."""
        for index in range(3):
            self.say(index, ReportResult="")

    def calls(self) -> list[tuple[str, int]]:
        """Operation and index of each call so far; forgets them."""
        return [(entry["Command"], stdin["index"]) for entry, stdin in self.entries()]

    def entries(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        text = self.log.read_text()
        self.log.write_text("")
        return [
            (entry, json.loads(base64.b64decode(entry["CmdArgs"]["StdinData"])))
            for entry in (json.loads(text) if text else [])
        ]

    def cached(self) -> list[str]:
        folder = self.cache / "results"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture(params=["auto", "exec"])
def lab(request: pytest.FixtureRequest, tmp_path: Path, plugin_dir: Path) -> Lab:
    return Lab(tmp_path, plugin_dir, request.param)


def add(network: Network, ifname: str = IFNAME, **options: Any) -> Any:
    return network.add(CONTAINER, NETNS, ifname, args=ARGS, capabilities=CAPABILITIES, **options)
