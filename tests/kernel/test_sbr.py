"""sbr on the kernel: by which interface packets leave, and what stands in which table."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Host, Namespace, Sandbox, ip_json, run_in
from harness.chained import VERSIONS, make_veth, previous_result
from harness.faults import each_request_failing
from harness.ways import WAYS, way_of

CLIENTS = {"": "192.0.2.1", "-6": "2001:db8::1"}


@pytest.fixture
def attach(host: Host, sandbox: Sandbox, plugin_dir: Path) -> Attach:
    """Makes an attachment of net1 in a sandbox whose default routes leave by eth0.

    Interface N of the sandbox has the addresses 10.1.N.2 and fd00:N::2, the host's end .1.
    """

    def make(
        *,
        version: str = "1.1.0",
        netns: Namespace | None = None,
        number: int = 1,
        with_gateways: bool = True,
        more: tuple[str, ...] = (),
        **keys: Any,
    ) -> Attachment:
        inside = netns or sandbox()
        if netns is None:
            for family, client in CLIENTS.items():
                run_in(None, ["ip", *family.split(), "address", "add", client, "dev", "lo"])
            _wire(inside, 0)
            run_in(inside, ["ip", "route", "add", "default", "via", "10.1.0.1"])
            run_in(inside, ["ip", "-6", "route", "add", "default", "via", "fd00::1"])
        _wire(inside, number, *more)
        addresses = [
            (f"10.1.{number}.2/24", f"10.1.{number}.1" if with_gateways else None),
            (f"fd00:{number}::2/64", f"fd00:{number}::1" if with_gateways else None),
            *((address, None) for address in more),
        ]
        if version < "0.3.0":
            addresses = addresses[:2]
        ifname = f"net{number}"
        previous = previous_result(
            version, inside, *addresses, ifname=ifname, host_name=f"veth{number}"
        )
        config = {
            "cniVersion": version,
            "name": f"network-{number}",
            "type": "sbr",
            "prevResult": previous,
            **keys,
        }
        return Attachment(plugin_dir / "sbr", config, inside, ifname=ifname)

    return make


def _wire(inside: Namespace, number: int, *more: str) -> None:
    group = f"fd00:{number}::" if number else "fd00::"
    make_veth(
        inside,
        f"10.1.{number}.2/24",
        f"{group}2/64",
        *more,
        ifname=f"net{number}" if number else "eth0",
        host_name=f"veth{number}",
        host_addresses=(f"10.1.{number}.1/24", f"{group}1/64"),
    )


def received(name: str) -> int:
    (link,) = ip_json("-s", "link", "show", "dev", name)
    packets: int = link["stats64"]["rx"]["packets"]
    return packets


def reply_comes_by(family: str, target: str) -> str:
    """The host's interface that the replies to pings of a client of another network come by."""
    before = {name: received(name) for name in ("veth0", "veth1")}
    client = CLIENTS[family]
    run_in(None, ["ping", "-c", "20", "-i", "0.01", "-W", "2", "-I", client, target], check=False)
    after = {name: received(name) - before[name] for name in before}
    return max(after, key=lambda name: after[name])


def rules(netns: Namespace | None, family: str = "-4") -> list[tuple[str, str]]:
    """Source and table of the rules that are not the kernel's."""
    return [
        (rule["src"], rule["table"])
        for rule in ip_json(family, "rule", "show", netns=netns)
        if rule["src"] != "all"
    ]


def routes(
    netns: Namespace | None, table: str = "main", *args: str, family: str = "-4"
) -> list[tuple[str, str | None]]:
    """Destination and gateway of a table's routes."""
    command = [family, "route", "show", "table", table, *args]
    found = run_in(netns, ["ip", "-j", *command], check=False)
    if found.returncode:  # no such table
        return []
    return [(route["dst"], route.get("gateway")) for route in ip_json(*command, netns=netns)]


