"""vrf on a kernel that has it. Few tests, since Python is slow there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import (
    Attach,
    Attachment,
    Host,
    Namespace,
    PluginRun,
    Sandbox,
    call_plugin,
    ip_json,
    run_in,
    run_plugin,
)
from harness.chained import make_veth, previous_result
from harness.configs import host_local
from harness.dhcp import Program
from harness.faults import each_request_failing
from harness.kernel_state import global_addresses
from harness.locks import NOBODY, held
from pycni.dhcp import wire
from pycni.dhcp.exchange import Client
from pycni.dhcp.keeper import Keeper
from pycni.dhcp.lease import Lease, LeaseRecord, now
from pycni.runtime import Network

ROUTES = {"10.2{n}.0.0/16 via 10.1.{n}.1 metric 7", "10.3{n}.0.0/16"}
V6_ROUTES = {"2001:db8:{n}::/48 via fd00:{n}::1 metric 7", "default via fd00:{n}::1 metric {n}024"}


@pytest.fixture
def attach(host: Host, sandbox: Sandbox, plugin_dir: Path) -> Attach:
    """Makes an attachment of a veth; interface N has 10.1.N.2 and fd00:N::2, the host's end .1."""
    count = 0

    def make(
        *,
        version: str = "1.1.0",
        netns: Namespace | None = None,
        address: str = "",
        **keys: Any,
    ) -> Attachment:
        nonlocal count
        count += 1
        inside, ifname, host_name = netns or sandbox(), f"net{count}", f"veth{count}"
        own = address or f"10.1.{count}.2/24"
        make_veth(
            inside,
            own,
            f"fd00:{count}::2/64",
            ifname=ifname,
            host_name=host_name,
            host_addresses=(f"10.1.{count}.1/24", f"fd00:{count}::1/64"),
        )
        run_in(None, ["sysctl", "-qw", f"net.ipv6.conf.{host_name}.accept_dad=0"])
        if not address:
            for family, routes in (("-4", ROUTES), ("-6", V6_ROUTES)):
                for route in sorted(routes):
                    words = route.format(n=count).split()
                    run_in(inside, ["ip", family, "route", "add", *words, "dev", ifname])
        previous = previous_result(
            version,
            inside,
            (own, None),
            (f"fd00:{count}::2/64", None),
            ifname=ifname,
            host_name=host_name,
        )
        config = {"cniVersion": version, "name": "net", "type": "vrf", "prevResult": previous}
        return Attachment(
            plugin_dir / "vrf", {**config, "vrfname": "blue", **keys}, inside, ifname=ifname
        )

    return make


def routes(netns: Namespace | None, ifname: str, table: str) -> set[tuple[Any, ...]]:
    """The unicast routes of an interface in a table: destination, gateway and metric."""
    found = []
    for family in ("-4", "-6"):
        command = [family, "route", "show", "table", table, "dev", ifname, "type", "unicast"]
        if run_in(netns, ["ip", *command], check=False).returncode == 0:
            found += ip_json(*command, netns=netns)
    return {
        (route["dst"], route.get("gateway"), route.get("metric") or 0)
        for route in found
        if not route["dst"].startswith("fe80")
    }


def vrfs(netns: Namespace | None) -> dict[str, int]:
    found = ip_json("-d", "link", "show", "type", "vrf", netns=netns)
    return {link["ifname"]: link["linkinfo"]["info_data"]["table"] for link in found}


def addresses_of(one: Attachment) -> set[str]:
    """Those of its interface, without their prefixes."""
    return {text.partition("/")[0] for text in global_addresses(one.ifname, one.sandbox)}


