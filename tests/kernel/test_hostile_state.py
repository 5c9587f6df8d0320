"""State directories that someone else has written to: no hang, no write through a link, no belief.

What stands under the names that plugins use is a link to a file elsewhere, a FIFO, a directory, a
device, a socket, or another user's file. Who may write there can give or take addresses, which
nothing can help; but root must not be led outside of the directory, or to wait for ever.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, Sandbox, call_plugin
from pycni.dhcp.lease import Store
from pycni.kernel import sysctl
from pycni.runtime.errors import ConfigError
from pycni.runtime.find import all_networks, find_network
from pycni.spec.errors import IO_FAILURE, CNIError
from pycni.state.attachment_files import Documents
from pycni.state.cache import CachedAttachment, ResultCache
from pycni.state.files import Lock
from pycni.state.leases import LeaseStore

NOBODY = 65534
SECRET = "what was there before\n"

Planter = Callable[[Path], None]


def plant_link(path: Path) -> None:
    path.symlink_to(elsewhere(path))


def plant_dangling_link(path: Path) -> None:
    path.symlink_to(elsewhere(path).with_name("not-there"))


def plant_fifo(path: Path) -> None:
    os.mkfifo(path)


def plant_directory(path: Path) -> None:
    path.mkdir()
    (path / "within").write_text("x")


def plant_device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # zeros without end


def plant_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def elsewhere(path: Path) -> Path:
    """A file outside of the directory, which must stay as it is."""
    place = Path("/run/elsewhere")
    place.mkdir(exist_ok=True)
    (place / "secret").write_text(SECRET)
    return place / "secret"


def assert_elsewhere_is_as_it_was() -> None:
    place = Path("/run/elsewhere")
    if place.exists():
        assert [path.name for path in place.iterdir()] == ["secret"]
        assert (place / "secret").read_text() == SECRET


PLANTERS: list[Planter] = [
    plant_link, plant_dangling_link, plant_fifo, plant_directory, plant_device, plant_socket,
]  # fmt: skip
planted = pytest.mark.parametrize("plant", PLANTERS, ids=lambda plant: plant.__name__[6:])


@pytest.fixture(autouse=True)
def untouched(host: Host) -> Any:
    yield
    assert_elsewhere_is_as_it_was()


# --- leases ------------------------------------------------------------------------------------


def address_plugin(plugin_dir: Path, state: Path) -> Attachment:
    config = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "host-local",
        "ipam": {"type": "host-local", "subnet": "10.4.0.0/29", "dataDir": str(state)},
    }
    return Attachment(plugin_dir / "host-local", config, None, env={"CNI_NETNS": "/nowhere"})


def gc(attachment: Attachment) -> None:
    run = attachment.run("GC", **{"cni.dev/valid-attachments": []})
    assert run.code == 0, run.stdout


@planted
def test_lease_file(plant: Planter, plugin_dir: Path, tmp_path: Path) -> None:
    """The address counts as taken, and stays so; nothing of it is removed."""
    (tmp_path / "net").mkdir()
    plant(tmp_path / "net" / "10.4.0.2")
    attachment = address_plugin(plugin_dir, tmp_path)
    assert attachment.add()["ips"][0]["address"] == "10.4.0.3/29"
    attachment.check()
    gc(attachment)
    attachment.add()
    attachment.delete()
    assert os.path.lexists(tmp_path / "net" / "10.4.0.2")


@planted
def test_last_reserved_address(plant: Planter, plugin_dir: Path, tmp_path: Path) -> None:
    """It is a hint; without it addresses are given from the start."""
    (tmp_path / "net").mkdir()
    plant(tmp_path / "net" / "last_reserved_ip.0")
    attachment = address_plugin(plugin_dir, tmp_path)
    assert attachment.add()["ips"][0]["address"] == "10.4.0.2/29"
    attachment.delete()


@planted
def test_lock(plant: Planter, plugin_dir: Path, tmp_path: Path) -> None:
    """It is locked whatever it is, or refused."""
    (tmp_path / "net").mkdir()
    plant(tmp_path / "net" / "lock")
    attachment = address_plugin(plugin_dir, tmp_path)
    run = attachment.run("ADD")
    if run.code:
        assert run.result["code"] == IO_FAILURE
        assert str(tmp_path / "net" / "lock") in run.result["msg"]
        assert "plain file" in run.result["details"]
        assert not (tmp_path / "net" / "10.4.0.2").exists()
    else:
        attachment.delete()


@planted
@pytest.mark.parametrize("name", [".pycni", ".pycni/net.index"])
def test_index(plant: Planter, name: str, plugin_dir: Path, tmp_path: Path) -> None:
    """It is a cache; where it cannot be had, the directory is read."""
    if "/" in name:
        (tmp_path / ".pycni").mkdir()
    plant(tmp_path / name)
    attachment = address_plugin(plugin_dir, tmp_path)
    assert attachment.add()["ips"][0]["address"] == "10.4.0.2/29"
    attachment.check()
    attachment.delete()
    assert not (tmp_path / "net" / "10.4.0.2").exists()


@planted
def test_network_directory(plant: Planter, plugin_dir: Path, tmp_path: Path) -> None:
    plant(tmp_path / "net")
    run = address_plugin(plugin_dir, tmp_path).run("ADD")
    if plant is plant_directory:
        assert run.code == 0
    else:
        assert run.result["code"] == IO_FAILURE
        assert str(tmp_path / "net") in run.result["msg"]


def test_directory_behind_a_link(plugin_dir: Path, tmp_path: Path) -> None:
    """An operator may move state elsewhere; another user may not have it moved."""
    real, network = tmp_path / "real", tmp_path / "state" / "net"
    real.mkdir()
    network.parent.mkdir()
    network.symlink_to(real)
    attachment = address_plugin(plugin_dir, network.parent)
    attachment.add()
    assert (real / "10.4.0.2").exists()
    attachment.delete()
    os.lchown(network, NOBODY, NOBODY)
    assert attachment.run("ADD").result["code"] == IO_FAILURE
    assert not (real / "10.4.0.2").exists()


def test_index_behind_another_users_link(plugin_dir: Path, tmp_path: Path) -> None:
    (tmp_path / ".pycni").symlink_to(elsewhere(tmp_path).parent)
    os.lchown(tmp_path / ".pycni", NOBODY, NOBODY)
    attachment = address_plugin(plugin_dir, tmp_path)
    attachment.add()
    attachment.delete()


def test_directory_that_everyone_may_write_to(plugin_dir: Path, tmp_path: Path) -> None:
    """Another user's lease is a lease: it takes an address, and DEL of its holder frees it."""
    network = tmp_path / "net"
    network.mkdir()
    network.chmod(0o777)
    (network / "10.4.0.2").write_text("pycni-test\r\neth1")
    os.chown(network / "10.4.0.2", NOBODY, NOBODY)
    attachment = address_plugin(plugin_dir, tmp_path)
    assert attachment.add()["ips"][0]["address"] == "10.4.0.3/29"
    attachment.delete()
    assert (network / "10.4.0.2").exists()
    assert stat.S_IMODE(os.stat(network / "lock").st_mode) & 0o022 == 0


