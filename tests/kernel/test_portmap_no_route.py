"""portmap for a container that the host has no way to, such as one of macvlan.

Outsiders may reach it by another way. Each by all three ways of calling plugins.
"""

from __future__ import annotations

import pytest

from harness import Sandbox, nft_list, run_in
from harness.ways import Way, notes, ports_of


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("route", ["", "unreachable", "prohibit", "blackhole"])
def test_add_check_del(way: Way, sandbox: Sandbox, route: str, backend: str) -> None:
    run_in(None, ["ip", "link", "add", "card", "type", "veth", "peer", "name", "wire"])
    if route:
        run_in(None, ["ip", "route", "add", route, "10.61.0.0/24"])
    network = way.network(
        "n",
        {"type": "macvlan", "master": "card", "ipam": way.host_local("10.61.0.0/24")},
        {"type": "portmap", "capabilities": {"portMappings": True}, "backend": backend},
    )
    box = sandbox()
    network.add("a", box.path, capabilities=ports_of((8080, 80)))
    assert "8080" in str(nft_list())
    network.check("a")
    network.delete("a")
    assert "8080" not in str(nft_list())
    assert (way.leases("n"), notes()) == ({}, [])
