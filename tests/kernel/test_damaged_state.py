"""Full disks, read-only mounts, and state that was cut or overwritten.

Either a clear error or a repair that is reported; and never one address for two containers.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, PluginRun, Sandbox, call_plugin, ip_json, run_plugin
from harness.ways import WAYS, way_of
from pycni.runtime import Network
from pycni.spec.errors import ADDRESS_UNAVAILABLE, IO_FAILURE, CNIError

PAGE = os.sysconf("SC_PAGE_SIZE")


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path, options: str) -> None:
        self.path = path
        path.mkdir()
        self._mount("-t", "tmpfs", "-o", options, "tmpfs", str(path))

    def _mount(self, *arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True)

    def read_only(self, state: str = "ro") -> None:
        self._mount("-o", f"remount,{state}", str(self.path))

    def fill(self, spare: int = 0) -> None:
        """Use it up but for some pages."""
        with (self.path / "ballast").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(PAGE))
            except OSError:
                file.truncate(max(0, file.tell() - spare * PAGE))

    def empty(self) -> None:
        (self.path / "ballast").unlink()

    def close(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)


@pytest.fixture
def disk(host: Host, tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk", f"size={24 * PAGE},nr_inodes=200")
    yield disk
    disk.close()


class Node:
    """A bridge network whose leases are on the disk, and containers on it."""

    def __init__(self, plugin_dir: Path, data_dir: Path, sandbox: Sandbox) -> None:
        self.plugin_dir = plugin_dir
        self.data_dir = data_dir
        self.sandbox = sandbox
        self.config: dict[str, Any] = {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "bridge",
            "bridge": "br0",
            "ipam": {"type": "host-local", "subnet": "10.3.0.0/26", "dataDir": str(data_dir)},
        }
        self.count = 0
        self.attached: list[Attachment] = []

    @property
    def leases(self) -> Path:
        return self.data_dir / "net"

    @property
    def index(self) -> Path:
        return self.data_dir / ".pycni/net.index"

    def next(self) -> Attachment:
        self.count += 1
        return Attachment(
            self.plugin_dir / "bridge", self.config, self.sandbox(), f"c{self.count}",
            call=run_plugin,
        )  # fmt: skip

    def add(self) -> Attachment:
        one = self.next()
        one.add()
        self.attached.append(one)
        return one

    def addresses(self) -> list[str]:
        return [one.result["ips"][0]["address"] for one in self.attached]

    def require_sound(self) -> None:
        """No address twice, and each container's is noted as its."""
        found = self.addresses()
        assert len(set(found)) == len(found)
        for one in self.attached:
            address = one.result["ips"][0]["address"].partition("/")[0]
            assert (self.leases / address).read_bytes() == f"{one.container}\r\neth0".encode()

    def free_all(self) -> None:
        for one in self.attached:
            one.delete()
        self.attached.clear()
        assert [path.name for path in self.leases.iterdir() if path.name[0].isdigit()] == []


@pytest.fixture
def node(plugin_dir: Path, disk: Disk, sandbox: Sandbox) -> Node:
    return Node(plugin_dir, disk.path, sandbox)


def clear(run: PluginRun, *words: str) -> None:
    """It failed with an error of the protocol that says why."""
    assert run.code == 1
    assert run.result["code"] == IO_FAILURE, run.result
    for word in words:
        assert word in run.result["msg"], run.result


# --- disks -------------------------------------------------------------------------------------


def test_full_disk_at_every_stage(node: Node, disk: Disk) -> None:
    """With so many pages to spare an ADD gets so far; none leaves half of its work."""
    node.add()
    refused = 0
    for spare in range(8):
        disk.fill(spare)
        one = node.next()
        run = one.run("ADD")
        if run.code == 0:
            one.result = run.result
            node.attached.append(one)
        else:
            refused += 1
            clear(run, "No space left on device")
            assert [link["ifname"] for link in ip_json("link", netns=one.sandbox)] == ["lo"]
        disk.empty()
        node.require_sound()
    assert refused
    assert len(node.attached) > 1
    disk.fill()
    node.attached.pop().delete()  # a full disk keeps no one from leaving
    disk.empty()
    node.add()
    node.require_sound()
    node.free_all()


