"""Whatever one call of the agent waits for, another's goes on; and no launcher waits for the agent.

What is held here is held until the test lets it go, so that the order of events is what is seen: a
call is answered while another one is still held.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from harness import Namespace, Sandbox, ip_json, run_in, run_plugin
from harness.agent import PYCNI, AgentProcess
from harness.configs import host_local
from harness.dhcp import Daemon
from harness.topics.callers import (
    LOOPBACK,
    Caller,
    held,
    leases,
    lock_of,
    running,
    version,
    wait_for,
)

STUCK = 40


def add(agent: AgentProcess, document: dict[str, Any], space: Namespace) -> subprocess.Popen[bytes]:
    """Start a launcher for container c's eth0."""
    launcher = subprocess.Popen(
        [agent.plugins / document["type"]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "c",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": space.path,
            "CNI_PATH": str(agent.plugins),
        },
    )
    assert launcher.stdin is not None
    launcher.stdin.write(json.dumps(document).encode())
    launcher.stdin.close()
    return launcher


# --- one call waits, another goes on -------------------------------------------------------------


def test_a_network_s_lock_holds_no_other_network(agent: AgentProcess, tmp_path: Path) -> None:
    agent.start()
    with held(lock_of(tmp_path, "a")):
        stuck = [Caller(agent, "a", number) for number in range(STUCK)]
        wait_for(lambda: running(agent) == STUCK)
        assert Caller(agent, "b", 0).result()["ips"][0]["address"] == "10.9.0.2/16"
        assert agent.calls() == {("host-local", "ADD"): 1}  # by the agent, and it says of itself
        assert all(caller.is_waiting for caller in stuck)
    addresses = {caller.result()["ips"][0]["address"] for caller in stuck}
    assert len(addresses) == STUCK
    assert agent.calls() == {("host-local", "ADD"): STUCK + 1}


def test_a_full_agent_is_passed_by(agent: AgentProcess, tmp_path: Path) -> None:
    agent.start("--workers", "2")
    with held(lock_of(tmp_path, "a")):
        stuck: list[Caller] = []
        while running(agent) < 2:  # to be asked takes a thread for a moment, too
            stuck.append(Caller(agent, "a", len(stuck)))
            time.sleep(0.1)
        before = agent.refused().get("busy", 0)
        assert Caller(agent, "b", 0).result()["ips"]
        assert version(agent).code == 0
        assert all(caller.is_waiting for caller in stuck)
        assert agent.calls() == {}
        assert agent.refused() == {"busy": before + 2}
        for command in ("status", "metrics"):
            argv = [PYCNI, "agent", command, "--socket", agent.socket]
            reported = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert reported.returncode == 0, reported.stderr
    for caller in stuck:
        caller.result()


