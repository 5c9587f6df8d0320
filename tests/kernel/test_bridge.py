"""bridge on the kernel: what an attachment is, does, and leaves; each key of the configuration."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from harness import (
    Attach,
    Attachment,
    Host,
    Namespace,
    Sandbox,
    ip_json,
    nft_list,
    run_in,
    run_plugin,
)
from harness.frames import ARP, IPV4, IPV6, Wire
from harness.kernel_state import addresses, global_addresses, link, link_names, pings, veths
from harness.machines import fill_bridge
from harness.ways import WAYS, way_of
from pycni.kernel import sysctl
from pycni.runtime import PluginError

V4 = [{"subnet": "10.1.2.0/24"}]
V6 = [{"subnet": "2001:db8:1::/64"}]
OTHER_V6 = [{"subnet": "2001:db8:2::/64"}]
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


@pytest.fixture
def attach(host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path) -> Attach:
    """Makes an attachment, not yet added, of a container of its own; `keys` are of the network.

    ranges: for host-local; () for a network without addresses.
    """
    count = 0

    def make(
        ranges: tuple[Any, ...] = (V4,),
        *,
        netns: Namespace | None = None,
        container: str = "",
        ifname: str = "eth0",
        cni_args: str | None = None,
        ipam: dict[str, Any] | None = None,
        **keys: Any,
    ) -> Attachment:
        nonlocal count
        count += 1
        config = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "bridge0"}
        if ranges:
            keys["ipam"] = {
                "type": "host-local",
                "dataDir": str(tmp_path / "leases"),
                "ranges": list(ranges),
                **(ipam or {}),
            }
        return Attachment(
            plugin_dir / "bridge",
            {**config, **keys},
            netns or sandbox(),
            container or f"container-{count}",
            ifname,
            cni_args,
        )

    return make


@pytest.fixture
def leases(tmp_path: Path) -> Callable[[], set[str]]:
    """The addresses that are taken in network `net`."""
    folder = tmp_path / "leases" / "net"

    def taken() -> set[str]:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        return {name for name in names if name[0].isdigit()}

    return taken


def routes(netns: Namespace | None = None) -> list[dict[str, Any]]:
    return [
        *ip_json("-4", "route", "show", netns=netns),
        *ip_json("-6", "route", "show", netns=netns),
    ]


def setting(name: str, netns: Namespace | None = None) -> str:
    return run_in(netns, ["cat", f"/proc/sys/{name}"]).stdout.strip()


def port_flags(name: str) -> Any:
    return link(name)["linkinfo"]["info_slave_data"]


def owned() -> list[str]:
    """The comments of all nftables elements that name an attachment."""
    found = []
    for entry in nft_list():
        for kind in ("map", "set"):
            for element in entry.get(kind, {}).get("elem", []):
                item = element[0] if isinstance(element, list) else element
                found.append(item["elem"]["comment"])
    return found


# --- what an attachment is -----------------------------------------------------------------------


def wait_for_local(netns: Namespace | None) -> list[str]:
    """The link-local address of eth0, once the kernel has made it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = [key for key, item in addresses("eth0", netns).items() if item["scope"] == "link"]
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("no link-local address")