# --- effect --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CLIENTS)
def test_replies_leave_by_the_interface_that_was_asked(attach: Attach, family: str) -> None:
    one = attach()
    target = "fd00:1::2" if family else "10.1.1.2"
    default = "fd00::2" if family else "10.1.0.2"
    assert reply_comes_by(family, target) == "veth0"
    one.add()
    assert reply_comes_by(family, target) == "veth1"
    assert reply_comes_by(family, default) == "veth0"
    one.check()
    one.delete()
    # Its routes are back in the main table, but it has no default route there.
    assert reply_comes_by(family, target) != "veth1"


@pytest.mark.parametrize("version", VERSIONS)
def test_add_check_delete(attach: Attach, version: str) -> None:
    one = attach(version=version)
    before = routes(one.sandbox, "main", "dev", "eth0")
    assert one.add() == one.config["prevResult"]
    assert rules(one.sandbox) == [("10.1.1.2", "100")]
    assert sorted(routes(one.sandbox, "100")) == [("10.1.1.0/24", None), ("default", "10.1.1.1")]
    assert rules(one.sandbox, "-6") == [("fd00:1::2", "101")]
    v6 = routes(one.sandbox, "101", family="-6")
    assert {("fd00:1::/64", None), ("default", "fd00:1::1")} <= set(v6)
    assert routes(one.sandbox, "main", "dev", "net1") == []
    assert routes(one.sandbox, "main", "dev", "net1", family="-6") == [("fe80::/64", None)]
    assert routes(one.sandbox, "main", "dev", "eth0") == before
    if version >= "0.4.0":
        one.check()
    for _ in range(2):
        one.delete()
        assert rules(one.sandbox) == rules(one.sandbox, "-6") == []
        assert routes(one.sandbox, "100") == routes(one.sandbox, "101", family="-6") == []


def test_default_route_of_the_interface_itself_moves(attach: Attach) -> None:
    one = attach()
    add = ["ip", "route", "add", "default", "via", "10.1.1.1", "metric", "5", "mtu", "1400"]
    run_in(one.sandbox, add)
    one.add()
    assert routes(one.sandbox, "main") == [("default", "10.1.0.1"), ("10.1.0.0/24", None)]
    shown = ip_json("route", "show", "table", "100", "default", netns=one.sandbox)
    assert [(route["metric"], route["metrics"]) for route in shown] == [(5, [{"mtu": 1400}])]


def test_routes_go_to_the_table_of_their_address(attach: Attach) -> None:
    one = attach(more=("10.1.9.2/24",))
    for route in ("10.20.0.0/16 via 10.1.1.7", "10.21.0.0/16 via 10.1.9.7", "10.22.0.0/16"):
        run_in(one.sandbox, ["ip", "route", "add", *route.split(), "dev", "net1"])
    one.add()
    # IPv6 has 101.
    assert rules(one.sandbox) == [("10.1.9.2", "102"), ("10.1.1.2", "100")]
    assert set(routes(one.sandbox, "100")) == {
        ("10.1.1.0/24", None),
        ("10.20.0.0/16", "10.1.1.7"),
        ("10.22.0.0/16", None),
        ("default", "10.1.1.1"),
    }
    assert set(routes(one.sandbox, "102")) == {
        ("10.1.9.0/24", None),
        ("10.21.0.0/16", "10.1.9.7"),
        ("10.22.0.0/16", None),
    }


def test_ways_of_a_multipath_route_stay_together(attach: Attach) -> None:
    one = attach()
    hops = ["nexthop", "via", "fd00:1::7", "nexthop", "via", "fd00:1::8"]
    run_in(one.sandbox, ["ip", "-6", "route", "add", "2001:db8:9::/48", *hops])
    one.add()
    (route,) = ip_json("-6", "route", "show", "table", "101", "2001:db8:9::/48", netns=one.sandbox)
    assert [hop["gateway"] for hop in route["nexthops"]] == ["fd00:1::7", "fd00:1::8"]
    assert ip_json("-6", "route", "show", "2001:db8:9::/48", netns=one.sandbox) == []


