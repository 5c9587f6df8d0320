"""What `pycni` says when something is wrong leads to what is wrong, and to the way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Sandbox, run_in
from harness.agent import PYCNI
from harness.namespaces import covered

NOBODY = 65534


class Node:
    """Networks in a folder, and the command."""

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        self.folder = folder
        self.sandbox = sandbox
        self.conf_dir = folder / "net.d"
        self.conf_dir.mkdir()

    def write(self, name: str, *plugins: dict[str, Any], version: str = "1.1.0") -> None:
        document = {"cniVersion": version, "name": name, "plugins": list(plugins)}
        (self.conf_dir / f"{name}.conflist").write_text(json.dumps(document))

    def bridge(self, ipam: str = "host-local", subnet: str = "10.77.0.0/24") -> dict[str, Any]:
        keys = {"type": ipam, "subnet": subnet, "dataDir": str(self.folder / "leases")}
        return {"type": "bridge", "bridge": "br0", "isDefaultGateway": True, "ipam": keys}

    def pycni(self, *words: str, code: int = 1, user: int = 0) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "NETCONFPATH": str(self.conf_dir)}
        done = subprocess.run(
            [PYCNI, *words], capture_output=True, text=True, check=False, env=environ, user=user
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done


@pytest.fixture
def node(host: Host, sandbox: Sandbox, tmp_path: Path) -> Iterator[Node]:
    yield Node(tmp_path, sandbox)
    for name in ("results", "networks"):
        shutil.rmtree(f"/var/lib/cni/{name}", ignore_errors=True)


def test_a_file_that_is_in_the_way(node: Node) -> None:
    node.write("lab", node.bridge())
    bad = node.conf_dir / "bad.conflist"
    bad.write_text('{"cniVersion": "1.0.0",\n "name": ')
    words = node.pycni("add", "nosuch", node.sandbox().path).stderr
    assert f"the files there have lab; cannot be used: {bad}:2: " in words


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_a_new_subnet_that_the_host_is_in(node: Node, kind: str) -> None:
    for line in ("link add lan0 type veth peer lan1", "address add 10.50.0.5/24 dev lan0",
                 "link set lan0 up", "link set lan1 up",
                 "route add 10.60.0.0/16 via 10.50.0.1"):  # fmt: skip
        run_in(None, ["ip", *line.split()])
    command = ("init", kind, "--conf-dir", str(node.conf_dir), "--subnet")
    words = node.pycni(*command, "10.50.0.0/16").stderr
    assert "10.50.0.0/16 overlaps with 10.50.0.0/24 of the host's lan0" in words
    assert list(node.conf_dir.iterdir()) == []
    node.pycni(*command, "10.60.1.0/24", code=0)
    node.pycni(*command, "10.50.0.0/16", "--force", code=0)


def test_an_address_plugin_that_is_misspelt(node: Node, plugin_dir: Path) -> None:
    node.write("lab", node.bridge("host-loca"))
    for options in ((), ("--plugin-dir", str(plugin_dir))):
        words = node.pycni("add", "lab", node.sandbox().path, *options).stderr
        assert 'failed to find plugin "host-loca"' in words
        assert 'did you mean "host-local"?' in words
        assert "CNI_PATH] missing" not in words


def test_a_namespace_that_is_missing(node: Node) -> None:
    node.write("lab", node.bridge())
    words = node.pycni("add", "lab", "missing").stderr
    assert "nothing is at /run/netns/missing: --create-netns makes a namespace there" in words


@pytest.mark.parametrize("plugin", ["bridge", "ptp", "dummy"])
def test_an_interface_called_lo(node: Node, plugin: str) -> None:
    node.write("lab", {**node.bridge(), "type": plugin})
    words = node.pycni("add", "lab", node.sandbox().path, "--ifname", "lo").stderr
    assert "lo is the loopback of every namespace: name the interface otherwise" in words
    assert "delete the earlier attachment" not in words


def test_a_pool_that_is_exhausted(node: Node) -> None:
    node.write("lab", node.bridge(subnet="10.77.0.0/30"))
    node.pycni("add", "lab", node.sandbox().path, code=0)
    words = node.pycni("add", "lab", node.sandbox().path).stderr
    assert "1 address held by 1 container, " in words
    assert "'pycni ipam reclaim' frees them" in words


@pytest.mark.parametrize("group", ["ipam", "dhcp"])
def test_a_group_of_commands_alone(node: Node, group: str) -> None:
    words = node.pycni(group).stderr
    assert words.startswith(f"Usage: pycni {group} [OPTIONS] COMMAND")
    assert "Error" not in words


def test_numbers_with_their_nouns(node: Node) -> None:
    node.write("lab", node.bridge())
    box = node.sandbox()
    node.pycni("add", "lab", box.path, code=0)
    box.delete()
    place = ("--data-dir", str(node.folder / "leases"))
    assert "1 address would be freed\n" in node.pycni(
        "ipam", "reclaim", *place, "--dry-run", code=0
    ).stderr  # fmt: skip
    assert node.pycni("ipam", "reclaim", *place, code=0).stderr == "1 address freed\n"
    assert node.pycni("ipam", "reclaim", *place, code=0).stderr == "0 addresses freed\n"


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_status_of_any_version(node: Node, version: str, reference_dir: Path) -> None:
    node.write("lab", node.bridge(subnet="10.77.0.0/30"), version=version)
    assert node.pycni("status", "lab", code=0).stderr == ""
    node.pycni("add", "lab", node.sandbox().path, code=0)
    environ = {**os.environ, "NETCONFPATH": str(node.conf_dir)}
    done = subprocess.run(
        [PYCNI, "status", "lab"], capture_output=True, text=True, check=False, env=environ
    )
    assert "no IP addresses available in range set: 10.77.0.1-10.77.0.2" in done.stderr
    node.write("lab", node.bridge("nosuch"), version=version)
    assert 'failed to find plugin "nosuch"' in node.pycni("status", "lab").stderr
    if version != "1.1.0":
        node.write("lab", node.bridge(), version=version)
        words = node.pycni("status", "lab", "--plugin-dir", str(reference_dir), code=0).stderr
        assert words == (f"could not ask bridge: STATUS came with 1.1.0, and lab is of {version}\n")


def test_where_crio_runs(node: Node) -> None:
    """It deletes at each start what others attached to networks in its directory."""
    words = "warning: CRI-O runs here: whenever it starts, it deletes what others attached"
    elsewhere = ("init", "bridge", "--subnet", "10.77.0.0/24")
    assert words not in node.pycni(*elsewhere, code=0).stderr
    with covered("/etc"):
        crio = ("--conf-dir", "/etc/cni/net.d")
        node.pycni("init", "bridge", "--subnet", "10.77.0.0/24", *crio, code=0)
        assert words not in node.pycni("add", "bridge", node.sandbox().path, *crio, code=0).stderr
        Path("/run/crio").mkdir()
        Path("/run/crio/crio.sock").touch()
        try:
            done = node.pycni("init", "bridge", "--name", "more", *crio, code=0)
            assert words in done.stderr
            done = node.pycni("add", "bridge", node.sandbox().path, *crio, code=0)
            assert words in done.stderr
            assert "--conf-dir" in done.stderr
            done = node.pycni("init", "bridge", "--name", "own", code=0)
            assert words not in done.stderr
        finally:
            Path("/run/crio/crio.sock").unlink()
            Path("/run/crio").rmdir()


def test_not_root(node: Node) -> None:
    """That it may not be seen is not that it is not there; and the cause stands first, alone."""
    for folder in (node.folder, *node.folder.parents[:3]):
        folder.chmod(0o755)
    node.write("lab", {"type": "loopback"}, node.bridge())
    box = node.sandbox()
    place = ("lab", box.path, "--container-id", "one")
    node.pycni("add", *place, code=0)
    words = node.pycni("check", *place, user=NOBODY).stderr
    assert "not attached" not in words
    assert "/var/lib/cni/results: Permission denied" in words
    assert "run this as root" in words
    for command in ("inspect", "repair"):
        assert "run this as root" in node.pycni(command, "lab", user=NOBODY).stderr
    other = ("lab", node.sandbox().path)
    words = node.pycni("add", *other, user=NOBODY).stderr
    assert "the plugin needs the rights of root" in words
    assert len(words.splitlines()) == 2
    assert "undone" not in words
    assert "refused it at" not in words
    words = node.pycni("del", *place, user=NOBODY).stderr
    assert "the plugin needs the rights of root" in words
    assert "refused it at" not in words
    node.pycni("check", *place, code=0)
