"""What docs/compatibility.md says and no other test shows: differences that users meet."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, Namespace, Sandbox, inside, ip_json, run_in
from pycni.kernel.netfilter import iptables
from pycni.kernel.netfilter.nfnetlink import NFPROTO_IPV4
from pycni.kernel.netlink.constants import RTNLGRP_LINK
from pycni.kernel.netlink.socket import NetlinkSocket
from pycni.sdk.delegate import delegate
from pycni.sdk.request import Request
from pycni.spec.errors import (
    ADDRESS_UNAVAILABLE,
    ALREADY_EXISTS,
    CHECK_FAILED,
    KERNEL_REFUSED,
    CNIError,
)

SOL_PACKET, ADD_MEMBERSHIP, PROMISC, ALLMULTI = 263, 1, 1, 2


def bridge(plugin_dir: Path, space: Namespace, ipam: dict[str, Any], **keys: Any) -> Attachment:
    config = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0", **keys}
    return Attachment(plugin_dir / "bridge", {**config, "ipam": ipam}, space)


def host_local(state: Path, subnet: str = "10.4.0.0/24") -> dict[str, Any]:
    return {"type": "host-local", "subnet": subnet, "dataDir": str(state)}


def test_codes_of_our_own(host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path) -> None:
    codes = (KERNEL_REFUSED, ALREADY_EXISTS, CHECK_FAILED, ADDRESS_UNAVAILABLE)
    assert codes == (100, 101, 102, 103)
    one = bridge(plugin_dir, sandbox(), host_local(tmp_path, "10.4.0.0/30"))
    one.add()
    assert one.run("ADD").result["code"] == 101
    run_in(one.sandbox, ["ip", "link", "set", "eth0", "down"])
    assert one.refused("CHECK")["code"] == 102
    two = bridge(plugin_dir, sandbox(), host_local(tmp_path, "10.4.0.0/30"))
    two.container = "two"
    assert two.run("ADD").result["code"] == 103
    one.delete()
    assert two.run("ADD", mtu=67).result["code"] == 100  # no Ethernet is that small


def test_a_plugin_that_prints(host: Host, sandbox: Sandbox, tmp_path: Path) -> None:
    """What it or a library of its prints, and what a program that it starts prints."""
    (tmp_path / "chatty.py").write_text(
        "import subprocess\n"
        "from pycni.sdk import Plugin, Result\n"
        "class Chatty(Plugin):\n"
        "    type = 'chatty'\n"
        "    def add(self, request):\n"
        "        print('hello from Python')\n"
        "        subprocess.run(['echo', 'hello from a program'])\n"
        "        return Result()\n"
        "plugin = Chatty()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from pycni.sdk.entry import run; run('chatty', 'plugin')"],
        input='{"cniVersion": "1.0.0", "name": "net", "type": "chatty"}',
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(tmp_path),
            "PYTHONUNBUFFERED": "1",
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "one",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": sandbox().path,
            "CNI_PATH": "/nowhere",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout) == {"cniVersion": "1.0.0"}
    assert done.stderr.splitlines() == ["hello from Python", "hello from a program"]


def test_an_address_plugin_that_is_still_being_written(tmp_path: Path) -> None:
    program = tmp_path / "busy"
    shutil.copy("/bin/true", program)
    request = Request(
        "ADD",
        {"cniVersion": "1.0.0", "name": "net", "ipam": {"type": "busy"}},
        path=(str(tmp_path),),
        environ={},
    )
    with program.open("r+b"), pytest.raises(CNIError, match="Text file busy"):
        delegate(request, "busy", "ADD")


def test_addresses_come_before_the_link(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """Where there is no address, the kernel reports no link that came and went."""
    one = bridge(plugin_dir, sandbox(), host_local(tmp_path, "10.4.0.0/30"))
    two = bridge(plugin_dir, sandbox(), host_local(tmp_path, "10.4.0.0/30"))
    two.container = "two"
    with NetlinkSocket() as netlink:
        netlink.subscribe([RTNLGRP_LINK])
        one.add()
        assert netlink.events(time.monotonic() + 5)
        while netlink.events(time.monotonic() + 0.1):
            pass
        assert two.run("ADD").result["code"] == ADDRESS_UNAVAILABLE
        assert netlink.events(time.monotonic() + 0.1) == []


@pytest.mark.parametrize("address", ["10.4.0.2/32", "10.4.0.2/24"])
def test_check_of_any_prefix(address: str, host: Host, sandbox: Sandbox, plugin_dir: Path) -> None:
    one = bridge(plugin_dir, sandbox(), {"type": "static", "addresses": [{"address": address}]})
    one.add()
    one.check()
    run_in(one.sandbox, ["ip", "address", "flush", "dev", "eth0"])
    assert f"address {address} is missing" in one.drift()
    one.delete()


def test_the_lock_of_iptables_is_not_waited_for_without_end(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("iptables-legacy-restore") is None:
        pytest.skip("no iptables-legacy")
    monkeypatch.setattr(iptables, "LOCK_SECONDS", 1)
    with Path("/run/xtables.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(iptables.IPTablesError, match="xtables lock"):
            iptables.restore(NFPROTO_IPV4, "nat", [":CNI-1 - [0:0]"], "-legacy")


def test_sniffers_in_the_container_are_no_drift(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """They make the kernel count promiscuity and allmulti up; what was asked for is a flag."""
    space = sandbox()
    one = bridge(plugin_dir, space, host_local(tmp_path / "leases"))
    config = {
        "cniVersion": "1.1.0", "name": "net", "type": "tuning", "promisc": True, "allmulti": True,
        "dataDir": str(tmp_path / "tuning"), "prevResult": one.add(),
    }  # fmt: skip
    tuning = Attachment(plugin_dir / "tuning", config, space)
    tuning.add()
    with inside(space):
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        index = socket.if_nametoindex("eth0")
    with sniffer:
        for kind in (PROMISC, ALLMULTI):
            sniffer.setsockopt(
                SOL_PACKET, ADD_MEMBERSHIP, struct.pack("iHH8s", index, kind, 0, b"")
            )
        (link,) = ip_json("-d", "link", "show", "eth0", netns=space)
        assert (link["promiscuity"], link["allmulti"]) == (2, 2)
        tuning.check()
    tuning.delete()
    one.delete()


def test_a_word_too_many(tmp_path: Path, host: Host) -> None:
    """It is a slip, and reported; nothing is done."""
    program = Path(sys.executable).parent / "pycni"
    for words in (
        ["add", "net", "/run/netns/x", "surplus"],
        ["del", "net", "/run/netns/x", "surplus"],
        ["check", "net", "/run/netns/x", "surplus"],
        ["status", "net", "/run/netns/x", "surplus"],
    ):
        done = subprocess.run(
            [program, *words], capture_output=True, text=True, check=False,
            env={**os.environ, "NETCONFPATH": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode != 0
        assert "surplus" in done.stderr
        assert done.stdout == ""


@pytest.mark.slow
def test_messages_to_dhcp_servers_are_repeated(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """Soon, and with growing pauses: the first of them may meet a port that does not forward."""
    from harness.dhcp import Daemon, Network
    from harness.frames import IPV4, Wire

    Network(sandbox(), "br-lan")
    options = ("-timeout", "4s", "-resendmax", "1s", "-resendtimeout", "4s")
    with Daemon(tmp_path / "daemon", *options) as daemon:
        config = {
            "cniVersion": "1.1.0", "name": "lan", "type": "bridge", "bridge": "br-lan",
            "ipam": {"type": "dhcp", "daemonSocketPath": str(daemon.socket)},
        }  # fmt: skip
        one = Attachment(plugin_dir / "bridge", config, sandbox())
        with Wire(None, "br-lan", IPV4) as wire:
            wire._socket.setblocking(False)
            assert one.run("ADD").code == 1
            heard = 0
            while True:
                try:
                    frame = wire._socket.recv(2000)
                except BlockingIOError:
                    break
                if b"\x63\x82\x53\x63\x35\x01\x01" in frame:  # DISCOVER
                    heard += 1
    assert heard >= 2  # with the reference's pauses it would be one
