"""Callers of the agent that are not launchers: what they send costs it little, and others nothing.

Who may connect is root, or the agent's own user; so this is about faults more than about malice.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import Namespace, Sandbox, ip_json, run_plugin
from harness.agent import AgentProcess
from pycni import __version__
from pycni.agent import protocol, server
from pycni.agent.listener import listen
from pycni.agent.metrics import LONGEST_ERROR, Metrics
from pycni.sdk.execute import write_or_give_up
from pycni.spec.errors import CNIError

LOOPBACK = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}
STDIN = json.dumps(LOOPBACK).encode()


@pytest.fixture
def agent(agent: AgentProcess) -> AgentProcess:
    agent.start("--workers", "4", "--waiting", "4")
    return agent


def environ(space: Namespace, command: str = "ADD") -> dict[str, str]:
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "one",
        "CNI_NETNS": space.path,
        "CNI_IFNAME": "lo",
        "CNI_PATH": "/nowhere",
    }


@contextmanager
def connected(agent: AgentProcess) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(agent.socket))
        yield connection


def send(connection: socket.socket, variables: dict[str, str], *descriptors: int) -> None:
    data = protocol.encode_call(__version__, "loopback", variables)
    socket.send_fds(connection, [data], descriptors)


def descriptors_of(agent: AgentProcess) -> int:
    assert agent.process is not None
    return len(os.listdir(f"/proc/{agent.process.pid}/fd"))


def assert_idle(agent: AgentProcess, descriptors: int) -> None:
    """It serves, and holds nothing of what was; waits for what it still has to notice."""
    for _ in range(500):
        idle = agent.answers() and json.loads(server.ask(agent.socket))["running"] == 0
        # The question about it has a descriptor of its own for a moment.
        if idle and descriptors_of(agent) <= descriptors + 1:
            return
        time.sleep(0.01)
    raise AssertionError(f"{descriptors_of(agent)} descriptors, {descriptors} before")


def pipe_with(data: bytes) -> int:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


def file_with(data: bytes, size: int = 0) -> int:
    """A file as a launcher makes it for stdin; size: what it is to seem to have."""
    descriptor = os.memfd_create("stdin")
    os.write(descriptor, data)
    if size:
        os.ftruncate(descriptor, size)
    return descriptor


def write_end() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


# What cannot be read whole at once, and so is left to the launcher; and what says nothing.
STDINS: dict[str, Callable[[], int]] = {
    "a directory": lambda: os.open("/", os.O_RDONLY),
    "a path": lambda: os.open("/etc/passwd", os.O_PATH),
    "a pipe": lambda: pipe_with(STDIN),
    "a pipe's other end": write_end,
    "zeros without end": lambda: os.open("/dev/zero", os.O_RDONLY),
    "a socket": lambda: hung_up().detach(),
    "a namespace": lambda: os.open("/proc/self/ns/net", os.O_RDONLY),
    "random bytes": lambda: file_with(os.urandom(4096)),
    "more than can be read": lambda: file_with(STDIN, 1 << 40),
}
NAMESPACES: dict[str, Callable[[], int]] = {
    "a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "a directory": lambda: os.open("/", os.O_RDONLY),
    "a path": lambda: os.open("/proc/self/ns/net", os.O_PATH),
    "another kind of namespace": lambda: os.open("/proc/self/ns/uts", os.O_RDONLY),
    "a pipe": lambda: pipe_with(b""),
    "a socket": lambda: listening().detach(),
}


def hung_up() -> socket.socket:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours


def listening() -> socket.socket:
    listener = socket.socket(socket.AF_INET)
    listener.listen()
    return listener


def ask_with(
    agent: AgentProcess, variables: dict[str, str], descriptors: list[int]
) -> tuple[int, str]:
    try:
        with connected(agent) as connection:
            data = protocol.encode_call(__version__, "loopback", variables)
            return protocol.ask(connection, data, *descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.mark.parametrize("kind", STDINS)
def test_stdin_of_another_kind(kind: str, agent: AgentProcess, sandbox: Sandbox) -> None:
    space = sandbox()
    before = descriptors_of(agent)
    given = [STDINS[kind](), file_with(b""), os.open(space.path, os.O_RDONLY)]
    try:
        code, output = ask_with(agent, environ(space), given)
    except ConnectionError:
        assert agent.calls() == {}  # refused
    else:
        assert code == 1
        assert json.loads(output)["code"] in (5, 6)
    assert ip_json("link", netns=space)[0]["operstate"] == "DOWN"
    assert_idle(agent, before)


@pytest.mark.parametrize("kind", NAMESPACES)
def test_namespace_of_another_kind(kind: str, agent: AgentProcess, sandbox: Sandbox) -> None:
    before = descriptors_of(agent)
    given = [file_with(STDIN), os.open("/dev/null", os.O_WRONLY), NAMESPACES[kind]()]
    code, output = ask_with(agent, environ(sandbox()), given)
    assert code == 1
    assert json.loads(output)["code"] == 8
    assert_idle(agent, before)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH])
def test_stderr_that_cannot_be_written(flags: int, agent: AgentProcess, sandbox: Sandbox) -> None:
    """The answer comes all the same: what was asked for has been done."""
    variables = {**environ(sandbox()), "CNI_COMMAND": ""}  # says of the plugin on stderr
    given = [file_with(b""), os.open("/etc/passwd", flags)]
    assert ask_with(agent, variables, given) == (0, "")


def test_stderr_that_no_one_reads() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, bytes(4096)):
            pass
    os.set_blocking(writer, True)
    write_or_give_up(writer, b"text", 0.1)  # returns
    os.close(reader)
    write_or_give_up(writer, b"text")  # to a pipe without a reader, too
    os.close(writer)


def test_too_many_descriptors(agent: AgentProcess, sandbox: Sandbox) -> None:
    before = descriptors_of(agent)
    for count in (0, 1, 2, 5, 200):
        with connected(agent) as connection:
            send(connection, environ(sandbox()), *([0] * count))
            assert connection.recv(1) == b""
    assert_idle(agent, before)
    assert agent.calls() == {}


def test_descriptors_with_garbage(agent: AgentProcess) -> None:
    """What comes with a request that is none is closed."""
    before = descriptors_of(agent)
    for data in (b"x", b"\xff" * 100, b"\1\0\0\0\5\0\0\0abcde"):
        with connected(agent) as connection:
            socket.send_fds(connection, [data], [0, 1, 2])
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
    assert_idle(agent, before)


def test_more_connections_than_it_takes(agent: AgentProcess, sandbox: Sandbox) -> None:
    """All but a few are hung up on; launchers serve themselves; then all is as before."""
    before = descriptors_of(agent)
    held: list[socket.socket] = []
    for _ in range(400):
        held.append(socket.socket(socket.AF_UNIX))
        held[-1].connect(str(agent.socket))
    space = sandbox()
    run = run_plugin(agent.plugins / "loopback", "ADD", LOOPBACK, CNI_NETNS=space.path)
    assert run.code == 0
    assert descriptors_of(agent) < before + 20
    assert agent.process is not None
    assert len(os.listdir(f"/proc/{agent.process.pid}/task")) <= 6
    for connection in held:
        connection.close()
    assert_idle(agent, before)
    assert agent.refused()["busy"] > 300


def test_request_that_trickles_in() -> None:
    """A byte now and then does not keep a thread: the time is for the whole request."""
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def trickle() -> None:
        data = protocol.encode_call(__version__, "loopback", {"X": "y" * 5000})
        for number in range(len(data)):
            if stop.wait(0.01):
                return
            ours.send(data[number : number + 1])

    def trickle_on(connection: socket.socket) -> None:
        connection.sendall(protocol.encode_call(__version__, "x", {"X": "y" * 5000})[:100])
        trickle()

    for way in (trickle, lambda: trickle_on(ours)):
        sender = threading.Thread(target=way)
        sender.start()
        with pytest.raises((protocol.Refused, OSError)):
            protocol.receive_call(theirs, 0.3)
        assert sender.is_alive()
        stop.set()
        sender.join()
        stop.clear()
    ours.close()
    theirs.close()


def test_hanging_up_at_every_point(agent: AgentProcess, sandbox: Sandbox) -> None:
    before = descriptors_of(agent)
    data = protocol.encode_call(__version__, "loopback", environ(sandbox()))
    for size in range(0, len(data), 7):
        with connected(agent) as connection:
            socket.send_fds(connection, [data[:size] or b"\1"], [0])
    for number in range(10):
        stdin, stdin_writer = os.pipe()
        # It may be busy with the ones before.
        with connected(agent) as connection, contextlib.suppress(ConnectionError):
            send(connection, environ(sandbox()), stdin, 2, stdin_writer)
            if number % 2:
                assert connection.recv(1) in (protocol.BEGUN, b"")
                os.write(stdin_writer, STDIN[: number * 4])
        os.close(stdin_writer)
        os.close(stdin)
    assert_idle(agent, before)


def test_environment_too_long_for_a_request(agent: AgentProcess, sandbox: Sandbox) -> None:
    """The launcher does not send it, and serves the call itself."""
    space = sandbox()
    run = run_plugin(
        agent.plugins / "loopback", "ADD", LOOPBACK, CNI_NETNS=space.path, BALLAST="x" * 70000
    )
    assert run.code == 0
    assert agent.calls() == {}


def test_what_it_counts_is_bounded(agent: AgentProcess, sandbox: Sandbox) -> None:
    """Commands that no one knows are one series, and errors are kept in part, and few of them."""
    space = sandbox()
    for number in range(30):
        given = [file_with(STDIN), os.open("/dev/null", os.O_WRONLY)]
        ask_with(agent, environ(space, f"command-{number}"), given)
    assert agent.calls() == {("loopback", "other"): 30}
    metrics = Metrics()
    for number in range(100):
        metrics.begin()
        metrics.end("bridge", "ADD", 0.1, f"{number}" + "x" * 10**6)
    assert len(metrics.to_json()["errors"]) < 50
    assert all(len(error["error"]) <= LONGEST_ERROR for error in metrics.to_json()["errors"])


def test_socket_s_directory_behind_a_link(tmp_path: Path) -> None:
    """No one leads root's agent to listen elsewhere."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(CNIError):
        listen(tmp_path / "link" / "agent.sock")
    assert os.listdir(tmp_path / "real") == []


def test_what_is_under_the_socket_s_name(tmp_path: Path) -> None:
    """What is no socket is replaced, without following it; what is a directory is an error."""
    folder = tmp_path / "agent"
    folder.mkdir(mode=0o700)
    secret = tmp_path / "secret"
    secret.write_text("as it was")
    path = folder / "agent.sock"
    path.symlink_to(secret)
    listen(path)
    assert stat.S_ISSOCK(path.lstat().st_mode)
    assert secret.read_text() == "as it was"
    path.unlink()
    path.mkdir()
    with pytest.raises(CNIError):
        listen(path)


def test_descriptors_are_not_inherited_by_programs() -> None:
    """A delegate's process that one call starts must not hold another caller's stderr open."""
    ours, theirs = socket.socketpair()
    socket.send_fds(ours, [protocol.encode_call("1", "bridge", {})], [0, 1])
    call = protocol.receive_call(theirs, 5)
    assert [os.get_inheritable(descriptor) for descriptor in call.descriptors] == [False, False]
    listed = subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, check=True)
    assert not {str(descriptor) for descriptor in call.descriptors} & set(listed.stdout.split())
    call.close()
    ours.close()
    theirs.close()