def test_no_more_inodes(node: Node, disk: Disk) -> None:
    node.add()
    made = []
    try:
        for number in range(1000):
            made.append(disk.path / f"file-{number}")
            made[-1].touch()
    except OSError:
        made.pop()
    clear(node.next().run("ADD"), "No space left on device")
    node.require_sound()
    for path in made:
        path.unlink()
    node.add()
    node.require_sound()
    node.free_all()


def test_first_add_on_a_full_disk(node: Node, disk: Disk) -> None:
    disk.fill()
    clear(node.next().run("ADD"), "No space left on device")
    assert [link["ifname"] for link in ip_json("link")] == ["lo"]
    disk.empty()
    node.add()
    node.free_all()


def test_read_only(node: Node, disk: Disk) -> None:
    one = node.add()
    disk.read_only()
    clear(node.next().run("ADD"), "Read-only file system")
    one.check()
    clear(one.run("DEL", prevResult=one.result), "Read-only file system")
    node.require_sound()
    disk.read_only("rw")
    node.free_all()


@pytest.mark.parametrize("way", WAYS)
def test_nothing_to_remove_on_a_read_only_disk(
    disk: Disk, plugin_dir: Path, sandbox: Sandbox, tmp_path: Path, way: str
) -> None:
    """DEL of what was never attached succeeds; an ADD says what it could not write."""
    for folder in ("results", "tuning", "flannel"):
        (disk.path / folder).mkdir()
    disk.read_only()
    tuning = {"type": "tuning", "dataDir": str(disk.path / "tuning"), "mtu": 1400}
    flannel = {"type": "flannel", "dataDir": str(disk.path / "flannel")}
    with way_of(way, tmp_path, plugin_dir) as calls:
        plugins: dict[str, Any] = {}
        if calls.name != "in process":
            plugins = {"plugin_dirs": calls.plugins, "engine": "exec"}
        document = {"cniVersion": "1.1.0", "name": "net", "plugins": [flannel, tuning]}
        network = Network.from_dict(document, cache_dir=disk.path, **plugins)
        network.delete("one", sandbox().path)

        previous = {"cniVersion": "1.1.0", "interfaces": [{"name": "lo", "sandbox": "/x"}]}
        one = Attachment(
            calls.plugins / "tuning",
            {"cniVersion": "1.1.0", "name": "net", "prevResult": previous, **tuning},
            sandbox(), ifname="lo", call=call_plugin if way == "in process" else run_plugin,
        )  # fmt: skip
        error = one.refused()
        assert error["code"] == IO_FAILURE
        assert error["msg"].startswith(f"cannot write {disk.path}/tuning/"), error
        assert error["msg"].endswith("Read-only file system")
        one.delete()


def test_full_disk_under_the_cache(
    host: Host, plugin_dir: Path, disk: Disk, sandbox: Sandbox, tmp_path: Path
) -> None:
    """What cannot be noted is not attached."""
    config = Node(plugin_dir, tmp_path / "leases", sandbox).config
    network = Network.from_dict(config, plugin_dirs=plugin_dir, cache_dir=disk.path)
    netns = sandbox()
    network.add("one", netns.path)
    disk.fill()
    other = sandbox()
    with pytest.raises(CNIError, match="No space left on device"):
        network.add("two", other.path)
    assert [link["ifname"] for link in ip_json("link", netns=other)] == ["lo"]
    network.check("one", netns.path)
    network.delete("one", netns.path)
    assert network.attachments() == []


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["", "\0\0\0\0", "c1", "c1\r\n", "c1\r\net", "\xff" * 5000])
def test_damaged_lease(node: Node, damage: str) -> None:
    """Its address stays taken while a container has it: the range is full before it is given."""
    node.config["ipam"]["subnet"] = "10.3.0.0/29"
    one = node.add()
    other = node.add()
    address = one.result["ips"][0]["address"].partition("/")[0]
    (node.leases / address).write_text(damage)
    (node.leases / "elsewhere").touch()  # so that the index is not believed
    said = ""
    while (run := (new := node.next()).run("ADD")).code == 0:
        said += run.stderr
        assert run.result["ips"][0]["address"] not in node.addresses()
        new.result = run.result
        node.attached.append(new)
    assert len(node.attached) == 5
    assert run.result["code"] == ADDRESS_UNAVAILABLE, run.result
    if not damage.strip("\0"):
        assert f"{address} is empty, but the address is set" in said + run.stderr
    other.check()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("result", ["known", "lost"])
