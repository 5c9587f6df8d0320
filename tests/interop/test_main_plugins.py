"""ptp, macvlan, host-device and static beside the reference's: equal results, one undoes the other.

vlan and ipvlan are in tests/lab.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
    run_in,
    run_plugin,
    snapshot,
)
from harness.configs import host_local
from harness.frames import ARP, Wire
from harness.reference import VERSIONS, comparable, exchange

V4 = {"address": "192.0.2.5/24", "gateway": "192.0.2.1"}
V6 = {"address": "2001:db8::5/64", "gateway": "2001:db8::1"}
ROUTES = [
    {"dst": "0.0.0.0/0"},
    # The reference's CHECK does not find a route that the result gives no gateway for.
    {"dst": "198.51.100.0/24", "gw": "192.0.2.1"},
    {"dst": "203.0.113.7/32", "gw": "192.0.2.9"},
]
DNS = {"nameservers": ["192.0.2.53"], "domain": "example", "search": ["a", "b"]}


@pytest.fixture
def attach(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path, reference_dir: Path
) -> Attach:
    """Makes an attachment whose addresses come from static (addresses) or host-local (none)."""

    def make(plugin: str, version: str, *addresses: dict[str, str], **keys: Any) -> Attachment:
        ipam: dict[str, Any] = {"type": "static", "addresses": addresses, "routes": ROUTES}
        if not addresses:
            only = {"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.7", "rangeEnd": "192.0.2.7"}
            ranges = [[{**only, "gateway": "192.0.2.1"}]]
            ipam = host_local(tmp_path / "leases", ranges=ranges, routes=ROUTES[:2])
        config = {"cniVersion": version, "name": "net", "type": plugin, "ipam": ipam, **keys}
        return Attachment(plugin_dir / plugin, config, sandbox())

    return make


@pytest.fixture
def neighbour(host: Host, sandbox: Sandbox) -> Namespace:
    """A machine on the network that the host's interface lan0 is on."""
    other = sandbox()
    run_in(None, ["ip", "link", "add", "lan0", "address", "02:00:00:00:00:05",
                  "type", "veth", "peer", "eth0", "netns", other.name])  # fmt: skip
    run_in(other, ["ip", "address", "add", "192.0.2.1/24", "dev", "eth0"])
    run_in(other, ["ip", "address", "add", "2001:db8::1/64", "dev", "eth0", "nodad"])
    run_in(other, ["ip", "link", "set", "eth0", "up"])
    return other


def lan_up() -> None:
    # Without an address of its own, which would settle while a test compares.
    run_in(None, ["ip", "link", "set", "lan0", "addrgenmode", "none", "up"])
    deadline = time.monotonic() + 10
    while ip_json("link", "show", "lan0")[0]["operstate"] != "UP":
        assert time.monotonic() < deadline


