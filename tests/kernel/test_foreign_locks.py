"""Locks that somebody else takes: a container's processes, or any user of the host, hold up no one.

Anyone who can open a file can lock it. So nothing is waited for that is locked on a file which
others can open: a namespace, seen from inside or by its file on the host, or the directory of such
files.
"""

from __future__ import annotations

import fcntl
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import Host, Namespace, Sandbox, ip_json, run_in
from harness.locks import NOBODY, held
from harness.ways import Way, way_of
from pycni.kernel import namespace
from pycni.runtime import Canceled, Cancellation, Network
from pycni.spec.errors import TRY_AGAIN_LATER, CNIError
from pycni.state import files, sandboxes
from pycni.state.sandboxes import SandboxLock


def routed(way: Way) -> Network:
    bridge = {
        "type": "bridge",
        "bridge": "br0",
        "isDefaultGateway": True,
        "ipam": way.host_local("10.71.0.0/24"),
    }
    return way.network("n", bridge, {"type": "sbr"})


def rules(space: Namespace) -> str:
    return run_in(space, ["ip", "rule"]).stdout


@pytest.mark.parametrize("who", ["a process inside", "a user of the host"])
def test_a_namespace_that_somebody_else_has_locked(who: str, way: Way, sandbox: Sandbox) -> None:
    space = sandbox()
    network = routed(way)
    if who == "a process inside":
        holder = held("/proc/self/ns/net", "nsenter", f"--net={space.path}")
    else:
        holder = held(space.path, *NOBODY)
    with holder:
        address = str(network.add("c", space.path).ips[0].address.address)
        assert f"from {address} lookup" in rules(space)
        network.check("c", space.path)
        run_in(space, ["ip", "rule", "del", "from", address])
        (repaired,) = network.repair()
        assert repaired.ok
        assert f"from {address} lookup" in rules(space)
        network.delete("c", space.path)
    assert [link["ifname"] for link in ip_json("link", netns=space)] == ["lo"]
    assert way.leases("n") == {}
    assert os.listdir(sandboxes.DIRECTORY) == []


def test_a_wait_for_a_lease_ends_when_the_program_gives_up(
    host: Host, sandbox: Sandbox, tmp_path: Path, plugin_dir: Path
) -> None:
    """In process; what an agent's callers do is in test_agent_isolation.py."""
    space = sandbox()
    calls: list[str] = []
    with way_of("in process", tmp_path, plugin_dir) as way:
        document = {
            "cniVersion": "1.1.0",
            "name": "n",
            "type": "host-local",
            "ipam": way.host_local("10.71.0.0/24"),
        }
        network = Network.from_dict(
            document, cache_dir=tmp_path / "cni", on_call=lambda command, _: calls.append(command)
        )
        lock = tmp_path / "cni/networks/n/lock"
        lock.parent.mkdir(parents=True)
        lock.touch()
        cancel = Cancellation()
        with ThreadPoolExecutor(1) as pool:
            with held(str(lock)):
                adding = pool.submit(network.add, "c", space.path, cancel=cancel)
                while not files._queues:
                    time.sleep(0.001)
                cancel.cancel()
                while calls != ["ADD", "DEL"]:  # it is being undone, which is not given up
                    time.sleep(0.001)
            with pytest.raises(Canceled):
                adding.result()
        assert way.leases("n") == {}
        assert way.cached() == []


def test_the_directory_of_namespaces_that_a_user_has_locked(host: Host) -> None:
    """Also where it is not yet a mount of its own, and `ip netns` takes that lock."""
    for mounted in (True, False):
        if not mounted:
            run_in(None, ["umount", "-l", namespace.NAMED], check=False)
        with held(namespace.NAMED, *NOBODY):
            namespace.create_named("locked").close()
            namespace.delete_named("locked")


def test_a_sandbox_is_locked_for_one_at_a_time(host: Host) -> None:
    """Its file is removed each time, and still no two are inside."""
    inside: list[int] = []
    overlaps: list[int] = []

    def work(_: int) -> None:
        for _ in range(50):
            with SandboxLock(4, 77):
                overlaps.extend(inside)
                inside.append(1)
                inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert overlaps == []
    assert os.listdir(sandboxes.DIRECTORY) == []
    status = os.stat(sandboxes.DIRECTORY)
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o700)


def test_a_sandbox_that_is_locked_is_not_waited_for_without_a_caller(host: Host) -> None:
    reader, writer = os.pipe()
    with SandboxLock(4, 77):
        os.close(writer)  # the caller is gone
        with pytest.raises(CNIError, match="cancelled while waiting for") as caught:
            SandboxLock(4, 77, reader).__enter__()
    os.close(reader)
    assert caught.value.code == TRY_AGAIN_LATER
    path = f"{sandboxes.DIRECTORY}/4-77"
    with SandboxLock(4, 77), open(path) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
