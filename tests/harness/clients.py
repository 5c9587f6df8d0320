"""What tests with real container engines share: an image made on the spot, and a machine for them.

The engines run their containers with crun and without cgroups, on mounts of the test's own, so
that nothing of the machine is touched; `private_machine` sees to that.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from harness.agent import AgentProcess
from harness.dhcp import eventually
from harness.host import ip_json, snapshot
from harness.namespaces import Namespace, covered, inside

# What the engines write to besides the folders they are given, and that must stay the machine's.
ENGINE_FOLDERS = ("/sys/fs/cgroup", "/dev/shm", "/var/lib/containers", "/var/lib/cni", "/etc/cni")

IMAGE = "localhost/lab:1"
PAGE = "a page\n"
SERVE = ("httpd", "-f", "-p", "80", "-h", "/www")  # what containers of the image run

_APPLETS = ("cat", "httpd", "ip", "ping", "sh", "sleep", "wget")


@dataclass(frozen=True)
class Plugins:
    """The plugins that a client is to use.

    kind: "ours"; "agent", for ours with the agent behind the launcher; or "reference".
    """

    kind: str
    folder: Path
    agent: AgentProcess | None = None

    def prove(self) -> None:
        """With an agent: that it was asked, and that no call found it busy."""
        if self.agent is not None:
            assert self.agent.calls()[("bridge", "ADD")] > 0
            assert self.agent.calls()[("bridge", "DEL")] > 0
            assert not any(self.agent.refused().values()), self.agent.refused()


# --- the machine -------------------------------------------------------------------------------


@contextmanager
def private_machine(folder: Path, timeout: float = 15) -> Iterator[None]:
    """The engines' folders, empty and of the test's own. Afterwards no process or mount is left.

    folder: where images and containers of the test are, by which its processes are known;
    timeout: seconds for them to end, after which they are killed and the test has failed.
    """
    mounts = _mounts()
    before = _processes(folder)
    made = [path for path in ENGINE_FOLDERS if not os.path.isdir(path)]
    for path in made:
        os.makedirs(path)
    try:
        with covered(*ENGINE_FOLDERS):
            os.chmod("/dev/shm", 0o1777)
            yield
            try:
                eventually(lambda: not _processes(folder) - before, "processes are left", timeout)
            finally:
                for pid in _processes(folder) - before:
                    os.kill(pid, signal.SIGKILL)
    finally:
        for path in made:
            os.rmdir(path)
    assert _mounts() == mounts


def _processes(folder: Path) -> set[int]:
    """Engines, which share this process's mounts, and what runs on an image in the folder."""
    mine = os.stat("/proc/self/ns/mnt").st_ino
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended
            if os.stat(f"/proc/{pid}/ns/mnt").st_ino == mine or (
                str(folder) in Path(f"/proc/{pid}/mountinfo").read_text()
            ):
                found.add(int(pid))
    return found


def _mounts() -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    # Anyone who makes the first named namespace makes the folder a mount point, for good.
    return [point for point in points if point != "/run/netns"]


# --- images and runtimes -----------------------------------------------------------------------


def root_filesystem(folder: Path) -> Path:
    """A tar archive of busybox with a page to serve."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    root = folder / "rootfs"
    for name in ("bin", "www", "proc", "sys", "dev", "etc", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    for applet in _APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "www/index.html").write_text(PAGE)
    path = folder / "rootfs.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(root, ".")
    return path


def image_archive(folder: Path) -> Path:
    """The same as an image that `docker load` and `ctr images import` take; it serves the page."""
    layer = root_filesystem(folder).read_bytes()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": list(SERVE), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    path = folder / "image.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def runtime(folder: Path) -> Path:
    """crun, for engines that cannot be made to do without cgroups."""
    path = folder / "crun"
    path.write_text('#!/bin/sh\nexec crun --cgroup-manager=disabled "$@"\n')
    path.chmod(0o755)
    return path


# --- what is there -----------------------------------------------------------------------------


def page(address: str, port: int = 80, netns: Namespace | None = None) -> str:
    """The page that is served there, asked for from a namespace.

    Waits for it: a server that has just been started may not listen yet.
    """
    found: str = eventually(lambda: _get(address, port, netns), f"{address}:{port}: no answer", 15)
    return found


def served(address: str, port: int = 80, netns: Namespace | None = None) -> bool:
    """Whether anything is served there now."""
    return _get(address, port, netns) != ""


def _get(address: str, port: int, netns: Namespace | None) -> str:
    with inside(netns):
        connection = http.client.HTTPConnection(address, port, timeout=2)
        try:
            connection.connect()
        except OSError:
            return ""
    with closing(connection):
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        except OSError:  # podman has a socket on each published port, which answers nothing
            return ""


def links() -> list[str]:
    """The interfaces of the host, without the loopback."""
    return [link["ifname"] for link in ip_json("link") if link["ifname"] != "lo"]


def leases() -> list[str]:
    """The addresses that are leased on the host, sorted."""
    return sorted(path.name for path in Path("/var/lib/cni/networks").glob("*/*.*.*.*"))


def mentions(*words: str) -> list[str]:
    """Where the host still speaks of a container: of its address, its id, its ports.

    Looked through are links, routes, rules of nftables and iptables, sets, and the files of CNI.
    """
    pattern = re.compile("|".join(rf"(?<![\w.]){re.escape(word)}(?![\w.])" for word in words))
    found = snapshot("/var/lib/cni")
    # The last address that was given out, and the index beside the leases.
    files = {
        path: content.decode(errors="replace")
        for path, content in found.pop("files").items()
        if not os.path.basename(path).startswith("last_reserved_ip.")
    }
    lines = [
        *(json.dumps(item) for key in ("links", "addresses", "routes") for item in found[key]),
        *found["nft"],
        *found["iptables"],
        *found["ipset"],
        *(f"{path}: {content}" for path, content in files.items()),
    ]
    return [line for line in lines if pattern.search(line)]


def output(*argv: str | Path, **environ: str) -> str:
    """What a program prints; it must succeed."""
    # No pipes: what an engine leaves in the background would hold them open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code = subprocess.call(argv, env={**os.environ, **environ}, stdout=out, stderr=err)
        out.seek(0)
        err.seek(0)
        printed, said = out.read(), err.read()
    assert code == 0, f"{' '.join(map(str, argv))}: exit {code}: {printed}{said}"
    return printed.strip()