def forward() -> None:
    run_in(None, ["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])


def routes(one: Attachment, family: str = "-4") -> set[Any]:
    keys = ("dst", "gateway", "dev", "scope", "prefsrc")
    found = ip_json(family, "route", netns=one.sandbox)
    return {tuple(route.get(key) for key in keys) for route in found if route["dst"] != "fe80::/64"}


@pytest.mark.parametrize("version", VERSIONS)
def test_ptp(attach: Attach, version: str) -> None:
    forward()
    seen: list[Any] = []
    one = attach("ptp", version, V4, dns=DNS, mtu=1400)
    one.config["ipam"]["routes"] = ROUTES[:2]

    def effect() -> None:
        run_in(one.sandbox, ["ping", "-c1", "-W2", "192.0.2.1"])
        run_in(None, ["ping", "-c1", "-W2", "192.0.2.5"])
        seen.append((routes(one), {r["dst"] for r in ip_json("-4", "route")}))

    exchange(one, Path("/usr/lib/cni"), effect)
    assert seen[0] == seen[1]


def test_ptp_with_host_local_and_masquerade(attach: Attach, reference_dir: Path) -> None:
    forward()
    for backend in ({}, {"ipMasqBackend": "iptables"}):
        one = attach("ptp", "1.0.0", ipMasq=True, **backend)
        # The reference leaves its empty chains, so it goes first.
        theirs = Attachment(
            reference_dir / "ptp", one.config, one.sandbox, "warm-up", "eth1", call=run_plugin
        )
        theirs.add()
        theirs.delete()
        exchange_but_for_nftables(one, reference_dir)


def exchange_but_for_nftables(one: Attachment, reference_dir: Path) -> None:
    """The reference cannot remove what ours made in nftables; ours can remove all it made."""
    theirs = Attachment(reference_dir / "ptp", one.config, one.sandbox, call=run_plugin)
    before = snapshot(one.config["ipam"]["dataDir"])
    result = theirs.add()
    one.result = result
    one.check()
    one.delete()
    after = snapshot(one.config["ipam"]["dataDir"])
    for section in ("links", "addresses", "routes", "iptables"):
        assert after[section] == before[section]
    one.result = None
    assert comparable(one.add()) == comparable(result)
    if one.config.get("ipMasqBackend") == "iptables":
        theirs.result = one.result
        theirs.check()
        theirs.delete()
        assert snapshot(one.config["ipam"]["dataDir"])["iptables"] == before["iptables"]
    one.delete()


def test_ptp_ipv6(attach: Attach, reference_dir: Path) -> None:
    forward()
    seen: list[Any] = []
    one = attach("ptp", "1.0.0", V6)
    one.config["ipam"]["routes"] = [{"dst": "::/0"}]

    def effect() -> None:
        # The host's end is still being probed for duplicates when the reference's ADD returns.
        run_in(one.sandbox, ["ping", "-c4", "-i0.5", "-W2", "2001:db8::1"])
        seen.append({route[:3] for route in routes(one, "-6")})

    exchange(one, reference_dir, effect)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("version", VERSIONS)
def test_macvlan(attach: Attach, neighbour: Namespace, reference_dir: Path, version: str) -> None:
    lan_up()
    seen: list[Any] = []
    one = attach("macvlan", version, V4, master="lan0", dns=DNS)

    def effect() -> None:
        run_in(one.sandbox, ["ping", "-c1", "-W2", "192.0.2.1"])
        seen.append(routes(one))

    exchange(one, reference_dir, effect)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("version", VERSIONS[2:])
def test_macvlan_without_addresses(
    attach: Attach, neighbour: Namespace, reference_dir: Path, version: str
) -> None:
    lan_up()
    one = attach("macvlan", version, V4, master="lan0", mode="vepa", mtu=1400)
    one.config["ipam"] = {}
    exchange(one, reference_dir, lambda: None)


def test_macvlan_ipv6_and_host_local(
    attach: Attach, neighbour: Namespace, reference_dir: Path
) -> None:
    lan_up()
    one = attach("macvlan", "1.0.0", V4, V6, master="lan0")
    exchange(one, reference_dir, lambda: run_in(one.sandbox, ["ping", "-c1", "2001:db8::1"]))
    two = attach("macvlan", "1.0.0", master="lan0")
    exchange(two, reference_dir, lambda: run_in(two.sandbox, ["ping", "-c1", "192.0.2.1"]))


def test_macvlan_with_the_reference_s_address_plugin_is_announced(
    attach: Attach, neighbour: Namespace, reference_dir: Path
) -> None:
    lan_up()
    one = attach("macvlan", "1.0.0", master="lan0", mac="02:00:00:00:00:07")
    one.path = f"{reference_dir}"
    with Wire(neighbour, "eth0", ARP) as wire:
        one.add()
        assert wire.receives(bytes.fromhex("020000000007") + bytes([192, 0, 2, 7]))
    one.delete()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("selector", [{"device": "lan0"}, {"hwaddr": "02:00:00:00:00:05"}])
def test_host_device(
    attach: Attach,
    neighbour: Namespace,
    reference_dir: Path,
    version: str,
    selector: dict[str, str],
) -> None:
    run_in(None, ["ip", "link", "set", "lan0", "addrgenmode", "none"])
    seen: list[Any] = []
    one = attach("host-device", version, V4, dns=DNS, **selector)

    def effect() -> None:
        run_in(one.sandbox, ["ping", "-c1", "-W2", "192.0.2.1"])
        (link,) = ip_json("link", "show", "dev", "eth0", netns=one.sandbox)
        seen.append((routes(one), link["ifalias"], link["address"]))

    _exchange_device(one, reference_dir, effect)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("version", VERSIONS[2:])
def test_host_device_without_addresses(
    attach: Attach, neighbour: Namespace, reference_dir: Path, version: str
) -> None:
    run_in(None, ["ip", "link", "set", "lan0", "addrgenmode", "none"])
    one = attach("host-device", version, V4, device="lan0")
    one.config["ipam"] = {}
    _exchange_device(one, reference_dir, lambda: None)


def _exchange_device(one: Attachment, reference_dir: Path, effect: Callable[[], object]) -> None:
    """As `exchange`; but moving makes the device a new index and its peer look."""
    # Both start from a device that has been moved before.
    one.add()
    one.delete()
    one.result = None
    exchange(one, reference_dir, effect)


STATIC: list[dict[str, Any]] = [
    {"addresses": [V4, V6], "routes": ROUTES, "dns": DNS},
    {"addresses": [{"address": "192.0.2.5/24"}, V6], "routes": []},
    {"addresses": []},
]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("IP=198.51.100.7/24, 2001:db8:7::7/64;GATEWAY=198.51.100.1,2001:db8:7::1", {}),
    ("", {"args": {"cni": {"ips": ["198.51.100.8/24"]}}}),
    ("IgnoreUnknown=1;FOO=1", {"runtimeConfig": {"ips": ["198.51.100.9/24"]}}),
    ("FOO=1", {}),
    ("IP=198.51.100.7", {}),
    ("GATEWAY=x", {}),
    ("", {"runtimeConfig": {"ips": ["198.51.100.9"]}}),
]


@pytest.mark.parametrize("version", VERSIONS)
def test_static(plugin_dir: Path, reference_dir: Path, version: str) -> None:
    for ipam in STATIC:
        for cni_args, keys in REQUESTS:
            config = {"cniVersion": version, "name": "net", "type": "any", **keys}
            config["ipam"] = {"type": "static", **ipam}
            env = {"CNI_NETNS": "/no/such/namespace", "CNI_ARGS": cni_args}
            theirs = run_plugin(reference_dir / "static", "ADD", config, **env)
            ours = run_plugin(plugin_dir / "static", "ADD", config, **env)
            assert ours.code == theirs.code, (config, cni_args, ours.stdout, theirs.stdout)
            if ours.code == 0:
                assert comparable(ours.result) == comparable(theirs.result)
            else:
                assert ours.result["msg"] in theirs.result["msg"] or (
                    theirs.result["msg"] in ours.result["msg"]
                ), (ours.result, theirs.result)
