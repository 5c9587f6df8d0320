"""No name leads out of its directory: of a plugin, a network, a container, an interface.

Each hostile name goes to whatever makes a path of such a name. It must be refused, nothing may
appear outside of the directory that was meant, and what lies there must not be run or read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import PluginRun
from pycni import plugins
from pycni.runtime import Network, namespaces
from pycni.sdk.dispatch import serve
from pycni.spec.errors import INTERNAL, CNIError
from pycni.state.cache import CachedAttachment, ResultCache
from pycni.state.leases import LeaseStore, networks

HOSTILE = [
    "..", ".", "../outside", "../../outside", "/outside", "a/../../outside", "a/b", "./a",
    "outside\0", "\0", "a\0/../outside", "\n", "a\nb", " ", "..\\outside", "~", "-rf", ".hidden",
    "\u2024\u2024", "%2e%2e%2f", "$(touch outside)", "a;b", "é",
]  # fmt: skip
# An interface's name may be any word.
HOSTILE_INTERFACES = [name for name in HOSTILE if set(name) & set("/\0\n ") or name in (".", "..")]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a trap beside it: a program that leaves a trace if it is run."""
    inside = tmp_path / "inside" / "state"
    inside.mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "inside"):
        trap = folder / "outside"
        trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/trapped\necho '{{}}'\n")
        trap.chmod(0o755)
    return inside


def around(place: Path) -> list[str]:
    """All that is outside of the directory, by path."""
    root = place.parent.parent
    return sorted(str(path) for path in root.rglob("*") if place not in path.parents)


def call(plugin: str, command: str, config: dict[str, Any], **given: str) -> PluginRun:
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "one",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/nowhere",
        "CNI_PATH": "/nowhere",
        **given,
    }
    done = serve(plugins.load(plugin), environ, json.dumps(config).encode)
    return PluginRun(done.code, done.stdout, done.stderr)


def refused(run: PluginRun) -> None:
    assert run.code == 1, run.stdout
    assert run.result["code"] != INTERNAL, run.result


def address_config(place: Path, network: str = "net") -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0",
        "name": network,
        "type": "host-local",
        "ipam": {"type": "host-local", "subnet": "10.4.0.0/24", "dataDir": str(place)},
    }


COMMANDS = ["ADD", "CHECK", "DEL"]


@pytest.mark.parametrize("command", [*COMMANDS, "GC", "STATUS"])
@pytest.mark.parametrize("name", HOSTILE)
def test_network(name: str, command: str, place: Path) -> None:
    before = around(place)
    config = {**address_config(place, name), "cni.dev/valid-attachments": []}
    refused(call("host-local", command, config))
    assert around(place) == before
    assert os.listdir(place) == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", HOSTILE)
def test_container(name: str, command: str, place: Path) -> None:
    before = around(place)
    flannel = {"cniVersion": "1.1.0", "name": "net", "type": "flannel", "dataDir": str(place)}
    tuning = {**flannel, "type": "tuning"}
    for plugin, config in (
        ("host-local", address_config(place)), ("flannel", flannel), ("tuning", tuning),
    ):  # fmt: skip
        refused(call(plugin, command, config, CNI_CONTAINERID=name))
    assert around(place) == before
    assert os.listdir(place) == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", HOSTILE_INTERFACES)
def test_interface(name: str, command: str, place: Path) -> None:
    before = around(place)
    tuning = {"cniVersion": "1.1.0", "name": "net", "type": "tuning", "dataDir": str(place)}
    for plugin, config in (("host-local", address_config(place)), ("tuning", tuning)):
        refused(call(plugin, command, config, CNI_IFNAME=name))
    assert around(place) == before
    assert os.listdir(place) == []


PATHS = [name for name in HOSTILE if "/" in name or "\0" in name or name in (".", "..")]


@pytest.mark.parametrize("kind", PATHS)
def test_plugin_type(kind: str, place: Path, tmp_path: Path) -> None:
    """Of a plugin in a list, of an address plugin, of a delegate: looked for in CNI_PATH only."""
    document = {"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": kind}]}
    for settings in ({}, {"plugin_dirs": [str(place)]}):
        with pytest.raises(CNIError):
            Network.from_dict(document, cache_dir=tmp_path / "cache", **settings).status()
    environment = place / "subnet.env"
    environment.write_text(
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\n"
        "FLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n"
    )
    bridge = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": kind}}
    flannel = {
        "cniVersion": "1.1.0", "name": "net", "type": "flannel", "dataDir": str(place / "flannel"),
        "subnetFile": str(environment), "delegate": {"type": kind},
    }  # fmt: skip
    refused(call("bridge", "STATUS", bridge, CNI_PATH=str(place)))
    for command in ("ADD", "STATUS"):
        refused(call("flannel", command, flannel, CNI_PATH=str(place)))
    (place / "flannel").mkdir(exist_ok=True)
    (place / "flannel" / "one").write_text(json.dumps({**flannel, "type": kind}))
    for command in ("CHECK", "DEL"):
        refused(call("flannel", command, flannel, CNI_PATH=str(place)))
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_cache(name: str, place: Path) -> None:
    before = around(place)
    cache = ResultCache(str(place))
    parts = [(name, "one", "eth0"), ("net", name, "eth0")]
    if name in HOSTILE_INTERFACES:
        parts.append(("net", "one", name))
    for network, container, ifname in parts:
        operations: list[Callable[[], object]] = [
            lambda n=network, c=container, i=ifname: cache.write(CachedAttachment(n, c, i)),
            lambda n=network, c=container, i=ifname: cache.read(n, c, i),
            lambda n=network, c=container, i=ifname: cache.delete(n, c, i),
        ]
        for operation in operations:
            with pytest.raises(CNIError):
                operation()
    assert around(place) == before
    assert os.listdir(place) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_lease_directory(name: str, place: Path) -> None:
    with pytest.raises(CNIError):
        LeaseStore(str(place), name, create=True)
    # A directory that is there under such a name is no network's.
    if not set(name) & set("/\0") and name not in (".", ".."):
        (place / name).mkdir()
        assert networks(str(place)) == []


@pytest.mark.parametrize("name", ["..", ".", "../outside", "/outside", "a/b", "a\0b", ""])
def test_named_namespace(name: str, place: Path) -> None:
    """`ip netns` names of the Python API."""
    before = around(place)
    for operation in (namespaces.create, namespaces.delete):
        with pytest.raises(CNIError):
            operation(name)
    assert around(place) == before


@pytest.mark.parametrize(
    "path", ["../x", "/proc/self/cwd/x", "net/../../etc/x", "net//x", "net/x\0"]
)
def test_sysctl(path: str, place: Path) -> None:
    """A key of tuning stays below /proc/sys/net."""
    tuning = {
        "cniVersion": "1.1.0", "name": "net", "type": "tuning", "dataDir": str(place),
        "sysctl": {path: "1"}, "prevResult": {"cniVersion": "1.1.0"},
    }  # fmt: skip
    refused(call("tuning", "ADD", tuning))
    assert os.listdir(place) == []
