"""tap on the real kernel; a program in the sandbox opens the other end, as a VM would."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Host, Sandbox, ip_json, run_in, snapshot
from harness.faults import each_request_failing
from harness.machines import fill_bridge
from harness.namespaces import inside

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
V4 = {"address": "192.0.2.5/24", "gateway": "192.0.2.1"}
V6 = {"address": "2001:db8::5/64", "gateway": "2001:db8::1"}

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_MULTI_QUEUE = 0x2, 0x1000, 0x100


@pytest.fixture
def attach(host: Host, plugin_dir: Path, sandbox: Sandbox) -> Attach:
    def make(*addresses: dict[str, str], args: str | None = None, **keys: Any) -> Attachment:
        config: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "tap"}
        if addresses:
            config["ipam"] = {"type": "static", "addresses": addresses}
        return Attachment(plugin_dir / "tap", config | keys, sandbox(), args=args)

    return make


def open_tap(one: Attachment, flags: int = 0) -> int:
    """The other end, as a program in the sandbox holds it."""
    with inside(one.sandbox):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            request = struct.pack("16sH22x", b"eth0", IFF_TAP | IFF_NO_PI | flags)
            fcntl.ioctl(descriptor, TUNSETIFF, request)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def test_frames_come_out_at_the_other_end(attach: Attach) -> None:
    one = attach(V4)
    one.add()
    descriptor = open_tap(one)
    try:
        with inside(one.sandbox):
            ping = subprocess.Popen(["ping", "-c1", "-W1", "192.0.2.1"], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 5
        wanted = b"\x08\x06"  # the ARP request for the gateway
        while time.monotonic() < deadline:
            frame = os.read(descriptor, 2048)
            if frame[12:14] == wanted and frame[38:42] == bytes([192, 0, 2, 1]):
                break
        else:
            pytest.fail("no frame came out of the tap")
        assert frame[6:12].hex(":") == one.result["interfaces"][0]["mac"]
        ping.kill()
        ping.wait()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "keys", [{}, {"owner": 54321}, {"group": 54322}, {"owner": 4000000000, "group": 54322}]
)
def test_owner_and_group(attach: Attach, keys: dict[str, int]) -> None:
    one = attach(V4, **keys)
    one.add()
    data = one.link()["linkinfo"]["info_data"]
    assert (data["type"], data["persist"], data["multi_queue"]) == ("tap", True, False)
    assert data.get("user") == keys.get("owner")
    assert data.get("group") == keys.get("group")
    one.check()
    one.delete()


def test_only_the_owner_may_open_it(attach: Attach) -> None:
    one = attach(V4, owner=65534)
    one.add()
    assert one.sandbox is not None
    program = (
        "import fcntl, os, struct, sys\n"
        "fd = os.open('/dev/net/tun', os.O_RDWR)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(int(sys.argv[1]))\n"
        f"fcntl.ioctl(fd, {TUNSETIFF}, struct.pack('16sH22x', b'eth0', {IFF_TAP | IFF_NO_PI}))\n"
    )
    outcome = {
        user: run_in(one.sandbox, [sys.executable, "-c", program, user], check=False)
        for user in ("65534", "65533")
    }
    assert outcome["65534"].returncode == 0, outcome["65534"].stderr
    assert "Operation not permitted" in outcome["65533"].stderr


def test_multi_queue(attach: Attach) -> None:
    one = attach(V4, multiQueue=True)
    one.add()
    ends = [open_tap(one, IFF_MULTI_QUEUE) for _ in range(2)]
    for end in ends:
        os.close(end)
    one.delete()
    single = attach(V4)
    single.add()
    end = open_tap(single)
    with pytest.raises(OSError, match=r"busy|Invalid"):
        open_tap(single)
    os.close(end)


@pytest.mark.parametrize("owner", [{}, {"owner": 0, "group": 0}])
def test_mtu_and_hardware_address(attach: Attach, owner: dict[str, int]) -> None:
    conf, args, runtime = (f"02:00:00:00:00:0{number}" for number in range(3))
    for wanted, cni_args, keys in (
        (conf, None, {"mac": conf}),
        (args, f"IgnoreUnknown=1;MAC={args}", {"mac": conf}),
        (runtime, f"IgnoreUnknown=1;MAC={args}", {"runtimeConfig": {"mac": runtime}}),
    ):
        one = attach(V4, args=cni_args, mtu=1234, **owner, **keys)
        assert one.add()["interfaces"][0]["mac"] == wanted
        assert (one.link()["address"], one.link()["mtu"]) == (wanted, 1234)
        one.check()
        one.delete()


def test_bridge_in_the_sandbox(attach: Attach) -> None:
    one = attach(V4, bridge="br0")
    assert one.refused()["msg"] == "failed to get bridge br0: Link not found"
    run_in(one.sandbox, ["ip", "link", "add", "br0", "type", "bridge"])
    one.add()
    assert one.link()["master"] == "br0"
    one.check()
    run_in(one.sandbox, ["ip", "link", "set", "eth0", "nomaster"])
    assert "br0" in one.drift()
    one.delete()
    assert {item["ifname"] for item in ip_json("link", netns=one.sandbox)} == {"lo", "br0"}
    run_in(one.sandbox, ["ip", "link", "delete", "br0"])
    run_in(one.sandbox, ["ip", "link", "add", "br0", "type", "ifb"])
    assert "ifb" in one.refused()["msg"]


def test_bridge_that_is_full(attach: Attach) -> None:
    one = attach(V4, bridge="br0")
    run_in(one.sandbox, ["ip", "link", "add", "br0", "type", "bridge"])
    fill_bridge("br0", one.sandbox)
    error = one.refused()
    assert (error["code"], error["msg"]) == (100, "bridge br0 is full")
    assert "1,023 ports" in error["details"]
    assert "eth0" not in {item["ifname"] for item in ip_json("link", netns=one.sandbox)}
    run_in(one.sandbox, ["ip", "link", "delete", "a0"])
    one.add()


def test_ipv6_is_there_at_once(attach: Attach) -> None:
    """No one holds the other end, so the kernel could not probe for duplicates."""
    one = attach(V4, V6)
    one.add()
    (found,) = ip_json("-6", "address", "show", "dev", "eth0", "to", "2001:db8::/64",
                       netns=one.sandbox)  # fmt: skip
    assert not any(entry.get("tentative") for entry in found["addr_info"])
    one.check()


@pytest.mark.parametrize("version", VERSIONS)
def test_result(attach: Attach, version: str) -> None:
    one = attach(V4, cniVersion=version)
    result = one.add()
    assert one.sandbox is not None
    if version in VERSIONS[:2]:
        slot = {"ip": V4["address"], "gateway": V4["gateway"]}
        assert result == {"cniVersion": version, "ip4": slot, "dns": {}}
    else:
        interface = {"name": "eth0", "mac": one.link()["address"], "sandbox": one.sandbox.path}
        assert result["interfaces"] == [interface]
        assert result["ips"][0].items() >= {"interface": 0, **V4}.items()
        if version in VERSIONS[4:]:
            one.check()
    one.delete()


def test_network_without_addresses(attach: Attach) -> None:
    one = attach()
    assert set(one.add()) == {"cniVersion", "interfaces"}
    assert "UP" in one.link()["flags"]
    one.check()
    one.delete()
    assert "no valid IP" in attach(cniVersion="0.2.0").refused()["msg"]


def test_delete_whatever_is_missing(attach: Attach) -> None:
    one = attach(V4)
    before = snapshot()
    one.delete()
    one.add()
    one.delete()
    one.delete()
    assert [item["ifname"] for item in ip_json("link", netns=one.sandbox)] == ["lo"]
    one.add()
    assert one.sandbox is not None
    one.sandbox.delete()
    one.delete()
    one.sandbox = None
    one.delete()
    assert snapshot() == before


def test_each_failure_leaves_everything_as_it_was(attach: Attach) -> None:
    one = attach(V4, V6, mtu=1300, bridge="br0")
    run_in(one.sandbox, ["ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0"])
    run_in(one.sandbox, ["ip", "link", "set", "br0", "address", "02:00:00:00:00:01"])
    before, within = snapshot(), ip_json("address", netns=one.sandbox)
    refused = []
    for what in each_request_failing(lambda: one.run("ADD")):
        refused.append(what)
        assert snapshot() == before, what
        assert ip_json("address", netns=one.sandbox) == within, what
    assert any("mtu 1300" in what for what in refused)
    one.delete()


@pytest.mark.parametrize(
    ("damage", "reported"),
    [
        ("link delete eth0", "eth0 is missing"),
        ("link set eth0 down", "eth0 is down"),
        ("link set eth0 address 02:00:00:00:00:01", "02:00:00:00:00:01"),
        ("address delete 192.0.2.5/24 dev eth0", "192.0.2.5/24 is missing"),
    ],
)
def test_check_finds_drift(attach: Attach, damage: str, reported: str) -> None:
    attach(V4).drifts_by(damage, reported)


def test_existing_interface_is_not_touched(attach: Attach) -> None:
    one = attach(V4)
    one.add()
    index = one.link()["ifindex"]
    assert one.refused()["code"] == 101
    assert one.link()["ifindex"] == index
    one.delete()
    run_in(one.sandbox, ["ip", "link", "add", "eth0", "type", "bridge"])
    one.result = None
    assert one.refused()["code"] == 101
    one.delete()
    assert one.link()["linkinfo"]["info_kind"] == "bridge", "DEL took what is not its own"


def test_selinux_context_without_selinux(attach: Attach) -> None:
    if os.path.exists("/sys/fs/selinux/enforce"):
        pytest.skip("SELinux is in use here")
    one = attach(V4, selinuxContext="system_u:system_r:container_t:s0")
    within = ip_json("link", netns=one.sandbox)
    assert "failed set socket label" in one.refused()["msg"]
    assert ip_json("link", netns=one.sandbox) == within


def test_delete_while_a_program_holds_the_other_end(attach: Attach) -> None:
    one = attach(V4)
    one.add()
    descriptor = open_tap(one)
    try:
        one.check()
        one.delete()
        assert [item["ifname"] for item in ip_json("link", netns=one.sandbox)] == ["lo"]
    finally:
        os.close(descriptor)
