"""Sysctls on the real kernel, in a namespace."""

from __future__ import annotations

import errno
import os
import posix
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import Host, run_in
from pycni.kernel import link, namespace, sysctl
from pycni.kernel.namespace import Namespace
from pycni.kernel.netlink.socket import NetlinkSocket

FORWARD = "net.ipv4.ip_forward"
READ_ONLY = "mount -o bind,ro /proc/sys /proc/sys"


@pytest.fixture
def space(host: Host) -> Iterator[Namespace]:
    """A namespace that the test is in."""
    with namespace.create() as made, made.enter():
        yield made


def test_write_reaches_the_threads_namespace_only(host: Host) -> None:
    here = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    with namespace.create() as made:
        with made.enter():
            before = sysctl.read(FORWARD)
            assert before in ("0", "1")
            other = "1" if before == "0" else "0"
            assert sysctl.write(FORWARD, other) == before
            assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == f"{other}\n"
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == here
        assert sysctl.read(FORWARD) == here.strip()


def test_link_with_a_dot_in_its_name(space: Namespace) -> None:
    with space.netlink() as netlink:
        netlink.request(link.bridge("br0.5"))
    sysctl.write("net/ipv4/conf/br0.5/forwarding", "1")
    assert sysctl.read("net.ipv4.conf.br0/5.forwarding") == "1"


