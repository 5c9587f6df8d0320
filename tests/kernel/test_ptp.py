"""ptp on the real kernel: what it makes carries packets, and goes as it came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import (
    Attach,
    Attachment,
    Host,
    Sandbox,
    call_plugin,
    ip_json,
    run_in,
    run_plugin,
    snapshot,
)
from harness.faults import each_request_failing
from harness.ways import WAYS, way_of

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
WITH_CHECK = VERSIONS[4:]
V4 = {"address": "10.1.2.5/24", "gateway": "10.1.2.1"}
V6 = {"address": "fd00:1::5/64", "gateway": "fd00:1::1"}


def network(*addresses: dict[str, str], version: str = "1.1.0", **keys: Any) -> dict[str, Any]:
    return {
        "cniVersion": version,
        "name": "net",
        "type": "ptp",
        "ipam": {
            "type": "static",
            "addresses": list(addresses),
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}][: len(addresses)],
        },
        **keys,
    }


@pytest.fixture
def attach(plugin_dir: Path, sandbox: Sandbox, host: Host) -> Attach:
    def make(config: dict[str, Any], container: str = "one") -> Attachment:
        return Attachment(plugin_dir / "ptp", config, sandbox(), container=container)

    return make


def test_host_and_container_reach_each_other(attach: Attach) -> None:
    one = attach(network(V4, V6))
    one.add()
    # At once: IPv6 addresses are not probed for duplicates on a link of two.
    run_in(one.sandbox, ["ping", "-c1", "-W1", "10.1.2.1"])
    run_in(one.sandbox, ["ping", "-c1", "-W1", "fd00:1::1"])
    run_in(None, ["ping", "-c1", "-W1", "10.1.2.5"])
    run_in(None, ["ping", "-c1", "-W1", "fd00:1::5"])


def test_containers_of_one_subnet_reach_each_other_through_the_host(
    attach: Attach,
) -> None:
    one = attach(network(V4, V6))
    other = attach(
        network(
            {"address": "10.1.2.6/24", "gateway": "10.1.2.1"},
            {"address": "fd00:1::6/64", "gateway": "fd00:1::1"},
        ),
        container="two",
    )
    one.add()
    other.add()
    trace = run_in(one.sandbox, ["ping", "-c1", "-W2", "-R", "10.1.2.6"]).stdout
    assert "10.1.2.1" in trace, "the packets did not pass the host"
    run_in(one.sandbox, ["ping", "-c1", "-W2", "fd00:1::6"])
    one.delete()
    run_in(None, ["ping", "-c1", "-W1", "10.1.2.6"])


def test_routes_are_the_reference_s(attach: Attach) -> None:
    one = attach(network(V4))
    one.add()
    routes = {route["dst"]: route for route in ip_json("-4", "route", netns=one.sandbox)}
    assert set(routes) == {"default", "10.1.2.0/24", "10.1.2.1"}
    assert routes["10.1.2.1"]["scope"] == "link"
    assert routes["10.1.2.1"]["prefsrc"] == "10.1.2.5"
    assert routes["10.1.2.0/24"]["gateway"] == "10.1.2.1"
    assert routes["10.1.2.0/24"]["prefsrc"] == "10.1.2.5"
    outer = one.result["interfaces"][0]["name"]
    (route,) = [item for item in ip_json("-4", "route") if item["dst"] == "10.1.2.5"]
    assert (route["dev"], route["scope"]) == (outer, "host")
    (link,) = ip_json("address", "show", "dev", outer)
    assert ("10.1.2.1", 32) in [(a["local"], a["prefixlen"]) for a in link["addr_info"]]


@pytest.mark.parametrize("address", ["10.1.2.5/32", "10.1.2.5/31", "10.1.2.5/16"])
def test_prefix_of_any_length(attach: Attach, address: str) -> None:
    one = attach(network({"address": address, "gateway": "10.1.2.4"}))
    one.add()
    run_in(one.sandbox, ["ping", "-c1", "-W1", "10.1.2.4"])
    one.check()
    one.delete()


def test_gateway_is_made_up_where_the_subnet_has_one_to_give(
    attach: Attach,
) -> None:
    one = attach(network({"address": "10.1.2.5/24"}))
    assert one.add()["ips"][0]["gateway"] == "10.1.2.1"
    run_in(one.sandbox, ["ping", "-c1", "-W1", "10.1.2.1"])
    one.check()


@pytest.mark.parametrize("address", ["10.1.2.5/32", "10.1.2.1/24", "fd00::5/128"])
def test_address_without_a_gateway_is_refused_before_any_work(attach: Attach, address: str) -> None:
    one = attach(network({"address": address}))
    before = snapshot()
    assert "needs a gateway" in one.refused()["msg"]
    assert snapshot() == before


@pytest.mark.parametrize("version", VERSIONS)
def test_result(attach: Attach, version: str) -> None:
    one = attach(network(V4, V6, version=version, mtu=1400))
    result = one.add()
    (inner,) = ip_json("link", "show", "dev", "eth0", netns=one.sandbox)
    assert inner["mtu"] == 1400
    if version in ("0.1.0", "0.2.0"):
        assert result == {
            "cniVersion": version,
            "ip4": {
                "ip": "10.1.2.5/24",
                "gateway": "10.1.2.1",
                "routes": [{"dst": "0.0.0.0/0"}],
            },
            "ip6": {"ip": "fd00:1::5/64", "gateway": "fd00:1::1", "routes": [{"dst": "::/0"}]},
            "dns": {},
        }
    else:
        outer, container = result["interfaces"]
        assert outer["name"].startswith("veth")
        assert outer == {
            "name": outer["name"],
            "mac": ip_json("link", "show", "dev", outer["name"])[0]["address"],
        }
        assert container == {
            "name": "eth0",
            "mac": inner["address"],
            "sandbox": one.sandbox.path if one.sandbox else "",
        }
        assert [entry["interface"] for entry in result["ips"]] == [1, 1]
        assert [entry["address"] for entry in result["ips"]] == ["10.1.2.5/24", "fd00:1::5/64"]
    if version in WITH_CHECK:
        one.check()
    one.delete()


def test_dns_of_the_configuration_wins_over_that_of_ipam(
    attach: Attach,
) -> None:
    config = network(V4)
    config["ipam"]["dns"] = {"nameservers": ["10.0.0.1"], "domain": "ipam.example"}
    one = attach(config)
    assert one.add()["dns"] == config["ipam"]["dns"]
    one.delete()
    other = attach({**config, "dns": {"search": ["own.example"]}})
    assert other.add()["dns"] == {"search": ["own.example"]}
    other.delete()


def test_delete_leaves_nothing_whatever_is_missing(attach: Attach) -> None:
    run_in(None, ["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
    one = attach(network(V4, V6, ipMasq=True))
    one.delete()
    one.add()
    one.delete()
    before = snapshot()
    assert len(before["links"]) == 1
    # Twice; with the sandbox's path gone; without any path; without a result.
    one.add()
    one.delete()
    one.delete()
    assert snapshot() == before
    one.add()
    assert one.sandbox is not None
    one.sandbox.delete()
    one.delete()
    assert snapshot() == before
    two = attach(network(V4, V6, ipMasq=True))
    two.add()
    two.sandbox, two.result = None, None
    two.delete()
    assert snapshot() == before


def test_each_failure_leaves_the_host_as_it_was(attach: Attach) -> None:
    one = attach(network(V4, V6))
    before, inside = snapshot(), ip_json("-d", "address", netns=one.sandbox)
    refused = []
    for what in each_request_failing(lambda: one.run("ADD")):
        refused.append(what)
        assert snapshot() == before, what
        assert ip_json("-d", "address", netns=one.sandbox) == inside, what
    assert len(refused) > 10
    assert any("route" in what for what in refused)
    one.delete()


@pytest.mark.parametrize("backend", ["", "nftables", "iptables"])
def test_masquerade(attach: Attach, sandbox: Sandbox, backend: str) -> None:
    """A server outside sees the host's address, and answers."""
    outside = sandbox()
    run_in(
        None, ["ip", "link", "add", "out0", "type", "veth", "peer", "eth0", "netns", outside.name]
    )
    run_in(None, ["ip", "address", "add", "192.0.2.1/24", "dev", "out0"])
    run_in(None, ["ip", "link", "set", "out0", "up"])
    run_in(outside, ["ip", "address", "add", "192.0.2.2/24", "dev", "eth0"])
    run_in(outside, ["ip", "link", "set", "eth0", "up"])
    config = network(V4, ipMasq=True, **({"ipMasqBackend": backend} if backend else {}))
    one = attach(config)
    one.add()
    # It has no route to the container's subnet.
    run_in(one.sandbox, ["ping", "-c1", "-W2", "192.0.2.2"])
    one.check()
    one.delete()
    assert "10.1.2.5" not in run_in(None, ["nft", "list", "ruleset"]).stdout


