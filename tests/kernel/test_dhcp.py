"""dhcp: leases from real servers, through real interfaces, for as long as they are needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Attach, Attachment, ip_json, run_in, run_plugin
from harness.dhcp import SERVER, SUBNET, Daemon, Dhcpd, Dnsmasq, Kea, Network, Program, eventually
from harness.topics import dhcp as kit
from harness.topics.dhcp import Leased, address, assert_put_back, inner
from pycni.agent.executables import install

attach = kit.attach
daemon = kit.daemon
lan = kit.lan
leased = kit.leased


@pytest.mark.parametrize("server", [Kea, Dnsmasq, Dhcpd])
def test_a_lease_and_its_release(
    server: type[Kea | Dnsmasq | Dhcpd],
    attach: Attach,
    lan: Network,
    tmp_path: Path,
    daemon: Daemon,
) -> None:
    with server(lan, tmp_path / "server") as running:
        one = attach()
        result = one.add()
        assert result["ips"] == [
            {"address": f"{address(one)}/24", "gateway": SERVER, "interface": 2}
        ]
        assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": SERVER}]
        assert inner(one) == [f"{address(one)}/24"]
        run_in(one.sandbox, ["ping", "-c1", "-W5", SERVER])
        one.check()
        one.delete()
        eventually(lambda: running.released(address(one)), "the server saw no RELEASE")
        assert daemon.leases() == []
        assert list(daemon.state.glob("*.json")) == []
        one.delete()


@pytest.mark.parametrize("kind", ["bridge", "macvlan"])
def test_every_interface_plugin(
    kind: str, attach: Attach, lan: Network, tmp_path: Path, plugin_dir: Path
) -> None:
    run_in(None, ["ip", "link", "set", "wan", "nomaster"] if kind == "macvlan" else ["true"])
    with Kea(lan, tmp_path / "kea") as kea:
        one = attach(plugin=plugin_dir / kind, config={"type": kind, "master": "wan"})
        one.add()
        assert inner(one) == [f"{address(one)}/24"]
        one.check()
        one.delete()
        eventually(lambda: kea.released(address(one)), "the server saw no RELEASE")
        assert ip_json("link", "show", netns=one.sandbox)[0]["ifname"] == "lo"


@pytest.mark.parametrize("kind", ["bridge", "macvlan"])
def test_the_references_interface_plugins(
    kind: str,
    attach: Attach,
    lan: Network,
    tmp_path: Path,
    plugin_dir: Path,
    reference_dir: Path,
) -> None:
    """Its bridge removes the interface first; the RELEASE then comes from the host."""
    if kind == "macvlan":
        run_in(None, ["ip", "link", "set", "wan", "nomaster"])
    else:
        run_in(None, ["ip", "addr", "add", f"{SUBNET}.2/24", "dev", "br-lan"])
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / kind).symlink_to(reference_dir / kind)
    (mixed / "dhcp").symlink_to(plugin_dir / "dhcp")
    config = {"cniVersion": "1.0.0", "type": kind, "master": "wan"}
    with Kea(lan, tmp_path / "kea") as kea:
        one = attach(plugin=mixed / kind, config=config, call=run_plugin)
        one.add()
        assert inner(one) == [f"{address(one)}/24"]
        one.check()
        one.delete()
        eventually(lambda: kea.released(address(one)), "the server saw no RELEASE")


def test_an_add_that_fails_gives_the_lease_back(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    run_in(None, ["ip", "addr", "add", "10.1.1.1/24", "dev", "br-lan"])
    with Kea(lan, tmp_path / "kea") as kea:
        one = attach(config={"isGateway": True})
        error = one.refused()
        assert "already has an IP address different" in error["msg"]
        eventually(lambda: kea.said("was released properly"), "the server saw no RELEASE")
        assert daemon.leases() == []
        assert [item["ifname"] for item in ip_json("link", "show", netns=one.sandbox)] == ["lo"]


# --- the length of a lease -----------------------------------------------------------------------


def test_a_lease_is_renewed(leased: Leased, daemon: Daemon) -> None:
    with leased(lifetime=(1, 20, 30)) as (kea, one):
        granted = kea.count("DHCP4_LEASE_ALLOC")
        eventually(lambda: kea.count("DHCP4_LEASE_ALLOC") >= granted + 2, "not renewed twice")
        assert daemon.state_of() in ("bound", "renewing")
        assert inner(one) == [f"{address(one)}/24"]
        one.delete()
        eventually(lambda: kea.released(address(one)), "the server saw no RELEASE")


def test_rebinding_goes_where_renewing_does_not(
    leased: Leased, lan: Network, daemon: Daemon
) -> None:
    with leased(lifetime=(1, 3, 30)) as (kea, _):
        mac = ip_json("link", "show", "lan", netns=lan.netns)[0]["address"]
        rules = (
            "table bridge test { chain forward { type filter hook forward priority 0; "
            f"ether daddr {mac} udp dport 67 drop\n}}\n}}"
        )
        run_in(None, ["nft", rules])
        eventually(lambda: daemon.said("renewing"), "not renewed in vain")
        granted = kea.count("DHCP4_LEASE_ALLOC")
        eventually(lambda: kea.count("DHCP4_LEASE_ALLOC") > granted, "not rebound")
        eventually(lambda: daemon.state_of() == "bound", "not bound again")
        run_in(None, ["nft", "delete", "table", "bridge", "test"])
        tries = daemon.log.read_text().count("no answer")
        granted = kea.count("DHCP4_LEASE_ALLOC")
        eventually(lambda: kea.count("DHCP4_LEASE_ALLOC") > granted + 1, "not renewed")
        assert daemon.log.read_text().count("no answer") == tries


def test_the_server_goes_and_comes_back(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    with Kea(lan, tmp_path / "kea", lifetime=(1, 2, 4)) as kea:
        one = attach({"request": [{"option": "121"}]})
        one.add()
        run_in(one.sandbox, ["ip", "route", "add", "192.0.2.0/24", "via", SERVER])
        before = ip_json("-4", "route", netns=one.sandbox)
        kea.stop()
        eventually(lambda: daemon.state_of() == "lost", "the lease does not run out")
        eventually(lambda: inner(one) == [], "the address stays on the interface")
        assert "lost" in one.drift()
    with Kea(lan, tmp_path / "kea"):
        eventually(lambda: daemon.state_of() == "bound", "the lease is not regained")
        assert_put_back(one, before)
        one.check()
        run_in(one.sandbox, ["ping", "-c1", "-W5", SERVER])


def test_routes_come_back_into_the_tables_that_they_were_in(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon, plugin_dir: Path
) -> None:
    """sbr gives the interface a table of its own, and the main one nothing of it."""
    with Kea(lan, tmp_path / "kea", lifetime=(1, 2, 4)) as kea:
        one = attach()
        previous = one.add()
        sbr = {"type": "sbr", "name": "lan", "cniVersion": "1.1.0", "prevResult": previous}
        two = Attachment(plugin_dir / "sbr", sbr, one.sandbox)
        two.add()
        hops = ["nexthop", "via", SERVER, "weight", "3", "nexthop", "via", f"{SUBNET}.2"]
        run_in(one.sandbox, ["ip", "route", "add", "192.0.2.0/24", "table", "100", *hops])
        tables = ["-4", "route", "show", "table", "all"]
        before = sorted(map(str, ip_json(*tables, netns=one.sandbox)))
        kea.stop()
        eventually(lambda: inner(one) == [], "the address stays on the interface")
    with Kea(lan, tmp_path / "kea"):
        eventually(lambda: daemon.state_of() == "bound", "the lease is not regained")
        assert sorted(map(str, ip_json(*tables, netns=one.sandbox))) == before
        two.check()
        run_in(one.sandbox, ["ping", "-c1", "-W5", "-I", address(one), SERVER])


def test_a_short_absence_of_the_server_is_not_felt(leased: Leased, daemon: Daemon) -> None:
    with leased(lifetime=(1, 3, 60)) as (kea, one):
        kea.stop()
        eventually(lambda: daemon.state_of() == "rebinding", "not rebinding")
        assert inner(one) == [f"{address(one)}/24"]
        one.check()
        kea.start()
        eventually(lambda: daemon.state_of() == "bound", "not bound again")


def test_a_refusal_and_the_same_address_again(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    """A server that lost its memory refuses to renew, and gives the address to who asks again."""
    with Dnsmasq(lan, tmp_path / "dnsmasq", "--dhcp-option=option:T1,3") as server:
        one = attach()
        one.add()
        server.stop()
        (tmp_path / "dnsmasq" / "leases").unlink()
        server.start()
        eventually(lambda: server.said("DHCPNAK"), "the server refused nothing")
        eventually(lambda: daemon.said(": regained"), "the lease is not regained")
        assert inner(one) == [f"{address(one)}/24"]
        one.check()


def test_a_refusal_for_good(attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon) -> None:
    """A server that gives other addresses only: the container must stop using its own."""
    soon = "--dhcp-option=option:T1,3"
    one = attach()
    with Dnsmasq(lan, tmp_path / "first", soon):
        one.add()
    with Dnsmasq(lan, tmp_path / "second", soon, pool=f"{SUBNET}.200,{SUBNET}.210") as server:
        eventually(lambda: server.said("DHCPNAK"), "the server refused nothing")
        eventually(lambda: inner(one) == [], "the address stays on the interface")
        assert daemon.state_of() == "lost"
        assert daemon.said(f"not {address(one)}")
        one.delete()
        assert not server.said("DHCPRELEASE"), "what was lost is not ours to give back"
    assert daemon.leases() == []


# --- options -----------------------------------------------------------------------------------


def test_a_server_that_gives_no_mask(attach: Attach, lan: Network, tmp_path: Path) -> None:
    """The address's class says (RFC 1122, section 3.3.6)."""
    with Dnsmasq(lan, tmp_path / "dnsmasq", "--dhcp-option=1"):
        one = attach()
        one.add()
        assert inner(one) == [f"{address(one)}/8"]
        run_in(one.sandbox, ["ping", "-c1", "-W5", SERVER])


