"""DEL where CNI_NETNS leads to no namespace, or to the plugin's own: the host is cleaned.

What is no namespace holds nothing to clean inside, and the plugin's own is not the container's.
Each by all three ways of calling plugins.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from harness import Sandbox, ip_json, nft_list, run_in
from harness.host import forget_attachments
from harness.ways import Way, notes, ports_of
from pycni.runtime import Network

FIREWALL = {"type": "firewall", "backend": "nftables"}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables"}
RATES = {"type": "bandwidth", "egressRate": 10**7, "egressBurst": 10**6}
TUNING = {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.log_martians": "1"}}
OWN = "/proc/thread-self/ns/net"


def bridge(way: Way) -> dict[str, Any]:
    return {
        "type": "bridge", "bridge": "br1", "isDefaultGateway": True, "ipMasq": True,
        "ipam": way.host_local("10.61.0.0/24"),
    }  # fmt: skip


def left_over(way: Way) -> tuple[Any, ...]:
    """What says of an attachment: rules, leases, links, files."""
    links = [link["ifname"] for link in ip_json("link", "show")]
    return (
        "10.61.0.2" in str(nft_list()),
        way.leases("n"),
        [name for name in links if name not in ("lo", "br1")],
        way.cached(),
        notes(),
        sorted(path.name for path in (way.folder / "tuning").glob("*")),
    )


NOTHING = (False, {}, [], [], [], [])


def no_namespace(kind: str, folder: Path) -> str:
    """A path that leads to no network namespace."""
    path = folder / "path"
    if kind == "file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "below a file":
        path.touch()
        path = path / "net"
    elif kind == "too long":
        path = folder / ("x" * 300)
    elif kind == "another kind":
        path = Path("/proc/self/ns/uts")
    return str(path)


KINDS = (
    "nothing", "file", "directory", "FIFO", "socket", "loop", "below a file", "too long",
    "another kind",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_del_where_there_is_no_namespace(way: Way, sandbox: Sandbox, kind: str) -> None:
    network = full(way)
    box = sandbox()
    network.add("a", box.path, capabilities=ports_of((8080, 80)))
    network.delete("a", no_namespace(kind, way.folder))
    assert left_over(way) == NOTHING


def full(way: Way) -> Network:
    tuning = {**TUNING, "dataDir": str(way.folder / "tuning")}
    return way.network("n", bridge(way), FIREWALL, PORTMAP, RATES, tuning)


@pytest.mark.parametrize("by", ["DEL", "GC"])
def test_del_after_an_unmount(way: Way, sandbox: Sandbox, by: str) -> None:
    """The file at which the namespace was mounted stays; the container has gone."""
    network = full(way)
    box = sandbox()
    network.add("a", box.path, capabilities=ports_of((8080, 80)))
    run_in(None, ["umount", box.path])
    if by == "DEL":
        network.delete("a", box.path)
    else:
        assert [stale.container_id for stale in network.gc([])] == ["a"]
    assert left_over(way) == NOTHING


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "not noted"])
def test_del_with_the_plugins_own_namespace(way: Way, sandbox: Sandbox, noted: bool) -> None:
    network = full(way)
    box = sandbox()
    run_in(None, ["ip", "link", "set", "lo", "up"])
    run_in(None, ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1"])
    network.add("a", box.path, capabilities=ports_of((8080, 80)))
    if not noted:
        forget_attachments()
    network.delete("a", OWN)
    names = {link["ifname"]: link["flags"] for link in ip_json("link", "show")}
    assert "UP" in names["lo"]
    assert {"eth0", "eth1"} <= set(names)
    run_in(None, ["ip", "link", "del", "eth0"])
    assert left_over(way) == NOTHING


@pytest.mark.parametrize("kind", ["loopback", "ptp", "macvlan", "tap", "host-device"])
def test_every_interfaces_plugin(way: Way, sandbox: Sandbox, kind: str) -> None:
    run_in(None, ["ip", "link", "add", "card", "type", "veth", "peer", "name", "wire"])
    run_in(None, ["ip", "link", "set", "lo", "up"])
    ipam = way.host_local("10.61.0.0/24")
    keys: dict[str, Any] = {
        "loopback": {},
        "macvlan": {"master": "card", "ipam": ipam},
        "host-device": {"device": "card", "ipam": ipam},
    }.get(kind, {"ipam": ipam})
    network = way.network("n", {"type": kind, **keys})
    box = sandbox()
    network.add("a", box.path)
    network.delete("a", OWN)
    assert "UP" in next(iter(ip_json("link", "show", "lo")))["flags"]
    assert (way.leases("n"), way.cached(), notes()) == ({}, [], [])