@pytest.mark.parametrize("keep", ["0", "1"])
def test_routes_and_addresses_move_along(attach: Attach, keep: str) -> None:
    one = attach()
    run_in(one.sandbox, ["sysctl", "-qw", f"net.ipv6.conf.net1.keep_addr_on_down={keep}"])
    before = routes(one.sandbox, "net1", "main")
    assert ("10.21.0.0/16", "10.1.1.1", 7) in before
    assert ("default", "fd00:1::1", 1024) in before
    assert one.add() == one.config["prevResult"]
    assert vrfs(one.sandbox) == {"blue": 1}
    assert one.link()["master"] == "blue"
    assert addresses_of(one) == {"10.1.1.2", "fd00:1::2"}
    assert routes(one.sandbox, "net1", "1") == before
    assert routes(one.sandbox, "net1", "main") == set()
    # At once: nothing waits for duplicate address detection.
    run_in(one.sandbox, ["ip", "vrf", "exec", "blue", "true"], check=False)
    for address in ("fd00:1::1", "10.1.1.1"):
        run_in(one.sandbox, ["ping", "-c1", "-W5", "-I", "blue", address])
        assert run_in(one.sandbox, ["ping", "-c1", "-W1", address], check=False).returncode
    one.check()
    one.delete()
    assert vrfs(one.sandbox) == {}
    assert "master" not in one.link()
    assert addresses_of(one) == {"10.1.1.2", "fd00:1::2"}
    assert routes(one.sandbox, "net1", "main") == before
    for address in ("fd00:1::1", "10.1.1.1"):
        run_in(one.sandbox, ["ping", "-c1", "-W5", address])
    one.delete()


def test_members_share_a_vrf_and_the_last_one_takes_it(attach: Attach) -> None:
    one = attach(table=500)
    two = attach(netns=one.sandbox)
    other = attach(netns=one.sandbox, vrfname="red", address="10.1.1.2/24")
    for each in (one, two, other):
        each.add()
    # Both VRFs have the address 10.1.1.2; the first free table is 1.
    assert vrfs(one.sandbox) == {"blue": 500, "red": 1}
    assert ("10.1.1.0/24", None, 0) in routes(one.sandbox, "net1", "500")
    assert ("10.1.1.0/24", None, 0) in routes(one.sandbox, "net3", "1")
    for each in (one, two, other):
        each.check()
    two.config["table"] = 501
    assert two.drift() == "VRF blue has the routing table 500, expected 501"
    run_in(one.sandbox, ["ip", "link", "set", "net1", "nomaster"])
    assert one.drift() == "failed to find net1 associated to vrf blue"
    run_in(one.sandbox, ["ip", "link", "set", "net1", "master", "blue"])
    run_in(one.sandbox, ["ip", "link", "set", "blue", "down"])
    assert one.drift() == "VRF blue is down"
    one.delete()
    assert vrfs(one.sandbox) == {"blue": 500, "red": 1}
    # The reference fails without the interface.
    run_in(one.sandbox, ["ip", "link", "del", "net2"])
    two.delete()
    assert vrfs(one.sandbox) == {"red": 1}
    assert one.drift() == "there is no VRF blue in the sandbox"
    assert other.sandbox is not None
    other.sandbox.delete()
    other.delete()


def test_tables_are_free_ones(attach: Attach) -> None:
    one = attach()
    run_in(one.sandbox, ["ip", "link", "add", "red", "type", "vrf", "table", "1"])
    run_in(one.sandbox, ["ip", "rule", "add", "from", "10.9.9.9", "lookup", "2"])
    run_in(one.sandbox, ["ip", "-6", "route", "add", "blackhole", "2001:db8:9::/48", "table", "3"])
    one.add()
    assert vrfs(one.sandbox)["blue"] == 4
    two = attach(netns=one.sandbox, vrfname="green", table=4)  # shared on purpose
    two.add()
    assert vrfs(one.sandbox) == {"blue": 4, "green": 4, "red": 1}


def test_default_routes_that_another_interface_has_too(attach: Attach) -> None:
    """IPv6 makes one route of both; IPv4 may be given one. Each interface gets its own ways."""
    one = attach()
    two = attach(netns=one.sandbox)
    for family, hops in (
        ("-4", "nexthop via 10.1.2.1 dev net2 nexthop via 10.1.1.1 dev net1"),
        ("-6", "nexthop via fd00:1::1 dev net1 nexthop via fd00:2::1 dev net2"),
    ):
        words = ["route", "add", "default", "metric", "50", *hops.split()]
        run_in(one.sandbox, ["ip", family, *words])

    def ways(table: str) -> set[tuple[str, str]]:
        listed = [
            route
            for family in ("-4", "-6")
            for route in ip_json(
                family, "route", "show", "table", table, "default", "metric", "50",
                netns=one.sandbox,
            )
        ]  # fmt: skip
        return {
            (hop.get("dev", route.get("dev")), hop["gateway"])
            for route in listed
            for hop in route.get("nexthops", [route])
        }

    first, second = (
        {(f"net{number}", f"10.1.{number}.1"), (f"net{number}", f"fd00:{number}::1")}
        for number in (1, 2)
    )
    assert ways("main") == first | second
    for what in each_request_failing(lambda: two.run("ADD")):
        assert ways("main") == first | second, f"refused was: {what}"
    assert ways("main") == first
    assert ways("1") == second
    two.check()
    run_in(one.sandbox, ["ip", "-6", "route", "append", "default", "via", "fe80::1", "dev", "net2"])
    assert "a default route of the main table leaves by net2" in two.drift()
    run_in(one.sandbox, ["ip", "-6", "route", "del", "default", "via", "fe80::1", "dev", "net2"])
    one.add()
    assert ways("1") == first | second
    assert ways("main") == set()
    two.check()
    two.delete()
    assert ways("1") == first
    assert ways("main") == second