def test_default_route_that_another_interface_has_too(attach: Attach) -> None:
    """IPv6 makes one route of both; IPv4 may be given one. Each interface gets its own ways."""
    one = attach(addSourceHints=True)
    v4 = ["nexthop", "via", "10.1.0.1", "nexthop", "via", "10.1.1.1"]
    run_in(one.sandbox, ["ip", "route", "replace", "default", *v4])
    run_in(one.sandbox, ["ip", "-6", "route", "append", "default", "via", "fd00:1::1"])
    before = [ip_json(family, "route", "show", "default", netns=one.sandbox) for family in V46]
    one.config["prevResult"]["routes"] = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    one.add()
    assert routes(one.sandbox, "main", "default") == [("default", "10.1.0.1")]
    assert routes(one.sandbox, "main", "default", family="-6") == [("default", "fd00::1")]
    assert ("default", "10.1.1.1") in routes(one.sandbox, "100")
    assert ("default", "fd00:1::1") in routes(one.sandbox, "101", family="-6")
    one.check()
    run_in(one.sandbox, ["ip", "-6", "route", "append", "default", "via", "fd00:1::1"])
    assert "a default route of the main table leaves by net1" in one.drift()
    run_in(one.sandbox, ["ip", "-6", "route", "del", "default", "via", "fd00:1::1"])
    one.delete()
    after = [ip_json(family, "route", "show", "default", netns=one.sandbox) for family in V46]
    assert sorted(gateways(after[1])) == sorted(gateways(before[1])) == ["fd00:1::1", "fd00::1"]
    assert sorted(gateways(after[0])) == sorted(gateways(before[0]))


V46 = ("-4", "-6")


def gateways(shown: list[dict[str, Any]]) -> list[str]:
    """The next hops of routes."""
    return [hop["gateway"] for route in shown for hop in route.get("nexthops", [route])]


def test_default_routes_of_two_interfaces(attach: Attach, sandbox: Sandbox) -> None:
    """Whose failing leaves all as it was."""
    one = attach()
    run_in(one.sandbox, ["ip", "-6", "route", "append", "default", "via", "fd00:1::1"])
    hops = ["nexthop", "via", "10.1.0.1", "nexthop", "via", "10.1.1.1", "weight", "2"]
    run_in(one.sandbox, ["ip", "route", "replace", "default", *hops])

    def state() -> list[list[str]]:
        shown = [ip_json(family, "route", "show", netns=one.sandbox) for family in V46]
        return [
            sorted(
                str((route["dst"], hop.get("dev", route.get("dev")), hop.get("gateway")))
                for route in found
                for hop in route.get("nexthops", [route])
            )
            for found in shown
        ]

    before = state()
    for what in each_request_failing(lambda: one.run("ADD")):
        assert state() == before, f"refused was: {what}"


def test_routes_by_routers_that_are_in_no_subnet(attach: Attach) -> None:
    """By link-local ones, and by those outside, as clouds have them."""
    one = attach(with_gateways=False)
    for words in (
        "-6 route add 2001:db8:9::/48 via fe80::1 dev net1",
        "route add 198.51.100.1/32 dev net1 scope link",
        "route add 10.20.0.0/16 via 198.51.100.1 dev net1",
    ):
        run_in(one.sandbox, ["ip", *words.split()])
    one.config["gateways"] = ["198.51.100.9"]
    one.add()
    assert ("2001:db8:9::/48", "fe80::1") in routes(one.sandbox, "101", family="-6")
    assert {("10.20.0.0/16", "198.51.100.1"), ("default", "198.51.100.9")} <= set(
        routes(one.sandbox, "100")
    )
    assert routes(one.sandbox, "main", "dev", "net1") == []
    one.check()
    one.delete()
    assert ("10.20.0.0/16", "198.51.100.1") in routes(one.sandbox, "main", "dev", "net1")
    assert ("2001:db8:9::/48", "fe80::1") in routes(one.sandbox, "main", "dev", "net1", family="-6")


# --- tables --------------------------------------------------------------------------------------