def test_a_stdin_that_stays_open_is_its_launcher_s_business(
    agent: AgentProcess, sandbox: Sandbox
) -> None:
    agent.start()
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c",
        "CNI_IFNAME": "lo",
        "CNI_NETNS": sandbox().path,
        "CNI_PATH": str(agent.plugins),
    }
    launcher = subprocess.Popen(
        [agent.plugins / "loopback"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environ,
        text=True,
    )
    assert launcher.stdin is not None
    launcher.stdin.write(json.dumps(LOOPBACK))
    launcher.stdin.flush()
    for _ in range(5):
        assert version(agent).code == 0
    assert running(agent) == 0
    assert agent.calls() == {("loopback", "VERSION"): 5}
    assert json.loads(launcher.communicate()[0])["interfaces"][0]["name"] == "lo"
    assert agent.calls()["loopback", "ADD"] == 1


# --- callers that are gone -----------------------------------------------------------------------


def test_the_wait_of_a_dead_caller_ends(agent: AgentProcess, tmp_path: Path) -> None:
    agent.start()
    with held(lock_of(tmp_path, "a")):
        dead = [Caller(agent, "a", number) for number in range(5)]
        wait_for(lambda: running(agent) == 5)
        for caller in dead:
            caller.kill()
        wait_for(lambda: running(agent) == 0)  # the lock is still held
    assert Caller(agent, "a", 9).result()["ips"]
    assert len(leases(tmp_path, "a")) == 1


def test_a_dead_caller_in_the_middle_of_a_queue_holds_no_one(
    agent: AgentProcess, tmp_path: Path
) -> None:
    agent.start()
    with held(lock_of(tmp_path, "a")):
        callers = []
        for number in range(3):
            callers.append(Caller(agent, "a", number))
            wait_for(lambda: running(agent) == len(callers))
        callers[0].kill()
        wait_for(lambda: running(agent) == 2)
    for caller in callers[1:]:
        assert caller.result()["ips"]
    assert len(leases(tmp_path, "a")) == 2


def test_the_del_of_a_dead_caller_runs_to_its_end(agent: AgentProcess, tmp_path: Path) -> None:
    agent.start()
    Caller(agent, "a", 0).result()
    assert len(leases(tmp_path, "a")) == 1
    with held(lock_of(tmp_path, "a")):
        caller = Caller(agent, "a", 0, "DEL")
        wait_for(lambda: running(agent) == 1)
        caller.kill()
        for _ in range(5):
            version(agent)
        assert running(agent) == 1
    wait_for(lambda: running(agent) == 0)
    assert leases(tmp_path, "a") == []


def test_the_attachment_s_lock_is_waited_for_as_long_as_somebody_wants_it(
    agent: AgentProcess, sandbox: Sandbox, tmp_path: Path
) -> None:
    """Another operation on the attachment is under way: the second one's caller gives up."""
    agent.start()
    space = sandbox()
    document = {
        "cniVersion": "1.1.0",
        "name": "a",
        "type": "bridge",
        "bridge": "br0",
        "ipam": host_local(tmp_path / "leases", subnet="10.9.0.0/16"),
    }
    with held(lock_of(tmp_path, "a")):
        first = add(agent, document, space)
        wait_for(lambda: running(agent) == 1)
        second = add(agent, document, space)
        wait_for(lambda: running(agent) == 2)
        second.kill()
        second.wait()
        wait_for(lambda: running(agent) == 1)
        first.kill()
        first.wait()
        wait_for(lambda: running(agent) == 0)
    assert [link["ifname"] for link in ip_json("link", netns=space)] == ["lo"]
    assert [link["ifname"] for link in ip_json("link")] == ["lo"]
    assert leases(tmp_path, "a") == []


@pytest.mark.parametrize("plugin", ["bridge", "dhcp"])
def test_the_wait_for_a_dhcp_server_ends_with_its_caller(
    plugin: str, agent: AgentProcess, sandbox: Sandbox, tmp_path: Path
) -> None:
    """No one answers, and the daemon would ask for longer than the test waits for anything."""
    agent.start()
    space = sandbox()
    if plugin == "dhcp":  # for which the interface has to be there
        run_in(space, ["ip", "link", "add", "eth0", "type", "veth", "peer", "x"])
        run_in(space, ["ip", "link", "set", "x", "up"])
    before = [ip_json("link", netns=netns) for netns in (None, space)]
    with Daemon(tmp_path / "daemon", "-timeout", "1s", "-resendtimeout", "600s") as daemon:
        ipam = {"type": "dhcp", "daemonSocketPath": str(daemon.socket)}
        document = {
            "cniVersion": "1.1.0", "name": "a", "type": plugin, "bridge": "br0", "ipam": ipam
        }  # fmt: skip
        caller = add(agent, document, space)
        wait_for(lambda: daemon.said("no lease yet"))
        assert Caller(agent, "b", 0).result()["ips"]
        assert agent.calls() == {("host-local", "ADD"): 1}
        assert (running(agent), caller.poll()) == (1, None)
        caller.kill()
        caller.wait()
        wait_for(lambda: running(agent) == 0)
        assert daemon.leases() == []
    if plugin == "bridge":
        assert [ip_json("link", netns=netns) for netns in (None, space)] == before


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["-n 64", "-v 200000"])
def test_what_it_has_no_room_for_is_left_to_launchers(
    limit: str, agent: AgentProcess, sandbox: Sandbox, tmp_path: Path
) -> None:
    agent.start(limit=limit)
    document = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "bridge",
        "bridge": "br0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": host_local(tmp_path / "leases", subnet="10.9.0.0/16"),
    }
    space = sandbox()
    environ = {"CNI_COMMAND": "ADD", "CNI_NETNS": space.path, "CNI_PATH": str(agent.plugins)}
    calls = [
        subprocess.Popen(
            [agent.plugins / "bridge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environ, "CNI_CONTAINERID": f"c{number}", "CNI_IFNAME": f"eth{number}"},
        )
        for number in range(40)
    ]
    for process in calls:
        assert process.stdin is not None
        process.stdin.write(json.dumps(document).encode())
        process.stdin.close()
    for process in calls:
        assert process.stdout is not None
        output = process.stdout.read()
        assert process.wait() == 0, output
    assert len(leases(tmp_path, "net")) == 40
    assert agent.refused()
    assert agent.process is not None
    assert agent.process.poll() is None


# --- a caller that sees other files --------------------------------------------------------------


def test_a_caller_with_another_root_directory_is_refused(
    agent: AgentProcess, sandbox: Sandbox
) -> None:
    """Its paths lead elsewhere, though it shares the mount namespace."""
    agent.start()
    space = sandbox()
    root = Path("/run/another-root")
    root.mkdir()
    run_in(None, ["mount", "--rbind", "/", str(root)])
    try:
        run = run_plugin(
            agent.plugins / "loopback",
            "ADD",
            LOOPBACK,
            prefix=["chroot", str(root)],
            CNI_NETNS=space.path,
        )
    finally:
        run_in(None, ["umount", "-l", str(root)])
        root.rmdir()
    assert run.code == 0, run
    assert (agent.calls(), agent.refused()) == ({}, {"another root directory": 1})
