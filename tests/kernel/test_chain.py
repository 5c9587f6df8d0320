"""A list of plugins, as a runtime works through it: each CHECK bears with what came later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, Sandbox, ip_json, run_in, snapshot

PLUGINS: list[dict[str, Any]] = [
    {"type": "bridge", "bridge": "br0", "isDefaultGateway": True, "ipMasq": True, "mtu": 1450},
    {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
    {"type": "sbr", "addSourceHints": False},
    {
        "type": "bandwidth",
        "ingressRate": 10**8,
        "ingressBurst": 10**7,
        "egressRate": 10**8,
        "egressBurst": 10**7,
    },
]


@pytest.fixture
def attach(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> Callable[[int], list[Attachment]]:
    def make(number: int) -> list[Attachment]:
        ranges = [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]
        ipam = {"type": "host-local", "dataDir": str(tmp_path / "leases"), "ranges": ranges}
        inside = sandbox()
        chain = []
        for keys in PLUGINS:
            config = {"cniVersion": "1.1.0", "name": "net", **keys}
            if keys["type"] == "bridge":
                config["ipam"] = ipam
            elif keys["type"] == "tuning":
                mac = f"0a:58:0a:00:00:0{number}"
                config |= {"dataDir": str(tmp_path / "tuning"), "mac": mac}
            chain.append(Attachment(plugin_dir / keys["type"], config, inside, f"box-{number}"))
        return chain

    return make


def add(chain: list[Attachment]) -> None:
    result = None
    for one in chain:
        if result is not None:
            one.config["prevResult"] = result
        result = one.add()
    for one in chain:
        one.result = result


@pytest.mark.parametrize("gone", ["nothing", "namespace", "result"])
def test_add_check_delete(attach: Callable[[int], list[Attachment]], gone: str) -> None:
    first, second = attach(1), attach(2)
    add(first)
    before = snapshot()
    add(second)
    address = second[0].result["ips"][0]["address"].partition("/")[0]
    run_in(first[0].sandbox, ["ping", "-c1", "-W2", "-I", "10.1.2.2", address])
    for one in [*first, *second]:
        one.check()
    sandbox = second[0].sandbox
    assert sandbox is not None
    if gone == "namespace":
        sandbox.delete()
    for one in reversed(second):
        if gone != "nothing":
            one.result = None
            one.config.pop("prevResult", None)
        one.delete()
        one.delete()
    after = snapshot()
    assert {key for key in before if before[key] != after[key]} == set()
    if gone != "namespace":
        assert ip_json("link", netns=sandbox)[1:] == []
        assert ip_json("-4", "rule", netns=sandbox)[0]["table"] == "local"
        assert len(ip_json("-4", "rule", netns=sandbox)) == 3
    for one in first:
        one.check()


def test_gc_of_every_plugin(attach: Callable[[int], list[Attachment]], tmp_path: Path) -> None:
    first, second = attach(1), attach(2)
    add(first)
    before = snapshot(tmp_path / "tuning")
    add(second)
    assert second[0].sandbox is not None
    second[0].sandbox.delete()
    valid = [{"containerID": "box-1", "ifname": "eth0"}]
    for one in first:
        run = one.run("GC", **{"cni.dev/valid-attachments": valid})
        assert (run.code, run.stdout) == (0, "")
    after = snapshot(tmp_path / "tuning")
    assert {key for key in before if before[key] != after[key]} == set()
    for one in first:
        one.check()
