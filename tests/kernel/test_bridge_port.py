"""bridge: the port of a container, what it lets through, and masquerading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Host, Namespace, Sandbox, ip_json, run_in
from harness.frames import ARP, IPV4, IPV6, Wire
from harness.kernel_state import addresses, link, link_names, pings, veths
from harness.topics import bridge as kit
from harness.topics.bridge import V4, V6, owned, setting

attach = kit.attach
leases = kit.leases


def port_flags(name: str) -> Any:
    return link(name)["linkinfo"]["info_slave_data"]


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
    """What gets an IPv4 address has its MAC address: no neighbour is mistaken, or bothered."""
    attach(isGateway=True).add()
    with Wire(None, "bridge0", ARP) as wire:
        two = attach(isGateway=True)
        address = two.add()["ips"][0]["address"].partition("/")[0]
        assert ip_json("link", "show", "eth0", netns=two.sandbox)[0]["address"] == (
            "0a:58:" + ":".join(f"{int(part):02x}" for part in address.split("."))
        )
        assert not wire.receives(b"\0" * 6, 0.2)
    two.check()


def test_neighbours_are_notified(attach: Attach) -> None:
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