def test_repair_stays_within_the_vrf(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """Default routes of two of its interfaces are one to the kernel, with two ways."""
    lan, box = sandbox(), sandbox()
    run_in(None, ["ip", "link", "add", "up0", "type", "veth", "peer", "eth0", "netns", lan.name])
    run_in(None, ["ip", "link", "set", "up0", "up"])
    for words in ("link set eth0 up", "address add fd61::1/64 dev eth0 nodad"):
        run_in(lan, ["ip", *words.split()])
    run_in(lan, ["ip", "address", "add", "2001:db8::9", "dev", "lo"])
    run_in(lan, ["ip", "link", "set", "lo", "up"])
    ipam = host_local(
        tmp_path / "leases",
        ranges=[[{"subnet": "fd61::/64", "gateway": "fd61::1"}]],
        routes=[{"dst": "::/0"}],
    )
    plugins = [
        {"type": "macvlan", "master": "up0", "ipam": ipam},
        {"type": "vrf", "vrfname": "blue"},
    ]
    network = Network.from_dict(
        {"cniVersion": "1.1.0", "name": "n", "plugins": plugins}, cache_dir=tmp_path / "cni"
    )
    for ifname in ("eth0", "eth1"):
        network.add("c", box.path, ifname)
    for ifname in ("eth0", "eth1"):
        network.check("c", box.path, ifname)

    def outside() -> int:
        ping = ["ping", "-6", "-c1", "-W1", "2001:db8::9"]
        return run_in(box, ping, check=False).returncode

    assert outside() != 0
    assert all(report.is_sound for report in network.repair())
    for _ in range(2):
        run_in(box, ["ip", "-6", "route", "del", "default", "vrf", "blue"], check=False)
    network.repair()
    assert ip_json("-6", "route", "show", "default", netns=box) == []
    assert len(ip_json("-6", "route", "show", "default", "vrf", "blue", netns=box)) == 1
    assert outside() != 0
    for ifname in ("eth0", "eth1"):
        network.check("c", box.path, ifname)
        network.delete("c", box.path, ifname)


@pytest.mark.parametrize("call", [call_plugin, run_plugin])
def test_a_namespace_that_somebody_else_has_locked(
    attach: Attach, call: Callable[..., PluginRun]
) -> None:
    one = attach()
    one.call = call
    assert one.sandbox is not None
    holders: dict[Any, list[str]] = {
        call_plugin: ["/proc/self/ns/net", "nsenter", f"--net={one.sandbox.path}"],
        run_plugin: [one.sandbox.path, *NOBODY],
    }
    with held(*holders[call]):
        one.add()
        one.check()
        one.delete()
    assert vrfs(one.sandbox) == {}


def test_routes_come_back_with_a_lease_that_was_lost(attach: Attach, tmp_path: Path) -> None:
    """Into the VRF's table, and none into the main one."""
    one = attach()
    one.add()
    assert one.sandbox is not None
    tables = ["-4", "route", "show", "table", "all"]
    before = sorted(map(str, ip_json(*tables, netns=one.sandbox)))
    assert ("10.21.0.0/16", "10.1.1.1", 7) in routes(one.sandbox, "net1", "1")
    end = now()
    lease = Lease("10.1.1.2", 24, "10.1.1.1", "", end - 3, end - 2, end - 1, end)
    client = Client(b"test", (1, 3), timeout=2)
    place = wire.Sandbox(one.sandbox.path, "net1")
    server = Program(
        ["dnsmasq", "-k", "-C", "/dev/null", "-u", "root", "--port=0", "--interface=veth1",
         "--bind-interfaces", "--no-ping", f"--pid-file={tmp_path}/pid",
         f"--dhcp-leasefile={tmp_path}/leases", "--dhcp-range=10.1.1.2,10.1.1.2,10m"],
        tmp_path / "dnsmasq.log",
    )  # fmt: skip

    async def reached(state: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not state():
                await asyncio.sleep(0.1)

    async def lose_and_regain() -> None:
        record = LeaseRecord(
            "net", one.container, "net1", place.path, {}, (1, 3), wire.UNKNOWN, "", lease
        )
        with place.open() as space:
            place.find(space)
        keeper = Keeper(record, client, place, lambda _: None, lambda _: None, asyncio.Semaphore())
        keeper.start()
        await reached(lambda: "10.1.1.2" not in addresses_of(one))
        assert routes(one.sandbox, "net1", "1") & {("10.21.0.0/16", "10.1.1.1", 7)} == set()
        with server:
            await reached(lambda: keeper.state == "bound")
        await keeper.stop()

    asyncio.run(lose_and_regain())
    assert sorted(map(str, ip_json(*tables, netns=one.sandbox))) == before
    one.check()
    run_in(one.sandbox, ["ping", "-c1", "-W5", "-I", "blue", "10.1.1.1"])


def test_delete_where_the_container_deleted_a_rule(attach: Attach) -> None:
    """Without the one to the main table the kernel finds no gateway there."""
    one = attach()
    one.add()
    for family in ("-4", "-6"):
        run_in(one.sandbox, ["ip", family, "rule", "del", "pref", "32766"])
    one.delete()
    assert vrfs(one.sandbox) == {}
    assert ("10.21.0.0/16", "10.1.1.1", 7) in routes(one.sandbox, "net1", "main")


def test_failing_half_way_leaves_everything_as_it_was(attach: Attach) -> None:
    one = attach()

    def state() -> list[Any]:
        return [
            vrfs(one.sandbox),
            one.link().get("master"),
            addresses_of(one),
            routes(one.sandbox, "net1", "main"),
        ]

    before = state()
    for what in each_request_failing(lambda: one.run("ADD")):
        assert state() == before, f"refused was: {what}"
    assert vrfs(one.sandbox) == {"blue": 1}


def test_refusals(attach: Attach) -> None:
    one = attach()
    run_in(one.sandbox, ["ip", "link", "add", "red", "type", "vrf", "table", "7"])
    run_in(one.sandbox, ["ip", "link", "add", "br0", "type", "bridge"])
    one.config["vrfname"] = ""
    assert one.refused()["msg"] == "configuration is expected to have a valid vrf name"
    one.config["vrfname"] = "br0"
    assert one.refused()["msg"] == "interface br0 is no VRF"
    one.config |= {"vrfname": "red", "table": 8}
    assert one.refused()["msg"] == "VRF red already exist with different routing table 7"
    one.config["table"] = 7
    run_in(one.sandbox, ["ip", "link", "set", "net1", "master", "br0"])
    assert one.refused()["msg"] == "interface net1 has already a master set: br0"
    previous = one.config.pop("prevResult")
    assert one.refused()["msg"] == "missing prevResult from earlier plugin"
    one.config |= {"prevResult": previous, "cniVersion": "0.3.0"}
    assert one.refused()["code"] == 1


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_one_of_us_and_the_reference(attach: Attach, reference_dir: Path, version: str) -> None:
    """Each adds what the other checks and deletes; results and tables are the same."""
    for number, ours_first in enumerate((True, False), start=1):
        ours = attach(version=version)
        theirs = Attachment(
            reference_dir / "vrf", ours.config, ours.sandbox, ifname=ours.ifname, call=run_plugin
        )
        before = routes(ours.sandbox, ours.ifname, "main")
        adder, deleter = (ours, theirs) if ours_first else (theirs, ours)
        result = adder.add()
        if version == "1.0.0":
            result.pop("dns", None)  # Debian's reference prints an empty one
        assert result == ours.config["prevResult"]
        assert vrfs(ours.sandbox) == {"blue": 1}
        # Debian's release of the reference keeps only the routes of addresses.
        assert routes(ours.sandbox, ours.ifname, "1") <= before
        assert not ours_first or routes(ours.sandbox, ours.ifname, "1") == before
        assert addresses_of(ours) == {f"10.1.{number}.2", f"fd00:{number}::2"}
        deleter.result = adder.result
        if version != "0.3.1":
            deleter.check()
            adder.check()
        deleter.delete()
        assert vrfs(ours.sandbox) == {}
        assert "master" not in ours.link()
