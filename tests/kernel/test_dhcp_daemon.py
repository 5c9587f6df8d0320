"""dhcp: the daemon's own life, and containers that end or come at the same time."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, ip_json, run_in, run_plugin
from harness.dhcp import SUBNET, Daemon, Kea, Network, Program, eventually
from harness.topics import dhcp as kit
from harness.topics.dhcp import Leased, address, assert_put_back, inner
from pycni.dhcp.exchange import Client
from pycni.dhcp.keeper import Keeper
from pycni.dhcp.lease import LeaseRecord, Store
from pycni.dhcp.wire import Sandbox
from pycni.spec.errors import CNIError

attach = kit.attach
daemon = kit.daemon
lan = kit.lan
leased = kit.leased


# --- the daemon's own life -----------------------------------------------------------------------


def test_leases_outlive_a_killed_daemon(leased: Leased, daemon: Daemon) -> None:
    with leased(lifetime=(3, 20, 60)) as (kea, one):
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
    leased: Leased, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    with leased(lifetime=(1, 2, 3)) as (kea, one):
        before = ip_json("-4", "route", netns=one.sandbox)
        kea.stop()
        eventually(lambda: inner(one) == [], "the address stays on the interface")
        daemon.stop(9)
    with Kea(lan, tmp_path / "kea"):
        daemon.start()
        eventually(lambda: daemon.said(": regained"), "not regained")
        assert_put_back(one, before)


def test_a_daemon_killed_while_it_takes_an_address_off(
    leased: Leased, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    """Whichever of the file and the interface it came to, the next one puts both right."""
    with leased(lifetime=(1, 2, 3)) as (_, one):
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

    client = Client(b"test", record.wanted, record.options, False, timeout=0.5)
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


def test_a_daemon_that_is_asked_to_end_keeps_its_leases(leased: Leased, daemon: Daemon) -> None:
    with leased() as (kea, one):
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


def test_another_interface_of_the_same_name_is_left_alone(leased: Leased, daemon: Daemon) -> None:
    with leased(lifetime=(1, 20, 30)) as (_, one):
        run_in(one.sandbox, ["ip", "link", "delete", "eth0"])
        run_in(one.sandbox, ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x"])
        eventually(lambda: daemon.state_of() == "gone", "still renewed")
        assert "gone" in one.drift()


@pytest.mark.parametrize("change", [("address", "02:00:00:00:00:77"), ("name", "mine")])
def test_an_interface_that_was_changed_keeps_its_lease(
    leased: Leased, daemon: Daemon, change: tuple[str, str]
) -> None:
    """Another plugin, or the container, may give it another MAC address or name."""
    with leased(lifetime=(1, 3, 4)) as (kea, one):
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