def test_tables_are_free_ones(attach: Attach) -> None:
    """The reference takes 101 here, since no rule leads there."""
    one = attach()
    run_in(one.sandbox, ["ip", "rule", "add", "from", "10.5.5.5", "lookup", "100"])
    run_in(one.sandbox, ["ip", "route", "add", "blackhole", "10.6.0.0/16", "table", "101"])
    run_in(
        one.sandbox, ["ip", "-6", "route", "add", "blackhole", "2001:db8:6::/48", "table", "102"]
    )
    one.add()
    assert ("10.1.1.2", "103") in rules(one.sandbox)
    assert rules(one.sandbox, "-6") == [("fd00:1::2", "104")]
    one.delete()
    assert rules(one.sandbox) == [("10.5.5.5", "100")]
    assert len(routes(one.sandbox, "101")) == 1


def test_two_networks_get_tables_of_their_own(attach: Attach) -> None:
    one = attach()
    two = attach(netns=one.sandbox, number=2)
    one.add()
    two.add()
    assert rules(one.sandbox) == [("10.1.2.2", "102"), ("10.1.1.2", "100")]
    one.delete()
    assert rules(one.sandbox) == [("10.1.2.2", "102")]
    two.check()


def test_tables_differ_when_networks_come_at_once(attach: Attach) -> None:
    one = attach()
    every = [one, *(attach(netns=one.sandbox, number=number) for number in range(2, 8))]
    with ThreadPoolExecutor(len(every)) as pool:
        for added in [pool.submit(each.add) for each in every]:
            added.result()
    tables = [table for family in ("-4", "-6") for _, table in rules(one.sandbox, family)]
    assert sorted(tables) == [str(table) for table in range(100, 100 + 2 * len(every))]
    for each in every:
        each.check()


def test_given_table(attach: Attach) -> None:
    one = attach(table=5000)
    before = routes(one.sandbox), routes(one.sandbox, family="-6")
    one.add()
    assert rules(one.sandbox) == [("10.1.1.2", "5000")]
    assert rules(one.sandbox, "-6") == [("fd00:1::2", "5000")]
    assert (routes(one.sandbox), routes(one.sandbox, family="-6")) == before
    one.check()
    run_in(one.sandbox, ["ip", "rule", "del", "from", "10.1.1.2"])
    assert one.drift() == "rule from 10.1.1.2 lookup 5000 is missing"
    run_in(one.sandbox, ["ip", "rule", "add", "from", "10.1.1.2", "lookup", "6000"])
    one.delete()
    assert rules(one.sandbox, "-6") == []
    assert rules(one.sandbox) == [("10.1.1.2", "6000")]


# --- gateways and hints --------------------------------------------------------------------------


def test_given_gateways_go_before_those_of_the_result(attach: Attach) -> None:
    one = attach(gateways=["10.1.1.9", "fd00:1::9"])
    run_in(one.sandbox, ["ip", "route", "add", "default", "via", "10.1.1.1", "metric", "9"])
    one.add()
    assert ("default", "10.1.1.9") in routes(one.sandbox, "100")
    assert ("default", "10.1.1.1") not in routes(one.sandbox, "100")
    assert ("default", "fd00:1::9") in routes(one.sandbox, "101", family="-6")
    one.check()


@pytest.mark.parametrize(
    ("gateways", "message"),
    [
        (["10.1.1.1", "10.1.1.2"], "multiple IPv4 addresses: 10.1.1.1 and 10.1.1.2"),
        (["fd00::1", "fd00::2"], "multiple IPv6 addresses: fd00::1 and fd00::2"),
        (["10.1.1.1", "fd00::1", "fd00::2"], "cannot contain more than 2 entries"),
        (["10.1.1"], "invalid static gateway IP address: 10.1.1"),
    ],
)
def test_refused_gateways(attach: Attach, gateways: list[str], message: str) -> None:
    one = attach()
    one.config["gateways"] = gateways
    error = one.refused()
    assert error["code"] == 7
    assert message in error["msg"]
    assert rules(one.sandbox) == []
    one.delete()
    # Without a use for them they are not looked at.
    one.config["table"] = 500
    one.add()


