"""bridge on the kernel: what an attachment is, does, and leaves; each key of the configuration."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Host, Namespace, Sandbox, ip_json, run_in, run_plugin
from harness.kernel_state import addresses, global_addresses, link, link_names, pings, veths
from harness.topics import bridge as kit
from harness.topics.bridge import FULL, OTHER_V6, V4, V6, owned, setting, wait_for_local
from harness.ways import WAYS, way_of
from pycni.kernel import sysctl

attach = kit.attach
leases = kit.leases

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


def routes(netns: Namespace | None = None) -> list[dict[str, Any]]:
    return [
        *ip_json("-4", "route", "show", netns=netns),
        *ip_json("-6", "route", "show", netns=netns),
    ]


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
            except BaseException as error:  # noqa: BLE001 - reported by the test's own thread
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


def test_calls_in_one_process_leave_no_descriptors(
    attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = attach((V4, V6), **FULL)
    monkeypatch.setattr(sysctl, "_left", 1000)  # else its procfs is made again now and then

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
