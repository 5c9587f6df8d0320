"""The list of what is alive, as senders write it: GC by all three ways of calling plugins.

libcni writes an empty list as null (a nil slice), which is what it sends when nothing is alive.
"""

from __future__ import annotations

from typing import Any

import pytest

from harness import PluginRun, Sandbox, call_plugin, ip_json, run_plugin
from harness.ways import Way, notes

NEW, OLD = "cni.dev/valid-attachments", "cni.dev/attachments"
A = {"containerID": "a", "ifname": "eth0"}
B = {"containerID": "b", "ifname": "eth0"}


def bridge(way: Way) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0", "name": "n", "type": "bridge", "bridge": "br1", "ipMasq": True,
        "isDefaultGateway": True, "ipam": way.host_local("10.61.0.0/24"),
    }  # fmt: skip


def call(way: Way, command: str, config: dict[str, Any], **env: str) -> PluginRun:
    caller = call_plugin if way.name == "in process" else run_plugin
    return caller(way.plugins / "bridge", command, config, **env)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lists", "kept"),
    [
        ({NEW: None, OLD: None}, []),
        ({NEW: None}, []),
        ({OLD: None}, []),
        ({NEW: []}, []),
        ({NEW: None, OLD: [A]}, ["a"]),
        ({NEW: [A], OLD: None}, ["a"]),
        ({NEW: [A, B], OLD: [A, B]}, ["a", "b"]),
        ({}, None),
        ({NEW: [None]}, None),
        ({NEW: [{"containerID": "a", "ifname": None}]}, None),
        ({NEW: False}, None),
    ],
)  # fmt: skip
def test_what_gc_keeps(
    way: Way, sandbox: Sandbox, lists: dict[str, Any], kept: list[str] | None
) -> None:
    """kept: None where the list says nothing that can be relied on: refused, and all stays."""
    boxes = {name: sandbox() for name in ("a", "b")}
    for name, box in boxes.items():
        run = call(way, "ADD", bridge(way), CNI_CONTAINERID=name, CNI_NETNS=box.path)
        assert run.code == 0, run.stdout
    run = call(way, "GC", {**bridge(way), **lists})
    if kept is None:
        assert (run.code, run.result["code"]) == (1, 7)
        kept = ["a", "b"]
    else:
        assert (run.code, run.stdout) == (0, "")
    assert sorted(way.leases("n").values()) == [f"{name}/eth0" for name in kept]
    assert sorted(note["containerID"] for note in notes()) == kept
    for name, box in boxes.items():
        inside = [link["ifname"] for link in ip_json("link", "show", netns=box)]
        assert ("eth0" in inside) == (name in kept)