def test_source_hints(attach: Attach) -> None:
    one = attach(addSourceHints=True)
    run_in(one.sandbox, ["ip", "route", "add", "10.20.0.0/16", "via", "10.1.1.7"])
    one.add()
    main = ip_json("route", "show", "dev", "net1", netns=one.sandbox)
    assert [(r["dst"], r["scope"], r["prefsrc"]) for r in main] == [
        ("10.1.1.0/24", "link", "10.1.1.2")
    ]
    shown = ip_json("-6", "route", "show", "dev", "net1", netns=one.sandbox)
    assert [(r["dst"], r.get("prefsrc"), r["metric"]) for r in shown] == [
        ("fd00:1::/64", "fd00:1::2", 256),
        ("fe80::/64", None, 256),
    ]
    assert ("10.20.0.0/16", "10.1.1.7") in routes(one.sandbox, "100")
    one.check()
    run_in(one.sandbox, ["ping", "-c1", "-W2", "10.1.1.1"])
    run_in(one.sandbox, ["ping", "-c1", "-W2", "fd00:1::1"])


# --- drift, removal, failure ---------------------------------------------------------------------


def test_check_finds_what_is_missing(attach: Attach) -> None:
    """The reference's finds nothing, ever."""
    one = attach()
    one.add()
    run_in(one.sandbox, ["ip", "route", "del", "default", "table", "100"])
    assert one.drift() == "packets from 10.1.1.2 have no default route via 10.1.1.1"
    run_in(one.sandbox, ["ip", "route", "flush", "table", "100"])
    assert one.drift() == "the table for packets from 10.1.1.2 has no routes"
    run_in(one.sandbox, ["ip", "rule", "del", "from", "10.1.1.2"])
    assert one.drift() == "no rule leads packets from 10.1.1.2 to a table of their own"


def test_delete_after_the_interface(attach: Attach) -> None:
    one = attach()
    one.add()
    run_in(one.sandbox, ["ip", "link", "del", "net1"])
    one.delete()
    assert rules(one.sandbox) == rules(one.sandbox, "-6") == []


@pytest.mark.parametrize("hints", [False, True])
@pytest.mark.parametrize("version", ["0.2.0", "1.1.0"])
def test_delete_puts_the_routes_back(attach: Attach, version: str, hints: bool) -> None:
    one = attach(version=version, addSourceHints=hints)
    for family, gateway, network in (
        ("-4", "10.1.1.1", "10.20.0.0/16"),
        ("-6", "fd00:1::1", "2001:db8:20::/48"),
    ):
        add = ["ip", family, "route", "append"]
        run_in(one.sandbox, [*add, "default", "via", gateway, "metric", "50"])
        run_in(one.sandbox, [*add, network, "via", gateway, "proto", "static"])
    defaults = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    if version == "0.2.0":
        for slot, route in zip(("ip4", "ip6"), defaults, strict=True):
            one.config["prevResult"][slot]["routes"] = [route]
    else:
        one.config["prevResult"]["routes"] = defaults

    def state() -> list[Any]:
        return [
            ip_json(family, kind, "show", *table, netns=one.sandbox)
            for family in ("-4", "-6")
            for kind, table in (("rule", []), ("route", ["table", "all"]))
        ]

    before = state()
    one.add()
    assert state() != before
    one.delete()
    assert by_content(state()) == by_content(before)
    one.delete()
    assert by_content(state()) == by_content(before)


def by_content(state: list[Any]) -> list[Any]:
    return [sorted(map(repr, part)) for part in state]


def test_delete_leaves_a_default_route_of_its_own_out(attach: Attach) -> None:
    """No plugin before had set one, as the previous result says."""
    one = attach()
    before = routes(one.sandbox), routes(one.sandbox, family="-6")
    one.add()
    one.delete()
    assert routes(one.sandbox) == before[0]
    assert sorted(map(repr, routes(one.sandbox, family="-6"))) == sorted(map(repr, before[1]))


