"""Plugins from the directory beside a list: they are part of what CHECK, DEL and repair go by.

Also where the directory has gone since, and where a runtime of others noted the list as it stands
in its file, without them. Each by all three ways of calling plugins.
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness import Sandbox, nft_list, run_in
from harness.ways import Way, notes, ports_of
from pycni.runtime import Network, PluginError
from pycni.runtime.repair import inspect_all, repair_all

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables"}
PORTS = ports_of((8080, 80))

# Which plugins stand in the list itself.
INLINED = pytest.mark.parametrize("inlined", [1, 0], ids=["one beside", "all beside"])


def settings(way: Way) -> dict[str, Any]:
    found: dict[str, Any] = {"cache_dir": way.folder / "cni"}
    if way.name != "in process":
        found |= {"plugin_dirs": way.plugins, "engine": "exec"}
    return found


def configure(way: Way, inlined: int) -> Path:
    """Write bridge and portmap, the first `inlined` of them into the list."""
    bridge = {
        "type": "bridge", "bridge": "br1", "isDefaultGateway": True, "ipMasq": True,
        "ipam": way.host_local("10.61.0.0/24"),
    }  # fmt: skip
    folder = way.folder / "net.d"
    (folder / "n").mkdir(parents=True)
    plugins = [bridge, PORTMAP]
    for index, plugin in enumerate(plugins[inlined:]):
        (folder / "n" / f"{index}.conf").write_text(json.dumps(plugin))
    document: dict[str, Any] = {"cniVersion": "1.1.0", "name": "n"}
    if inlined:
        document["plugins"] = plugins[:inlined]
    (folder / "n.conflist").write_text(json.dumps(document))
    return folder


def as_libcni_notes(way: Way, folder: Path) -> None:
    """Have the cache hold the list as it stands in its file."""
    path = way.folder / "cni/results/n-a-eth0"
    cached = json.loads(path.read_text())
    cached["config"] = base64.b64encode((folder / "n.conflist").read_bytes()).decode()
    path.write_text(json.dumps(cached))


def has_port() -> bool:
    return "8080" in str(nft_list())


def left_over(way: Way) -> tuple[Any, ...]:
    return has_port(), way.leases("n"), way.cached(), notes()


@INLINED
def test_after_the_directory_has_gone(way: Way, sandbox: Sandbox, inlined: int) -> None:
    folder = configure(way, inlined)
    box = sandbox()
    Network.load("n", conf_dir=folder, **settings(way)).add("a", box.path, capabilities=PORTS)
    shutil.rmtree(folder)
    run_in(None, ["nft", "flush", "ruleset"])
    (found,) = inspect_all(**settings(way))
    assert {step.plugin for step in found.steps} == {"bridge", "portmap"}
    assert any(step.differences for step in found.steps if step.plugin == "portmap")
    (report,) = repair_all(**settings(way))
    assert report.ok, report.findings
    assert has_port()
    known = Network.from_cache("n", "a", **settings(way))
    assert known is not None
    known.delete("a")
    assert left_over(way) == (False, {}, [], [])


@INLINED
def test_what_a_runtime_of_others_noted(way: Way, sandbox: Sandbox, inlined: int) -> None:
    folder = configure(way, inlined)
    network = Network.load("n", conf_dir=folder, **settings(way))
    box = sandbox()
    network.add("a", box.path, capabilities=PORTS)
    as_libcni_notes(way, folder)
    network.check("a")
    run_in(None, ["nft", "flush", "ruleset"])
    with pytest.raises(PluginError):
        network.check("a")
    (report,) = network.repair()
    assert report.ok, report.findings
    assert has_port()
    network.check("a")
    network.delete("a")
    assert left_over(way) == (False, {}, [], [])


def test_what_a_runtime_of_others_noted_after_the_directory_has_gone(
    way: Way, sandbox: Sandbox
) -> None:
    """Nothing says then that there were others, but for what they noted."""
    folder = configure(way, 1)
    box = sandbox()
    Network.load("n", conf_dir=folder, **settings(way)).add("a", box.path, capabilities=PORTS)
    as_libcni_notes(way, folder)
    known = Network.from_cache("n", "a", **settings(way))
    assert known is not None
    known.delete("a")
    assert left_over(way) == (False, {}, [], [])


def test_a_list_that_was_edited(way: Way, sandbox: Sandbox) -> None:
    """What is inlined is that of the ADD, what stands beside it that of today."""
    folder = configure(way, 1)
    box = sandbox()
    Network.load("n", conf_dir=folder, **settings(way)).add("a", box.path, capabilities=PORTS)
    as_libcni_notes(way, folder)
    path = folder / "n.conflist"
    document = json.loads(path.read_text())
    document["plugins"][0]["ipMasq"] = False
    path.write_text(json.dumps(document))
    network = Network.load("n", conf_dir=folder, **settings(way))
    run_in(None, ["nft", "flush", "ruleset"])
    (report,) = network.repair()
    assert report.ok, report.findings
    assert has_port()
    assert "10.61.0.2" in str(nft_list())
    network.check("a")
    network.delete("a")
    assert left_over(way) == (False, {}, [], [])
