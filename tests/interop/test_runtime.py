"""Lists that mix our plugins with the reference's, and the cache as libcni has it.

The reference is Debian's package, release 1.1.1, which speaks the specification up to 1.0.0.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Sandbox, ip_json, run_in, run_plugin
from harness.configs import host_local
from harness.reference import comparable
from pycni.runtime import Network
from pycni.spec.result import encode_result

TYPES = ("bridge", "host-local", "bandwidth", "tuning")
LIMITS = {"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000}}

MIXTURES = {
    "ours-first": ("bridge", "host-local"),
    "ours-second": ("bandwidth", "tuning"),
    "ours-address": ("host-local",),
    "ours-last": ("tuning",),
    "all-ours": TYPES,
    "none-ours": (),
}


@pytest.fixture
def mixture(
    tmp_path: Path, plugin_dir: Path, reference_dir: Path
) -> Callable[[Sequence[str]], Path]:
    """A directory of plugins: ours for these types, the reference's for all others."""

    def make(ours: Sequence[str]) -> Path:
        directory = tmp_path / ("bin-" + "-".join(ours))
        directory.mkdir()
        for name in TYPES:
            source = plugin_dir if name in ours else reference_dir
            (directory / name).symlink_to(source / name)
        return directory

    return make


def document(tmp_path: Path) -> dict[str, Any]:
    return {
        "cniVersion": "1.0.0",
        "name": "mixed",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "br0",
                "isDefaultGateway": True,
                "ipam": host_local(tmp_path / "leases", "10.8.0.0/24", "fd00:8::/64"),
            },
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "mtu": 1400},
        ],
    }


def network(tmp_path: Path, directory: Path, engine: str = "auto") -> Network:
    return Network.from_dict(
        document(tmp_path), plugin_dirs=directory, engine=engine, cache_dir=tmp_path / "cache"
    )


def limits() -> list[str]:
    """What is limited on the host."""
    return [line for line in run_in(None, ["tc", "qdisc"]).stdout.splitlines() if " tbf " in line]


def leases(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "leases/mixed").glob("10.*"))


@pytest.mark.parametrize("engine", ["auto", "exec"])
@pytest.mark.parametrize("ours", MIXTURES.values(), ids=MIXTURES)
def test_mixed_lists(
    host: Host,
    sandbox: Sandbox,
    tmp_path: Path,
    mixture: Callable[[Sequence[str]], Path],
    ours: Sequence[str],
    engine: str,
) -> None:
    lab, box = network(tmp_path, mixture(ours), engine), sandbox()
    result = lab.add("box", box.path, capabilities=LIMITS)
    assert [str(entry.address) for entry in result.ips] == ["10.8.0.2/24", "fd00:8::2/64"]
    assert result.cni_version == "1.0.0"
    assert leases(tmp_path) == ["10.8.0.2"]
    assert len(limits()) == 1
    (link,) = ip_json("link", "show", "dev", "eth0", netns=box)
    assert link["mtu"] == 1400
    assert run_in(box, ["sysctl", "-n", "net.core.somaxconn"]).stdout == "500\n"
    lab.check("box")
    lab.gc([("box", "eth0")])
    lab.check("box")
    lab.delete("box")
    assert [item["ifname"] for item in ip_json("link", netns=box)] == ["lo"]
    assert limits() == []
    assert leases(tmp_path) == []
    assert list((tmp_path / "cache/results").iterdir()) == []
    lab.delete("box")


def test_one_mixture_follows_another(
    host: Host,
    sandbox: Sandbox,
    tmp_path: Path,
    mixture: Callable[[Sequence[str]], Path],
) -> None:
    """An operator who replaces the plugins under running containers."""
    before, after = network(tmp_path, mixture(())), network(tmp_path, mixture(TYPES))
    results = []
    for first, second in ((before, after), (after, before)):
        box = sandbox()
        result = comparable(encode_result(first.add("box", box.path, capabilities=LIMITS), "1.0.0"))
        text = json.dumps(result, sort_keys=True).replace(box.path, "SANDBOX")
        for entry in result["ips"]:
            text = text.replace(entry["address"], "ADDRESS")
        results.append(text)
        second.check("box")
        second.delete("box")
        assert [item["ifname"] for item in ip_json("link", netns=box)] == ["lo"]
        assert limits() == []
        assert leases(tmp_path) == []
    assert results[0] == results[1]