@planted
def test_lock_alone(plant: Planter, tmp_path: Path) -> None:
    """Without a deadline either, nothing is waited for but another holder."""
    plant(tmp_path / "lock")
    try:
        with Lock(str(tmp_path / "lock")):
            pass
    except CNIError as error:
        assert error.code == IO_FAILURE


# --- the runtime's cache -----------------------------------------------------------------------


@planted
def test_cache(plant: Planter, tmp_path: Path) -> None:
    cache = ResultCache(str(tmp_path))
    path = Path(cache.path("net", "one", "eth0"))
    path.parent.mkdir()
    plant(path)
    assert cache.attachments() == []
    assert cache.read("net", "one", "eth0") is None
    entry = CachedAttachment("net", "one", "eth0", result={"cniVersion": "1.1.0"})
    try:
        cache.write(entry)
    except CNIError as error:
        assert plant is plant_directory
        assert error.code == IO_FAILURE
    else:
        assert cache.attachments() == [entry]


def test_cache_behind_another_users_link(tmp_path: Path) -> None:
    (tmp_path / "results").symlink_to(elsewhere(tmp_path).parent)
    cache = ResultCache(str(tmp_path))
    os.lchown(tmp_path / "results", NOBODY, NOBODY)
    with pytest.raises(CNIError):
        cache.write(CachedAttachment("net", "one", "eth0"))


def test_cache_of_another_user_is_not_believed(tmp_path: Path) -> None:
    """Its configuration would name plugins for root to run."""
    cache = ResultCache(str(tmp_path))
    cache.write(CachedAttachment("net", "one", "eth0", config=b"{}"))
    assert cache.attachments()
    os.chown(cache.path("net", "one", "eth0"), NOBODY, NOBODY)
    assert cache.attachments() == []
    assert cache.read("net", "one", "eth0") is None


def test_cache_file_that_names_another(tmp_path: Path) -> None:
    """A file counts for the attachment that it is named after, and for no other."""
    cache = ResultCache(str(tmp_path))
    cache.write(CachedAttachment("net", "one", "eth0", netns="/x"))
    good = Path(cache.path("net", "one", "eth0"))
    document = json.loads(good.read_text())
    for key in ("networkName", "containerId", "ifName"):
        for value in ("../../etc", "..", "", "two"):
            (good.parent / "net-x-eth0").write_text(json.dumps({**document, key: value}))
            assert [entry.container_id for entry in cache.attachments()] == ["one"]


