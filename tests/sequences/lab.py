"""The machines of a run: a host, a client outside, a machine beyond, and namespaces of containers.

    client 192.0.2.2 --- 192.0.2.1 host 198.51.100.1 --- 198.51.100.2 far
                                   bridges, containers

The calling thread is on the host. All namespaces are made afresh for each sequence, as are
/var/lib/cni and /run/cni. Everything is the process's own: `Lab` gives it mounts of its own first.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.namespaces import CLONE_NEWNET, MNT_DETACH, MS_BIND, private_mounts

CLIENT, FAR = "192.0.2.2", "198.51.100.2"
HOST, HOST_TO_FAR = "192.0.2.1", "198.51.100.1"
NAMESPACES = Path("/run/netns")
STATE = Path("/var/lib/cni")
CACHE = STATE / "results"
LEASES = STATE / "networks"
RUN = (Path("/run/pycni"), Path("/run/cni"))
# A namespace-wide setting that the plugin tuning changes; each container's has a value of its own.
SYSCTL = "net/ipv4/tcp_fin_timeout"

_OWN = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


class Lab:
    """The machines. base: the first two bytes of what containers get their addresses from.

    No other process of the machine may have addresses there: `pycni ipam reclaim` frees none that
    is set in any namespace.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        private_mounts()
        self.host = self.client = self.far = -1
        self.slots: dict[str, int] = {}

    def clear(self) -> None:
        """Nothing is left of an earlier sequence's containers, nor of its state."""
        for slot in list(self.slots):
            self.vanish(slot)
        for folder in (STATE, *RUN):
            _empty(folder)

    def boot(self) -> None:
        """The host starts: nothing is left of it in the kernel."""
        if self.host >= 0:
            for name, fd in (("client", self.client), ("far", self.far)):
                os.close(fd)
                _unmount(NAMESPACES / name)
            os.close(self.host)
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        self.host = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        self.client = _new_namespace(NAMESPACES / "client")
        self.far = _new_namespace(NAMESPACES / "far")
        _ip(
            "link set lo up\n"
            "link add out type veth peer name eth0 netns client\n"
            "link add far type veth peer name eth0 netns far\n"
            "link set out up\nlink set far up\n"
            f"address add {HOST}/24 dev out\naddress add {HOST_TO_FAR}/24 dev far\n"
        )
        write_sysctl("net/ipv4/conf/all/rp_filter", "0")
        write_sysctl("net/ipv4/conf/default/rp_filter", "0")
        write_sysctl("net/ipv4/icmp_ratelimit", "0")
        for fd, own, gateway in (
            (self.client, CLIENT, HOST),
            (self.far, FAR, HOST_TO_FAR),
        ):
            with inside(fd):
                _ip(
                    f"link set lo up\nlink set eth0 up\naddress add {own}/24 dev eth0\n"
                    f"route add default via {gateway}\n"
                )

    def path(self, slot: str) -> Path:
        """Where a container's namespace is."""
        return NAMESPACES / slot

    def appear(self, slot: str) -> None:
        """A container's namespace is made, with a value of its own for `SYSCTL`."""
        self.path(slot).unlink(missing_ok=True)
        self.slots[slot] = _new_namespace(self.path(slot))
        with inside(self.slots[slot]):
            write_sysctl(SYSCTL, first_value(slot))
            for scope in ("all", "default"):
                write_sysctl(f"net/ipv4/conf/{scope}/rp_filter", "0")
                # Two interfaces in one subnet: each answers for its own address.
                write_sysctl(f"net/ipv4/conf/{scope}/arp_ignore", "1")
                write_sysctl(f"net/ipv4/conf/{scope}/arp_announce", "2")

    def vanish(self, slot: str, *, leave_file: bool = False) -> None:
        """It goes, with what is in it; leave_file: what it was mounted on stays."""
        os.close(self.slots.pop(slot))
        _unmount(self.path(slot), leave_file=leave_file)

    def value(self, slot: str) -> str:
        """`SYSCTL` of a container."""
        with inside(self.slots[slot]):
            return (Path("/proc/sys") / SYSCTL).read_text().strip()


def first_value(slot: str) -> str:
    """What `SYSCTL` is in a new container."""
    return str(40 + sum(slot.encode()) % 20)


def write_sysctl(key: str, value: str) -> None:
    """Set a kernel parameter of the calling thread's namespace, where the kernel has it."""
    path = Path("/proc/sys") / key
    if path.exists():
        path.write_text(value)


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """The calling thread is in a namespace, by its descriptor, during the block."""
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(fd, CLONE_NEWNET), "setns")
        try:
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNET), "setns")
    finally:
        os.close(home)


def _new_namespace(path: Path) -> int:
    """Make a network namespace at a path, as `ip netns add` does; its descriptor."""
    path.touch()
    failures: list[BaseException] = []

    def make() -> None:
        try:
            _check(_libc.unshare(CLONE_NEWNET), "unshare")
            source = os.fsencode(_OWN)
            flags = ctypes.c_ulong(MS_BIND)
            _check(_libc.mount(source, os.fsencode(path), b"none", flags, None), "mount")
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _unmount(path: Path, *, leave_file: bool = False) -> None:
    _check(_libc.umount2(os.fsencode(path), MNT_DETACH), f"umount {path}")
    if not leave_file:
        path.unlink()


def _ip(lines: str) -> None:
    done = subprocess.run(
        ["ip", "-batch", "-"], input=lines, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _empty(folder: Path) -> None:
    if not folder.exists():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check(status: int, what: str) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
