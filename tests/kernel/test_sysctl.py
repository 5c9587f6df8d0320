"""Sysctls on the real kernel, in a namespace."""

from __future__ import annotations

import os
import posix
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import Host
from pycni.kernel import link, namespace, sysctl
from pycni.kernel.namespace import Namespace
from pycni.kernel.netlink.socket import NetlinkSocket

FORWARD = "net.ipv4.ip_forward"


@pytest.fixture
def space(host: Host) -> Iterator[Namespace]:
    with namespace.create() as made:
        yield made


def test_write_reaches_the_named_namespace_only(space: Namespace) -> None:
    before = sysctl.read(FORWARD, space)
    assert before in ("0", "1")
    other = "1" if before == "0" else "0"
    here = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    assert sysctl.write(FORWARD, other, space) == before
    with space.enter():
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == f"{other}\n"
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == here
    assert sysctl.read(FORWARD) == here.strip()


def test_link_with_a_dot_in_its_name(space: Namespace) -> None:
    with space.netlink() as netlink:
        netlink.request(link.bridge("br0.5"))
    sysctl.write("net/ipv4/conf/br0.5/forwarding", "1", space)
    assert sysctl.read("net.ipv4.conf.br0/5.forwarding", space) == "1"


def test_value_that_is_set_is_not_written(
    space: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = sysctl.read("net.ipv4.ip_local_port_range", space)
    assert "\t" in value
    written: list[bytes] = []
    write = os.pwrite

    def watch(fd: int, data: bytes, offset: int) -> int:
        written.append(data)
        return write(fd, data, offset)

    monkeypatch.setattr(posix, "pwrite", watch)
    assert sysctl.write("net.ipv4.ip_local_port_range", value.replace("\t", " "), space) == value
    assert written == []
    assert sysctl.write("net.ipv4.ip_local_port_range", "2000 3000", space) == value
    assert written == [b"2000 3000"]
    assert sysctl.read("net.ipv4.ip_local_port_range", space) == "2000\t3000"


def test_missing_key(space: Namespace) -> None:
    for act in (
        lambda: sysctl.read("net.nothing", space),
        lambda: sysctl.write("net.nothing", "1"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            act()
        assert caught.value.filename == "/proc/sys/net/nothing"


def test_value_the_kernel_refuses(space: Namespace) -> None:
    with pytest.raises(OSError, match="Invalid argument") as caught:
        sysctl.write(FORWARD, "many", space)
    assert caught.value.filename == "/proc/sys/net/ipv4/ip_forward"


def test_value_the_kernel_changes(space: Namespace) -> None:
    # Octal to the kernel, and shown in decimal.
    with pytest.raises(sysctl.SysctlRejected, match=r"'010'.*'8'"):
        sysctl.write("net.ipv4.ip_default_ttl", "010", space)


def test_value_that_cannot_be_read_before_it_is_set(space: Namespace) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        sysctl.read("net.ipv6.conf.default.stable_secret", space)
    secret = "2001:0db8:0000:0000:0000:0000:0000:0001"
    assert sysctl.write("net.ipv6.conf.default.stable_secret", secret, space) == ""
    assert sysctl.read("net.ipv6.conf.default.stable_secret", space) == secret


def test_directory_is_no_key(space: Namespace) -> None:
    with pytest.raises(IsADirectoryError):
        sysctl.read("net.ipv4", space)


def test_one_value_is_set_by_many_while_links_change(host: Host) -> None:
    """Whoever waits for the kernel's lock on links puts the old value back for a moment."""
    busy = threading.Event()

    def change_links(name: str) -> None:
        with NetlinkSocket() as netlink:
            while not busy.is_set():
                netlink.request(link.bridge(name))
                netlink.request(link.delete(name))

    with ThreadPoolExecutor(6) as pool:
        changing = [pool.submit(change_links, f"br{number}") for number in range(2)]
        try:
            for _ in range(100):
                Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
                for done in [pool.submit(sysctl.write, FORWARD, "1") for _ in range(4)]:
                    done.result()
        finally:
            busy.set()
        for change in changing:
            change.result()


def test_a_namespace_with_the_number_of_one_that_has_gone(host: Host) -> None:
    """The kernel gives numbers anew, and what was kept of the namespace before is of no use."""
    with namespace.create() as first:
        number = first.inode
        with first.enter():
            assert sysctl.write("net.ipv4.ip_forward", "1", here=first) == "0"
            assert sysctl.read("net.ipv4.conf.lo.forwarding", here=first) == "1"
    deadline = time.monotonic() + 20
    others = []
    while time.monotonic() < deadline:
        again = namespace.create()
        if again.inode == number:
            break
        others.append(again)
        time.sleep(0.01)
    else:
        pytest.fail(f"no namespace got the number {number} again")
    for other in others:
        other.close()
    with again, again.enter():
        assert sysctl.read("net.ipv4.conf.lo.forwarding", here=again) == "0"
        assert sysctl.write("net.ipv4.ip_forward", "1", here=again) == "0"
        with pytest.raises(FileNotFoundError):
            sysctl.read("net.ipv4.conf.none.forwarding", here=again)


def test_no_more_is_kept_open_than_needed(host: Host) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    for _ in range(100):
        with namespace.create() as made, made.enter():
            assert sysctl.write("net/ipv4/ip_forward", "1", here=made) == "0"
    assert opened() < before + 20
