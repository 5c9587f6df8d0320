"""A minimal libcni, as containerd and podman use it: what is passed, in which order, and the cache.

ADD goes forward and stops at the first failure, undoing nothing. DEL goes backward by today's list
with the cached result as prevResult, stops at the first failure and keeps the cache entry then. GC
deletes what the cache has and the list has not, by today's list, then calls the plugins. Plugins
are the first executables found in the directories. Written from the behaviour of release 1.3.0.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sequences.lab import CACHE


class PluginError(Exception):
    """A plugin failed: its code and words."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Libcni:
    """Operations on networks, whose configuration lists are given with each call."""

    def __init__(self, directories: Iterable[str | os.PathLike[str]], cache: Path = CACHE) -> None:
        self._directories = [os.fspath(directory) for directory in directories]
        self._cache = cache

    def add(
        self,
        network: Mapping[str, Any],
        container: str,
        netns: str,
        interface: str,
        capabilities: Mapping[str, Any],
    ) -> Any:
        result: Any = None
        for plugin in network["plugins"]:
            document = _document(network, plugin, result, capabilities)
            result = self._call(plugin["type"], "ADD", document, container, netns, interface)
        entry = {
            "kind": "cniCacheV1",
            "containerId": container,
            "config": base64.b64encode(json.dumps(network).encode()).decode(),
            "ifName": interface,
            "networkName": network["name"],
            "netns": netns,
            "capabilityArgs": capabilities,
            "result": result,
        }
        self._cache.mkdir(parents=True, exist_ok=True)
        kept = {key: value for key, value in entry.items() if value not in ({}, "")}
        self._file(network, container, interface).write_text(json.dumps(kept))
        return result

    def delete(
        self,
        network: Mapping[str, Any],
        container: str,
        netns: str,
        interface: str,
        capabilities: Mapping[str, Any],
    ) -> None:
        result = self._result(network, container, interface)
        for plugin in reversed(network["plugins"]):
            document = _document(network, plugin, result, capabilities)
            self._call(plugin["type"], "DEL", document, container, netns, interface)
        self._file(network, container, interface).unlink(missing_ok=True)

    def check(
        self,
        network: Mapping[str, Any],
        container: str,
        netns: str,
        interface: str,
        capabilities: Mapping[str, Any],
    ) -> None:
        result = self._result(network, container, interface)
        for plugin in network["plugins"]:
            document = _document(network, plugin, result, capabilities)
            self._call(plugin["type"], "CHECK", document, container, netns, interface)

    def gc(self, network: Mapping[str, Any], keep: Iterable[tuple[str, str]]) -> None:
        """keep: container ids and interfaces. Goes on after failures, and raises them together."""
        living = set(keep)
        failures = []
        for entry in self._entries(network["name"]):
            name = entry["containerId"], entry["ifName"]
            if name in living:
                continue
            try:
                self.delete(
                    network, name[0], entry.get("netns", ""), name[1],
                    entry.get("capabilityArgs", {}),
                )  # fmt: skip
            except PluginError as error:
                failures.append(str(error))
        if _version(network) >= (1, 1, 0):
            # An empty list is a nil slice there, and null on the wire.
            kept = [{"containerID": one, "ifname": two} for one, two in sorted(living)] or None
            valid = {"cni.dev/valid-attachments": kept, "cni.dev/attachments": kept}
            for plugin in network["plugins"]:
                document = {**_document(network, plugin, None, {}), **valid}
                try:
                    self._call(plugin["type"], "GC", document, "", "", "")
                except PluginError as error:
                    failures.append(str(error))
        if failures:
            raise PluginError(0, "; ".join(failures))

    def _call(
        self, kind: str, command: str, document: Any, container: str, netns: str, interface: str
    ) -> Any:
        found = [
            path
            for directory in self._directories
            if os.path.isfile(path := os.path.join(directory, kind))
        ]
        if not found:
            raise PluginError(0, f'failed to find plugin "{kind}" in path {self._directories}')
        environ = {
            **os.environ,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_ARGS": "",
            "CNI_IFNAME": interface,
            "CNI_PATH": ":".join(self._directories),
        }
        done = subprocess.run(
            [found[0]],
            input=json.dumps(document).encode(),
            env=environ,
            capture_output=True,
            check=False,
        )
        if done.returncode == 0:
            return json.loads(done.stdout) if command == "ADD" else None
        try:
            said = json.loads(done.stdout)
        except ValueError:
            raise PluginError(0, f"{kind}: {done.stdout!r} {done.stderr!r}") from None
        words = f"{said.get('msg')}; {said.get('details', '')}".rstrip("; ")
        raise PluginError(said.get("code", 0), f'plugin type="{kind}" failed ({command}): {words}')

    def _file(self, network: Mapping[str, Any], container: str, interface: str) -> Path:
        return self._cache / f"{network['name']}-{container}-{interface}"

    def _result(self, network: Mapping[str, Any], container: str, interface: str) -> Any:
        try:
            return json.loads(self._file(network, container, interface).read_text())["result"]
        except (OSError, KeyError):
            return None

    def _entries(self, network: str) -> list[Any]:
        if not self._cache.is_dir():
            return []
        entries = [json.loads(path.read_text()) for path in sorted(self._cache.iterdir())]
        return [entry for entry in entries if entry.get("networkName") == network]


def _version(network: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in network["cniVersion"].split("."))


def _document(
    network: Mapping[str, Any], plugin: Any, result: Any, capabilities: Mapping[str, Any]
) -> Any:
    document = {**plugin, "name": network["name"], "cniVersion": network["cniVersion"]}
    if result is not None:
        document["prevResult"] = result
    declared = plugin.get("capabilities", {})
    wanted = {name: value for name, value in capabilities.items() if declared.get(name)}
    if wanted:
        document["runtimeConfig"] = wanted
    return document
