"""dhcp: leases from real servers, through real interfaces, for as long as they are needed."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, ip_json, run_in, run_plugin
from harness.dhcp import (
    SERVER,
    SUBNET,
    Daemon,
    Dhcpd,
    Dnsmasq,
    Kea,
    Network,
    Program,
    eventually,
)
from pycni.cli.install import install
from pycni.dhcp.exchange import Client
from pycni.dhcp.keeper import Keeper
from pycni.dhcp.lease import LeaseRecord, Store
from pycni.dhcp.wire import Sandbox
from pycni.spec.errors import CNIError


@pytest.fixture
def lan(sandbox: Sandbox) -> Network:
    """A network with nobody on it, bridged to the host as br-lan."""
    return Network(sandbox(), "br-lan")


@pytest.fixture
def daemon(host: object, tmp_path: Path) -> Iterator[Daemon]:
    quick = ("-timeout", "3s", "-resendmax", "2s", "-resendtimeout", "30s")
    with Daemon(tmp_path / "daemon", *quick) as running:
        yield running


@pytest.fixture
def attach(plugin_dir: Path, sandbox: Sandbox, daemon: Daemon) -> Attach:
    """Makes attachments to br-lan: keys of `ipam`, then fields of Attachment."""

    def make(ipam: dict[str, Any] | None = None, **fields: Any) -> Attachment:
        config = {
            "cniVersion": "1.1.0",
            "name": "lan",
            "type": "bridge",
            "bridge": "br-lan",
            "ipam": {"type": "dhcp", "daemonSocketPath": str(daemon.socket), **(ipam or {})},
        }
        plugin = fields.pop("plugin", plugin_dir / "bridge")
        space = fields.pop("sandbox", None) or sandbox()
        return Attachment(plugin, {**config, **fields.pop("config", {})}, space, **fields)

    return make


def inner(attachment: Attachment) -> list[str]:
    """The IPv4 addresses of the container's interface."""
    shown = ip_json("-4", "addr", "show", attachment.ifname, netns=attachment.sandbox)
    return [f"{item['local']}/{item['prefixlen']}" for link in shown for item in link["addr_info"]]


def address(attachment: Attachment) -> str:
    """The address that ADD returned, without its prefix."""
    text: str = attachment.result["ips"][0]["address"]
    return text.partition("/")[0]


def assert_put_back(attachment: Attachment, routes: list[dict[str, Any]]) -> None:
    """The interface has the address that ADD returned again, and these IPv4 routes."""
    assert inner(attachment) == [f"{address(attachment)}/24"]
    assert ip_json("-4", "route", netns=attachment.sandbox) == routes


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


def test_a_lease_is_renewed(attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon) -> None:
    with Kea(lan, tmp_path / "kea", lifetime=(1, 20, 30)) as kea:
        one = attach()
        one.add()
        granted = kea.count("DHCP4_LEASE_ALLOC")
        eventually(lambda: kea.count("DHCP4_LEASE_ALLOC") >= granted + 2, "not renewed twice")
        assert daemon.state_of() in ("bound", "renewing")
        assert inner(one) == [f"{address(one)}/24"]
        one.delete()
        eventually(lambda: kea.released(address(one)), "the server saw no RELEASE")