def test_value_that_is_set_is_not_written(
    space: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = sysctl.read("net.ipv4.ip_local_port_range")
    assert "\t" in value
    written: list[bytes] = []
    write = os.pwrite

    def watch(fd: int, data: bytes, offset: int) -> int:
        written.append(data)
        return write(fd, data, offset)

    monkeypatch.setattr(posix, "pwrite", watch)
    assert sysctl.write("net.ipv4.ip_local_port_range", value.replace("\t", " ")) == value
    assert written == []
    assert sysctl.write("net.ipv4.ip_local_port_range", "2000 3000") == value
    assert written == [b"2000 3000"]
    assert sysctl.read("net.ipv4.ip_local_port_range") == "2000\t3000"


def test_missing_key(space: Namespace) -> None:
    for act in (
        lambda: sysctl.read("net.nothing"),
        lambda: sysctl.write("net.nothing", "1"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            act()
        assert caught.value.filename == "/proc/sys/net/nothing"


def test_value_the_kernel_refuses(space: Namespace) -> None:
    with pytest.raises(OSError, match="Invalid argument") as caught:
        sysctl.write(FORWARD, "many")
    assert caught.value.filename == "/proc/sys/net/ipv4/ip_forward"


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("net.ipv4.ip_default_ttl", "010", "8"),  # octal
        ("net.ipv4.ip_default_ttl", "0x40", "64"),  # what there is
        ("net.ipv4.ip_local_reserved_ports", "8080,8081,8082", "8080-8082"),
        ("net.ipv4.tcp_rmem", "4096 70000", "4096\t70000\t*"),
    ],
)
def test_value_that_the_kernel_shows_in_another_form(
    space: Namespace, key: str, value: str, shown: str
) -> None:
    before = sysctl.read(key)
    last = before.rpartition("\t")[2]
    assert sysctl.write(key, value) == before
    assert sysctl.read(key) == shown.replace("*", last)
    assert sysctl.write(key, value) == shown.replace("*", last)
    sysctl.write(key, before)
    assert sysctl.read(key) == before


def test_value_of_which_the_kernel_takes_a_part(space: Namespace) -> None:
    before = sysctl.read("net.ipv4.tcp_rmem")
    with pytest.raises(OSError, match="Invalid argument"):
        sysctl.write("net.ipv4.tcp_rmem", "5000 70000 many")
    assert sysctl.read("net.ipv4.tcp_rmem") == before


def test_value_that_can_only_be_written(space: Namespace) -> None:
    for _ in range(2):
        assert sysctl.write("net.ipv4.route.flush", "1") == ""
    with pytest.raises(PermissionError):
        sysctl.read("net.ipv4.route.flush")


def test_value_that_cannot_be_read_before_it_is_set(space: Namespace) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        sysctl.read("net.ipv6.conf.default.stable_secret")
    secret = "2001:0db8:0000:0000:0000:0000:0000:0001"
    assert sysctl.write("net.ipv6.conf.default.stable_secret", secret) == ""
    assert sysctl.read("net.ipv6.conf.default.stable_secret") == secret


def test_directory_is_no_key(space: Namespace) -> None:
    with pytest.raises(IsADirectoryError):
        sysctl.read("net.ipv4")


def test_one_value_is_set_by_many_while_links_change(host: Host) -> None:
    """Anyone who waits for the kernel's lock on links puts the old value back for a moment."""
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


def _successor(seconds: float) -> Namespace | None:
    """A namespace with the number of one that was worked in; None if another program got it."""
    with namespace.create() as first, first.enter():
        assert sysctl.write("net.ipv4.ip_forward", "1", first) == "0"
        assert sysctl.read("net.ipv4.conf.lo.forwarding", first) == "1"
    deadline = time.monotonic() + seconds
    with ExitStack() as others:
        while time.monotonic() < deadline:
            made = namespace.create()
            if made.inode == first.inode:
                return made
            others.enter_context(made)
            time.sleep(0.01)
    return None


def test_a_namespace_with_the_number_of_one_that_has_gone(host: Host) -> None:
    """The kernel gives numbers again, and what was kept of the namespace before is of no use."""
    again = next(filter(None, (_successor(seconds) for seconds in (5, 10, 20, 20, 20))), None)
    assert again is not None, "no namespace got the number of an earlier one"
    with again, again.enter():
        assert sysctl.read("net.ipv4.conf.lo.forwarding", again) == "0"
        assert sysctl.write("net.ipv4.ip_forward", "1", again) == "0"
        with pytest.raises(FileNotFoundError):
            sysctl.read("net.ipv4.conf.none.forwarding", again)


def test_namespaces_that_are_passed_through(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees its own values; after the first few, through a procfs that is not /proc."""
    monkeypatch.setattr(sysctl, "_procfs", None)
    monkeypatch.setattr(sysctl, "_left", 8)
    key = "net/ipv4/conf/lo/forwarding"
    file = sysctl.path(key)
    through_proc = []
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        with namespace.create() as made, made.enter():
            assert sysctl.write(key, "1") == "0"
            assert sysctl.read(key) == "1"
            assert Path(file).read_text() == "1\n"
            fd = sysctl._open(file, os.O_RDONLY, None)
            through_proc.append(os.fstat(fd).st_dev == os.stat(file).st_dev)
            os.close(fd)
    assert through_proc == [True] * 2 + [False] * 198
    assert len(os.listdir("/proc/self/fd")) < before + 5


@pytest.mark.parametrize(
    ("around", "said"),
    [
        # Only who rules over the processes there may mount a procfs.
        ("unshare --user --map-root-user --net", set()),
        (f"unshare --net --mount sh -c '{READ_ONLY} && exec \"$@\"' -", {errno.EROFS}),
    ],
)
def test_where_a_procfs_of_its_own_would_go_too_far(around: str, said: set[int]) -> None:
    script = """if True:
        from pycni.kernel import sysctl
        key = "net/ipv4/conf/lo/forwarding"
        for number in range(100):
            try:
                sysctl.write(key, str(number % 2))
            except OSError as error:
                assert number % 2 == 1 and error.filename == sysctl.path(key)
                print(error.errno)
            else:
                assert sysctl.read(key) == str(number % 2)
    """
    done = run_in(None, [*shlex.split(around), sys.executable, "-c", script])
    assert set(map(int, done.stdout.split())) == said


def test_no_more_is_kept_open_than_needed(host: Host) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    for _ in range(100):
        with namespace.create() as made, made.enter():
            assert sysctl.write("net/ipv4/ip_forward", "1", made) == "0"
    assert opened() < before + 20
