"""A container that plays the router, or another host: real packets, and what they change.

CVE-2020-10749: a container that may send raw packets sends router advertisements, and has the
host, or other containers, send their IPv6 traffic through it.
"""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, Namespace, Sandbox, ip_json, run_in
from harness.frames import ALL_NODES, ARP, BROADCAST, IPV4, IPV6, Wire, router_advertisement

ROGUE = "fe80::bad"
PREFIX = "2001:db8:bad::"


def advertise(attacker: Namespace, interface: str = "eth0") -> None:
    with Wire(attacker, interface, IPV6) as wire:
        for _ in range(5):
            wire.send(router_advertisement(wire.mac, ROGUE, PREFIX), to=ALL_NODES)
            time.sleep(0.02)


def learned(netns: Namespace | None = None) -> list[Any]:
    """What a router advertisement has left: routes, addresses, a smaller MTU."""
    routes = ip_json("-6", "route", "show", "table", "all", netns=netns)
    addresses = ip_json("-6", "address", "show", netns=netns)
    return [
        *(route for route in routes if route.get("protocol") == "ra" or PREFIX in route["dst"]),
        *(route for route in routes if route.get("gateway") == ROGUE),
        *(
            entry["local"]
            for link in addresses
            for entry in link["addr_info"]
            if entry["local"].startswith(PREFIX[:-2])
        ),
    ]


@pytest.fixture
def trusting_host(host: Host) -> Host:
    """A host that believes routers on whatever interface no one has said otherwise about."""
    for name in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/accept_ra").write_text("2")
    return host


def ranges(*subnets: str, state: Path) -> dict[str, Any]:
    listed = [[{"subnet": subnet}] for subnet in subnets]
    return {"type": "host-local", "ranges": listed, "dataDir": str(state)}


DUAL = ("10.4.0.0/24", "fd00:4::/64")


def attach(
    plugin_dir: Path, state: Path, space: Namespace, container: str, plugin: str, **keys: Any
) -> Attachment:
    subnets = keys.pop("subnets", DUAL)
    config = {
        "cniVersion": "1.1.0", "name": "net", "type": plugin,
        "ipam": ranges(*subnets, state=state), **keys,
    }  # fmt: skip
    attachment = Attachment(plugin_dir / plugin, config, space, container=container)
    attachment.add()
    return attachment


def test_the_packet_is_a_router_advertisement(trusting_host: Host, sandbox: Sandbox) -> None:
    """Without a plugin, it does what the other tests say it does not."""
    space = sandbox()
    run_in(
        None,
        ["ip", "link", "add", "v0", "type", "veth", "peer", "name", "eth0", "netns", space.name],
    )
    run_in(None, ["ip", "link", "set", "v0", "up"])
    run_in(space, ["ip", "link", "set", "eth0", "up"])
    until = time.monotonic() + 20  # the pair does not carry anything at once
    while not learned() and time.monotonic() < until:
        advertise(space)
    assert learned()


BRIDGES = {
    "gateway": {"isGateway": True},
    "gateway and default": {"isGateway": True, "isDefaultGateway": True, "ipMasq": True},
    "gateway of IPv4": {"isGateway": True, "subnets": ("10.4.0.0/24",)},
    "gateway of IPv6": {"isGateway": True, "subnets": ("fd00:4::/64",)},
    "no gateway": {},
    "guarded": {"isGateway": True, "macspoofchk": True},
}


