"""Private namespaces for tests: a thread's own network, the process's own mounts.

Made with the C library, since `os.setns` and `os.unshare` came with Python 3.12 only.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

# Folders that plugins, runtimes and `ip netns` write to: each test process has its own.
PRIVATE_FOLDERS = ("/run", "/var/lib/cni", "/etc/cni")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Namespace:
    """A network namespace with a name, as `ip netns` makes them."""

    name: str

    @property
    def path(self) -> str:
        """The file that stands for it: what goes into CNI_NETNS."""
        return f"/run/netns/{self.name}"

    @classmethod
    def create(cls, name: str) -> Namespace:
        subprocess.run(["ip", "netns", "add", name], check=True)
        return cls(name)

    def delete(self) -> None:
        """Remove it; one that is gone already is no error."""
        if os.path.exists(self.path):
            subprocess.run(["ip", "netns", "delete", self.name], check=True)


Sandbox = Callable[[], Namespace]  # what makes one, as the fixture `sandbox`


@contextmanager
def enter_new_netns() -> Iterator[int]:
    """Put the calling thread into a fresh network namespace, and back at the end.

    Yields a descriptor of the new namespace. Threads and programs started meanwhile are in it
    too. The kernel drops it, with all that is in it, when nothing refers to it any more.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        inside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield inside
        finally:
            os.close(inside)
            _check(_libc.setns(before, CLONE_NEWNET), "setns")
    finally:
        os.close(before)


@contextmanager
def inside(netns: Namespace | None) -> Iterator[None]:
    """Put the calling thread into a named namespace for a while; None leaves it where it is."""
    if netns is None:
        yield
        return
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    target = os.open(netns.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(target, CLONE_NEWNET), "setns")
        yield
    finally:
        _check(_libc.setns(before, CLONE_NEWNET), "setns")
        os.close(target)
        os.close(before)


def private_mounts() -> None:
    """Give this process its own empty `PRIVATE_FOLDERS`; the machine's stay untouched."""
    for folder in PRIVATE_FOLDERS:
        os.makedirs(folder, exist_ok=True)
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _mount(b"none", b"/", None, MS_REC | MS_PRIVATE)
    for folder in PRIVATE_FOLDERS:
        _mount(b"pycni-test", folder.encode(), b"tmpfs", 0)
    Path("/run/netns").mkdir()


@contextmanager
def covered(*folders: str) -> Iterator[None]:
    """Put an empty file system over folders for a while, in the mounts of `private_mounts`."""
    with ExitStack() as stack:
        for folder in folders:
            _mount(b"pycni-test", folder.encode(), b"tmpfs", 0)
            stack.callback(_unmount, folder)
        yield


@contextmanager
def bound(source: str | os.PathLike[str], target: str) -> Iterator[None]:
    """Show one folder in the place of another for a while, in the mounts of `private_mounts`."""
    _mount(os.fsencode(source), target.encode(), None, MS_BIND)
    try:
        yield
    finally:
        _unmount(target)


def _unmount(target: str) -> None:
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int) -> None:
    _check(_libc.mount(source, target, kind, ctypes.c_ulong(flags), None), f"mount {target!r}")


def _check(status: int, what: str) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
