"""Whatever one call of the agent waits for, another's goes on; and no launcher waits for the agent.

What is held here is held until the test lets it go, so that the order of events is what is seen: a
call is answered while another one is still held.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Namespace, PluginRun, Sandbox, ip_json, run_in, run_plugin
from harness.agent import PYCNI, AgentProcess
from harness.dhcp import Daemon
from pycni.agent import protocol, server
from pycni.agent.heartbeat import Heartbeat
from pycni.agent.protocol import BEGIN_MS
from pycni.cli.install import LAUNCHER, install

LOOPBACK = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}
STUCK = 40


def leases(tmp_path: Path, network: str) -> list[str]:
    folder = tmp_path / "leases" / network
    return [name for name in os.listdir(folder) if name[0].isdigit()] if folder.exists() else []


class Caller:
    """A launcher that was started, for an address plugin's network of this name."""

    def __init__(
        self, agent: AgentProcess, network: str, number: int, command: str = "ADD"
    ) -> None:
        folder = agent.socket.parents[1] / "leases"
        document = {
            "cniVersion": "1.1.0",
            "name": network,
            "type": "host-local",
            "ipam": {"type": "host-local", "subnet": "10.9.0.0/16", "dataDir": str(folder)},
        }
        self.process = subprocess.Popen(
            [agent.plugins / "host-local"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": f"c{number}",
                "CNI_NETNS": "/nowhere",
                "CNI_IFNAME": "eth0",
                "CNI_PATH": str(agent.plugins),
            },
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(document).encode())
        self.process.stdin.close()

    @property
    def is_waiting(self) -> bool:
        return self.process.poll() is None

    def result(self) -> Any:
        assert self.process.stdout is not None
        output = self.process.stdout.read()
        assert self.process.wait() == 0, output
        return json.loads(output) if output else None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


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


