"""The harness itself: what the tests on the real kernel rely on."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from harness import Host, Sandbox, ip_json, nft_list, run_in, run_plugin


def names(entries: list[dict[str, object]]) -> set[object]:
    return {entry["ifname"] for entry in entries}


def test_host_is_empty_but_for_a_loopback_that_is_up(host: Host) -> None:
    (lo,) = ip_json("link", "show")
    assert lo["ifname"] == "lo"
    assert "UP" in lo["flags"]


def test_threads_and_programs_started_in_the_host_are_in_it(host: Host) -> None:
    expected = os.fstat(host.fd).st_ino
    seen: list[int] = []
    thread = threading.Thread(
        target=lambda: seen.append(os.stat("/proc/thread-self/ns/net").st_ino)
    )
    thread.start()
    thread.join()
    program = run_in(None, ["readlink", "/proc/self/ns/net"]).stdout.strip()
    assert seen == [expected]
    assert program == f"net:[{expected}]"


def test_sandbox_is_a_namespace_of_its_own(host: Host, sandbox: Sandbox) -> None:
    first, second = sandbox(), sandbox()
    run_in(None, ["ip", "link", "add", "va", "type", "veth", "peer", "vb", "netns", first.name])
    assert names(ip_json("link", "show")) == {"lo", "va"}
    assert names(ip_json("link", "show", netns=first)) == {"lo", "vb"}
    assert names(ip_json("link", "show", netns=second)) == {"lo"}
    assert (
        len({os.fstat(host.fd).st_ino, *(os.stat(ns.path).st_ino for ns in (first, second))}) == 3
    )


@pytest.mark.skipif(
    os.getpid() == 1, reason="process 1, which has the machine's mounts, is this one"
)
def test_namespaces_are_invisible_to_the_machine(host: Host, sandbox: Sandbox) -> None:
    inside = sandbox()
    # Process 1 has the machine's mounts.
    assert inside.name not in _listing("/proc/1/root/run/netns")
    assert inside.name in os.listdir("/run/netns")


def _listing(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("links", "ip link add left type veth peer name behind"),
        ("links", "ip link set lo mtu 1400"),
        ("addresses", "ip address add 10.9.8.7/32 dev lo"),
        ("routes", "ip route add 10.9.0.0/16 dev lo"),
        ("routes", "ip -6 route add 2001:db8::/64 dev lo table 77"),
        ("rules", "ip rule add from 10.9.8.7 table 77"),
        ("nft", "nft add table inet left"),
        ("iptables", "iptables -t nat -N CNI-LEFT"),
        ("iptables", "ip6tables -P FORWARD DROP"),
        ("files", "touch {folder}/10.9.8.7"),
    ],
)
def test_snapshot_sees_a_change(host: Host, tmp_path: Path, section: str, change: str) -> None:
    before = host.snapshot(tmp_path)
    assert host.snapshot(tmp_path) == before
    run_in(None, change.format(folder=tmp_path).split())
    after = host.snapshot(tmp_path)
    assert after[section] != before[section]


def test_snapshot_sees_a_sysctl(host: Host) -> None:
    before = host.snapshot()
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1" if _forwards() == "0" else "0")
    assert host.snapshot()["sysctls"] != before["sysctls"]


def _forwards() -> str:
    return Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()


def test_snapshot_is_equal_again_when_all_was_undone(host: Host, tmp_path: Path) -> None:
    before = host.snapshot(tmp_path)
    run_in(None, ["ip", "link", "add", "br0", "type", "bridge"])
    run_in(None, ["nft", "add", "table", "inet", "left"])
    assert host.snapshot(tmp_path) != before
    run_in(None, ["nft", "delete", "table", "inet", "left"])
    run_in(None, ["ip", "link", "delete", "br0"])
    assert host.snapshot(tmp_path) == before


def test_nft_list_gives_the_objects(host: Host) -> None:
    assert nft_list() == []
    run_in(None, ["nft", "add", "table", "inet", "one"])
    (table,) = nft_list()
    assert table["table"]["name"] == "one"


def test_run_in_names_the_program_that_failed(host: Host) -> None:
    with pytest.raises(AssertionError, match=r"ip link show nothere: exit 1: .*does not exist"):
        run_in(None, ["ip", "link", "show", "nothere"])


def test_run_plugin_calls_a_reference_plugin(host: Host, reference_dir: Path) -> None:
    version = run_plugin(reference_dir / "loopback", "VERSION", {"cniVersion": "1.0.0"})
    assert version.code == 0
    assert "1.0.0" in version.result["supportedVersions"]
    missing = run_plugin(
        reference_dir / "loopback", "ADD", {"cniVersion": "1.0.0"}, CNI_CONTAINERID=None
    )
    assert missing.code == 1
    assert missing.result["code"] == 4
