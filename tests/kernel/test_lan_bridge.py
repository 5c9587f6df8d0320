"""A bridge that the host itself uses, with an uplink: what its administrator set up is kept.

By all three ways of calling plugins.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Namespace, Sandbox, ip_json, run_in
from harness.frames import ALL_NODES, IPV6, Wire, router_advertisement
from harness.ways import Way
from pycni.kernel.netlink import socket as netlink_socket
from pycni.runtime import Network, PluginError

UNREACHABLE = [{"dst": "0.0.0.0/0", "gw": "9.9.9.9"}]


@pytest.fixture
def lan(host: Host, sandbox: Sandbox) -> Namespace:
    """A machine on the host's LAN bridge br0."""
    lan = sandbox()
    run_in(None, ["ip", "link", "add", "up0", "type", "veth", "peer", "eth0", "netns", lan.name])
    run_in(lan, ["ip", "link", "set", "eth0", "up"])
    run_in(None, ["ip", "link", "add", "br0", "type", "bridge"])
    run_in(None, ["ip", "link", "set", "up0", "master", "br0", "up"])
    run_in(None, ["ip", "link", "set", "br0", "up"])
    return lan


def ip(words: str) -> None:
    run_in(None, ["ip", *words.split()])


def forcing(way: Way, *, name: str = "n", **ipam: Any) -> Network:
    """A network that puts another address in the place of the bridge's."""
    given = {"rangeStart": "10.50.0.100", "gateway": "10.50.0.9"}
    ipam = way.host_local("10.50.0.0/24", **ipam)
    ipam["ranges"][0][0] |= given
    plugin = {"type": "bridge", "bridge": "br0", "isGateway": True, "forceAddress": True}
    return way.network(name, {**plugin, "ipam": ipam})


def configured() -> dict[str, Any]:
    """All that an administrator can have set up: addresses, IPv4's in their order, and routes."""
    addresses = [
        {key: value for key, value in item.items() if "life_time" not in key}
        for link in ip_json("address", "show", "dev", "br0")
        for item in link["addr_info"]
        if item["scope"] != "link"
    ]
    addresses.sort(key=lambda item: item["local"] if ":" in item["local"] else "")
    routes = [
        {**route, "flags": [flag for flag in route["flags"] if flag != "linkdown"]}
        for family in ("-4", "-6")
        for route in ip_json(family, "route", "show", "table", "all")
        if route.get("table") != "local" and not route["dst"].startswith(("fe80", "multicast"))
    ]
    return {"addresses": addresses, "routes": sorted(routes, key=str)}


# --- forceAddress --------------------------------------------------------------------------------


def test_failed_add_takes_no_address_and_no_route(
    way: Way, lan: Namespace, sandbox: Sandbox
) -> None:
    ip("address add 10.50.0.5/24 dev br0 label br0:lan")
    ip("address add 10.50.0.6/24 dev br0")
    ip("address add 10.99.0.1/16 dev br0")
    ip("route add default via 10.50.0.254")
    ip("route add 10.60.0.0/16 via 10.50.0.253 metric 5 mtu 1400 initcwnd 20 src 10.50.0.6")
    ip("route add 10.61.0.0/16 via 10.99.0.2 table 77")
    before = configured()
    with pytest.raises(PluginError):
        forcing(way, routes=UNREACHABLE).add("c", sandbox().path)
    assert configured() == before


def test_failed_add_takes_no_ipv6_address(way: Way, lan: Namespace, sandbox: Sandbox) -> None:
    ip("address add fd50::5/64 dev br0 nodad")
    ip("address add fd51::5/64 dev br0 nodad")
    ip("route add default via fd50::fe")
    ip("route add fd60::/32 via fd50::fd src fd50::5")
    before = configured()
    bridge = {"type": "bridge", "bridge": "br0", "isGateway": True, "forceAddress": True}
    ipam = way.host_local("fd50::/64", routes=[{"dst": "::/0", "gw": "2001:db8::9"}])
    ipam["ranges"][0][0] |= {"rangeStart": "fd50::100", "gateway": "fd50::9"}
    with pytest.raises(PluginError):
        way.network("n", {**bridge, "ipam": ipam}).add("c", sandbox().path)
    assert configured() == before


def test_failed_add_without_conflict_takes_its_address_back(
    way: Way, lan: Namespace, sandbox: Sandbox
) -> None:
    before = configured()
    with pytest.raises(PluginError):
        forcing(way, routes=UNREACHABLE).add("c", sandbox().path)
    assert configured() == before