def test_what_a_runtime_on_libcni_attached(
    host: Host,
    sandbox: Sandbox,
    tmp_path: Path,
    mixture: Callable[[Sequence[str]], Path],
) -> None:
    """The file as libcni writes it, the calls as it makes them; we check, collect and detach."""
    directory, box = mixture(()), sandbox()
    conf = document(tmp_path)
    result: Any = None
    for plugin in conf["plugins"]:
        stdin = {**plugin, "cniVersion": "1.0.0", "name": "mixed"}
        if plugin["type"] == "bandwidth":
            stdin["runtimeConfig"] = LIMITS
        if result is not None:
            stdin["prevResult"] = result
        run = run_plugin(
            directory / plugin["type"], "ADD", stdin, CNI_NETNS=box.path, CNI_CONTAINERID="box"
        )
        assert run.code == 0, run.stdout
        result = run.result
    entry = {
        "kind": "cniCacheV1",
        "containerId": "box",
        "config": base64.b64encode(json.dumps(conf).encode()).decode(),
        "ifName": "eth0",
        "networkName": "mixed",
        "netns": box.path,
        "capabilityArgs": LIMITS,
        "result": result,
    }
    results = tmp_path / "cache/results"
    results.mkdir(parents=True)
    (results / "mixed-box-eth0").write_text(json.dumps(entry, separators=(",", ":")))
    lab = network(tmp_path, mixture(TYPES))
    assert [(item.container_id, item.netns) for item in lab.attachments()] == [("box", box.path)]
    lab.check("box")
    assert lab.gc([("box", "eth0")]) == []
    lab.check("box")
    assert len(lab.gc([])) == 1
    assert [item["ifname"] for item in ip_json("link", netns=box)] == ["lo"]
    assert limits() == []
    assert leases(tmp_path) == []
    assert list(results.iterdir()) == []


def test_our_cache_is_libcnis(
    host: Host,
    sandbox: Sandbox,
    tmp_path: Path,
    mixture: Callable[[Sequence[str]], Path],
) -> None:
    """What libcni would read: its keys in its order, and what DEL needs, complete."""
    directory, box = mixture(TYPES), sandbox()
    lab = network(tmp_path, directory)
    result = lab.add("box", box.path, args={"K": "V", "IgnoreUnknown": "1"}, capabilities=LIMITS)
    path = tmp_path / "cache/results/mixed-box-eth0"
    entry = json.loads(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(entry) == [
        "kind", "containerId", "config", "ifName", "networkName", "netns", "cniArgs",
        "capabilityArgs", "result",
    ]  # fmt: skip
    assert entry["result"] == encode_result(result, "1.0.0")
    assert entry["capabilityArgs"] == LIMITS
    # DEL from it alone, as libcni would, by the reference's plugins.
    conf = json.loads(base64.b64decode(entry["config"]))
    references = mixture(())
    for plugin in reversed(conf["plugins"]):
        stdin = {
            **plugin, "cniVersion": conf["cniVersion"], "name": conf["name"],
            "prevResult": entry["result"],
        }  # fmt: skip
        if plugin.get("capabilities"):
            stdin["runtimeConfig"] = entry["capabilityArgs"]
        run = run_plugin(
            references / plugin["type"],
            "DEL",
            stdin,
            CNI_NETNS=entry["netns"],
            CNI_CONTAINERID=entry["containerId"],
            CNI_IFNAME=entry["ifName"],
            CNI_ARGS=";".join("=".join(pair) for pair in entry["cniArgs"]),
        )
        assert run.code == 0, run.stdout
    assert [item["ifname"] for item in ip_json("link", netns=box)] == ["lo"]
    assert leases(tmp_path) == []
