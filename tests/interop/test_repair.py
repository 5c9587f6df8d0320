"""Repair after what other programs do to a host's rules: firewalld, iptables-legacy."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Namespace, ask, run_in, service
from harness import firewalld as real
from harness.agent import AgentProcess
from harness.configs import host_local
from harness.firewalld import Firewalld
from harness.machines import CLIENT, FAR, HOST, Machines
from pycni.agent.executables import LAUNCHER
from pycni.kernel.netfilter import iptables
from pycni.runtime import Network, PluginError

PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}


def network_of(folder: Path, plugins: Path, backend: str = "") -> Network:
    named = {"backend": backend} if backend else {}
    masquerade = {"ipMasqBackend": backend} if backend else {}
    return Network.from_dict(
        {
            "cniVersion": "1.1.0",
            "name": "lab",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isDefaultGateway": True,
                    "ipMasq": True,
                    **masquerade,
                    "ipam": host_local(folder / "leases", "10.1.0.0/16"),
                },
                {"type": "portmap", "capabilities": {"portMappings": True}, **named},
                {"type": "firewall", **named},
            ],
        },
        plugin_dirs=plugins,
        cache_dir=folder / "cache",
    )


@pytest.fixture
def attached(
    machines: Machines, tmp_path: Path, plugin_dir: Path
) -> Iterator[tuple[Network, Namespace]]:
    box = machines.sandbox()
    with service(box, "one", 80), service(machines.far, "far", 80):
        yield network_of(tmp_path, plugin_dir), box


@pytest.fixture
def daemon(host: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Firewalld]:
    with real.on_the_system_bus(tmp_path / "firewalld", "nftables", monkeypatch) as daemon:
        yield daemon


def must_work(machines: Machines, box: Namespace) -> None:
    assert ask(box, FAR[4], 80, timeout=3.0) == "far 198.51.100.1"
    assert ask(machines.client, HOST[4], 8080, timeout=3.0) == f"one {CLIENT[4]}"


def test_firewalld_reloads(
    daemon: Firewalld, machines: Machines, attached: tuple[Network, Namespace]
) -> None:
    network, box = attached
    network.add("one", box.path, capabilities=PORTS)
    must_work(machines, box)
    for command in ("--reload", "--complete-reload"):
        daemon.command(command)
        with pytest.raises(
            PluginError, match=r"10\.1\.0\.2/32 is not a source of zone trusted"
        ) as caught:
            network.check("one")
        assert "pycni repair lab puts it back" in caught.value.details
        assert not ask(box, FAR[4], 80, timeout=0.3)
        (report,) = network.repair()
        assert report.ok
        assert [finding.plugin for finding in report.findings] == ["firewall"]
        assert daemon.sources("trusted") == {"10.1.0.2/32"}
        must_work(machines, box)
        network.check("one")
        assert network.repair()[0].is_sound


def test_the_agent_sees_firewalld_reload(
    daemon: Firewalld, machines: Machines, attached: tuple[Network, Namespace], tmp_path: Path
) -> None:
    if not LAUNCHER.is_file():
        pytest.skip("the launcher was not compiled")
    network, box = attached
    network.add("one", box.path, capabilities=PORTS)
    agent = AgentProcess(tmp_path)
    agent.start("--watch-rules", "--cache-dir", str(tmp_path / "cache"))
    try:
        daemon.command("--reload")
        for _ in range(100):
            if daemon.sources("trusted"):
                break
            time.sleep(0.1)
        must_work(machines, box)
    finally:
        log = agent.stop()
    assert "10.1.0.2/32 is not a source of zone trusted" in log


def test_iptables_legacy(
    machines: Machines, tmp_path: Path, plugin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose iptables is the legacy one, flushed as in many a script."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for family in ("iptables", "ip6tables"):
        for end in ("", "-save", "-restore"):
            found = shutil.which(f"{family}-legacy{end}", path=iptables.SYSTEM_PATH)
            if found is None:
                pytest.skip("no iptables-legacy")
            (folder / f"{family}{end}").symlink_to(os.path.realpath(found))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    network, box = network_of(tmp_path, plugin_dir, "iptables"), machines.sandbox()

    def saved() -> list[str]:
        lines: list[str] = []
        for table in ("nat", "filter"):
            lines += run_in(None, ["iptables-save", "-t", table]).stdout.splitlines()
        return [line.split(" [")[0] for line in lines if not line.startswith("#")]

    with service(box, "one", 80), service(machines.far, "far", 80):
        network.add("one", box.path, capabilities=PORTS)
        must_work(machines, box)
        before = saved()
        for table in ("nat", "filter"):
            run_in(None, ["iptables", "-t", table, "-F"])
        assert not ask(machines.client, HOST[4], 8080, timeout=0.3)
        (report,) = network.repair()
        assert report.ok, report
        assert {finding.plugin for finding in report.findings} == {"bridge", "portmap", "firewall"}
        assert saved() == before
        must_work(machines, box)
        network.check("one")
        assert network.repair()[0].is_sound
        network.delete("one")
        assert not [line for line in saved() if "10.1.0.2" in line]
