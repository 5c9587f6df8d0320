"""bridge: the bridge on the host, its addresses, MTU and settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Sandbox, ip_json, run_in
from harness.kernel_state import addresses, global_addresses, link, link_names, pings, veths
from harness.machines import fill_bridge
from harness.topics import bridge as kit
from harness.topics.bridge import OTHER_V6, V4, V6, setting, wait_for_local
from harness.ways import WAYS, way_of
from pycni.runtime import PluginError

attach = kit.attach
leases = kit.leases


# --- the bridge itself ---------------------------------------------------------------------------


def test_existing_bridge_is_used_as_it_is(attach: Attach) -> None:
    run_in(None, ["ip", "link", "add", "bridge0", "mtu", "1450", "type", "bridge"])
    before = link("bridge0")
    one = attach(isGateway=True, mtu=1400)
    one.add()
    after = link("bridge0")
    assert after["ifindex"] == before["ifindex"]
    assert after["address"] == before["address"]
    assert after["mtu"] == 1400  # of its lowest port, which is the kernel's doing
    one.delete()
    assert link("bridge0")["address"] == before["address"]


@pytest.mark.parametrize("ranges", [(), (V4,), (V6,)], ids=["none", "v4", "v6"])
def test_address_of_the_bridge_does_not_change(attach: Attach, ranges: tuple[Any, ...]) -> None:
    first = attach(ranges, isGateway=bool(ranges))
    mac = first.add()["interfaces"][0]["mac"]
    others = [attach(ranges, isGateway=bool(ranges)) for _ in range(3)]
    for one in others:
        assert one.add()["interfaces"][0]["mac"] == mac
    for one in (first, *others):
        one.delete()
        assert link("bridge0")["address"] == mac


@pytest.mark.parametrize("keys", [{}, {"isGateway": True}], ids=["plain", "gateway"])
@pytest.mark.parametrize("address", ["", "02:00:00:00:00:01", "fe:ff:ff:ff:ff:ff"])
def test_address_of_the_bridge_is_reported_as_it_is_in_the_end(
    attach: Attach, address: str, keys: dict[str, Any]
) -> None:
    """One without an address of its own takes over that of its first port."""
    run_in(
        None,
        ["ip", "link", "add", "bridge0", *(["address", address] * bool(address)), "type", "bridge"],
    )
    for _ in range(3):
        one = attach(**keys)
        assert one.add()["interfaces"][0]["mac"] == link("bridge0")["address"]
        one.delete()


@pytest.mark.parametrize(("keys", "on"), [({"isGateway": True}, 0), ({}, 1), ({"ipMasq": True}, 1)])
def test_multicast_snooping_only_where_another_may_be_the_router(
    attach: Attach, keys: dict[str, Any], on: int
) -> None:
    attach(**keys).add()
    assert link("bridge0")["linkinfo"]["info_data"]["mcast_snooping"] == on


@pytest.mark.parametrize("on", [0, 1])
def test_multicast_snooping_of_an_existing_bridge_stays(attach: Attach, on: int) -> None:
    run_in(None, f"ip link add bridge0 type bridge mcast_snooping {on}".split())
    for gateway in (True, False):
        attach(isGateway=gateway).add()
        assert link("bridge0")["linkinfo"]["info_data"]["mcast_snooping"] == on


@pytest.mark.parametrize("uplink", ["", "52:54:00:12:34:56", "fc:ff:ff:ff:ff:ff"])
def test_containers_do_not_change_the_address_of_a_bridge_with_an_uplink(
    attach: Attach, uplink: str
) -> None:
    """One that others made takes the lowest address of its ports."""
    for command in (
        "ip link add bridge0 type bridge",
        f"ip link add uplink address {uplink or '02:00:00:00:00:01'} type veth peer other",
        *(["ip link set uplink master bridge0"] if uplink else []),
    ):
        run_in(None, command.split())
    for _ in range(3):
        reported = attach(()).add()["interfaces"]
        assert reported[0]["mac"] == link("bridge0")["address"]
        assert reported[1]["mac"] == link(reported[1]["name"])["address"]
        if uplink:
            assert reported[0]["mac"] == uplink


def test_name_that_is_no_bridges(attach: Attach, leases: Callable[[], set[str]]) -> None:
    run_in(None, ["ip", "link", "add", "bridge0", "type", "veth", "peer", "name", "other"])
    one = attach()
    error = one.refused()
    assert (error["code"], error["msg"]) == (7, '"bridge0" already exists but is not a bridge')
    assert leases() == set()
    assert link_names(one.sandbox) == {"lo"}
    assert one.refused("STATUS")["code"] == 50


def test_bridge_that_is_full(attach: Attach, leases: Callable[[], set[str]]) -> None:
    one = attach(isGateway=True)
    one.add()
    fill_bridge("bridge0")
    two = attach(isGateway=True)
    error = two.refused()
    assert error["code"] == 100
    assert "bridge bridge0 is full" in error["msg"]
    assert "1,023 ports" in error["details"]
    assert len(leases()) == 1
    assert link_names(two.sandbox) == {"lo"}
    one.delete()
    two.add()


def test_mtu(attach: Attach) -> None:
    one = attach(mtu=1280)
    one.add()
    assert link("bridge0")["mtu"] == 1280
    assert link("eth0", one.sandbox)["mtu"] == 1280
    assert link(veths()[0])["mtu"] == 1280


def test_promiscuous_mode(attach: Attach) -> None:
    attach().add()
    assert link("bridge0")["promiscuity"] == 0
    one = attach(promiscMode=True)
    one.add()
    assert link("bridge0")["promiscuity"] == 1
    attach(promiscMode=True).add()
    assert link("bridge0")["promiscuity"] == 1
    one.check()
    run_in(None, ["ip", "link", "set", "bridge0", "promisc", "off"])
    assert "promiscuous" in one.drift()


def test_router_advertisements_are_not_accepted(attach: Attach) -> None:
    attach((V6,), isGateway=True).add()
    (outer,) = veths()
    assert setting("net/ipv6/conf/bridge0/accept_ra") == "0"
    assert link(outer)["operstate"] == "UP"
    # What a port receives goes to its bridge.
    assert setting(f"net/ipv6/conf/{outer}/disable_ipv6") == "1"
    assert addresses(outer) == {}
    assert not [
        route for route in ip_json("-6", "route", "show", "table", "all") if route["dev"] == outer
    ]


def test_bridge_that_accepted_router_advertisements(attach: Attach) -> None:
    run_in(None, ["ip", "link", "add", "bridge0", "type", "bridge"])
    assert setting("net/ipv6/conf/bridge0/accept_ra") == "1"
    attach((V4,), isGateway=True).add()
    assert setting("net/ipv6/conf/bridge0/accept_ra") == "0"


def test_an_ipv4_network_is_silent_in_ipv6(attach: Attach) -> None:
    one = attach((V4,), isGateway=True)
    one.add()
    time.sleep(1.2)  # duplicates would be looked for within a second
    (found,) = ip_json("-s", "link", "show", "eth0", netns=one.sandbox)
    assert found["stats64"]["tx"]["packets"] == 0
    # Anyone who wants to can have such addresses nevertheless.
    run_in(one.sandbox, ["ip", "address", "add", "2001:db8::2/64", "dev", "eth0", "nodad"])
    run_in(None, ["ip", "address", "add", "2001:db8::1/64", "dev", "bridge0", "nodad"])
    assert pings(one.sandbox, "2001:db8::1")


@pytest.mark.parametrize("keys", [{}, {"isGateway": True, "enabledad": True}])
def test_link_local_addresses_elsewhere(attach: Attach, keys: dict[str, bool]) -> None:
    one = attach((V4,), **keys)
    one.add()
    assert len(wait_for_local(one.sandbox)) == 1


def test_too_small_for_ipv6(attach: Attach) -> None:
    one = attach((V4,), isGateway=True, mtu=1200)
    one.add()
    assert link("eth0", one.sandbox)["mtu"] == 1200
    assert pings(one.sandbox, "10.1.2.1")
    one.check()


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        (V4, [{"subnet": "10.1.3.0/24"}], True),
        (V4, [{"subnet": "10.1.2.0/25", "gateway": "10.1.2.9"}], True),
        (V6, [{"subnet": "2001:db8:1::/64", "gateway": "2001:db8:1::9"}], True),
        (V6, [{"subnet": "2001:db8:1::/80", "gateway": "2001:db8:1::9"}], True),
        (V6, OTHER_V6, False),
        (V4, V6, False),
    ],
    ids=["v4", "v4-overlap", "v6-same", "v6-overlap", "v6-apart", "families"],
)
def test_gateway_addresses_that_conflict(
    attach: Attach, first: Any, second: Any, conflict: bool
) -> None:
    attach((first,), isGateway=True).add()
    before = global_addresses("bridge0")
    other = attach((second,), name="other", isGateway=True)
    if conflict:
        error = other.refused()
        assert error["code"] == 101
        assert '"bridge0" already has an IP address different from' in error["msg"]
        assert before.pop() in error["details"]
        assert len(global_addresses("bridge0")) == 1
    else:
        other.add()
        assert len(global_addresses("bridge0")) == 2
    forced = attach((second,), name="other", isGateway=True, forceAddress=True)
    gateway = forced.add()["ips"][0]["gateway"]
    assert len(global_addresses("bridge0")) == (1 if conflict else 2)
    assert any(item.startswith(f"{gateway}/") for item in global_addresses("bridge0"))
    forced.check()


def test_host_forwards_for_a_gateway_only(attach: Attach) -> None:
    for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        run_in(None, ["sh", "-c", f"echo 0 > /proc/sys/{key}"])
    attach((V4, V6)).add()
    assert setting("net/ipv4/ip_forward") == "0"
    attach((V4,), isGateway=True).add()
    assert setting("net/ipv4/ip_forward") == "1"
    assert setting("net/ipv6/conf/all/forwarding") == "0"
    attach((V6,), name="six", isGateway=True).add()
    assert setting("net/ipv6/conf/all/forwarding") == "1"


@pytest.mark.parametrize("gateway", [False, True])
@pytest.mark.parametrize("kind", WAYS)
def test_mtu_that_is_too_small_for_ipv6(
    kind: str, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path, gateway: bool
) -> None:
    with way_of(kind, tmp_path, plugin_dir) as way:
        ipam = way.host_local("fd12::/64")
        plugin = {"type": "bridge", "mtu": 1200, "isGateway": gateway, "ipam": ipam}
        words = "cannot have the address fd12::[12]/64: its MTU is 1200"
        with pytest.raises(PluginError, match=words) as caught:
            way.network("n", plugin).add("c", sandbox().path)
        assert caught.value.code == 7
        assert way.leases("n") == {}


@pytest.mark.parametrize("kind", WAYS)
def test_first_container_of_a_bridge_is_reached_by_ipv6_at_once(
    kind: str, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """The host asks for it by the bridge's own link-local address, which no one else has."""
    with way_of(kind, tmp_path, plugin_dir) as way:
        plugin = {"type": "bridge", "isGateway": True, "ipam": way.host_local("fd12::/64")}
        way.network("n", plugin).add("c", sandbox().path)
        local: list[Any] = []
        deadline = time.monotonic() + 10
        while not local:
            assert time.monotonic() < deadline, "no link-local address"
            local = [item for item in addresses("cni0").values() if item["scope"] == "link"]
        assert [item.get("tentative") for item in local] == [None]
