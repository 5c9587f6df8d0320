"""Which device host-device takes back, and what it is called then: nothing that its container did.

Each by all three ways of calling plugins. The device is a veth end, whose other end is on the host.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Namespace, Sandbox, ip_json, run_in
from harness.host import forget_attachments
from harness.ways import Way, notes
from pycni.runtime import Network

MAC = "02:00:00:00:00:55"
OTHER_MAC = "02:00:00:00:00:66"


@pytest.fixture
def way(way: Way) -> Way:
    make_device("dev0", MAC)
    make_device("up0", OTHER_MAC)
    return way


def make_device(name: str, mac: str) -> None:
    run_in(None, ["ip", "link", "add", name, "address", mac, "type", "veth", "peer", f"{name}-p"])


def network(way: Way, **selector: Any) -> Network:
    selector = selector or {"device": "dev0"}
    device = {"type": "host-device", "ipam": way.host_local("10.61.0.0/24"), **selector}
    return way.network("n", device)


def inside(box: Namespace, *lines: str) -> None:
    for line in lines:
        run_in(box, line.split())


def index_of(name: str, netns: Namespace | None = None) -> int:
    index: int = ip_json("link", "show", "dev", name, netns=netns)[0]["ifindex"]
    return index


def host_links() -> dict[str, dict[str, Any]]:
    return {item["ifname"]: item for item in ip_json("link", "show")}


def assert_back(way: Way, *, altnames: list[str] | None = None) -> None:
    """The device is on the host as it was, and no one else has come along."""
    found = host_links()
    assert sorted(found) == ["dev0", "dev0-p", "lo", "up0", "up0-p"]
    back = found["dev0"]
    assert back["link_index" if "link_index" in back else "link"] in (
        "dev0-p", found["dev0-p"]["ifindex"]
    )  # fmt: skip
    assert back["address"] == MAC
    assert "ifalias" not in back
    assert back.get("altnames", []) == (altnames or [])
    assert (way.leases("n"), notes()) == ({}, [])


def reuse(netns: Namespace) -> None:
    """Have the path of a namespace lead to another one."""
    netns.delete()
    Namespace.create(netns.name)


# --- another in its place ------------------------------------------------------------------------


@pytest.mark.parametrize("selector", [{"device": "dev0"}, {"hwaddr": MAC}], ids=["name", "hwaddr"])
def test_another_of_its_name_and_alias(
    way: Way, sandbox: Sandbox, selector: dict[str, str]
) -> None:
    box = sandbox()
    net = network(way, **selector)
    net.add("a", box.path)
    inside(
        box, "ip link set eth0 down", "ip link set eth0 alias lo", "ip link set eth0 name mine",
        f"ip link add eth0 address {MAC} type veth peer name x", "ip link set eth0 alias dev0",
    )  # fmt: skip
    net.delete("a")
    assert_back(way)
    assert sorted(item["ifname"] for item in ip_json("link", netns=box)) == ["eth0", "lo", "x"]


def test_another_of_its_index(way: Way, sandbox: Sandbox) -> None:
    """The container moves it away and back, and gives its index to a link of its own."""
    box, other = sandbox(), sandbox()
    net = network(way)
    net.add("a", box.path)
    index = index_of("eth0", box)
    inside(
        box, f"ip link set eth0 netns {other.name}",
        f"ip link add eth0 index {index} address {MAC} type veth peer name x",
        "ip link set eth0 alias dev0",
    )  # fmt: skip
    inside(other, f"ip link set eth0 name mine netns {box.name}")
    assert index_of("mine", box) != index
    net.delete("a")
    assert_back(way)
    assert sorted(item["ifname"] for item in ip_json("link", netns=box)) == ["eth0", "lo", "x"]


def test_another_on_its_own(way: Way, sandbox: Sandbox) -> None:
    """The device is gone: what has its place, index and alias is the container's."""
    box = sandbox()
    net = network(way)
    net.add("a", box.path)
    index = index_of("eth0", box)
    inside(
        box, "ip link delete eth0", f"ip link add eth0 index {index} type veth peer name x",
        "ip link set eth0 alias dev0",
    )  # fmt: skip
    net.delete("a")
    assert sorted(host_links()) == ["lo", "up0", "up0-p"]
    assert sorted(item["ifname"] for item in ip_json("link", netns=box)) == ["eth0", "lo", "x"]
    assert (way.leases("n"), notes()) == ({}, [])


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [
        ["ip link property add dev eth0 altname up0"],
        ["ip link property add dev eth0 altname dev0"],
        ["ip link property add dev eth0 altname docker0"],
        ["ip link set lo name l", "ip link property add dev eth0 altname lo"],
        ["ip link set eth0 alias up9"],
        ["ip link set eth0 down", "ip link set eth0 name up0"],
    ],
    ids=["another's", "its own", "no one's", "lo", "alias", "name"],
)  # fmt: skip
@pytest.mark.parametrize("selector", [{"device": "dev0"}, {"hwaddr": MAC}], ids=["name", "hwaddr"])
def test_names_that_the_container_gave(
    way: Way, sandbox: Sandbox, selector: dict[str, str], lines: list[str]
) -> None:
    box = sandbox()
    net = network(way, **selector)
    net.add("a", box.path)
    inside(box, *lines)
    net.delete("a")
    assert_back(way)


