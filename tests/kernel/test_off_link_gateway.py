"""Routers outside an address's own subnet, as clouds hand them out with /32 addresses.

By all three ways of calling plugins.
"""

from __future__ import annotations

from typing import Any

import pytest

from harness import Host, Namespace, Sandbox, ip_json, run_in
from harness.ways import Way
from pycni.runtime import Network, PluginError

ROUTER = {4: "198.51.100.254", 6: "2001:db8:ffff::fe"}
ADDRESS = {4: "203.0.113.7/32", 6: "2001:db8:7::7/128"}
BEYOND = {4: "192.0.2.1", 6: "2001:db8:9::1"}
ALL = {4: "0.0.0.0/0", 6: "::/0"}
FAMILY = {4: "-4", 6: "-6"}


@pytest.fixture
def router(host: Host, sandbox: Sandbox) -> Namespace:
    """The router of the network below up0, with a network beyond it."""
    router = sandbox()
    run_in(None, ["ip", "link", "add", "up0", "type", "veth", "peer", "eth0", "netns", router.name])
    run_in(None, ["ip", "link", "set", "up0", "up"])
    for name in ("eth0", "lo"):
        run_in(router, ["ip", "link", "set", name, "up"])
    for version, address in ROUTER.items():
        words = ["nodad"] if version == 6 else []
        run_in(router, ["ip", "address", "add", address, "dev", "eth0", *words])
        run_in(router, ["ip", "address", "add", BEYOND[version], "dev", "lo", *words])
        run_in(router, ["ip", FAMILY[version], "route", "add", ADDRESS[version], "dev", "eth0"])
    return router


def network(way: Way, version: int, routes: list[Any], **keys: Any) -> Network:
    given = {"address": ADDRESS[version], "gateway": ROUTER[version], **keys}
    address = {key: value for key, value in given.items() if value}
    ipam = {"type": "static", "addresses": [address], "routes": routes}
    return way.network("n", {"type": "macvlan", "master": "up0", "ipam": ipam})


def pings(netns: Namespace, target: str) -> bool:
    return run_in(netns, ["ping", "-qc1", "-W2", target], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "case",
    [
        "default route",
        "default route before the router's",
        "router of the route alone",
        "router said to be on the link",
        "router's own route without scope",
    ],
)
def test_router_is_reached(
    way: Way, router: Namespace, sandbox: Sandbox, version: int, case: str
) -> None:
    gateway, default = ROUTER[version], {"dst": ALL[version]}
    alone = f"{gateway}/{32 if version == 4 else 128}"
    chosen: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "default route": ([default], {}),
        "default route before the router's": ([default, {"dst": alone, "scope": 253}], {}),
        "router of the route alone": ([{**default, "gw": gateway}], {"gateway": None}),
        "router said to be on the link": (
            [{**default, "gw": gateway}, {"dst": alone, "gw": "0.0.0.0" if version == 4 else "::"}],
            {"gateway": None},
        ),
        "router's own route without scope": ([default, {"dst": alone}], {}),
    }
    routes, keys = chosen[case]
    attached = network(way, version, routes, **keys)
    box = sandbox()
    attached.add("c", box.path)
    assert pings(box, BEYOND[version])
    attached.check("c")
    run_in(box, ["ip", FAMILY[version], "route", "flush", "dev", "eth0"])
    with pytest.raises(PluginError):
        attached.check("c")
    attached.repair()
    assert pings(box, BEYOND[version])
    attached.check("c")
    attached.delete("c")


def test_routes_without_gateway_are_on_the_link(
    way: Way, router: Namespace, sandbox: Sandbox
) -> None:
    """Others may lead through what they make reachable, in whatever order they are listed."""
    routes = [
        {"dst": "192.0.2.0/24", "gw": "198.51.100.254"},
        {"dst": "198.51.100.0/24"},
    ]
    box = sandbox()
    given = {"address": "203.0.113.7/24", "gateway": None}
    attached = network(way, 4, routes, **given)
    attached.add("c", box.path)
    assert pings(box, BEYOND[4])
    (found,) = ip_json("route", "show", "198.51.100.0/24", netns=box)
    assert found["scope"] == "link"


def test_a_router_that_is_a_slip_is_refused(way: Way, router: Namespace, sandbox: Sandbox) -> None:
    """The address has a subnet, and nothing says that this router is on the link."""
    routes = [{"dst": "0.0.0.0/0", "gw": "9.9.9.9"}]
    given = {"address": "203.0.113.7/24", "gateway": "203.0.113.1"}
    box = sandbox()
    with pytest.raises(PluginError, match="unreachable"):
        network(way, 4, routes, **given).add("c", box.path)


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_other_plugins(way: Way, sandbox: Sandbox, kind: str) -> None:
    ipam = {
        "type": "static",
        "addresses": [{"address": ADDRESS[4], "gateway": ROUTER[4]}],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    box = sandbox()
    attached = way.network("n", {"type": kind, "ipam": ipam})
    attached.add("c", box.path)
    (found,) = ip_json("route", "show", "default", netns=box)
    assert found["gateway"] == ROUTER[4]
    attached.check("c")
    attached.delete("c")