@pytest.mark.parametrize("case", BRIDGES)
def test_bridge(
    case: str, trusting_host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    attacker, victim = sandbox(), sandbox()
    keys = {"bridge": "br0", **BRIDGES[case]}
    for space, name in ((victim, "victim"), (attacker, "attacker")):
        attach(plugin_dir, tmp_path, space, name, "bridge", **keys)
    advertise(attacker)
    assert learned() == []
    # Where this host is not the router, another may be, and containers listen for it.
    assert bool(learned(victim)) == (case == "no gateway")


def test_bridge_that_was_there(
    trusting_host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """An operator's bridge, with a gateway's address of a VLAN as well."""
    run_in(None, ["ip", "link", "add", "br0", "type", "bridge"])
    run_in(None, ["ip", "link", "set", "br0", "up"])
    attacker = sandbox()
    attach(plugin_dir, tmp_path, attacker, "attacker", "bridge", bridge="br0", isGateway=True)
    advertise(attacker)
    assert learned() == []


def test_bridge_without_addresses(
    trusting_host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """A network of layer 2 alone: the host has no part in it, and believes no one there."""
    attacker = sandbox()
    config = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0"}
    Attachment(plugin_dir / "bridge", config, attacker).add()
    advertise(attacker)
    assert learned() == []


@pytest.mark.parametrize("subnets", [DUAL, DUAL[:1], DUAL[1:]])
def test_ptp(
    subnets: tuple[str, ...],
    trusting_host: Host,
    sandbox: Sandbox,
    plugin_dir: Path,
    tmp_path: Path,
) -> None:
    """Even where no one else hears it, the host does."""
    attacker, victim = sandbox(), sandbox()
    for space, name in ((victim, "victim"), (attacker, "attacker")):
        attach(plugin_dir, tmp_path, space, name, "ptp", subnets=subnets, ipMasq=True)
    advertise(attacker)
    assert learned() == learned(victim) == []


def test_tap_and_others_of_the_container(
    trusting_host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """A second interface leads to the host of the first as little as the first does."""
    attacker = sandbox()
    attach(plugin_dir, tmp_path, attacker, "attacker", "bridge", bridge="br0", isGateway=True)
    config = {"cniVersion": "1.1.0", "name": "net2", "type": "ptp",
              "ipam": ranges("fd00:5::/64", state=tmp_path)}  # fmt: skip
    Attachment(plugin_dir / "ptp", config, attacker, container="attacker", ifname="eth1").add()
    for interface in ("eth0", "eth1"):
        advertise(attacker, interface)
    assert learned() == []


def test_macvlan(trusting_host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path) -> None:
    """The host's own interface has no part in it. Containers are hosts of the master's network:
    they hear whom the master's network lets advertise, as machines on it do."""
    run_in(None, ["ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1"])
    for name in ("up0", "up1"):
        run_in(None, ["ip", "link", "set", name, "up"])
        Path(f"/proc/sys/net/ipv6/conf/{name}/accept_ra").write_text("0")
    attacker = sandbox()
    attach(plugin_dir, tmp_path, attacker, "attacker", "macvlan", master="up0", mode="bridge")
    advertise(attacker)
    assert learned() == []
    Path("/proc/sys/net/ipv6/conf/up0/accept_ra").write_text("2")
    advertise(attacker)
    assert learned() == []  # a macvlan and its master do not hear each other


# --- forged addresses --------------------------------------------------------------------------

FORGED = "0a:58:0a:04:00:66"


def reaches(attacker: Namespace, victim: Namespace, *, source: str, kind: int = 0x88B5) -> bool:
    """Whether a frame with this source address comes from one container to the other."""
    with Wire(victim, "eth0", kind) as ear, Wire(attacker, "eth0", kind) as mouth:
        mouth.send(b"forged", source=source)
        return ear.receives(b"forged", 0.3)


def mac_of(space: Namespace) -> str:
    (link,) = ip_json("link", "show", "eth0", netns=space)
    address: str = link["address"]
    return address


@pytest.mark.parametrize("guard", [False, True])
def test_forged_hardware_address(
    guard: bool, host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """With macspoofchk only frames of the interface's own address leave it, whatever the container
    does to the interface; and another container's traffic cannot be drawn to it."""
    attacker, victim, third = sandbox(), sandbox(), sandbox()
    for space, name in ((attacker, "attacker"), (victim, "victim"), (third, "third")):
        attach(
            plugin_dir, tmp_path, space, name, "bridge",
            bridge="br0", isGateway=True, macspoofchk=guard,
        )  # fmt: skip
    own = mac_of(attacker)
    assert reaches(attacker, victim, source=own)
    assert reaches(attacker, victim, source=FORGED) != guard
    # As if it were the third: the bridge would learn that the third is at this port.
    assert reaches(attacker, victim, source=mac_of(third)) != guard
    assert reaches(victim, third, source=mac_of(victim))
    # A new address of its own, and a device on top of it, are forged as well.
    run_in(attacker, ["ip", "link", "set", "eth0", "address", FORGED])
    assert reaches(attacker, victim, source=FORGED) != guard
    run_in(attacker, ["ip", "link", "set", "eth0", "address", own])
    run_in(attacker, ["ip", "link", "add", "link", "eth0", "name", "mv0", "type", "macvlan"])
    run_in(attacker, ["ip", "link", "set", "mv0", "up"])
    with Wire(victim, "eth0") as ear, Wire(attacker, "mv0") as mouth:
        mouth.send(b"on top")
        assert ear.receives(b"on top", 0.3) != guard


def test_forged_arp(host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path) -> None:
    """What macspoofchk is not: a guard of IP addresses. A container may claim another's, or the
    gateway's; only isolated ports keep it from its neighbours."""
    attacker, victim, apart = sandbox(), sandbox(), sandbox()
    keys = {"bridge": "br0", "isGateway": True, "macspoofchk": True}
    for space, name, isolated in (
        (attacker, "attacker", True), (victim, "victim", False), (apart, "apart", True),
    ):  # fmt: skip
        attach(plugin_dir, tmp_path, space, name, "bridge", **keys, portIsolation=isolated)
    run_in(victim, ["ping", "-c1", "-W2", "10.4.0.1"])
    run_in(apart, ["ping", "-c1", "-W2", "10.4.0.1"])
    with Wire(attacker, "eth0", ARP) as wire:
        mine, gateway = bytes.fromhex(wire.mac.replace(":", "")), socket.inet_aton("10.4.0.1")
        reply = struct.pack("!HHBBH", 1, IPV4, 6, 4, 2) + mine + gateway + mine + gateway
        wire.send(reply, to=BROADCAST)
    time.sleep(0.1)

    def gateway_of(space: Namespace) -> str:
        (entry,) = ip_json("neighbour", "show", "10.4.0.1", netns=space)
        found: str = entry["lladdr"]
        return found

    assert gateway_of(victim) == mac_of(attacker)
    assert gateway_of(apart) != mac_of(attacker)


def test_forged_source_address(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """ptp: the route back is the container's own; a packet with another's address gets no answer
    to the forger, since replies go where that address is."""
    attacker, victim = sandbox(), sandbox()
    for space, name in ((attacker, "attacker"), (victim, "victim")):
        attach(plugin_dir, tmp_path, space, name, "ptp", subnets=DUAL[:1])
    # The victim has 10.4.0.3.
    run_in(attacker, ["ip", "address", "add", "10.4.0.3/32", "dev", "eth0"])
    ping = ["ping", "-c1", "-W1", "-I", "10.4.0.3", "10.4.0.1"]
    assert run_in(attacker, ping, check=False).returncode != 0
    assert run_in(victim, ["ping", "-c1", "-W2", "10.4.0.1"]).returncode == 0