def test_lease_rewritten_in_place(
    host: Host, plugin_dir: Path, tmp_path: Path, way: str, result: str
) -> None:
    """As `cp` of a backup does, in the oldest format or for another: each DEL frees its own."""
    with way_of(way, tmp_path, plugin_dir) as calls:
        ipam = calls.host_local("10.3.0.0/29")
        config = {"cniVersion": "1.1.0", "name": "net", "type": "host-local", "ipam": ipam}
        ones = [
            Attachment(
                calls.plugins / "host-local", config, None, f"c{number}",
                call=call_plugin if way == "in process" else run_plugin,
                env={"CNI_NETNS": "/nowhere"},
            )
            for number in range(3)
        ]  # fmt: skip
        for one in ones:
            one.add()
            if result == "lost":
                one.result = None
        leases = tmp_path / "cni/networks/net"

        def rewrite(address: str, content: str) -> None:
            with (leases / address).open("r+") as file:
                file.truncate(0)
                file.write(content)

        rewrite("10.3.0.2", "c0")
        rewrite("10.3.0.3", "c2\r\neth0")
        rewrite("10.3.0.4", "c1\r\neth0")
        for one, address in zip(ones, ("10.3.0.2", "10.3.0.4", "10.3.0.3"), strict=True):
            assert (leases / address).exists()
            one.delete()
            assert not (leases / address).exists()