def test_replaced_address_leaves_the_routes(way: Way, lan: Namespace, sandbox: Sandbox) -> None:
    ip("address add 10.50.0.5/24 dev br0")
    ip("address add 10.50.0.6/24 dev br0")
    ip("route add default via 10.50.0.254")
    ip("route add 10.60.0.0/16 via 10.50.0.253 metric 5 src 10.50.0.6")
    forcing(way).add("c", sandbox().path)
    (link,) = ip_json("-4", "address", "show", "dev", "br0")
    assert [item["local"] for item in link["addr_info"]] == ["10.50.0.9"]
    (default,) = ip_json("route", "show", "default")
    assert (default["gateway"], default["dev"]) == ("10.50.0.254", "br0")
    (route,) = ip_json("route", "show", "10.60.0.0/16")
    assert (route["gateway"], route["metric"]) == ("10.50.0.253", 5)


# Another ADD has to come in between.
@pytest.mark.parametrize("way", ["in process"], indirect=True)
def test_failed_add_leaves_the_gateway_of_who_came_meanwhile(
    way: Way, lan: Namespace, sandbox: Sandbox
) -> None:
    """And gives the host its own address back beside it."""
    ip("address add 10.50.0.5/24 dev br0")
    ip("route add default via 10.50.0.254")
    other, count = sandbox(), 0

    def join(request: Any) -> None:
        nonlocal count
        if request.what.startswith("prepend route 0.0.0.0/0") and not count:
            count += 1
            forcing(way).add("second", other.path)

    netlink_socket.before_send = join
    try:
        with pytest.raises(PluginError):
            forcing(way, routes=UNREACHABLE).add("first", sandbox().path)
    finally:
        netlink_socket.before_send = None
    assert count == 1
    (link,) = ip_json("-4", "address", "show", "dev", "br0")
    assert {item["local"] for item in link["addr_info"]} == {"10.50.0.5", "10.50.0.9"}
    assert [item["gateway"] for item in ip_json("route", "show", "default")] == ["10.50.0.254"]
    run_in(other, ["ping", "-qc1", "-W2", "10.50.0.9"])


# --- router advertisements -----------------------------------------------------------------------


ROUTER = "fe80::1"


def advertise(lan: Namespace) -> None:
    """Have the host learn a default route from the LAN's router."""
    run_in(lan, ["ip", "address", "replace", f"{ROUTER}/64", "dev", "eth0", "nodad"])
    deadline = time.monotonic() + 20
    while not learned():
        assert time.monotonic() < deadline, "the host believes no router"
        with Wire(lan, "eth0", IPV6) as wire:
            wire.send(router_advertisement(wire.mac, ROUTER), to=ALL_NODES)
        time.sleep(0.05)


def learned() -> list[str]:
    """The routers that the host learned from."""
    return [
        route["gateway"]
        for route in ip_json("-6", "route", "show", "default")
        if route.get("protocol") == "ra"
    ]


def setting(key: str) -> str:
    return Path(f"/proc/sys/net/ipv6/conf/{key}").read_text().strip()


def test_default_route_of_the_host_outlives_forwarding(
    way: Way, lan: Namespace, sandbox: Sandbox
) -> None:
    advertise(lan)
    plugin = {"type": "bridge", "bridge": "br1", "isGateway": True}
    network = way.network("n", {**plugin, "ipam": way.host_local("fd00:7::/64")})
    network.add("c", sandbox().path)
    assert setting("all/forwarding") == "1"
    assert learned() == [ROUTER]
    assert setting("br0/accept_ra") == "2"
    # What is learned goes on to be renewed.
    run_in(None, ["ip", "-6", "route", "flush", "proto", "ra"])
    advertise(lan)


@pytest.mark.slow
@pytest.mark.parametrize("ipam", [False, True], ids=["layer 2", "with a gateway"])
def test_bridge_of_others_keeps_its_router(
    way: Way, lan: Namespace, sandbox: Sandbox, ipam: bool
) -> None:
    advertise(lan)
    plugin: dict[str, Any] = {"type": "bridge", "bridge": "br0"}
    if ipam:
        plugin |= {"isGateway": True, "ipam": way.host_local("10.50.0.0/24")}
    network = way.network("n", plugin)
    for container in ("one", "two"):
        network.add(container, sandbox().path)
    assert setting("br0/accept_ra") == "1"
    assert learned() == [ROUTER]
    network.check("two")
    network.delete("one")
    network.delete("two")
    assert setting("br0/accept_ra") == "1"


def test_bridge_of_containers_alone_believes_no_router(
    way: Way, host: Host, sandbox: Sandbox
) -> None:
    """No matter who made it: there is no one else on it."""
    ip("link add br0 type bridge")
    network = way.network("n", {"type": "bridge", "bridge": "br0"})
    network.add("one", sandbox().path)
    assert setting("br0/accept_ra") == "0"
    Path("/proc/sys/net/ipv6/conf/br0/accept_ra").write_text("1")
    network.add("two", sandbox().path)
    assert setting("br0/accept_ra") == "0"