def test_classless_routes_alone_count(attach: Attach, lan: Network, tmp_path: Path) -> None:
    # Not by its name, which older releases of Kea do not know and newer ones let no one define.
    routes = {
        "code": 121,
        "csv-format": False,
        # 10.9.0.0/16 on the link; 192.0.2.128/25 and default by .1
        "data": "10 0A 09 00 00 00 00 19 C0 00 02 80 0A 4D 00 01 00 0A 4D 00 01",
    }
    with Kea(lan, tmp_path / "kea", options=[routes]):
        one = attach({"request": [{"option": "121"}], "priority": 77})
        assert one.add()["routes"] == [
            {"dst": "10.9.0.0/16", "gw": "0.0.0.0", "priority": 77, "scope": 253},
            {"dst": "192.0.2.128/25", "gw": SERVER, "priority": 77},
            {"dst": "0.0.0.0/0", "gw": SERVER, "priority": 77},
        ]
        made = ip_json("-4", "route", netns=one.sandbox)
        seen = {item["dst"]: (item.get("gateway"), item.get("metric")) for item in made}
        assert seen["10.9.0.0/16"] == (None, 77)
        assert seen["192.0.2.128/25"] == (SERVER, 77)
        assert seen["default"] == (SERVER, 77)
        one.check()


