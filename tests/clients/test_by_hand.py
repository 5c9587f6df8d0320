"""Containers that an engine left without a network, and mere namespaces, attached by `pycni`.

So the article does it with Docker: the engine runs the container, CNI wires it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import run_in
from harness.agent import PYCNI
from harness.clients import PAGE, Plugins, leases, links, mentions, output, page, served
from harness.dhcp import eventually
from harness.podman import Podman

PORTS = 'portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]'


@pytest.fixture
def pycni(machine: None, network: dict[str, Any], tmp_path: Path) -> Callable[..., str]:
    """The command, with the network in its folder. Without --plugin-dir nothing else is needed."""
    folder = tmp_path / "networks"
    folder.mkdir()
    (folder / "lab.conflist").write_text(json.dumps(network))
    return lambda *words: output(PYCNI, *words, NETCONFPATH=str(folder))


def where(plugins: Plugins) -> tuple[str, ...]:
    """The options for these plugins. pycni runs its own in its process, unless asked otherwise."""
    engine = ("--engine", "exec") if plugins.agent else ()
    return ("--plugin-dir", str(plugins.folder), *engine)


def test_container_without_network(podman: Podman, pycni: Callable[..., str]) -> None:
    """`podman run --network none`, then add, check and del, as for a container of Docker."""
    podman.serve("web", "--network", "none")
    netns = f"/proc/{podman('inspect', '--format', '{{.State.Pid}}', 'web')}/ns/net"
    place = ("lab", netns, "--container-id", "web", *where(podman.plugins))
    result = json.loads(pycni("add", *place, "--cap", PORTS))
    assert [entry["address"] for entry in result["ips"]] == ["10.88.0.2/16"]
    assert "inet 10.88.0.2/16 " in podman("exec", "web", "ip", "address", "show", "dev", "eth0")
    assert page("10.88.0.2") == page("127.0.0.1", 8080) == PAGE
    podman("exec", "web", "ping", "-c", "1", "-W", "2", "10.88.0.1")
    if podman.plugins.kind == "reference":  # its portmap looks for IPv6 rules it has not made
        with pytest.raises(AssertionError, match="could not check ipv6 dnat"):
            pycni("check", *place)
    else:
        assert pycni("check", *place) == ""

    assert pycni("del", *place) == ""
    assert mentions("10.88.0.2", "web", "8080") == []
    assert not served("127.0.0.1", 8080)
    assert "eth0" not in podman("exec", "web", "ip", "link")
    assert links() == ["cni0"]


@pytest.mark.parametrize("plugins", ["ours", "agent"], indirect=True)
def test_container_that_ended_first(podman: Podman, pycni: Callable[..., str]) -> None:
    """DEL comes when the namespace has gone, and still takes away what was mapped and leased."""
    podman.serve("web", "--network", "none")
    netns = f"/proc/{podman('inspect', '--format', '{{.State.Pid}}', 'web')}/ns/net"
    place = ("lab", netns, "--container-id", "web", *where(podman.plugins))
    pycni("add", *place, "--cap", PORTS)
    podman.remove("web")
    assert leases() == ["10.88.0.2"]
    assert pycni("del", *place) == ""
    assert mentions("10.88.0.2", "web", "8080") == []
    assert links() == ["cni0"]


def test_namespaces_of_unshare(pycni: Callable[..., str]) -> None:
    """Two processes in namespaces of their own, and nothing but `pycni`."""
    with unshared() as one, unshared() as other:
        pycni("add", "lab", f"/proc/{one}/ns/net", "--container-id", "one")
        pycni("add", "lab", f"/proc/{other}/ns/net", "--container-id", "other")
        assert leases() == ["10.88.0.2", "10.88.0.3"]
        run_in(None, ["nsenter", f"--net=/proc/{one}/ns/net", "ping", "-c1", "-W2", "10.88.0.3"])
        pycni("del", "lab", f"/proc/{one}/ns/net", "--container-id", "one")
        pycni("del", "lab", f"/proc/{other}/ns/net", "--container-id", "other")
    assert mentions("10.88.0.2", "10.88.0.3", "one", "other") == []
    assert links() == ["cni0"]


@contextmanager
def unshared() -> Iterator[int]:
    """A process in a network namespace of its own; its id."""
    process = subprocess.Popen(["unshare", "--net", "sleep", "1000"])
    try:
        mine = os.stat("/proc/thread-self/ns/net").st_ino
        eventually(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino != mine, "not unshared")
        yield process.pid
    finally:
        process.kill()
        process.wait()
