"""With which rights the plugins work, and with which modes they keep what they keep.

SECURITY.md says what is tried here.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Namespace, PluginRun, Sandbox, run_in
from pycni.runtime import Network

NEEDED = ("net_admin", "sys_admin")

PLUGINS = [
    {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True, "macspoofchk": True},
    {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mtu": 1400},
    {"type": "bandwidth", "ingressRate": 8000000, "ingressBurst": 8000000},
    {"type": "portmap", "runtimeConfig": {"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}},
    {"type": "firewall", "backend": "nftables"},
    {"type": "firewall"},
]  # fmt: skip


def call(
    plugin: Path,
    command: str,
    config: dict[str, Any],
    space: Namespace,
    capabilities: tuple[str, ...],
) -> PluginRun:
    """A plugin's process as root with these capabilities and no others."""
    bounds = ",".join(("-all", *(f"+{name}" for name in capabilities)))
    done = subprocess.run(
        ["setpriv", f"--bounding-set={bounds}", "--inh-caps=-all", "--no-new-privs", plugin],
        input=json.dumps(config).encode(),
        env={
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "one",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": space.path,
            "CNI_PATH": str(plugin.parent),
        },
        capture_output=True,
        check=False,
        timeout=30,
    )
    return PluginRun(done.returncode, done.stdout.decode(), done.stderr.decode())


def configuration(keys: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    ipam = {"type": "host-local", "subnet": "10.4.0.0/24", "dataDir": str(tmp_path / "leases")}
    common = {"cniVersion": "1.1.0", "name": "net", **keys}
    if keys["type"] == "tuning":
        common["dataDir"] = str(tmp_path / "tuning")
    return {**common, "ipam": ipam} if keys["type"] in ("bridge", "ptp", "macvlan") else common


def test_capabilities_that_suffice(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """CAP_NET_ADMIN for links, addresses, routes, rules; CAP_SYS_ADMIN to enter a namespace."""
    space = sandbox()
    result: Any = None
    for command in ("ADD", "CHECK", "DEL"):
        for keys in PLUGINS if command != "DEL" else PLUGINS[::-1]:
            config = configuration(keys, tmp_path)
            if result is not None:
                config["prevResult"] = result
            run = call(plugin_dir / keys["type"], command, config, space, NEEDED)
            assert run.code == 0, (command, keys["type"], run.stdout, run.stderr)
            if command == "ADD":
                result = run.result


@pytest.mark.parametrize("missing", NEEDED)
def test_capabilities_that_are_needed(
    missing: str, host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """Without one of them: an error, and nothing done."""
    kept = tuple(name for name in NEEDED if name != missing)
    before = host.snapshot()
    config = configuration(PLUGINS[0], tmp_path)
    run = call(plugin_dir / "bridge", "ADD", config, sandbox(), kept)
    assert run.code == 1
    assert "root" in run.result["details"] or "root" in run.result["msg"], run.result
    assert host.snapshot() == before
    assert not [name for name in os.listdir(tmp_path / "leases" / "net") if name[0].isdigit()]


@pytest.mark.parametrize("keys", PLUGINS[1:], ids=lambda keys: "-".join(map(str, keys.values())))
def test_a_chained_plugin_without_rights_says_so(
    keys: dict[str, Any],
    host: Host,
    sandbox: Sandbox,
    plugin_dir: Path,
    tmp_path: Path,
) -> None:
    """The kernel answers the first of several requests only, and nothing waits for the rest."""
    space = sandbox()
    first = call(plugin_dir / "bridge", "ADD", configuration(PLUGINS[0], tmp_path), space, NEEDED)
    config = {**configuration(keys, tmp_path), "prevResult": first.result}
    before = host.snapshot()
    run = call(plugin_dir / keys["type"], "ADD", config, space, ("sys_admin",))
    assert run.code == 1
    assert "root" in run.result["details"] or "root" in run.result["msg"], run.result
    assert host.snapshot() == before


def test_modes(host: Host, sandbox: Sandbox, tmp_path: Path) -> None:
    """What is kept is written by root alone; what may hold secrets is read by root alone."""
    old = os.umask(0)  # no help from it
    try:
        network = Network.from_dict(
            {
                "cniVersion": "1.1.0",
                "name": "net",
                "plugins": [configuration(keys, tmp_path) for keys in PLUGINS[:2]],
            },
            cache_dir=tmp_path / "cache",
        )
        network.add("one", sandbox().path)
    finally:
        os.umask(old)
    modes = {
        str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
    }
    assert [path for path, mode in modes.items() if mode & 0o022] == []
    private = ("cache/results", "cache/results/net-one-eth0", "leases/.pycni", "tuning",
               "tuning/one_eth0.json", "leases/net/10.4.0.2")  # fmt: skip
    assert {path: oct(modes[path]) for path in private if modes[path] & 0o077} == {}


def test_nothing_listens(host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path) -> None:
    """An attachment opens no port on the host and leaves no process."""
    space = sandbox()
    before = run_in(None, ["ss", "-Hltnup"]).stdout
    run = call(plugin_dir / "bridge", "ADD", configuration(PLUGINS[0], tmp_path), space, NEEDED)
    assert run.code == 0
    assert run_in(None, ["ss", "-Hltnup"]).stdout == before
    assert run_in(None, ["ip", "netns", "pids", space.name]).stdout == ""
