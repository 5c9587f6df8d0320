"""A container that works against its own attachment while it is made, checked and deleted.

A program inside renames, deletes, moves, floods or re-addresses the interface in a loop. Each
operation must end, in success or with an error object that says what was found; and after DEL the
host must be as it was, whatever happened to the interface.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, Namespace, PluginRun, Sandbox, ip_json, run_in
from pycni.runtime import Network
from pycni.spec.errors import INTERNAL, CNIError

ROUNDS = int(os.environ.get("PYCNI_HOSTILE_ROUNDS", "2"))

# What the program inside does over and over, as lines for `ip -batch`.
ACTIONS = {
    "rename": ["link set eth0 down", "link set eth0 name evil0", "link set evil0 name eth0"],
    "take the name": ["link add eth0 type bridge", "link delete eth0"],
    "delete": ["link delete eth0"],
    "move": ["link set eth0 netns {other}"],
    "re-address": [
        "link set eth0 down",
        "link set eth0 address 02:00:00:00:00:99",
        "address flush dev eth0",
        "address add 10.9.9.9/24 dev eth0",
        "address add fd00:9::9/64 dev eth0 nodad",
        "link set eth0 up mtu 1280",
        "route replace default dev eth0",
        "neighbour replace 10.9.9.1 lladdr 02:00:00:00:00:98 dev eth0",
    ],
    "flood": [
        *(f"link add d{number} type bridge" for number in range(20)),
        *(f"route replace 10.99.{number}.0/24 dev lo" for number in range(200)),
        *(f"link delete d{number}" for number in range(20)),
    ],
}


@contextmanager
def hostile(space: Namespace, other: Namespace, action: str) -> Iterator[None]:
    """A program inside that does it until the end of the block."""
    lines = "\n".join(ACTIONS[action]).format(other=other.name)
    script = 'while :; do yes "$1" | ip -force -n "$2" -batch - > /dev/null 2>&1; done'
    program = subprocess.Popen(
        ["sh", "-c", script, "sh", lines, space.name],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        time.sleep(0.02)
        yield
        assert program.poll() is None, "the program inside ended by itself"
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def rounds(action: str) -> range:
    return range(ROUNDS // 2 if action == "flood" else ROUNDS)  # a flood lasts its time


def judge(run: PluginRun) -> None:
    if run.code:
        assert run.result["code"] != INTERNAL, run.result
        assert "internal error" not in run.result["msg"], run.result
        assert run.result["msg"], run.result


def ipam(state: Path) -> dict[str, Any]:
    return {"type": "host-local", "subnet": "10.4.0.0/24", "dataDir": str(state)}


def configuration(plugin: str, state: Path) -> dict[str, Any]:
    own = {
        "bridge": {"bridge": "br0", "isGateway": True, "ipMasq": True, "macspoofchk": True},
        "ptp": {"ipMasq": True},
        "macvlan": {"master": "up0"},
        "host-device": {"device": "dev0"},
    }[plugin]
    return {"cniVersion": "1.1.0", "name": "net", "type": plugin, "ipam": ipam(state), **own}


def there(host: Host, folder: Path) -> dict[str, Any]:
    """What is on the host, without what carriers and indices do on their own."""
    found = host.snapshot(folder)
    files = {
        path: content
        for path, content in found["files"].items()
        # Where host-local goes on is no trace of an attachment.
        if "/.pycni/" not in path and "last_reserved_ip" not in path
    }
    return {
        **{key: found[key] for key in ("rules", "nft", "iptables", "sysctls")},
        "links": sorted(link["ifname"] for link in found["links"]),
        "addresses": sorted(
            (link["ifname"], entry["local"], entry["prefixlen"])
            for link in found["addresses"]
            for entry in link["addr_info"]
            if entry["scope"] == "global"
        ),
        "routes": sorted(
            (route["dst"], route.get("dev", ""), route.get("gateway", ""))
            for route in found["routes"]
            if not route["dst"].startswith(("fe80:", "ff00:"))
        ),
        "files": files,
    }


def make_devices() -> None:
    run_in(None, ["ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1"])
    run_in(None, ["ip", "link", "set", "up0", "up"])
    run_in(None, ["ip", "link", "set", "up1", "up"])
    run_in(None, ["ip", "link", "add", "dev0", "type", "veth", "peer", "name", "dev1"])


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("plugin", ["bridge", "ptp", "macvlan", "host-device"])
def test_container_against_its_plugin(
    plugin: str, action: str, host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    if plugin == "host-device" and action in ("take the name", "delete", "move"):
        return  # a device that the container got is the container's to give away
    make_devices()
    space, other, quiet = sandbox(), sandbox(), sandbox()
    config = configuration(plugin, tmp_path / "leases")
    attachment = Attachment(plugin_dir / plugin, config, space)
    attachment.add()
    attachment.delete()
    neighbour = Attachment(plugin_dir / plugin, config, quiet, container="quiet")
    if plugin != "host-device":  # there is one device
        neighbour.add()
    before = there(host, tmp_path)
    for _ in rounds(action):
        with hostile(space, other, action):
            added = attachment.run("ADD")
            judge(added)
            previous = {"prevResult": added.result} if added.code == 0 else {}
            if previous:
                judge(attachment.run("CHECK", **previous))
            deleted = attachment.run("DEL", **previous)
            judge(deleted)
        # The program may have held it at the wrong moment; now it is quiet.
        again = attachment.run("DEL", **previous)
        assert again.code == 0, (deleted, again)
        clear(space, other)
        assert there(host, tmp_path) == before
    if plugin != "host-device":
        neighbour.check()


def clear(space: Namespace, other: Namespace) -> None:
    """What the program itself left in the container is not the plugins' business."""
    for place in (space, other):
        for link in ip_json("link", netns=place):
            if link["ifname"] != "lo":
                run_in(None, ["ip", "-n", place.name, "link", "delete", link["ifname"]])


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
def test_container_against_a_network(
    action: str, host: Host, sandbox: Sandbox, tmp_path: Path
) -> None:
    """The same for a list: each plugin's part is undone or deleted, and nothing stays noted."""
    plugins = [
        {"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": ipam(tmp_path / "leases")},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
         "dataDir": str(tmp_path / "tuning")},
        {"type": "bandwidth", "ingressRate": 8000000, "ingressBurst": 8000000,
         "egressRate": 8000000, "egressBurst": 8000000},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall", "backend": "nftables"},
    ]  # fmt: skip
    network = Network.from_dict(
        {"cniVersion": "1.1.0", "name": "net", "plugins": plugins}, cache_dir=tmp_path / "cache"
    )
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    space, other = sandbox(), sandbox()
    network.add("quiet", sandbox().path)
    network.add("one", space.path, capabilities={"portMappings": ports})
    network.delete("one")
    before = there(host, tmp_path)
    for _ in rounds(action):
        with hostile(space, other, action):
            for operation in (
                lambda: network.add("one", space.path, capabilities={"portMappings": ports}),
                lambda: network.check("one"),
                lambda: network.delete("one"),
            ):
                try:
                    operation()
                except CNIError as error:
                    assert error.code != INTERNAL, error
        network.delete("one", space.path)
        clear(space, other)
        assert there(host, tmp_path) == before
    network.check("quiet")