def test_what_is_provided_and_requested(attach: Attach, lan: Network, tmp_path: Path) -> None:
    dns = [
        {"name": "domain-name-servers", "data": "10.77.0.53, 10.77.0.54"},
        {"name": "domain-name", "data": "example.net"},
        {"name": "domain-search", "data": "a.example.net, b.example.net"},
    ]
    with Kea(lan, tmp_path / "kea", options=dns) as kea:
        one = attach(
            {
                "provide": [
                    {"option": "host-name", "value": "fixed", "fromArg": "NAME"},
                    {"option": 60, "value": "a-vendor"},
                    {"option": "dhcp-client-identifier", "value": "it-is-me"},
                ],
                "request": [
                    {"option": "6"},
                    {"option": "domain-search"},
                    {"skipDefault": True},
                    {"option": "subnet-mask"},
                ],
            },
            args="IgnoreUnknown=1;NAME=by-arg",
        )
        result = one.add()
        assert result["dns"] == {
            "nameservers": ["10.77.0.53", "10.77.0.54"],
            "search": ["a.example.net", "b.example.net"],
        }
        log = kea.log.read_text()
        assert '"by-arg" (string)' in log
        assert '"a-vendor" (string)' in log
        assert "type=055, len=003: 6(uint8) 119(uint8) 1(uint8)" in log
        assert ":".join(f"{byte:02x}" for byte in b"it-is-me") in log
        one.delete()
        eventually(lambda: kea.released(address(one)), "not released under that identifier")