def test_rebinding_goes_where_renewing_does_not(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    with Kea(lan, tmp_path / "kea", lifetime=(1, 3, 30)) as kea:
        one = attach()
        one.add()
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


def test_a_short_absence_of_the_server_is_not_felt(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    with Kea(lan, tmp_path / "kea", lifetime=(1, 3, 60)) as kea:
        one = attach()
        one.add()
        kea.stop()
        eventually(lambda: daemon.state_of() == "rebinding", "not rebinding")
        assert inner(one) == [f"{address(one)}/24"]
        one.check()
        kea.start()
        eventually(lambda: daemon.state_of() == "bound", "not bound again")


def test_a_refusal_and_the_same_address_again(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    """A server that lost its memory refuses to renew, and gives the address to who asks anew."""
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


# --- the daemon's own life -----------------------------------------------------------------------


def test_leases_outlive_a_killed_daemon(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    with Kea(lan, tmp_path / "kea", lifetime=(3, 20, 60)) as kea:
        one = attach()
        one.add()
        held = daemon.leases()[0]["address"]
        daemon.stop(9)
        granted = kea.count("DHCP4_LEASE_ALLOC")
        daemon.start()
        eventually(lambda: kea.count("DHCP4_LEASE_ALLOC") > granted, "not confirmed")
        eventually(lambda: daemon.state_of() == "bound", "not bound")
        assert daemon.leases()[0]["address"] == held
        granted = kea.count("DHCP4_LEASE_ALLOC")
        eventually(lambda: kea.count("DHCP4_LEASE_ALLOC") > granted, "not renewed")
        one.check()
        one.delete()
        eventually(lambda: kea.released(address(one)), "the server saw no RELEASE")


def test_a_lost_lease_is_regained_by_the_next_daemon(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    with Kea(lan, tmp_path / "kea", lifetime=(1, 2, 3)) as kea:
        one = attach()
        one.add()
        before = ip_json("-4", "route", netns=one.sandbox)
        kea.stop()
        eventually(lambda: inner(one) == [], "the address stays on the interface")
        daemon.stop(9)
    with Kea(lan, tmp_path / "kea"):
        daemon.start()
        eventually(lambda: daemon.said(": regained"), "not regained")
        assert_put_back(one, before)


def test_a_daemon_killed_while_it_takes_an_address_off(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    """Whichever of the file and the interface it came to, the next one puts both right."""
    with Kea(lan, tmp_path / "kea", lifetime=(1, 2, 3)):
        one = attach()
        one.add()
        before = ip_json("-4", "route", netns=one.sandbox)
        daemon.stop(9)
    store = Store(str(daemon.state))
    (record,) = store.load()
    written = []

    def save(record: LeaseRecord) -> None:
        written.append(inner(one))
        store.save(record)
        raise Killed

    async def lose() -> None:
        keeper = Keeper(record, client, place, save, lambda _: None, asyncio.Semaphore())
        keeper.start()
        while not written:
            await asyncio.sleep(0.05)
        await keeper.stop()

    client = Client(b"test", record.wanted, record.options, False, within=0.5)
    place = Sandbox(record.netns, record.ifname, record.identity, record.mac)
    asyncio.run(lose())
    assert written == [[f"{address(one)}/24"]], "it is on the interface until that is on file"
    daemon.start()
    eventually(lambda: inner(one) == [], "the address stays on the interface")
    with Kea(lan, tmp_path / "kea"):
        eventually(lambda: daemon.said(": regained"), "not regained")
        assert_put_back(one, before)


class Killed(Exception):
    """Ends what a daemon does, at the point where it is raised."""


def test_a_daemon_that_is_told_to_end_keeps_its_leases(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    with Kea(lan, tmp_path / "kea") as kea:
        one = attach()
        one.add()
        daemon.stop()
        assert not daemon.socket.exists()
        assert not kea.released(address(one))
        daemon.start()
        eventually(lambda: daemon.state_of() == "bound", "not restored")


def test_without_a_daemon(attach: Attach, lan: Network, daemon: Daemon) -> None:
    one = attach()
    daemon.stop(9)  # its socket stays
    error = one.refused()
    assert error["code"] == 50
    assert error["msg"] == (
        f"error dialing DHCP daemon: dial unix {daemon.socket}: connect: connection refused"
    )
    assert one.refused("STATUS")["code"] == 50
    one.delete()
    daemon.socket.unlink()
    assert "no such file or directory" in one.refused("STATUS")["msg"]
    assert [item["ifname"] for item in ip_json("link", "show", netns=one.sandbox)] == ["lo"]


def test_the_socket_of_something_else(attach: Attach, lan: Network, tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "nothing", "relative.sock"):
        error = attach({"daemonSocketPath": str(wrong)}).refused()
        assert str(wrong) in error["msg"]
        assert "daemonSocketPath" in str(error)


def test_status(attach: Attach, daemon: Daemon, host: object) -> None:
    assert attach().run("STATUS").code == 0


def test_what_is_left_of_a_crash_is_replaced(host: object, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "one")
    daemon.start()
    daemon.stop(9)
    assert daemon.socket.exists()
    with daemon:
        second = Daemon(tmp_path / "one")
        second.log = tmp_path / "second.log"
        Program.start(second)
        assert second.process is not None
        assert second.process.wait(20) == 1
        assert "is held by" in second.log.read_text()
        third = Daemon(tmp_path / "one", "-statedir", str(tmp_path / "other"))
        third.log = tmp_path / "third.log"
        Program.start(third)
        assert third.process is not None
        assert third.process.wait(20) == 1
        assert "another daemon listens there" in third.log.read_text()
        assert daemon.ask({"command": "STATUS"})["leases"] == 0


def test_pidfile_and_host_prefix(
    plugin_dir: Path, sandbox: Sandbox, lan: Network, tmp_path: Path
) -> None:
    prefix = tmp_path / "root"
    for folder in ("run/netns", "tmp"):
        (prefix / folder).mkdir(parents=True)
    run_in(None, ["mount", "--rbind", "/run/netns", str(prefix / "run/netns")])
    pidfile = tmp_path / "pid"
    daemon = Daemon(tmp_path / "d", f"-hostprefix={prefix}", "--pidfile", str(pidfile))
    daemon.argv[daemon.argv.index("-socketpath") + 1] = "/run/cni/dhcp.sock"
    daemon.argv[daemon.argv.index("-statedir") + 1] = "/run/cni/dhcp"
    daemon.socket = prefix / "run/cni/dhcp.sock"
    try:
        space = sandbox()
        with Kea(lan, tmp_path / "kea"), daemon:
            assert daemon.process is not None
            assert int(pidfile.read_text()) == daemon.process.pid
            assert os.listdir(prefix / "run/cni/dhcp")
            config = {
                "cniVersion": "1.1.0",
                "name": "lan",
                "type": "bridge",
                "bridge": "br-lan",
                "ipam": {"type": "dhcp", "daemonSocketPath": str(daemon.socket)},
            }
            one = Attachment(plugin_dir / "bridge", config, space)
            one.add()
            one.delete()
            daemon.stop()
            assert not pidfile.exists()
    finally:
        run_in(None, ["umount", "-l", str(prefix / "run/netns")])


def test_socket_activation(host: object, tmp_path: Path) -> None:
    """As systemd does it: descriptor 3, and LISTEN_PID of the process that serves it."""
    daemon = Daemon(tmp_path / "d")
    program = (
        "import os, socket, sys\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(sys.argv[1]); listener.listen()\n"
        "os.dup2(listener.fileno(), 3); os.set_inheritable(3, True)\n"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
        "os.execv(sys.argv[2], sys.argv[2:])\n"
    )
    daemon.argv = [sys.executable, "-c", program, str(daemon.socket), *daemon.argv]
    with daemon:
        assert daemon.ask({"command": "STATUS"})["leases"] == 0
        daemon.stop()
        assert daemon.socket.exists(), "the socket is systemd's to remove"


# --- containers that end, or come at the same time -----------------------------------------------


def test_the_namespace_vanishes(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    run_in(None, ["ip", "addr", "add", f"{SUBNET}.2/24", "dev", "br-lan"])
    with Kea(lan, tmp_path / "kea", lifetime=(1, 2, 4)) as kea:
        one, two = attach(container="one"), attach(container="two")
        one.add()
        two.add()
        assert one.sandbox is not None
        assert two.sandbox is not None
        one.sandbox.delete()
        eventually(lambda: len(ip_json("link", "show", "type", "veth")) == 2, "it is kept alive")
        one.delete()
        eventually(lambda: kea.released(address(one)), "the server saw no RELEASE")
        two.sandbox.delete()
        eventually(lambda: daemon.state_of("two") in ("gone", ""), "still renewed")
        eventually(lambda: daemon.leases() == [], "a lease that ran out is still known")
        assert list(daemon.state.glob("*.json")) == []


def test_another_interface_of_the_same_name_is_left_alone(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    with Kea(lan, tmp_path / "kea", lifetime=(1, 20, 30)):
        one = attach()
        one.add()
        run_in(one.sandbox, ["ip", "link", "delete", "eth0"])
        run_in(one.sandbox, ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x"])
        eventually(lambda: daemon.state_of() == "gone", "still renewed")
        assert "gone" in one.drift()


@pytest.mark.parametrize("change", [("address", "02:00:00:00:00:77"), ("name", "mine")])
def test_an_interface_that_was_changed_keeps_its_lease(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon, change: tuple[str, str]
) -> None:
    """Another plugin, or the container, may give it another MAC address or name."""
    with Kea(lan, tmp_path / "kea", lifetime=(1, 3, 4)) as kea:
        one = attach()
        one.add()
        for line in ("set eth0 down", f"set eth0 {' '.join(change)}"):
            run_in(one.sandbox, ["ip", "link", *line.split()])
        run_in(one.sandbox, ["ip", "link", "set", "mine" if "mine" in change else "eth0", "up"])
        daemon.stop(9)
        daemon.start()
        granted = kea.count("DHCP4_LEASE_ALLOC")
        eventually(lambda: kea.count("DHCP4_LEASE_ALLOC") >= granted + 4, "not renewed")
        assert daemon.state_of() in ("bound", "renewing")
        one.delete()
        eventually(lambda: kea.released(address(one)), "the server saw no RELEASE")


def test_gc(attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon) -> None:
    with Kea(lan, tmp_path / "kea") as kea:
        kept, gone = attach(container="kept"), attach(container="gone")
        other = attach(container="gone", config={"name": "other"})
        for item in (kept, gone, other):
            item.add()
        valid = [{"containerID": "kept", "ifname": "eth0"}]
        assert kept.run("GC", **{"cni.dev/valid-attachments": valid}).code == 0
        left = {(item["network"], item["containerID"]) for item in daemon.leases()}
        assert left == {("lan", "kept"), ("other", "gone")}
        eventually(lambda: kea.released(address(gone)), "the server saw no RELEASE")


def test_many_at_once(attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon) -> None:
    with Kea(lan, tmp_path / "kea") as kea, ThreadPoolExecutor(12) as pool:
        many = [attach(container=f"c{number}", call=run_plugin) for number in range(12)]
        list(pool.map(Attachment.add, many))
        assert len({address(item) for item in many}) == len(many)
        assert len(daemon.leases()) == len(many)
        assert daemon.process is not None
        descriptors = os.listdir(f"/proc/{daemon.process.pid}/fd")
        tasks = os.listdir(f"/proc/{daemon.process.pid}/task")
        assert len(descriptors) < 15, "a lease at rest takes no descriptor"
        assert len(tasks) < 15
        list(pool.map(Attachment.check, many))
        list(pool.map(Attachment.delete, many))
        eventually(lambda: kea.count("was released properly") == len(many), "not all released")
        assert daemon.leases() == []


def link_in(attachment: Attachment) -> dict[str, Any]:
    """Plug a container in by hand; returns the question that the plugin would ask."""
    assert attachment.sandbox is not None
    run_in(None, ["ip", "link", "add", "v1", "type", "veth", "peer", "name", "eth0",
                  "netns", attachment.sandbox.name])  # fmt: skip
    run_in(None, ["ip", "link", "set", "v1", "master", "br-lan", "up"])
    return {
        "command": "ADD", "network": "lan", "containerID": "pycni-test", "ifname": "eth0",
        "netns": attachment.sandbox.path, "options": {}, "request": [3, 1],
    }  # fmt: skip


def test_one_attachment_added_several_times_has_one_lease(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    with Kea(lan, tmp_path / "kea") as kea, ThreadPoolExecutor(4) as pool:
        question = link_in(attach())
        answers = list(pool.map(daemon.ask, [question] * 4))
        assert len({answer["lease"]["address"] for answer in answers}) == 1
        assert kea.count("DHCP4_LEASE_ALLOC") == 1
        run_in(None, ["ip", "link", "del", "v1"])


def test_who_hangs_up_or_deletes_ends_an_add(
    attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    question = link_in(attach())
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(str(daemon.socket))
    channel.sendall(json.dumps({"pycni": 1, **question}).encode() + b"\n")
    assert b"within" in channel.recv(1000)
    channel.close()
    with ThreadPoolExecutor(1) as pool:
        adding = pool.submit(daemon.ask, question)
        eventually(lambda: daemon.said("no lease yet"), "no try was made")
        daemon.ask({**question, "command": "DEL"})
        with pytest.raises(CNIError, match="deleted while being added"):
            adding.result(30)
    with Kea(lan, tmp_path / "kea"):
        assert daemon.ask(question)["lease"]["address"].endswith("/24")
    run_in(None, ["ip", "link", "del", "v1"])


def test_an_exhausted_pool(attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon) -> None:
    daemon.stop()
    daemon.argv[daemon.argv.index("-resendtimeout") + 1] = "3s"
    daemon.start()
    with Kea(lan, tmp_path / "kea", pool=f"{SUBNET}.10 - {SUBNET}.10"):
        one, two = attach(container="one"), attach(container="two")
        one.add()
        error = two.refused()
        assert error["msg"] == "error calling DHCP.Allocate: no more tries"
        assert error["code"] == 11
        two.delete()
        one.delete()
        two.add()


def test_a_namespace_that_is_not_there(attach: Attach, lan: Network, daemon: Daemon) -> None:
    question = {
        "command": "ADD", "network": "lan", "containerID": "x", "ifname": "eth0",
        "netns": "/run/netns/nothing", "options": {}, "request": [],
    }  # fmt: skip
    with pytest.raises(CNIError, match='cannot open the network namespace "/run/netns/nothing"'):
        daemon.ask(question)
    space = attach().sandbox
    with pytest.raises(CNIError, match="there is no interface eth0"):
        daemon.ask({**question, "netns": space.path})


# --- options -----------------------------------------------------------------------------------


def test_a_server_that_gives_no_mask(attach: Attach, lan: Network, tmp_path: Path) -> None:
    """The address's class tells (RFC 1122, section 3.3.6)."""
    with Dnsmasq(lan, tmp_path / "dnsmasq", "--dhcp-option=1"):
        one = attach()
        one.add()
        assert inner(one) == [f"{address(one)}/8"]
        run_in(one.sandbox, ["ping", "-c1", "-W5", SERVER])


def test_classless_routes_alone_count(attach: Attach, lan: Network, tmp_path: Path) -> None:
    # Not by its name, which older releases of Kea do not know and newer ones let nobody define.
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


def test_the_client_identifier_is_the_references(
    attach: Attach, lan: Network, tmp_path: Path
) -> None:
    with Kea(lan, tmp_path / "kea") as kea:
        one = attach()
        one.add()
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


def test_the_references_daemon_is_told_from_ours(
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
