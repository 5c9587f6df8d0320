"""Agents that do not begin, and what launchers and agents find at standard descriptors."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from harness import Host, Sandbox, ip_json, run_in, run_plugin
from harness.agent import AgentProcess
from harness.topics.callers import LOOPBACK, ask_version, in_the_agents_place, wait_for
from pycni.agent import protocol
from pycni.agent.heartbeat import Heartbeat
from pycni.agent.protocol import BEGIN_MS

# --- agents that do not begin --------------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("room", [True, False], ids=["listens", "its queue is full"])
def test_a_socket_of_somebody_who_says_nothing(room: bool, host: Host, tmp_path: Path) -> None:
    with in_the_agents_place(tmp_path, 10 if room else 0):
        if not room:
            filling = socket.socket(socket.AF_UNIX)
            filling.connect(str(tmp_path / "agent.sock"))
        run = run_plugin(tmp_path / "bin" / "loopback", "VERSION", LOOPBACK)
        assert run.code == 0, run
        if not room:
            filling.close()


def test_an_agent_that_begins_at_the_last_moment_is_waited_for(host: Host, tmp_path: Path) -> None:
    """What it said before the launcher stopped listening counts, however late it is read."""
    with in_the_agents_place(tmp_path) as listener:
        outcomes: set[bool] = set()
        chance = random.Random(1)
        # Until both kinds of ending came up; never is a call done by both, nor by none.
        while len(outcomes) < 2:
            delay = chance.uniform(0, 2 * BEGIN_MS / 1000)
            launcher = ask_version(tmp_path)
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
                    # longer than the launcher waits for what it has
                    time.sleep(2 * BEGIN_MS / 1000)
                    os.write(call.reply, protocol.encode_answer(0, "by the agent"))
                call.close()
                said = launcher.communicate()[0]
            assert launcher.returncode == 0
            assert (said == "by the agent") == begun
            assert begun or json.loads(said)["supportedVersions"]
            outcomes.add(begun)


def test_an_agent_that_gets_on_with_others_is_waited_for(host: Host, tmp_path: Path) -> None:
    """Many times as long as one that does nothing; here a test's thread says that it gets on."""
    with in_the_agents_place(tmp_path) as listener:
        heartbeat = Heartbeat(tmp_path / "agent.sock")
        over = threading.Event()

        def get_on() -> None:
            while not over.wait(0.001):
                heartbeat.beat()

        others = threading.Thread(target=get_on)
        others.start()
        said = ""
        for _ in range(50):  # a busy machine may keep that thread from it
            launcher = ask_version(tmp_path)
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
    with in_the_agents_place(tmp_path) as listener:
        for said in (b"", b"x"):
            launcher = ask_version(tmp_path)
            connection, _ = listener.accept()
            with connection:
                connection.sendall(said)
            assert json.loads(launcher.communicate()[0])["supportedVersions"]


# --- what it finds at its standard descriptors ---------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("running_agent", [True, False], ids=["agent", "cold"])
def test_no_one_reads_stdout(running_agent: bool, agent: AgentProcess, sandbox: Sandbox) -> None:
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


@pytest.mark.slow
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