@contextmanager
def held(path: Path) -> Iterator[None]:
    """A lock file that somebody else has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def lock_of(tmp_path: Path, network: str) -> Path:
    return tmp_path / "leases" / network / "lock"


def running(agent: AgentProcess) -> int:
    """How many calls are at work."""
    found: int = agent.state()["running"]
    return found


def wait_for(ready: Callable[[], bool]) -> None:
    for _ in range(3000):
        if ready():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come")


def version(agent: AgentProcess) -> PluginRun:
    return run_plugin(agent.plugins / "loopback", "VERSION", LOOPBACK)


# --- one call waits, another goes on -------------------------------------------------------------


def test_a_network_s_lock_holds_no_other_network(agent: AgentProcess, tmp_path: Path) -> None:
    agent.start()
    with held(lock_of(tmp_path, "a")):
        stuck = [Caller(agent, "a", number) for number in range(STUCK)]
        wait_for(lambda: running(agent) == STUCK)
        assert Caller(agent, "b", 0).result()["ips"][0]["address"] == "10.9.0.2/16"
        assert agent.calls() == {("host-local", "ADD"): 1}  # by the agent, and it tells of itself
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
            told = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert told.returncode == 0, told.stderr
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


def test_a_dead_caller_in_the_middle_of_a_queue_holds_nobody(
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
        "ipam": {
            "type": "host-local",
            "subnet": "10.9.0.0/16",
            "dataDir": str(tmp_path / "leases"),
        },
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
    """Nobody answers, and the daemon would ask for longer than the test waits for anything."""
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


# --- agents that do not begin --------------------------------------------------------------------


def test_a_stopped_agent_is_passed_by_and_does_nothing_later(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    """Its caller gets the ends of its pipes, too: a stopped agent holds none of them."""
    agent = AgentProcess(tmp_path, BEGIN_MS)
    agent.start()
    log, debug = tmp_path / "log", tmp_path / "debug"
    log.write_text("")
    debug.write_text("{}")
    document = {
        "cniVersion": "1.0.0",
        "name": "n",
        "type": "noop",
        "debugFile": str(debug),
        "commandLog": str(log),
    }
    assert agent.process is not None
    agent.process.send_signal(signal.SIGSTOP)
    run = run_plugin(agent.plugins / "noop", "ADD", document, CNI_NETNS=sandbox().path)
    assert run.code == 0, run
    assert len(json.loads(log.read_text())) == 1
    agent.process.send_signal(signal.SIGCONT)
    wait_for(agent.answers)
    wait_for(lambda: sum(agent.refused().values()) == 1)
    assert agent.calls() == {}
    assert len(json.loads(log.read_text())) == 1
    agent.kill()


@pytest.mark.parametrize("room", [True, False], ids=["listens", "its queue is full"])
def test_a_socket_of_somebody_who_says_nothing(room: bool, host: Host, tmp_path: Path) -> None:
    if not LAUNCHER.is_file():
        pytest.skip("the launcher was not compiled")
    path = tmp_path / "agent.sock"
    install(tmp_path / "bin", socket=path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(10 if room else 0)
        if not room:
            filling = socket.socket(socket.AF_UNIX)
            filling.connect(str(path))
        run = run_plugin(tmp_path / "bin" / "loopback", "VERSION", LOOPBACK)
        assert run.code == 0, run
        if not room:
            filling.close()


def test_an_agent_that_begins_at_the_last_moment_is_waited_for(host: Host, tmp_path: Path) -> None:
    """What it said before the launcher stopped listening counts, however late it is read."""
    if not LAUNCHER.is_file():
        pytest.skip("the launcher was not compiled")
    path = tmp_path / "agent.sock"
    install(tmp_path / "bin", socket=path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        outcomes: set[bool] = set()
        chance = random.Random(1)
        # Until both kinds of ending came up; never is a call done by both, nor by none.
        while len(outcomes) < 2:
            delay = chance.uniform(0, 2 * BEGIN_MS / 1000)
            launcher = subprocess.Popen(
                [tmp_path / "bin" / "loopback"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env={"CNI_COMMAND": "VERSION", "CNI_PATH": "/"},
                text=True,
            )
            connection, _ = listener.accept()
            with connection:
                call = protocol.receive_call(connection, 5)
                time.sleep(delay)
                try:
                    connection.sendall(protocol.BEGUN)
                except OSError:
                    begun = False
                else:
                    begun = True
                    time.sleep(
                        2 * BEGIN_MS / 1000
                    )  # longer than the launcher waits for what it has
                    os.write(call.reply, protocol.encode_answer(0, "by the agent"))
                call.close()
                said = launcher.communicate()[0]
            assert launcher.returncode == 0
            assert (said == "by the agent") == begun
            assert begun or json.loads(said)["supportedVersions"]
            outcomes.add(begun)


def test_an_agent_that_gets_on_with_others_is_waited_for(host: Host, tmp_path: Path) -> None:
    """Many times as long as one that does nothing; here a test's thread says that it gets on."""
    if not LAUNCHER.is_file():
        pytest.skip("the launcher was not compiled")
    path = tmp_path / "agent.sock"
    install(tmp_path / "bin", socket=path)
    heartbeat = Heartbeat(path)
    over = threading.Event()

    def get_on() -> None:
        while not over.wait(0.001):
            heartbeat.beat()

    others = threading.Thread(target=get_on)
    others.start()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        said = ""
        for _ in range(50):  # a busy machine may keep that thread from it
            launcher = subprocess.Popen(
                [tmp_path / "bin" / "loopback"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env={"CNI_COMMAND": "VERSION", "CNI_PATH": "/"},
                text=True,
            )
            connection, _ = listener.accept()
            with connection:
                call = protocol.receive_call(connection, 5)
                time.sleep(20 * BEGIN_MS / 1000)
                with contextlib.suppress(OSError):
                    connection.sendall(protocol.BEGUN)
                    os.write(call.reply, protocol.encode_answer(0, "by the agent"))
                call.close()
                said = launcher.communicate()[0]
            if said == "by the agent":
                break
        over.set()
        others.join()
        assert said == "by the agent"


def test_an_agent_that_hangs_up_or_says_something_else(host: Host, tmp_path: Path) -> None:
    if not LAUNCHER.is_file():
        pytest.skip("the launcher was not compiled")
    path = tmp_path / "agent.sock"
    install(tmp_path / "bin", socket=path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        for said in (b"", b"x"):
            launcher = subprocess.Popen(
                [tmp_path / "bin" / "loopback"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env={"CNI_COMMAND": "VERSION", "CNI_PATH": "/"},
            )
            connection, _ = listener.accept()
            with connection:
                connection.sendall(said)
            assert json.loads(launcher.communicate()[0])["supportedVersions"]


# --- what it finds at its standard descriptors ---------------------------------------------------


@pytest.mark.parametrize("running_agent", [True, False], ids=["agent", "cold"])
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors(
    closed: str,
    running_agent: bool,
    agent: AgentProcess,
    sandbox: Sandbox,
    tmp_path: Path,
) -> None:
    if running_agent:
        agent.start()
    space = sandbox()
    environ = "CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=lo CNI_PATH=/x"
    call = f"env {environ} CNI_NETNS={space.path} {agent.plugins}/loopback"
    document = tmp_path / "document"
    document.write_text(json.dumps(LOOPBACK))
    done = run_in(None, ["sh", "-c", f"{call} < {document} {closed}; echo code $?"], check=False)
    text, _, code = done.stdout.rpartition("code ")
    if "<" in closed:
        assert int(code) == 1
        assert ">&- 2" in closed or json.loads(text)["code"] == 6
        assert ip_json("link", netns=space)[0]["operstate"] == "DOWN"
    else:
        # A result that could not be written is no success.
        assert int(code) == (1 if closed == ">&-" else 0)
        assert closed == ">&-" or json.loads(text)["interfaces"][0]["name"] == "lo"
    assert "Traceback" not in done.stderr
    assert len(agent.calls()) == 1 if running_agent else True


@pytest.mark.parametrize("running_agent", [True, False], ids=["agent", "cold"])
def test_nobody_reads_stdout(running_agent: bool, agent: AgentProcess, sandbox: Sandbox) -> None:
    """An exit code, not a death by a signal."""
    if running_agent:
        agent.start()
    reader, writer = os.pipe()
    os.close(reader)
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c",
        "CNI_IFNAME": "lo",
        "CNI_NETNS": sandbox().path,
        "CNI_PATH": "/x",
    }
    done = subprocess.run(
        [agent.plugins / "loopback"],
        input=json.dumps(LOOPBACK).encode(),
        stdout=writer,
        env=environ,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 1


@pytest.mark.parametrize("running_agent", [True, False], ids=["agent", "cold"])
def test_a_long_stdin_and_one_that_is_too_long(running_agent: bool, agent: AgentProcess) -> None:
    if running_agent:
        agent.start()
    for size, word in ((3 << 20, "supportedVersions"), (17 << 20, '"code"')):
        document = json.dumps({**LOOPBACK, "ballast": "x" * size})
        command = "VERSION" if size < 16 << 20 else "STATUS"
        run = run_plugin(agent.plugins / "loopback", command, document)
        assert word in run.stdout
    if running_agent:
        assert sum(agent.calls().values()) == 2


# --- an agent that ends, and the next ------------------------------------------------------------


def test_a_stopping_agent_takes_no_call_and_lets_the_next_in(
    agent: AgentProcess, tmp_path: Path
) -> None:
    agent.start()
    first = agent.process
    assert first is not None
    with held(lock_of(tmp_path, "a")):
        stuck = Caller(agent, "a", 0)
        wait_for(lambda: running(agent) == 1)
        first.terminate()
        wait_for(lambda: not agent.socket.exists())
        assert version(agent).code == 0
        agent.start()
        assert version(agent).code == 0
        assert agent.calls() == {("loopback", "VERSION"): 1}
        assert first.poll() is None
        assert stuck.is_waiting
    assert stuck.result()["ips"]
    assert first.wait(timeout=20) == 0
    assert agent.answers()  # the socket is its own
    assert version(agent).code == 0


def test_a_socket_that_was_removed_is_the_next_agent_s(agent: AgentProcess) -> None:
    agent.start()
    first = agent.process
    assert first is not None
    agent.socket.unlink()
    agent.start()
    first.terminate()
    assert first.wait(timeout=20) == 0
    assert agent.answers()


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
        "ipam": {
            "type": "host-local",
            "subnet": "10.9.0.0/16",
            "dataDir": str(tmp_path / "leases"),
        },
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


# --- an upgrade ----------------------------------------------------------------------------------


@pytest.fixture
def copied(agent: AgentProcess, tmp_path: Path) -> Path:
    """A copy of the package, for an agent whose launchers are of the original."""
    copy = tmp_path / "copy"
    shutil.copytree(Path(server.__file__).parents[1], copy / "pycni")
    agent.start(package=copy)
    return copy / "pycni"


def test_an_upgrade_in_place_mixes_nothing(
    copied: Path, agent: AgentProcess, sandbox: Sandbox, tmp_path: Path
) -> None:
    """Whatever a call needs was loaded before: the files may be anything by now."""
    for path in copied.rglob("*.py"):
        if path != copied / "__init__.py":
            path.write_text("raise SystemExit('of another release')\n")
    space = sandbox()
    bridge = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "bridge",
        "bridge": "br0",
        "isDefaultGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "subnet": "10.9.0.0/16",
            "dataDir": str(tmp_path / "leases"),
        },
    }
    portmap = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "portmap",
        "runtimeConfig": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
        },
    }
    tuning = {**LOOPBACK, "cniVersion": "1.1.0", "name": "net", "type": "tuning", "mtu": 1400}
    sbr = {**LOOPBACK, "cniVersion": "1.1.0", "name": "net", "type": "sbr"}
    firewall = {**LOOPBACK, "cniVersion": "1.1.0", "name": "net", "type": "firewall"}
    previous: dict[str, Any] = {}
    served = 0
    plugins = (bridge, portmap, firewall, tuning, sbr)
    for document in plugins:
        run = run_plugin(
            agent.plugins / str(document["type"]),
            "ADD",
            {**document, **previous},
            CNI_NETNS=space.path,
        )
        assert run.code == 0, run
        previous = {"prevResult": run.result}
        served += 1
    for command in ("CHECK", "DEL"):
        for document in plugins if command == "CHECK" else reversed(plugins):
            run = run_plugin(
                agent.plugins / str(document["type"]),
                command,
                {**document, **previous},
                CNI_NETNS=space.path,
            )
            assert run.code == 0, run
            served += 1
    assert sum(agent.calls().values()) == served


def test_an_agent_whose_package_was_replaced_leaves(copied: Path, agent: AgentProcess) -> None:
    assert version(agent).code == 0
    assert sum(agent.calls().values()) == 1
    before = (copied / "__init__.py").read_text()
    (copied / "__init__.py").unlink()
    (copied / "__init__.py").write_text(before)
    assert version(agent).code == 0  # by its launcher
    assert agent.process is not None
    said = agent.process.communicate(timeout=20)[1]
    assert agent.process.returncode == 1
    assert "the package has been replaced" in said
    assert not agent.socket.exists()