@pytest.mark.parametrize(
    ("damage", "reported"),
    [
        ("ip link del {outer}", "eth0"),
        ("ip link set {outer} down", "down"),
        ("ip address del 10.1.2.1/32 dev {outer}", "10.1.2.1/32"),
        ("ip route del 10.1.2.5/32 dev {outer}", "10.1.2.5/32"),
        ("ip -n {sandbox} address del 10.1.2.5/24 dev eth0", "10.1.2.5/24"),
        ("ip -n {sandbox} route del default", "0.0.0.0/0"),
        ("ip -n {sandbox} route del 10.1.2.0/24", "10.1.2.0/24"),
        ("ip -n {sandbox} link set eth0 down", "eth0"),
        ("ip -n {sandbox} link set eth0 address 02:00:00:00:00:01", "02:00:00:00:00:01"),
        ("sysctl -qw net.ipv4.ip_forward=0", "ip_forward"),
    ],
)
def test_check_finds_drift(attach: Attach, damage: str, reported: str) -> None:
    one = attach(network(V4))
    one.add()
    one.check()
    assert one.sandbox is not None
    outer = one.result["interfaces"][0]["name"]
    run_in(None, damage.format(outer=outer, sandbox=one.sandbox.name).split())
    assert reported in one.drift()


def test_gc_removes_what_is_not_to_be_kept(attach: Attach) -> None:
    one = attach(network(V4, ipMasq=True))
    other = attach(
        network({"address": "10.1.2.6/24", "gateway": "10.1.2.1"}, ipMasq=True), container="two"
    )
    one.add()
    other.add()
    keep = [{"containerID": "two", "ifname": "eth0"}]
    run = other.run("GC", **{"cni.dev/valid-attachments": keep})
    assert run.code == 0, run.stdout
    assert not [
        link for link in ip_json("link") if link["ifname"] == one.result["interfaces"][0]["name"]
    ]
    assert "10.1.2.5" not in run_in(None, ["nft", "list", "ruleset"]).stdout
    other.check()
    run_in(None, ["ping", "-c1", "-W1", "10.1.2.6"])


