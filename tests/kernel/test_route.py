"""Routes, rules and neighbours on the real kernel, against `ip -j`."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from harness import ip_json, run_in
from pycni.kernel import address, link, neighbour, route, rule
from pycni.kernel.neighbour import Neighbour
from pycni.kernel.netlink import NetlinkError, NetlinkSocket
from pycni.kernel.route import KernelRoute, NextHop
from pycni.kernel.rule import Rule
from pycni.spec.ip import parse_address, parse_network

AF_INET, AF_INET6 = 2, 10
LINK = 253


@pytest.fixture
def eth0(netlink: NetlinkSocket) -> int:
    """The index of a link that is up, with 10.0.0.7/24 and fd00::7/64."""
    made = link.create(netlink, link.veth("eth0", "peer", up=True))
    netlink.batch(
        [
            link.update("peer", up=True),
            address.add(made.index, parse_network("10.0.0.7/24")),
            address.add(made.index, parse_network("fd00::7/64"), no_dad=True),
        ]
    )
    return made.index


def shown(family: int, *args: str) -> dict[str, dict[str, Any]]:
    entries = ip_json(f"-{family}", "route", "show", *args)
    return {entry["dst"]: entry for entry in entries}


def default(index: int, gateway: str = "10.0.0.1", **fields: Any) -> KernelRoute:
    via = parse_address(gateway)
    dst = parse_network("0.0.0.0/0" if via.is_ipv4 else "::/0")
    return KernelRoute(dst, index, via, **fields)


def refused(netlink: NetlinkSocket, request: Any) -> NetlinkError:
    with pytest.raises(NetlinkError) as caught:
        netlink.request(request)
    return caught.value


# --- routes ------------------------------------------------------------------------------------


def test_default_routes(netlink: NetlinkSocket, eth0: int) -> None:
    netlink.batch([route.add(default(eth0)), route.add(default(eth0, "fd00::1"))])
    for family, gateway in ((4, "10.0.0.1"), (6, "fd00::1")):
        entry = shown(family)["default"]
        assert (entry["gateway"], entry["dev"]) == (gateway, "eth0")
        assert "scope" not in entry


def test_every_field(netlink: NetlinkSocket, eth0: int) -> None:
    wanted = KernelRoute(
        parse_network("10.9.0.0/16"),
        eth0,
        parse_address("10.0.0.1"),
        source=parse_address("10.0.0.7"),
        priority=50,
        table=1000,
        scope=0,
        protocol=4,
        mtu=1400,
        advmss=1360,
    )
    netlink.request(route.add(wanted))
    entry = shown(4, "table", "1000")["10.9.0.0/16"]
    assert (entry["gateway"], entry["dev"], entry["prefsrc"]) == ("10.0.0.1", "eth0", "10.0.0.7")
    assert (entry["metric"], entry["protocol"]) == (50, "static")
    assert entry["metrics"] == [{"mtu": 1400, "advmss": 1360}]
    assert route.dump(netlink, AF_INET, table=1000) == [wanted]
    assert wanted.dst not in [one.dst for one in route.dump(netlink)]
    netlink.request(route.delete(wanted))
    assert route.dump(netlink, table=1000) == []


def test_what_we_read_of_ip6_is_what_we_wrote(netlink: NetlinkSocket, eth0: int) -> None:
    wanted = KernelRoute(
        parse_network("fd09::/32"),
        eth0,
        parse_address("fd00::1"),
        source=parse_address("fd00::7"),
        priority=50,
        mtu=1400,
    )
    netlink.request(route.add(wanted))
    entry = shown(6)["fd09::/32"]
    assert (entry["gateway"], entry["prefsrc"], entry["metric"]) == ("fd00::1", "fd00::7", 50)
    assert wanted in route.dump(netlink, AF_INET6)


def test_scope_and_onlink(netlink: NetlinkSocket, eth0: int) -> None:
    netlink.request(route.add(KernelRoute(parse_network("10.5.0.1/32"), eth0, scope=LINK)))
    assert shown(4)["10.5.0.1"]["scope"] == "link"
    far = default(eth0, "192.0.2.1")
    assert refused(netlink, route.add(far)).errno == errno.ENETUNREACH
    netlink.request(route.add(far.replace(onlink=True)))
    assert shown(4)["default"]["flags"] == ["onlink"]
    assert route.dump(netlink, AF_INET, index=eth0, protocol=3)[0].onlink


def test_refusal_is_explained(netlink: NetlinkSocket, eth0: int) -> None:
    error = refused(netlink, route.add(default(eth0, "192.0.2.1")))
    assert error.text == "Nexthop has invalid gateway"
    assert error.what == f"add route 0.0.0.0/0 via 192.0.2.1 dev {eth0}"


def test_ipv4_by_an_ipv6_gateway(netlink: NetlinkSocket, eth0: int) -> None:
    wanted = KernelRoute(parse_network("0.0.0.0/0"), eth0, parse_address("fe80::1"))
    netlink.request(route.add(wanted))
    assert shown(4)["default"]["via"] == {"family": "inet6", "host": "fe80::1"}
    assert wanted in route.dump(netlink, AF_INET)


def test_verbs_with_a_destination_that_has_a_route(netlink: NetlinkSocket, eth0: int) -> None:
    netlink.request(route.add(default(eth0, "10.0.0.1")))
    assert refused(netlink, route.add(default(eth0, "10.0.0.2"))).errno == errno.EEXIST
    assert refused(netlink, route.prepend(default(eth0, "10.0.0.1"))).errno == errno.EEXIST

    def gateways() -> list[str]:
        return [entry["gateway"] for entry in ip_json("route", "show", "default")]

    netlink.request(route.prepend(default(eth0, "10.0.0.2")))
    assert gateways() == ["10.0.0.2", "10.0.0.1"]
    netlink.request(route.append(default(eth0, "10.0.0.3")))
    assert gateways() == ["10.0.0.2", "10.0.0.1", "10.0.0.3"]
    netlink.request(route.replace(default(eth0, "10.0.0.4")))
    assert gateways() == ["10.0.0.4", "10.0.0.1", "10.0.0.3"]
    netlink.request(route.delete(default(eth0, "10.0.0.1")))
    assert gateways() == ["10.0.0.4", "10.0.0.3"]


def test_delete_matches_any_scope_unless_one_is_given(netlink: NetlinkSocket, eth0: int) -> None:
    subnet = KernelRoute(parse_network("10.0.0.0/24"), eth0)
    assert refused(netlink, route.delete(subnet, any_scope=False)).errno == errno.ESRCH
    netlink.request(route.delete(subnet))
    assert "10.0.0.0/24" not in shown(4)
    assert refused(netlink, route.delete(subnet)).errno == errno.ESRCH


def test_dump_chooses(netlink: NetlinkSocket, eth0: int) -> None:
    peer = link.get(netlink, "peer").index
    netlink.batch(
        [
            route.add(default(eth0)),
            route.add(default(eth0, "fd00::1")),
            route.add(KernelRoute(parse_network("10.6.0.0/16"), peer, scope=LINK)),
            route.add(KernelRoute(parse_network("10.7.0.0/16"), peer, scope=LINK, table=77)),
        ]
    )

    def texts(*args: Any, **named: Any) -> set[str]:
        found = route.dump(netlink, *args, **named)
        return {str(one.dst) for one in found if one.dst.address.packed[:2] != b"\xfe\x80"}

    both = {"0.0.0.0/0", "10.0.0.0/24", "10.6.0.0/16", "::/0", "fd00::/64"}
    assert texts() == both
    assert texts(AF_INET) == {text for text in both if "." in text}
    assert texts(AF_INET6, index=eth0) == {"::/0", "fd00::/64"}
    assert texts(AF_INET, index=peer) == {"10.6.0.0/16"}
    assert texts(AF_INET, index=eth0, protocol=2) == {"10.0.0.0/24"}
    assert texts(table=77) == {"10.7.0.0/16"}
    assert texts(table=78) == set()
    assert texts(table=123456) == set()


def test_multipath(netlink: NetlinkSocket, eth0: int) -> None:
    ways = ["nexthop", "via", "10.0.0.1", "weight", "3", "nexthop", "via", "10.0.0.2"]
    run_in(None, ["ip", "route", "add", "10.8.0.0/16", *ways])
    (found,) = [one for one in route.dump(netlink, AF_INET) if str(one.dst) == "10.8.0.0/16"]
    assert found.index == 0
    assert found.multipath == (
        NextHop(eth0, parse_address("10.0.0.1"), 3),
        NextHop(eth0, parse_address("10.0.0.2"), 1),
    )
    netlink.request(route.delete(found))
    netlink.request(route.add(found))
    hops = shown(4)["10.8.0.0/16"]["nexthops"]
    assert [(hop["gateway"], hop["weight"]) for hop in hops] == [("10.0.0.1", 3), ("10.0.0.2", 1)]


# --- rules -------------------------------------------------------------------------------------


def rules(family: int) -> dict[int, dict[str, Any]]:
    return {entry["priority"]: entry for entry in ip_json(f"-{family}", "rule", "show")}


def test_rule(netlink: NetlinkSocket) -> None:
    wanted = Rule(
        AF_INET,
        table=1000,
        priority=99,
        src=parse_network("10.1.0.0/16"),
        dst=parse_network("10.2.0.0/16"),
        iif="eth0",
        oif="eth1",
        mark=0x10,
        mask=0xF0,
        protocol=4,
    )
    netlink.request(rule.add(wanted))
    entry = rules(4)[99]
    assert (entry["src"], entry["srclen"]) == ("10.1.0.0", 16)
    assert (entry["dst"], entry["dstlen"]) == ("10.2.0.0", 16)
    assert (entry["iif"], entry["oif"], entry["table"]) == ("eth0", "eth1", "1000")
    assert (entry["fwmark"], entry["fwmask"]) == ("0x10", "0xf0")
    assert wanted in rule.dump(netlink, AF_INET)
    assert refused(netlink, rule.add(wanted)).errno == errno.EEXIST
    netlink.request(rule.delete(wanted))
    assert 99 not in rules(4)
    assert refused(netlink, rule.delete(wanted)).errno == errno.ENOENT


def test_rule_of_ip6_with_a_priority_from_the_kernel(netlink: NetlinkSocket) -> None:
    wanted = Rule(AF_INET6, table=200, src=parse_network("fd00::7/128"))
    netlink.request(rule.add(wanted))
    (entry,) = [entry for entry in rules(6).values() if entry["table"] == "200"]
    assert entry["src"] == "fd00::7"
    assert str(wanted) == "from fd00::7/128 lookup 200"
    found = rule.dump(netlink, AF_INET6)
    assert [one.src for one in found if one.table == 200] == [wanted.src]
    assert [one.priority for one in found] == sorted(rules(6))
    netlink.request(rule.delete(wanted))
    assert "200" not in [entry["table"] for entry in rules(6).values()]


# --- neighbours --------------------------------------------------------------------------------


def test_neighbour(netlink: NetlinkSocket, eth0: int) -> None:
    peer = link.get(netlink, "peer").index
    wanted = Neighbour(eth0, parse_address("10.0.0.9"), "02:00:00:00:00:09")
    netlink.batch(
        [
            neighbour.add(wanted),
            neighbour.add(Neighbour(eth0, parse_address("fd00::9"), "02:00:00:00:00:0a")),
            neighbour.add(Neighbour(peer, parse_address("10.0.0.9"), "02:00:00:00:00:0b")),
        ]
    )
    (entry,) = ip_json("-4", "neighbour", "show", "dev", "eth0")
    assert (entry["dst"], entry["lladdr"]) == ("10.0.0.9", "02:00:00:00:00:09")
    assert entry["state"] == ["PERMANENT"]
    assert neighbour.dump(netlink, eth0, AF_INET) == [wanted]
    macs = {one.mac for one in neighbour.dump(netlink, eth0) if one.state == wanted.state}
    assert macs == {"02:00:00:00:00:09", "02:00:00:00:00:0a"}
    assert refused(netlink, neighbour.add(wanted)).errno == errno.EEXIST
    netlink.request(neighbour.add(wanted.replace(mac="02:00:00:00:00:0c"), replace=True))
    assert neighbour.dump(netlink, eth0, AF_INET)[0].mac == "02:00:00:00:00:0c"
    netlink.request(neighbour.delete(wanted))
    assert neighbour.dump(netlink, eth0, AF_INET) == []
    assert refused(netlink, neighbour.delete(wanted)).errno == errno.ENOENT


def test_proxy_entry(netlink: NetlinkSocket, eth0: int) -> None:
    wanted = Neighbour(eth0, parse_address("10.0.0.99"), state=0, flags=8)
    netlink.request(neighbour.add(wanted))
    assert [e["dst"] for e in ip_json("neighbour", "show", "proxy")] == ["10.0.0.99"]
    netlink.request(neighbour.delete(wanted))
    assert ip_json("neighbour", "show", "proxy") == []