@pytest.mark.parametrize("how", ["cut", "overwritten", "a directory", "a link", "gone"])
def test_damaged_index(node: Node, how: str, tmp_path: Path) -> None:
    for _ in range(4):
        node.add()
    size = node.index.stat().st_size
    if how == "cut":
        os.truncate(node.index, size // 2)
    elif how == "overwritten":
        data = bytearray(node.index.read_bytes())
        data[PAGE:] = os.urandom(size - PAGE)
        node.index.write_bytes(data)
    else:
        node.index.unlink()
        if how == "a directory":
            node.index.mkdir()
        elif how == "a link":
            (tmp_path / "precious").write_text("not to be touched")
            node.index.symlink_to(tmp_path / "precious")
    one = node.next()
    run = one.run("ADD")
    assert run.code == 0, run.stdout
    one.result = run.result
    node.attached.append(one)
    assert ("is damaged" in run.stderr or "was damaged" in run.stderr) == (
        how in ("cut", "overwritten")
    ), run.stderr
    node.require_sound()
    if how == "a link":
        assert (tmp_path / "precious").read_text() == "not to be touched"
    node.free_all()


@pytest.mark.parametrize("how", ["a directory", "a link", "a pipe"])
def test_lock_that_is_none(node: Node, how: str, tmp_path: Path) -> None:
    one = node.add()
    lock = node.leases / "lock"
    lock.unlink()
    if how == "a directory":
        lock.mkdir()
    elif how == "a link":
        lock.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(lock)
    run = node.next().run("ADD")
    if run.code == 0:  # a lock is a lock, if the kernel takes it for one
        assert how in ("a pipe", "a directory")
        assert run.result["ips"][0]["address"] not in node.addresses()
    else:
        clear(run, "lock")
    assert not (tmp_path / "elsewhere").exists()
    assert (node.leases / one.result["ips"][0]["address"].partition("/")[0]).exists()


def test_damaged_cache(host: Host, plugin_dir: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    """CHECK says what is wrong, and DEL works without it."""
    config = Node(plugin_dir, tmp_path / "leases", sandbox).config
    network = Network.from_dict(config, plugin_dirs=plugin_dir, cache_dir=tmp_path / "cache")
    for damage in (b"", b"{", b'{"kind": "cniCacheV1", "config": 7}', os.urandom(500)):
        netns = sandbox()
        network.add("one", netns.path)
        (file,) = (tmp_path / "cache/results").iterdir()
        file.write_bytes(damage)
        with pytest.raises(CNIError) as caught:
            network.check("one", netns.path)
        assert str(file) in str(caught.value.details) or "is not attached" in str(caught.value)
        network.delete("one", netns.path)
        assert list((tmp_path / "cache/results").iterdir()) == []
        assert [link["ifname"] for link in ip_json("link", netns=netns)] == ["lo"]
        left = [path.name for path in (tmp_path / "leases/net").iterdir()]
        assert not [name for name in left if name[0].isdigit()]


@pytest.mark.parametrize("kept", [0, 1, 40, 100])
def test_cut_backup_of_tuning(
    host: Host, plugin_dir: Path, sandbox: Sandbox, tmp_path: Path, kept: int
) -> None:
    """DEL cannot put back what it cannot read, says so, and takes it away."""
    netns = sandbox()
    config = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "tuning",
        "dataDir": str(tmp_path / "tuning"),
        "promisc": True,
        "sysctl": {"net.ipv4.conf.all.arp_filter": "1"},
        "prevResult": {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "lo", "sandbox": netns.path}],
        },
    }
    one = Attachment(plugin_dir / "tuning", config, netns, ifname="lo", call=run_plugin)
    assert one.run("ADD").code == 0
    (file,) = (tmp_path / "tuning").iterdir()
    os.truncate(file, kept)
    run = one.run("DEL")
    assert (run.code, run.stdout) == (0, "")
    assert f"{file} is damaged" in run.stderr
    assert list((tmp_path / "tuning").iterdir()) == []


def flannel(folder: Path) -> dict[str, Any]:
    """A network of flannel with all its files in a folder."""
    (folder / "subnet.env").write_text(
        "FLANNEL_NETWORK=10.240.0.0/16\nFLANNEL_SUBNET=10.240.5.1/24\n"
        "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    return {
        "cniVersion": "1.1.0",
        "name": "flan",
        "type": "flannel",
        "subnetFile": str(folder / "subnet.env"),
        "dataDir": str(folder / "flannel"),
        "ipam": {"dataDir": str(folder / "leases")},
    }


def test_cut_file_of_flannel(
    host: Host, plugin_dir: Path, sandbox: Sandbox, tmp_path: Path
) -> None:
    """DEL goes by the network's configuration, and nothing is left."""
    one = Attachment(plugin_dir / "flannel", flannel(tmp_path), sandbox(), call=run_plugin)
    for kept in (0, 50):
        one.add()
        (file,) = (tmp_path / "flannel").iterdir()
        os.truncate(file, kept)
        run = one.run("DEL", prevResult=one.result)
        assert (run.code, run.stdout) == (0, "")
        assert f"{file} is damaged" in run.stderr
        assert list((tmp_path / "flannel").iterdir()) == []
        assert [link["ifname"] for link in ip_json("link", netns=one.sandbox)] == ["lo"]
        names = [path.name for path in (tmp_path / "leases/flan").iterdir()]
        assert not [name for name in names if name.startswith("10.")]


def test_repeated_add_of_flannel_leaves_the_first_one(
    host: Host, plugin_dir: Path, sandbox: Sandbox, tmp_path: Path
) -> None:
    one = Attachment(plugin_dir / "flannel", flannel(tmp_path), sandbox())
    one.add()
    assert one.run("ADD").code == 1
    one.check()
    one.delete()
    assert list((tmp_path / "flannel").iterdir()) == []
    assert [link["ifname"] for link in ip_json("link", netns=one.sandbox)] == ["lo"]