# --- what tuning, flannel and the DHCP daemon keep ---------------------------------------------


@planted
def test_documents(plant: Planter, tmp_path: Path) -> None:
    documents = Documents(str(tmp_path / "state"))
    documents.write("other", "{}")
    plant(tmp_path / "state" / "one")
    for read in (lambda: documents.read("one"), lambda: documents.create("one", "{}")):
        try:
            assert not read()
        except CNIError as error:
            assert error.code == IO_FAILURE
    try:
        documents.write("one", '{"a": 1}')
    except CNIError as error:
        assert plant is plant_directory
        assert error.code == IO_FAILURE
    else:
        assert documents.read("one") == {"a": 1}
        documents.remove("one")
        assert documents.names() == ["other"]


def test_documents_behind_another_users_link(tmp_path: Path) -> None:
    (tmp_path / "state").symlink_to(elsewhere(tmp_path).parent)
    os.lchown(tmp_path / "state", NOBODY, NOBODY)
    documents = Documents(str(tmp_path / "state"))
    for change in (lambda: documents.write("one", "{}"), lambda: documents.create("one", "{}")):
        with pytest.raises(CNIError) as caught:
            change()
        assert caught.value.code == IO_FAILURE


def test_tuning_sets_nothing_that_another_user_wrote(
    sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """Nor, no matter who wrote it, a parameter that is not the network namespace's."""
    space = sandbox()
    config = {"cniVersion": "1.1.0", "name": "net", "type": "tuning", "dataDir": str(tmp_path)}
    attachment = Attachment(plugin_dir / "tuning", config, space)
    kept = tmp_path / "pycni-test_eth0.json"
    hostname = Path("/proc/sys/kernel/hostname")
    before = hostname.read_text()
    for owner, key in ((NOBODY, "net/ipv4/ip_forward"), (0, "kernel/hostname"), (0, "net/../x/y")):
        kept.write_text(json.dumps({"network": "net", "sysctl": {key: "1"}}))
        os.chown(kept, owner, owner)
        attachment.delete()
        assert not kept.exists()
    assert hostname.read_text() == before
    assert sysctl.read("net.ipv4.ip_forward") == "0"


@planted
def test_dhcp_state(plant: Planter, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "state"))
    plant(tmp_path / "state" / "x.json")
    assert list(store.load()) == []


# --- configurations ----------------------------------------------------------------------------


@planted
def test_configuration_file(plant: Planter, tmp_path: Path) -> None:
    """It hides no other network."""
    plant(tmp_path / "10-first.conflist")
    plugin = {"type": "loopback"}
    good = {"cniVersion": "1.0.0", "name": "net", "plugins": [plugin]}
    (tmp_path / "20-second.conflist").write_text(json.dumps(good))
    found, skipped = find_network("net", [str(tmp_path)])
    assert found.name == "net"
    assert len(skipped) == (0 if plant is plant_directory else 1)
    assert all(isinstance(error, ConfigError) for error in all_networks([str(tmp_path)])[1])


@pytest.mark.parametrize(
    ("plant", "key"),
    [
        *((plant, key) for plant in PLANTERS for key in ("subnetFile", "resolvConf")),
        # A log may be a link.
        *((plant, key) for plant in PLANTERS[2:] for key in ("cniOutput", "logFile")),
    ],
)
def test_files_that_a_configuration_names(
    plant: Planter, key: str, plugin_dir: Path, tmp_path: Path
) -> None:
    """Whatever is there: an answer, not a wait."""
    path = tmp_path / "file"
    plant(path)
    state = tmp_path / "state"
    subnet = {"type": "host-local", "subnet": "10.4.0.0/29", "dataDir": str(state)}
    plugin, keys = {
        "subnetFile": ("flannel", {"subnetFile": str(path), "dataDir": str(state)}),
        "resolvConf": ("host-local", {"ipam": {**subnet, "resolvConf": str(path)}}),
        "cniOutput": ("debug", {"cniOutput": str(path)}),
        "logFile": ("host-local", {"ipam": subnet, "logFile": str(path)}),
    }[key]
    config = {"cniVersion": "1.1.0", "name": "net", "type": plugin, **keys}
    run = call_plugin(plugin_dir / plugin, "ADD", config, CNI_NETNS="/nowhere")
    if run.code:
        assert run.result["code"] < 999, run.stdout


def test_lease_store_by_itself_makes_nothing_elsewhere(tmp_path: Path) -> None:
    for name in ("..", ".", "../x", "a/b", "/x", "a\0b", "", ".hidden"):
        with pytest.raises(CNIError):
            LeaseStore(str(tmp_path / "state"), name)
    assert list(tmp_path.iterdir()) == []