@pytest.mark.parametrize(
    ("ranges", "gateways"),
    [
        ((V4,), ["10.1.2.1/24"]),
        ((V6,), ["2001:db8:1::1/64"]),
        ((V4, V6), ["10.1.2.1/24", "2001:db8:1::1/64"]),
        ((V4, V6, OTHER_V6), ["10.1.2.1/24", "2001:db8:1::1/64", "2001:db8:2::1/64"]),
    ],
    ids=["v4", "v6", "dual", "three"],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_add_check_del(
    attach: Attach,
    leases: Callable[[], set[str]],
    tmp_path: Path,
    version: str,
    ranges: tuple[Any, ...],
    gateways: list[str],
) -> None:
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 192.0.2.3\n")
    one = attach(
        ranges,
        cniVersion=version,
        isDefaultGateway=True,
        ipMasq=False,
        ipam={"resolvConf": str(resolv)},
    )
    if version < "0.3.0" and len(ranges) > 2:
        assert "does not support more than 1 address per family" in one.refused()["msg"]
        one.delete()
        assert leases() == set()
        return
    result = one.add()
    inner = addresses("eth0", one.sandbox)
    own = [gateway.replace("1/", "2/") for gateway in gateways]
    assert {key for key, item in inner.items() if item["scope"] == "global"} == set(own)
    if V6 in ranges:
        # The link-local address comes with the carrier, and none waits for detection.
        assert len(wait_for_local(one.sandbox)) == 1
        assert setting("net/ipv6/conf/eth0/accept_dad", one.sandbox) == "0"
    else:
        assert inner.keys() == set(own)
    assert not any("tentative" in inner[address] for address in own)
    assert not any("tentative" in addresses("bridge0")[gateway] for gateway in gateways)

    eth0 = link("eth0", one.sandbox)
    (outer,) = veths()
    assert link_names() == {"lo", "bridge0", outer}
    assert eth0["linkinfo"]["info_kind"] == "veth"
    assert eth0["operstate"] == "UP"
    assert link(outer)["master"] == "bridge0"
    assert link(outer)["operstate"] == "UP"
    bridge = link("bridge0")
    assert bridge["linkinfo"]["info_kind"] == "bridge"
    assert bridge["linkinfo"]["info_data"]["vlan_filtering"] == 0
    assert bridge["promiscuity"] == 0
    assert bridge["address"] != link(outer)["address"]
    assert global_addresses("bridge0") == set(gateways)

    defaults = [route for route in routes(one.sandbox) if route["dst"] == "default"]
    first = {":" in gateway: gateway.partition("/")[0] for gateway in reversed(gateways)}
    assert {route["gateway"] for route in defaults} == set(first.values())
    assert not any("prefsrc" in route for route in defaults)
    for gateway in gateways:
        assert pings(one.sandbox, gateway.partition("/")[0])
    for address in own:
        assert pings(None, address.partition("/")[0])

    assert result["cniVersion"] == version
    assert result["dns"] == {"nameservers": ["192.0.2.3"]}
    if version < "0.3.0":
        slots = [result[slot] for slot in ("ip4", "ip6") if slot in result]
        assert [slot["ip"] for slot in slots] == own
        assert [slot["gateway"] for slot in slots] == [item.partition("/")[0] for item in gateways]
        assert [len(slot["routes"]) for slot in slots] == [1] * len(slots)
        assert "interfaces" not in result
    else:
        assert result["interfaces"] == [
            {"name": "bridge0", "mac": bridge["address"]},
            {"name": outer, "mac": link(outer)["address"]},
            {"name": "eth0", "mac": eth0["address"], "sandbox": one.sandbox.path},
        ]
        assert [item["address"] for item in result["ips"]] == own
        assert [item["interface"] for item in result["ips"]] == [2] * len(own)
        assert all(("version" in item) == (version < "1.0.0") for item in result["ips"])
        assert {route["gw"] for route in result["routes"]} == set(first.values())

    if version >= "0.4.0":
        one.check()
    else:
        error = one.refused("CHECK")
        assert (error["code"], error["msg"]) == (1, "config version does not allow CHECK")
    one.delete()
    assert link_names(one.sandbox) == {"lo"}
    assert link_names() == {"lo", "bridge0"}
    assert leases() == set()
    one.delete()
    # What the bridge is stays, for others.
    assert global_addresses("bridge0") == set(gateways)
    assert link("bridge0")["address"] == bridge["address"]


@pytest.mark.parametrize("version", VERSIONS)
def test_without_addresses(attach: Attach, host: Host, version: str) -> None:
    before = host.snapshot()
    one = attach((), cniVersion=version, ipam={})
    if version < "0.3.0":
        assert one.refused()["msg"] == "cannot convert: no valid IP addresses"
        assert host.snapshot() == before
        one.delete()
        return
    result = one.add()
    assert [item["name"] for item in result["interfaces"]] == ["bridge0", veths()[0], "eth0"]
    assert "ips" not in result
    assert link("eth0", one.sandbox)["operstate"] == "UP"
    assert global_addresses("eth0", one.sandbox) == set()
    assert global_addresses("bridge0") == set()
    if version >= "0.4.0":
        one.check()
    one.delete()
    assert link_names() == {"lo", "bridge0"}


def test_two_containers_reach_each_other_without_addresses_of_ours(attach: Attach) -> None:
    one, two = attach(()), attach(())
    for number, end in enumerate((one, two), start=1):
        end.add()
        run_in(end.sandbox, ["ip", "address", "add", f"10.9.0.{number}/24", "dev", "eth0"])
    assert pings(one.sandbox, "10.9.0.2")


def test_dns_of_the_configuration(attach: Attach) -> None:
    one = attach(dns={"nameservers": ["192.0.2.9"], "domain": "x.test"})
    assert one.add()["dns"] == {"nameservers": ["192.0.2.9"], "domain": "x.test"}


def test_routes_of_the_address_plugin(attach: Attach) -> None:
    routed = [
        {"dst": "0.0.0.0/0"},
        {"dst": "10.99.0.0/16", "gw": "10.1.2.77"},
        {"dst": "10.98.0.0/16", "table": 5000},
        {"dst": "10.97.0.0/16", "scope": 200},
        {"dst": "10.96.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 9},
        {"dst": "2001:db8:9::/48"},
    ]
    one = attach((V4, V6), isGateway=True, ipam={"routes": routed})
    result = one.add()
    assert len(result["routes"]) == len(routed)
    found = {route["dst"]: route for route in routes(one.sandbox)}
    assert found["default"]["gateway"] == "10.1.2.1"
    assert found["10.99.0.0/16"]["gateway"] == "10.1.2.77"
    assert found["10.97.0.0/16"]["scope"] == "site"  # iproute2's name for 200
    assert found["10.96.0.0/16"]["metric"] == 9
    assert found["10.96.0.0/16"]["metrics"] == [{"mtu": 1300, "advmss": 1200}]
    assert found["2001:db8:9::/48"]["gateway"] == "2001:db8:1::1"
    (other,) = ip_json("route", "show", "table", "5000", netns=one.sandbox)
    assert (other["dst"], other["gateway"]) == ("10.98.0.0/16", "10.1.2.1")
    one.check()


@pytest.mark.parametrize("kind", WAYS)
def test_default_route_that_was_given_is_the_only_one(
    kind: str, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    with way_of(kind, tmp_path, plugin_dir) as way:
        given = [{"dst": "0.0.0.0/0", "mtu": 1400}, {"dst": "::/0", "priority": 50}]
        ipam = way.host_local("10.1.2.0/24", routes=given)
        ipam["ranges"].append([{"subnet": "2001:db8:1::/64"}])
        network = way.network("n", {"type": "bridge", "isDefaultGateway": True, "ipam": ipam})
        box = sandbox()
        result = network.add("c", box.path)
        assert [str(route.gw) for route in result.routes] == ["10.1.2.1", "2001:db8:1::1"]
        v4, v6 = (ip_json(family, "route", "show", "default", netns=box) for family in ("-4", "-6"))
        assert [(route["gateway"], route["metrics"]) for route in v4] == [
            ("10.1.2.1", [{"mtu": 1400}])
        ]
        assert [(route["gateway"], route["metric"]) for route in v6] == [("2001:db8:1::1", 50)]
        network.check("c")


def test_same_destination_by_two_gateways(attach: Attach) -> None:
    for family, prefix, dst in (
        ("-4", "10.1.2.", "10.9.0.0/16"),
        ("-6", "2001:db8:1::", "fd09::/64"),
    ):
        routed = [{"dst": dst, "gw": f"{prefix}8"}, {"dst": dst, "gw": f"{prefix}9"}]
        one = attach((V4, V6), ipam={"routes": routed})
        one.add()
        seen = str(ip_json(family, "route", "show", dst, netns=one.sandbox))
        assert f"'{prefix}8'" in seen
        assert f"'{prefix}9'" in seen
        one.check()


def test_two_interfaces_of_one_container(attach: Attach, leases: Callable[[], set[str]]) -> None:
    one = attach(isGateway=True, ipMasq=True)
    two = attach(netns=one.sandbox, container=one.container, ifname="net1", isGateway=True,
                 ipMasq=True)  # fmt: skip
    one.add()
    two.add()
    assert leases() == {"10.1.2.2", "10.1.2.3"}
    two.delete()
    assert link_names(one.sandbox) == {"lo", "eth0"}
    assert leases() == {"10.1.2.2"}
    assert len(owned()) == 1
    one.check()
    one.delete()
    assert leases() == set()
    assert owned() == []


def test_as_processes(attach: Attach, leases: Callable[[], set[str]]) -> None:
    one = attach((V4, V6), isDefaultGateway=True, ipMasq=True, macspoofchk=True)
    one.call = run_plugin
    result = one.add()
    assert [item["address"] for item in result["ips"]] == ["10.1.2.2/24", "2001:db8:1::2/64"]
    assert pings(one.sandbox, "10.1.2.1")
    one.check()
    one.delete()
    one.delete()
    assert leases() == set()
    assert link_names() == {"lo", "bridge0"}
    version = run_plugin(one.plugin, "VERSION", "")
    assert version.result["supportedVersions"] == list(VERSIONS)


def test_many_at_once_in_threads(attach: Attach, leases: Callable[[], set[str]]) -> None:
    every = [attach((V4, V6), isDefaultGateway=True, ipMasq=True) for _ in range(16)]
    failures: list[BaseException] = []

    def each(action: Callable[[Attachment], object]) -> None:
        def guarded(one: Attachment) -> None:
            try:
                action(one)
            except BaseException as error:  # noqa: BLE001 - told by the test's own thread
                failures.append(error)

        threads = [threading.Thread(target=guarded, args=(one,)) for one in every]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    each(Attachment.add)
    assert len(leases()) == 2 * len(every)
    assert len(veths()) == len(every)
    assert global_addresses("bridge0") == {"10.1.2.1/24", "2001:db8:1::1/64"}
    for one in every:
        assert pings(one.sandbox, "10.1.2.1")
    each(Attachment.check)
    each(Attachment.delete)
    assert leases() == set()
    assert veths() == []
    assert owned() == []


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
def test_address_of_the_bridge_is_told_as_it_is_in_the_end(
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
    # Whoever wants to can have such addresses nevertheless.
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


# --- the port ------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [False, True])
def test_hairpin_returns_frames(attach: Attach, on: bool) -> None:
    one = attach(hairpinMode=on)
    one.add()
    assert port_flags(veths()[0])["hairpin"] is on
    with Wire(one.sandbox, "eth0") as wire:
        wire.send(b"come back")
        assert wire.receives(b"come back", 2.0 if on else 0.3) is on
    one.check()
    run_in(None, ["bridge", "link", "set", "dev", veths()[0], "hairpin", "off" if on else "on"])
    if on:
        assert "hairpin" in one.drift()
    else:
        one.check()  # a later plugin's addition is no drift


@pytest.mark.parametrize("on", [False, True])
def test_isolated_ports_do_not_reach_each_other(attach: Attach, on: bool) -> None:
    one, two = (attach(isGateway=True, portIsolation=on) for _ in range(2))
    one.add()
    two.add()
    assert [port_flags(name)["isolated"] for name in veths()] == [on, on]
    assert pings(one.sandbox, "10.1.2.3") is not on
    assert pings(one.sandbox, "10.1.2.1")
    free = attach(isGateway=True)
    free.add()
    assert pings(free.sandbox, "10.1.2.2")
    one.check()


def test_disabled_interface_stays_down(attach: Attach) -> None:
    one = attach((), disableContainerInterface=True)
    one.add()
    assert link("eth0", one.sandbox)["operstate"] == "DOWN"
    assert "UP" not in link("eth0", one.sandbox)["flags"]
    assert addresses("eth0", one.sandbox) == {}
    one.check()
    one.delete()
    error = attach(disableContainerInterface=True).refused()
    assert error["msg"] == "cannot use IPAM when DisableContainerInterface flag is set"


@pytest.mark.parametrize(
    ("keys", "args", "mac"),
    [
        ({}, "MAC=c2:11:22:33:44:55", "c2:11:22:33:44:55"),
        (
            {"args": {"cni": {"mac": "c2:11:22:33:44:66"}}},
            "MAC=c2:11:22:33:44:55",
            "c2:11:22:33:44:66",
        ),
        (
            {
                "args": {"cni": {"mac": "c2:11:22:33:44:66"}},
                "RuntimeConfig": {"mac": "c2:11:22:33:44:77"},
            },
            "MAC=c2:11:22:33:44:55",
            "c2:11:22:33:44:77",
        ),
    ],
)
def test_mac_by_three_ways(attach: Attach, keys: dict[str, Any], args: str, mac: str) -> None:
    one = attach(cni_args=f"IgnoreUnknown=1;{args}", **keys)
    assert one.add()["interfaces"][2]["mac"] == mac
    assert link("eth0", one.sandbox)["address"] == mac
    assert link(veths()[0])["address"] != mac
    one.check()
    one.delete()


def test_mac_that_the_kernel_refuses(attach: Attach, host: Host, tmp_path: Path) -> None:
    before = host.snapshot(tmp_path)
    error = attach((), cni_args="MAC=01:00:5e:00:00:01").refused()  # a multicast address
    assert error["code"] == 100
    assert host.snapshot(tmp_path) == before


@pytest.mark.parametrize("on", [False, True])
def test_forged_frames_are_dropped(attach: Attach, on: bool) -> None:
    one, two = attach(macspoofchk=on), attach()
    one.add()
    two.add()
    with Wire(one.sandbox, "eth0") as sender, Wire(two.sandbox, "eth0") as receiver:
        sender.send(b"rightful")
        assert receiver.receives(b"rightful")
        sender.send(b"forged", source="c2:11:22:33:44:99")
        assert receiver.receives(b"forged", 0.3 if on else 2.0) is not on
        # The other one's port is none of the guard's business.
        receiver.send(b"unguarded", source="c2:11:22:33:44:99")
        assert sender.receives(b"unguarded")
    one.check()
    one.delete()
    assert owned() == []


def test_address_goes_with_its_hardware_address(attach: Attach) -> None:
    """Whoever gets an IPv4 address has its MAC address: no neighbour is mistaken, or bothered."""
    attach(isGateway=True).add()
    with Wire(None, "bridge0", ARP) as wire:
        two = attach(isGateway=True)
        address = two.add()["ips"][0]["address"].partition("/")[0]
        assert ip_json("link", "show", "eth0", netns=two.sandbox)[0]["address"] == (
            "0a:58:" + ":".join(f"{int(part):02x}" for part in address.split("."))
        )
        assert not wire.receives(b"\0" * 6, 0.2)
    two.check()


def test_neighbours_are_told(attach: Attach) -> None:
    attach((V4, V6), isGateway=True).add()
    with Wire(None, "bridge0", ARP) as wire, Wire(None, "bridge0", IPV6) as six:
        attach((V4, V6), isGateway=True).add()
        # A gratuitous ARP asks for its own address, and says that it has it.
        assert wire.receives(bytes((10, 1, 2, 3)) + b"\0" * 6 + bytes((10, 1, 2, 3)))
        # An unsolicited advertisement to all nodes.
        assert six.receives(IPv6Address("ff02::1").packed + b"\x88\0")


def test_duplicate_address_detection(
    attach: Attach, leases: Callable[[], set[str]], tmp_path: Path
) -> None:
    six = [{"subnet": "2001:db8:1::/64", "rangeStart": "2001:db8:1::7"}]
    one = attach((six,), enabledad=True, isGateway=True)
    one.add()
    # The link-local address comes with the carrier, and is looked for on its own.
    inner = addresses("eth0", one.sandbox)["2001:db8:1::7/64"]
    assert "tentative" not in inner
    assert not inner.get("nodad")
    assert setting("net/ipv6/conf/eth0/accept_dad", one.sandbox) == "1"
    assert setting("net/ipv6/conf/eth0/enhanced_dad", one.sandbox) == "1"
    # Another network that keeps books elsewhere gives the same address away.
    two = attach((six,), enabledad=True, isGateway=True, ipam={"dataDir": str(tmp_path / "else")})
    two.config["name"] = "other"
    error = two.refused()
    assert error["code"] == 103
    assert "2001:db8:1::7" in error["msg"]
    assert link_names(two.sandbox) == {"lo"}
    assert {path.name for path in (tmp_path / "else/other").glob("2*")} == set()
    assert len(leases()) == 1


# --- masquerade ----------------------------------------------------------------------------------


@pytest.fixture
def outside(host: Host, sandbox: Sandbox) -> Iterator[Namespace]:
    """A namespace behind the host, which knows of no containers."""
    netns = sandbox()
    run_in(
        None, ["ip", "link", "add", "uplink", "type", "veth", "peer", "eth0", "netns", netns.name]
    )
    for where, name, number in ((None, "uplink", 1), (netns, "eth0", 2)):
        run_in(where, ["ip", "address", "add", f"192.0.2.{number}/24", "dev", name])
        run_in(where, ["ip", "address", "add", f"2001:db8:ff::{number}/64", "dev", name, "nodad"])
        run_in(where, ["ip", "link", "set", name, "up"])
    yield netns
    run_in(None, ["ip", "link", "delete", "uplink"])


@pytest.mark.parametrize("backend", [None, "nftables", "iptables"])
def test_masquerade(attach: Attach, outside: Namespace, backend: str | None) -> None:
    keys = {"isDefaultGateway": True, "ipMasq": True, "ipMasqBackend": backend}
    one, two, plain = (
        attach((V4, V6), **keys),
        attach((V4, V6), **keys),
        attach((V4, V6), isDefaultGateway=True),
    )
    for each in (one, two, plain):
        each.add()
        if each is not plain:
            each.check()
    for target in ("192.0.2.2", "2001:db8:ff::2"):
        assert pings(one.sandbox, target)
        # Without it the outside finds no way back.
        assert not pings(plain.sandbox, target)
    # Inside the subnet everyone has their own address.
    with Wire(two.sandbox, "eth0", IPV4) as wire:
        assert pings(one.sandbox, "10.1.2.3")
        assert wire.receives(bytes((10, 1, 2, 2)))
    one.delete()
    two.check()
    assert pings(two.sandbox, "192.0.2.2")
    two.delete()
    assert owned() == []
    assert "CNI-" not in run_in(None, ["iptables-save"]).stdout
    assert "CNI-" not in run_in(None, ["ip6tables-save"]).stdout


# --- DEL -----------------------------------------------------------------------------------------

FULL: dict[str, Any] = {"isDefaultGateway": True, "ipMasq": True, "macspoofchk": True}


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize(
    "loss", ["nothing", "prevResult", "interface", "netns", "netns and path", "lease", "everything"]
)
def test_del_whatever_is_missing(
    attach: Attach, leases: Callable[[], set[str]], tmp_path: Path, loss: str, backend: str
) -> None:
    one = attach((V4, V6), **FULL, ipMasqBackend=backend)
    one.add()
    sandbox = one.sandbox
    assert sandbox is not None
    if loss in ("prevResult", "everything"):
        one.result = None
    if loss in ("interface", "everything"):
        run_in(sandbox, ["ip", "link", "delete", "eth0"])
    if loss in ("netns", "netns and path", "everything"):
        sandbox.delete()
    if loss in ("netns and path", "everything"):
        one.sandbox = None
    if loss in ("lease", "everything"):
        for path in (tmp_path / "leases/net").glob("[12]*"):
            path.unlink()
    one.delete()
    assert leases() == set()
    assert veths() == []
    assert owned() == []
    assert "CNI-" not in run_in(None, ["iptables-save"]).stdout
    one.delete()


def test_del_of_what_was_never_added(attach: Attach, host: Host, tmp_path: Path) -> None:
    before = host.snapshot()
    one = attach((V4, V6), **FULL)
    one.delete()
    assert host.snapshot() == before
    one.sandbox = None
    one.delete()
    assert host.snapshot() == before


def test_del_without_a_namespace_while_the_interface_lives(attach: Attach) -> None:
    # Some runtimes forget the path while a process still holds the namespace.
    one = attach(**FULL)
    one.add()
    sandbox, one.sandbox = one.sandbox, None
    one.result = None
    one.delete()
    assert veths() == []
    assert link_names(sandbox) == {"lo"}


def test_del_leaves_the_interface_of_another_alone(attach: Attach) -> None:
    mine, other = attach(), attach()
    mine.add()
    other.add()
    # A stale result names the host end that another attachment has by now.
    mine.delete()
    mine.result["interfaces"][1]["name"] = other.result["interfaces"][1]["name"]
    mine.sandbox = None
    mine.delete()
    other.check()


def test_del_goes_on_where_the_configuration_has_a_fault(
    attach: Attach, leases: Callable[[], set[str]]
) -> None:
    one = attach(**FULL)
    one.add()
    one.config |= {"mtu": "wide", "vlanTrunk": [{"minID": 7}], "runtimeConfig": {"mac": 7}}
    one.args = "nonsense"
    one.run("DEL")
    assert veths() == []
    assert owned() == []
    assert leases() == set()


@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
def test_del_leaves_an_interface_that_cannot_be_a_plugin_s(
    attach: Attach, plugin: str, plugin_dir: Path
) -> None:
    one = attach(ifname="lo")
    one.plugin = plugin_dir / plugin
    one.config["type"] = plugin
    one.delete()
    assert link_names(one.sandbox) == {"lo"}


def test_del_tells_all_failures_and_removes_the_rest(
    attach: Attach, leases: Callable[[], set[str]]
) -> None:
    one = attach(**FULL)
    one.add()
    one.path = "/nowhere"
    error = one.refused("DEL")
    assert "failed to find plugin" in error["msg"]
    assert veths() == []
    assert owned() == []
    one.path = None
    one.delete()
    assert leases() == set()


def test_del_with_a_path_that_is_no_namespace_cleans_the_host(
    attach: Attach, leases: Callable[[], set[str]]
) -> None:
    """What is no namespace (any more) holds nothing to clean: a file left by an unmount, say."""
    one = attach(**FULL)
    one.add()
    one.env["CNI_NETNS"] = "/etc/hostname"
    one.delete()
    assert veths() == []
    assert owned() == []
    assert leases() == set()


# --- ADD that must fail --------------------------------------------------------------------------


def test_interface_that_is_there_already(
    attach: Attach, host: Host, leases: Callable[[], set[str]], tmp_path: Path
) -> None:
    one = attach(**FULL)
    run_in(one.sandbox, ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x"])
    before = host.snapshot(tmp_path)
    error = one.refused()
    assert error["code"] == 101
    assert "eth0" in error["msg"]
    assert leases() == set()
    assert link_names(one.sandbox) == {"lo", "eth0", "x"}
    assert host.snapshot()["links"] == before["links"]


def test_second_add_fails_and_leaves_the_first_as_it_is(
    attach: Attach, leases: Callable[[], set[str]]
) -> None:
    one = attach((V4, V6), **FULL)
    one.add()
    for _ in range(2):
        assert one.run("ADD").code == 1
    assert len(leases()) == 2
    one.check()
    assert pings(one.sandbox, "10.1.2.1")


def test_host_end_of_an_attachment_that_was_cut_short(attach: Attach) -> None:
    one = attach()
    one.add()
    outer = veths()[0]
    one.delete()
    run_in(None, ["ip", "link", "add", outer, "type", "veth", "peer", "name", "stale"])
    one.result = None
    one.add()
    assert link_names() == {"lo", "bridge0", outer}
    one.check()


def test_released_when_the_rest_fails(attach: Attach, leases: Callable[[], set[str]]) -> None:
    attach(isGateway=True).add()
    assert len(leases()) == 1
    other = attach(([{"subnet": "10.1.3.0/24"}],), isGateway=True)
    assert other.refused()["code"] == 101
    assert leases() == {"10.1.2.2"}
    assert link_names(other.sandbox) == {"lo"}


def test_sandbox_that_is_the_hosts_own(attach: Attach, host: Host) -> None:
    before = host.snapshot()
    one = attach()
    one.env["CNI_NETNS"] = "/proc/thread-self/ns/net"
    assert one.refused()["code"] == 8
    assert host.snapshot() == before


# --- CHECK ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("ip -n {netns} link set eth0 down", "eth0 is down"),
        ("ip -n {netns} link delete eth0", "eth0 is missing"),
        ("ip -n {netns} address delete 10.1.2.2/24 dev eth0", "10.1.2.2/24 is missing"),
        ("ip -n {netns} address delete 2001:db8:1::2/64 dev eth0", "2001:db8:1::2/64 is missing"),
        ("ip -n {netns} route delete default", "0.0.0.0/0"),
        ("ip -n {netns} -6 route delete default", "::/0"),
        ("ip -n {netns} link set eth0 address 0a:00:00:00:00:07", "0a:00:00:00:00:07"),
        ("ip link set bridge0 address 0a:00:00:00:00:07", "0a:00:00:00:00:07"),
        ("ip link set {outer} address 0a:00:00:00:00:07", "0a:00:00:00:00:07"),
        ("ip link delete bridge0", "bridge0 is missing"),
        ("ip link set bridge0 down", "bridge0 is down"),
        ("ip link set {outer} down", "{outer} is down"),
        ("ip link set {outer} nomaster", "not plugged into bridge bridge0"),
        ("ip address delete 10.1.2.1/24 dev bridge0", "10.1.2.1/24 is missing on bridge0"),
        ("ip address delete 2001:db8:1::1/64 dev bridge0", "2001:db8:1::1/64 is missing"),
        ("sysctl -q -w net.ipv4.ip_forward=0", "net/ipv4/ip_forward is 0"),
        ("sysctl -q -w net.ipv6.conf.all.forwarding=0", "net/ipv6/conf/all/forwarding is 0"),
        ("nft delete table inet pycni", "masquerade"),
        ("nft flush set inet pycni masquerade-10.1.2.0/24", "10.1.2.2"),
        ("nft flush chain inet pycni masquerade-postrouting", "masquerade-postrouting"),
        ("nft delete table bridge pycni", "spoof-guard"),
        ("nft flush set bridge pycni spoof-guard-ports", "spoof-guard-ports"),
        ("nft flush set bridge pycni spoof-guard-allowed", "spoof-guard-allowed"),
        ("rm {leases}/net/10.1.2.2", "10.1.2.2"),
    ],
)
def test_check_finds_drift(attach: Attach, tmp_path: Path, damage: str, told: str) -> None:
    one = attach((V4, V6), **FULL)
    one.add()
    one.check()
    assert one.sandbox is not None
    places = {"netns": one.sandbox.name, "outer": veths()[0], "leases": tmp_path / "leases"}
    run_in(None, damage.format(**places).split())
    assert told.format(**places) in one.drift()


def test_check_finds_all_there_is(attach: Attach) -> None:
    one = attach((V4, V6), **FULL)
    one.add()
    assert one.sandbox is not None
    run_in(one.sandbox, ["ip", "address", "delete", "10.1.2.2/24", "dev", "eth0"])
    run_in(None, ["nft", "delete", "table", "inet", "pycni"])
    message = one.drift()
    assert "10.1.2.2/24 is missing" in message
    assert "masquerade" in message


def test_check_finds_iptables_flushed(attach: Attach) -> None:
    one = attach((V4, V6), **FULL, ipMasqBackend="iptables")
    one.add()
    one.check()
    run_in(None, ["ip6tables", "-t", "nat", "-F", "POSTROUTING"])
    assert "ip6tables" in one.drift()


def test_check_allows_what_later_plugins_may_do(attach: Attach) -> None:
    one = attach((V4, V6), **FULL)
    one.add()
    inside = one.sandbox
    run_in(inside, ["ip", "route", "replace", "default", "via", "10.1.2.77", "dev", "eth0"])
    run_in(inside, ["ip", "address", "add", "10.77.0.1/24", "dev", "eth0"])
    one.result["interfaces"].append({"name": "bwp1234", "mac": ""})
    one.check()


@pytest.mark.parametrize("keys", [{}, {"isGateway": True}], ids=["switch", "gateway"])
@pytest.mark.parametrize("gateway", ["10.1.2.1", ""], ids=["routed", "alone"])
def test_check_allows_a_later_plugin_s_address(
    attach: Attach, gateway: str, keys: dict[str, Any]
) -> None:
    """Which is not masqueraded, since the bridge plugin did not give it."""
    given = {"address": "10.1.2.9/24", **({"gateway": gateway} if gateway else {})}
    ipam = {"type": "static", "addresses": [given]}
    one = attach((), ipMasq=True, ipam=ipam, **keys)
    one.config["ipam"] = ipam
    one.add()
    run_in(one.sandbox, ["ip", "address", "add", "10.77.0.1/24", "dev", "eth0"])
    one.result["ips"].append({"address": "10.77.0.1/24", "interface": 2})
    one.check()
    run_in(None, ["nft", "flush", "set", "inet", "pycni", "masquerade-10.1.2.0/24"])
    assert "10.1.2.9 is not in set" in one.drift()
    one.delete()


def test_check_needs_the_previous_result(attach: Attach) -> None:
    one = attach()
    one.add()
    one.result = None
    error = one.refused("CHECK")
    assert (error["code"], error["msg"]) == (7, "Required prevResult missing")


def test_check_of_another_sandbox(attach: Attach, sandbox: Sandbox) -> None:
    one = attach()
    one.add()
    one.sandbox = sandbox()
    assert "Sandbox in prevResult" in one.drift()


# --- GC and STATUS -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_gc(attach: Attach, leases: Callable[[], set[str]], backend: str) -> None:
    keys = {**FULL, "ipMasqBackend": backend}
    kept, gone, lost = (attach((V4, V6), **keys) for _ in range(3))
    others = [{"subnet": "10.7.0.0/24"}]
    other = attach((others,), name="other", ipMasq=True, macspoofchk=True)
    for one in (kept, gone, lost, other):
        one.add()
    assert lost.sandbox is not None
    lost.sandbox.delete()
    valid = [{"containerID": kept.container, "ifname": "eth0"}, {"containerID": "x", "ifname": "y"}]
    run = kept.run("GC", **{"cni.dev/valid-attachments": valid})
    assert (run.code, run.stdout) == (0, "")
    kept.check()
    other.check()
    assert leases() == {"10.1.2.2", "2001:db8:1::2"}
    assert link_names(gone.sandbox) == {"lo"}
    assert len(veths()) == 2
    rules = run_in(None, ["iptables-save"]).stdout + run_in(None, ["nft", "list", "ruleset"]).stdout
    assert kept.container in rules
    assert gone.container not in rules
    assert lost.container not in rules

    run = kept.run("GC", **{"cni.dev/valid-attachments": []})
    assert run.code == 0
    assert leases() == set()
    assert link_names(kept.sandbox) == {"lo"}
    other.check()
    assert kept.run("GC").result["code"] == 7


def test_status(attach: Attach) -> None:
    one = attach()
    run = one.run("STATUS")
    assert (run.code, run.stdout) == (0, "")
    one.path = "/nowhere"
    assert "failed to find plugin" in one.refused("STATUS")["msg"]
    assert attach((), ipam={}).run("STATUS").code == 0
    assert attach(vlan=-1).refused("STATUS")["code"] == 7


@pytest.mark.parametrize("gateway", [False, True])
@pytest.mark.parametrize("kind", WAYS)
def test_mtu_that_is_too_small_for_ipv6(
    kind: str, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path, gateway: bool
) -> None:
    with way_of(kind, tmp_path, plugin_dir) as way:
        ipam = way.host_local("fd12::/64")
        plugin = {"type": "bridge", "mtu": 1200, "isGateway": gateway, "ipam": ipam}
        words = "cannot have the address fd12::[12]/64: its MTU is 1200"
        with pytest.raises(PluginError, match=words) as told:
            way.network("n", plugin).add("c", sandbox().path)
        assert told.value.code == 7
        assert way.leases("n") == {}


@pytest.mark.parametrize("kind", WAYS)
def test_first_container_of_a_bridge_is_reached_by_ipv6_at_once(
    kind: str, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """The host asks for it by the bridge's own link-local address, which nobody else has."""
    with way_of(kind, tmp_path, plugin_dir) as way:
        plugin = {"type": "bridge", "isGateway": True, "ipam": way.host_local("fd12::/64")}
        way.network("n", plugin).add("c", sandbox().path)
        local: list[Any] = []
        deadline = time.monotonic() + 10
        while not local:
            assert time.monotonic() < deadline, "no link-local address"
            local = [item for item in addresses("cni0").values() if item["scope"] == "link"]
        assert [item.get("tentative") for item in local] == [None]


def test_status_of_an_exhausted_range(attach: Attach) -> None:
    tight = [{"subnet": "10.1.2.0/30"}]
    one = attach((tight,))
    assert one.run("STATUS").code == 0
    one.add()
    two = attach((tight,))
    run = two.run("ADD")
    assert run.code == 1
    assert link_names(two.sandbox) == {"lo"}


def test_calls_in_one_process_leave_no_descriptors(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = attach((V4, V6), **FULL)
    monkeypatch.setattr(sysctl, "_left", 1000)  # else its procfs is made anew now and then

    def serve() -> None:
        one.add()
        one.check()
        one.delete()
        assert one.run("ADD", mtu="x").code == 1
        assert one.run("ADD", bridge="lo").code == 1

    serve()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        serve()
    assert os.listdir("/proc/self/fd") == before