def test_delete_puts_the_routes_behind_those_of_others(attach: Attach) -> None:
    """An interface in the same subnet has kept its own meanwhile."""
    one = attach()
    run_in(one.sandbox, ["ip", "address", "add", "10.1.1.77/24", "dev", "eth0"])
    one.add()
    one.delete()
    found = ip_json("route", "show", "10.1.1.0/24", netns=one.sandbox)
    assert [route["dev"] for route in found] == ["eth0", "net1"]


@pytest.mark.parametrize("kind", WAYS)
def test_delete_where_the_container_deleted_a_rule(
    kind: str, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """Without the one to the main table the kernel finds no gateway there."""
    with way_of(kind, tmp_path, plugin_dir) as way:
        ipam = way.host_local("10.11.0.0/24")
        ipam["ranges"].append([{"subnet": "fd11::/64"}])
        bridge = {"type": "bridge", "isDefaultGateway": True, "ipam": ipam}
        network = way.network("n", bridge, {"type": "sbr"})
        box = sandbox()
        network.add("c", box.path)
        for family in ("-4", "-6"):
            run_in(box, ["ip", family, "rule", "del", "pref", "32766"])
        network.delete("c")
        assert rules(box) == rules(box, "-6") == []
        assert (way.leases("n"), way.cached()) == ({}, [])


def test_delete_without_previous_result(attach: Attach) -> None:
    one = attach()
    one.add()
    one.result = None
    del one.config["prevResult"]
    one.delete()
    assert rules(one.sandbox) == rules(one.sandbox, "-6") == []


def test_delete_without_namespace(attach: Attach) -> None:
    """The reference leaves a plain file in the namespace's place, and fails."""
    one = attach()
    one.add()
    assert one.sandbox is not None
    path = Path(one.sandbox.path)
    one.sandbox.delete()
    one.delete()
    assert not path.exists()
    one.sandbox = None
    one.delete()


def test_rules_with_more_conditions_are_not_ours(attach: Attach) -> None:
    one = attach()
    one.add()
    theirs = ["from", "10.1.1.2", "to", "10.9.0.0/16", "lookup", "77"]
    run_in(one.sandbox, ["ip", "rule", "add", *theirs])
    one.delete()
    assert rules(one.sandbox) == [("10.1.1.2", "77")]


@pytest.mark.parametrize("hints", [False, True])
def test_failing_half_way_leaves_everything_as_it_was(attach: Attach, hints: bool) -> None:
    one = attach(addSourceHints=hints)
    run_in(one.sandbox, ["ip", "route", "add", "10.20.0.0/16", "via", "10.1.1.7"])
    run_in(one.sandbox, ["ip", "-6", "route", "add", "2001:db8:7::/48", "via", "fd00:1::7"])

    def state() -> list[Any]:
        return [
            sorted(map(str, ip_json(family, *what.split(), netns=one.sandbox)))
            for family in ("-4", "-6")
            for what in ("rule show", "route show table all")
        ]

    before = state()
    refused = []
    for what in each_request_failing(lambda: one.run("ADD")):
        refused.append(what)
        assert state() == before, f"refused was: {what}"
    assert any(what.startswith("delete route") for what in refused)


def test_refusals(attach: Attach) -> None:
    one = attach()
    previous = one.config.pop("prevResult")
    error = one.refused()
    assert (error["code"], error["msg"]) == (7, "This plugin must be called as chained plugin")
    one.config["prevResult"] = {**previous, "ips": []}
    assert one.refused()["msg"] == "No IP addresses supplied on interface: net1"
    foreign = [{"address": "10.9.9.9/24", "interface": 0}]  # the host's end
    one.config["prevResult"] = {**previous, "ips": foreign}
    assert one.refused()["msg"] == "No IP addresses supplied on interface: net1"
    odd = [{"address": "10.1.1.2/24", "interface": 7, "gateway": "10.1.1.1"}]
    one.config["prevResult"] = {**previous, "ips": odd}
    one.add()
    assert rules(one.sandbox) == [("10.1.1.2", "100")]