def test_namespace_that_vanishes(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """The container ends while it is attached: DEL finds what is on the host without it."""
    config = configuration("bridge", tmp_path / "leases")
    quiet = Attachment(plugin_dir / "bridge", config, sandbox(), container="quiet")
    quiet.add()
    before = there(host, tmp_path)
    for pause in (0.0, 0.001, 0.003, 0.01):
        space = sandbox()
        attachment = Attachment(plugin_dir / "bridge", config, space)
        ender = subprocess.Popen(["sh", "-c", f"sleep {pause}; ip netns delete {space.name}"])
        added = attachment.run("ADD")
        judge(added)
        ender.wait()
        for run in (attachment.run("CHECK"), attachment.run("DEL"), attachment.run("DEL")):
            judge(run)
        assert run.code == 0, run.stdout
        until = time.monotonic() + 20  # the kernel takes a namespace apart some time later
        while there(host, tmp_path) != before and time.monotonic() < until:
            time.sleep(0.01)
        assert there(host, tmp_path) == before


@pytest.mark.parametrize(
    "inside",
    [
        ["link set eth0 alias up9"],
        ["link set eth0 name other0"],
        ["link set eth0 name other0", "link add eth0 type bridge"],
    ],
)
def test_device_gets_its_own_name_back(
    inside: list[str], host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """Not the one that the container would have it bear on the host; and whatever it is called."""
    make_devices()
    before = there(host, tmp_path)
    space = sandbox()
    config = configuration("host-device", tmp_path / "leases")
    attachment = Attachment(plugin_dir / "host-device", config, space)
    attachment.add()
    for line in ["link set eth0 down", *inside]:
        run_in(None, ["ip", "-n", space.name, *line.split()])
    attachment.delete()
    after = there(host, tmp_path)
    assert (after["links"], after["addresses"]) == (before["links"], before["addresses"])


@pytest.mark.parametrize(
    "name",
    ['a"b', "a'b", "a;b", "a\\b", "$(x)", "{a}", "*", "-x", "--help", "eth0@x", "a=b,c", "a\x01b",
     "é", "x" * 15, "all", "default"],
)  # fmt: skip
def test_words_that_are_names_of_interfaces(
    name: str, host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """What means something to nft, a shell or a path of /proc is a name like any other, or is
    refused by the kernel; nothing is left of it."""
    space = sandbox()
    config = configuration("bridge", tmp_path / "leases")
    attachment = Attachment(plugin_dir / "bridge", config, space, ifname=name)
    added = attachment.run("ADD")
    judge(added)
    assert (added.code == 0) == (name not in ("all", "default")), added.stdout
    if added.code == 0:
        attachment.result = added.result
        assert added.result["interfaces"][2]["name"] == name
        attachment.check()
    attachment.delete()
    assert [link["ifname"] for link in ip_json("link", netns=space)] == ["lo"]
    assert set(there(host, tmp_path)["links"]) <= {"br0", "lo"}
    assert "elements" not in run_in(None, ["nft", "list", "ruleset"]).stdout