@pytest.fixture
def bus() -> Iterator[Path]:
    """The folder that /sys would have for a device's interfaces; dev0 is the only one."""
    card = "pci0000:00/0000:00:01.0"
    run_in(None, ["mount", "-t", "tmpfs", "none", "/sys/devices"])
    run_in(None, ["mount", "-t", "tmpfs", "none", "/sys/bus"])
    found = Path("/sys/devices", card, "net")
    found.mkdir(parents=True)
    listed = Path("/sys/bus/pci/devices")
    listed.mkdir(parents=True)
    (listed / "0000:00:01.0").symlink_to(found.parent)
    yield found
    run_in(None, ["umount", "/sys/bus"])
    run_in(None, ["umount", "/sys/devices"])


@pytest.mark.parametrize("key", ["pciBusID", "kernelpath", "deviceID"])
def test_device_that_is_named_by_its_place(way: Way, sandbox: Sandbox, bus: Path, key: str) -> None:
    place = {"pciBusID": bus.parent.name, "kernelpath": str(bus.parent)}.get(key)
    net = network(way, **{key: place} if place else {"capabilities": {"deviceID": True}})
    renamed = [
        "ip link set eth0 down", "ip link set eth0 alias up0", "ip link set eth0 name mine",
        "ip link property add dev mine altname up0",
    ]  # fmt: skip
    another = [f"ip link add eth0 address {MAC} type veth peer x", "ip link set eth0 alias dev0"]
    for lines, left in ((renamed, ["lo"]), (renamed + another, ["eth0", "lo", "x"])):
        box = sandbox()
        (bus / "dev0").mkdir()
        net.add("a", box.path, capabilities=None if place else {"deviceID": bus.parent.name})
        (bus / "dev0").rmdir()  # /sys shows it in its own namespace only
        inside(box, *lines)
        net.delete("a")
        assert_back(way)
        assert sorted(item["ifname"] for item in ip_json("link", netns=box)) == left


def test_names_that_the_container_goes_on_giving(way: Way, sandbox: Sandbox) -> None:
    box = sandbox()
    net = network(way)
    again = "property add dev eth0 altname up0\n" * 500
    script = 'while :; do echo "$1" | ip -force -n "$2" -batch - >/dev/null 2>&1; done'
    for _ in range(3):
        net.add("a", box.path)
        programs = [
            subprocess.Popen(["sh", "-c", script, "sh", again, box.name], start_new_session=True)
            for _ in range(2)
        ]
        try:
            time.sleep(0.05)
            net.delete("a")
        finally:
            for program in programs:
                run_in(None, ["kill", "-9", "--", f"-{program.pid}"])
                program.wait()
        assert_back(way)


def test_device_that_is_named_by_an_altname(way: Way, sandbox: Sandbox) -> None:
    run_in(None, ["ip", "link", "property", "add", "dev", "dev0", "altname", "card"])
    box = sandbox()
    net = network(way, device="card")
    for lines in ([], ["ip link property del dev eth0 altname card"]):
        net.add("a", box.path)
        net.check("a")
        inside(box, *lines)
        net.delete("a")
        assert_back(way, altnames=["card"])


def test_hardware_address_that_the_container_gave(way: Way, sandbox: Sandbox) -> None:
    """The next attachment that asks for another device by its address gets that one."""
    box = sandbox()
    net = network(way)
    net.add("a", box.path)
    inside(box, f"ip link set eth0 address {OTHER_MAC} mtu 600")
    net.delete("a")
    assert_back(way)
    assert host_links()["dev0"]["mtu"] == 1500


# --- a device that came back by itself, as hardware does -----------------------------------------


@pytest.mark.parametrize("selector", [{"device": "dev0"}, {"hwaddr": MAC}], ids=["name", "hwaddr"])
@pytest.mark.parametrize("operation", ["DEL", "DEL of another", "GC", "ADD"])
def test_device_that_came_back_by_itself(
    way: Way, sandbox: Sandbox, selector: dict[str, str], operation: str
) -> None:
    box, other = sandbox(), sandbox()
    net = network(way, **selector)
    net.add("a", box.path)
    # What the kernel does when the namespace dies.
    inside(
        box, "ip link set eth0 alias up9", "ip link property add dev eth0 altname docker0",
        "ip link set eth0 down", "ip link set eth0 name evil0",
        f"ip link set evil0 netns {os.getpid()}",
    )  # fmt: skip
    assert "evil0" in host_links()
    if operation == "GC":
        net.gc([])
    elif operation == "ADD":
        reuse(box)
        shutil.rmtree(way.folder / "cni/networks/n")
        net.add("a", box.path)
        net.delete("a")
    elif operation == "DEL of another":
        net.delete("b", other.path)
        assert "up9" not in host_links()
        net.delete("a")
    else:
        net.delete("a")
    assert_back(way)


def test_without_notes_no_pair_of_the_container_comes_along(way: Way, sandbox: Sandbox) -> None:
    """What the reference attached has no note: a pair that is all inside is not the host's."""
    box = sandbox()
    net = network(way)
    net.add("a", box.path)
    forget_attachments()
    inside(
        box, "ip link set eth0 down", "ip link set eth0 name mine",
        "ip link add eth0 type veth peer name x", "ip link set eth0 alias dev0",
    )  # fmt: skip
    net.delete("a")
    found = host_links()
    assert sorted(found) == ["dev0", "dev0-p", "lo", "up0", "up0-p"]
    assert found["dev0"]["address"] == MAC