def test_status(attach: Attach) -> None:
    one = attach(network(V4))
    assert one.run("STATUS").code == 0
    config = network(V4)
    config["ipam"]["type"] = "no-such"
    one.config = config
    assert one.run("STATUS").code == 1


def test_configuration_is_refused_before_any_work(attach: Attach) -> None:
    config = network(V4)
    before = snapshot()
    assert 'backend "ebtables"' in attach({**config, "ipMasqBackend": "ebtables"}).refused()["msg"]
    assert "mtu" in attach({**config, "mtu": -1}).refused()["msg"]
    assert "IPAM" in attach({**config, "ipam": {}}).refused()["msg"]
    assert snapshot() == before


@pytest.mark.parametrize("call", [call_plugin, run_plugin])
def test_existing_interface_is_not_touched(attach: Attach, call: Callable[..., Any]) -> None:
    one = attach(network(V4))
    one.call = call
    one.add()
    again = one.run("ADD")
    assert again.code == 1
    assert again.result["code"] == 101
    one.check()


@pytest.mark.parametrize("kind", WAYS)
def test_addresses_that_share_a_gateway(
    kind: str, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    with way_of(kind, tmp_path, plugin_dir) as way:
        addresses = [
            {"address": f"{net}{number}{prefix}", "gateway": f"{net}1"}
            for net, prefix in (("10.1.1.", "/24"), ("fd00:1::", "/64"))
            for number in (2, 3)
        ]
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        ipam = {"type": "static", "addresses": addresses, "routes": routes}
        network = way.network("n", {"type": "ptp", "ipam": ipam})
        box = sandbox()
        network.add("c", box.path)
        network.check("c")
        for net in ("10.1.1.", "fd00:1::"):
            for number in (2, 3):
                run_in(box, ["ping", "-c1", "-W5", "-I", f"{net}{number}", f"{net}1"])
                run_in(None, ["ping", "-c1", "-W5", f"{net}{number}"])
        network.delete("c")
