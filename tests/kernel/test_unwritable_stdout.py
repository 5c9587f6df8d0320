"""ADD whose result cannot be written: no one knows of the attachment, so there is none."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Namespace, Sandbox, ip_json, nft_list
from harness.agent import PYCNI
from harness.kernel_state import veths
from harness.ways import Way, notes, way_of

STDOUT = pytest.mark.parametrize("stdout", ["full", "no one reads"])


@pytest.fixture(params=["cold", "agent"])
def way(
    request: pytest.FixtureRequest, host: Host, tmp_path: Path, plugin_dir: Path
) -> Iterator[Way]:
    with way_of(request.param, tmp_path, plugin_dir) as found:
        yield found


def unwritable(kind: str) -> int:
    """A descriptor that can be written to as little as the name says."""
    if kind == "full":
        return os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def config(way: Way, **keys: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0", "name": "n", "type": "bridge", "bridge": "br1", "ipMasq": True,
        "isDefaultGateway": True, "ipam": way.host_local("10.61.0.0/24"), **keys,
    }  # fmt: skip


def call(way: Way, plugin: str, stdin: dict[str, Any], stdout: int, box: Namespace) -> int:
    environ = {
        "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "a", "CNI_NETNS": box.path, "CNI_IFNAME": "eth0",
        "CNI_PATH": str(way.plugins), "PATH": os.environ["PATH"],
    }  # fmt: skip
    try:
        done = subprocess.run(
            [way.plugins / plugin],
            input=json.dumps(stdin).encode(), stdout=stdout, env=environ, check=False,
        )  # fmt: skip
    finally:
        os.close(stdout)
    return done.returncode


def left_over(way: Way, box: Namespace) -> tuple[Any, ...]:
    inside = [link["ifname"] for link in ip_json("link", "show", netns=box)]
    return inside, veths(), "10.61.0.2" in str(nft_list()), way.leases("n"), notes(), way.cached()


NOTHING: tuple[Any, ...] = (["lo"], [], False, {}, [], [])


@STDOUT
def test_a_plugin(way: Way, sandbox: Sandbox, stdout: str) -> None:
    box = sandbox()
    assert call(way, "bridge", config(way), unwritable(stdout), box) != 0
    assert left_over(way, box) == NOTHING


@STDOUT
def test_an_address_plugin(way: Way, sandbox: Sandbox, stdout: str) -> None:
    box = sandbox()
    stdin = {"cniVersion": "1.1.0", "name": "n", "ipam": way.host_local("10.61.0.0/24")}
    assert call(way, "host-local", stdin, unwritable(stdout), box) != 0
    assert left_over(way, box) == NOTHING


@STDOUT
@pytest.mark.parametrize("output", ["json", "table"])
def test_the_command(way: Way, sandbox: Sandbox, stdout: str, output: str) -> None:
    box = sandbox()
    folder = way.folder / "net.d"
    folder.mkdir()
    document = config(way)
    listed = {"cniVersion": "1.1.0", "name": "n", "plugins": [document]}
    (folder / "n.conflist").write_text(json.dumps(listed))
    descriptor = unwritable(stdout)
    try:
        done = subprocess.run(
            [
                PYCNI, "add", "n", box.path, "--container-id", "a", "--conf-dir", folder,
                "--cache-dir", way.folder / "cni", "--plugin-dir", way.plugins, "-o", output,
            ],
            stdout=descriptor, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    finally:
        os.close(descriptor)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert left_over(way, box) == NOTHING


def test_what_can_be_written_stays(way: Way, sandbox: Sandbox) -> None:
    box = sandbox()
    assert call(way, "bridge", config(way), os.open("/dev/null", os.O_WRONLY), box) == 0
    assert way.leases("n") == {"10.61.0.2": "a/eth0"}