def test_the_client_identifier_is_the_references(leased: Leased) -> None:
    with leased() as (kea, _):
        identifier = b"\0pycni-test/lan/eth0"
        assert f"cid=[{identifier.hex(':')}]" in kea.log.read_text()


def test_broadcast_is_asked_for(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    daemon.stop()
    daemon.argv.append("-broadcast")
    daemon.start()
    answers = tmp_path / "frames"
    argv = ["ip", "netns", "exec", lan.netns.name, "tcpdump", "-lnei", "lan", "--immediate-mode",
            "udp", "src", "port", "67"]  # fmt: skip
    with Dhcpd(lan, tmp_path / "dhcpd"), Program(argv, answers) as watch:
        eventually(lambda: watch.said("listening"), "tcpdump did not start")
        attach().add()
        eventually(lambda: watch.said("BOOTP/DHCP, Reply"), "no answer was seen")
        lines = [line for line in answers.read_text().splitlines() if "Reply" in line]
        assert all("> ff:ff:ff:ff:ff:ff" in line for line in lines)


# --- between ours and the reference's ------------------------------------------------------------


def test_the_references_daemon_is_distinguished_from_ours(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon, reference_dir: Path
) -> None:
    theirs = tmp_path / "theirs.sock"
    argv = [reference_dir / "dhcp", "daemon", "-socketpath", theirs]
    with Program(argv, tmp_path / "theirs.log"):
        eventually(theirs.exists, "the reference's daemon did not start")
        error = attach({"daemonSocketPath": str(theirs)}).refused()
        assert error["code"] == 50
        assert "is not pycni's DHCP daemon" in error["msg"]
    config = {
        "cniVersion": "1.0.0",
        "name": "lan",
        "ipam": {"type": "dhcp", "daemonSocketPath": str(daemon.socket)},
    }
    one = attach()
    assert one.sandbox is not None
    run = run_plugin(reference_dir / "dhcp", "ADD", config, CNI_NETNS=one.sandbox.path)
    assert "This daemon serves the dhcp plugin of pycni" in run.result["msg"]


@pytest.mark.parametrize("native", [True, False])
def test_the_plugins_executable_is_the_daemon_too(
    host: object, tmp_path: Path, native: bool
) -> None:
    """Unit files and images written for the reference run `/opt/cni/bin/dhcp daemon`."""
    install(tmp_path / "bin", native=native)
    daemon = Daemon(tmp_path / "d")
    daemon.argv[:2] = [str(tmp_path / "bin/dhcp")]
    with daemon:
        assert daemon.ask({"command": "STATUS"})["leases"] == 0
