"""Who does the work: plugins as processes from a directory, or our plugins in this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import native
from scenarios import data_dir

from harness import Namespace, inside
from pycni.agent.executables import install
from pycni.kernel import namespace
from pycni.kernel.netfilter import nfnetlink
from pycni.runtime import namespaces
from pycni.runtime.engine import Engine
from pycni.sdk.request import Request
from pycni.spec.result import Result, encode_result

FOLDER = Path("/run/pycni-bench")
REFERENCE = Path("/usr/lib/cni")
COLD, AGENT, IN_PROCESS = "cold", "agent", "in process"


@dataclass(frozen=True)
class Call:
    """One call of one plugin: what its process gets as environment and stdin, and as an object."""

    plugin: str
    environ: Mapping[str, str]
    stdin: bytes
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Attachment:
    """A container to attach, and the namespace it is in."""

    container_id: str
    netns: str


class Contender:
    """One way of calling plugins; `name` heads its column, `room` is the host that it works on."""

    operations: tuple[str, ...] = ("ADD", "CHECK", "DEL")

    def __init__(self, name: str, room: Namespace, directory: Path) -> None:
        self.name = name
        self.room = room
        self.directory = directory
        self.is_ours = FOLDER in directory.parents

    def arrive(self) -> None:
        """Make ready what is not to be measured, once the thread is in the room."""

    def call(
        self, command: str, config: Mapping[str, Any], attachment: Attachment
    ) -> tuple[Any, float]:
        """One call of the plugin that the config names: its result, and the seconds it took.

        The thread must be in the room already. An error ends the run.
        """
        call = self.prepare(command, config, attachment)
        begin = time.perf_counter()
        outcome = self.perform(call)
        elapsed = time.perf_counter() - begin
        return self._result(call, *outcome), elapsed

    def at_once(
        self, command: str, work: Sequence[tuple[Mapping[str, Any], Attachment]]
    ) -> tuple[float, list[Any]]:
        """Seconds until all of these calls, begun together, are done; and their results."""
        calls = [self.prepare(command, config, attachment) for config, attachment in work]
        begin = time.perf_counter()
        outcomes = self.perform_all(calls)
        elapsed = time.perf_counter() - begin
        results = [
            self._result(call, *outcome) for call, outcome in zip(calls, outcomes, strict=True)
        ]
        return elapsed, results

    def perform(self, call: Call) -> tuple[int, Any]:
        """Exit code, and stdout or what there is in its place."""
        raise NotImplementedError

    def perform_all(self, calls: Sequence[Call]) -> Sequence[tuple[int, Any]]:
        """The same for many calls that run at the same time."""
        raise NotImplementedError

    def prepare(self, command: str, config: Mapping[str, Any], attachment: Attachment) -> Call:
        environ = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": attachment.container_id,
            "CNI_NETNS": attachment.netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.directory),
        }
        return Call(config["type"], environ, json.dumps(config).encode(), config)

    def _result(self, call: Call, code: int, output: Any) -> Any:
        if code != 0:
            command = call.environ["CNI_COMMAND"]
            raise RuntimeError(f"{self.name}: {command} {call.plugin}: {output.decode()}")
        return json.loads(output) if output else None


class Processes(Contender):
    """A process for each call, as a container runtime does it."""

    def perform(self, call: Call) -> tuple[int, bytes]:
        return _end(self._start(call))

    def perform_all(self, calls: Sequence[Call]) -> list[tuple[int, bytes]]:
        return [_end(started) for started in [self._start(call) for call in calls]]

    def argv(self, plugin: str) -> list[str]:
        """What is run for a plugin."""
        return [os.fspath(self.directory / plugin)]

    def _start(self, call: Call) -> tuple[int, int]:
        """Process id and the end of its stdout. Leaner than subprocess, whose time would count."""
        argv = self.argv(call.plugin)
        stdin, writer = os.pipe()
        reader, stdout = os.pipe()
        os.write(writer, call.stdin)  # a pipe holds 64 KiB
        os.close(writer)
        actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
        pid = os.posix_spawn(argv[0], argv, call.environ, file_actions=actions)
        os.close(stdin)
        os.close(stdout)
        return pid, reader


class InProcess(Contender):
    """A function call, as a Python program makes it: nothing is written as JSON or read from it."""

    def arrive(self) -> None:
        # A process has one host. This one goes from room to room, and so closes the sockets it kept
        # in the last one, for which the kernel may make it wait.
        with namespace.current() as here:
            nfnetlink.release(nfnetlink.acquire(here), here)

    def perform(self, call: Call) -> tuple[int, Result | None]:
        engine = Engine((os.fspath(self.directory),))
        request = Request(
            call.environ["CNI_COMMAND"],
            call.config,
            container_id=call.environ["CNI_CONTAINERID"],
            netns=call.environ["CNI_NETNS"],
            ifname=call.environ["CNI_IFNAME"],
        )
        return 0, engine.call(engine.find(call.plugin), request, {})

    def perform_all(self, calls: Sequence[Call]) -> list[tuple[int, Result | None]]:
        with ThreadPoolExecutor(len(calls)) as pool:  # its threads start in this one's namespace
            return list(pool.map(self.perform, calls))

    def _result(self, call: Call, code: int, output: Any) -> Any:
        return None if output is None else encode_result(output, call.config["cniVersion"])


@contextmanager
def room(name: str) -> Iterator[Namespace]:
    """A network namespace that stands for a host of its own; all is gone afterwards."""
    namespace = Namespace.create(f"host-{name}")
    subprocess.run(["ip", "-n", namespace.name, "link", "set", "lo", "up"], check=True)
    try:
        yield namespace
    finally:
        namespace.delete()
        shutil.rmtree(data_dir(namespace.name), ignore_errors=True)


@contextmanager
def sandboxes(count: int, name: str) -> Iterator[list[Attachment]]:
    """Containers with a namespace each."""
    names = [f"{name}-{number}" for number in range(count)]
    try:
        yield [Attachment(each, namespaces.create(each)) for each in names]
    finally:
        for each in names:
            if Path(namespaces.path(each)).exists():
                namespaces.delete(each)


class WithAgent(Processes):
    """The same, with an agent of ours behind the launcher; pid: of the agent."""

    def __init__(self, name: str, host: Namespace, directory: Path, pid: int) -> None:
        super().__init__(name, host, directory)
        self.pid = pid


@contextmanager
def with_agent(name: str, host: Namespace) -> Iterator[WithAgent]:
    """An agent on a host, and the plugins that ask it."""
    folder = FOLDER / "agent" / host.name
    socket = folder / "socket" / "agent.sock"
    install(folder / "bin", socket=socket)
    program = Path(sys.executable).parent / "pycni"
    with inside(host):
        process = subprocess.Popen([program, "agent", "--socket", socket])
    try:
        while not socket.exists():
            if process.poll() is not None:
                raise RuntimeError("the agent did not start")
            time.sleep(0.01)
        yield WithAgent(name, host, folder / "bin", process.pid)
    finally:
        process.terminate()
        process.wait()


def settle() -> None:
    """Wait until the kernel's worker has freed the namespaces that are gone: links and all."""
    quiet = 0
    while quiet < 3:
        quiet = 0 if any("+netns" in name for name in _processes()) else quiet + 1
        time.sleep(0.05)


def _processes() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            yield path.read_text()
        except OSError:
            continue  # it has ended


def cold_plugins() -> Path:
    """The directory of our plugins that ask no agent."""
    directory = FOLDER / "cold"
    if not directory.exists():
        install(directory, socket=None)
    return directory


@contextmanager
def ours(host: Namespace, *ways: str, note: str = "") -> Iterator[list[Contender]]:
    """pycni in the ways that it can be called, all on one host; note: added to their names."""
    with ExitStack() as stack:
        found: list[Contender] = []
        for way in ways or (COLD, AGENT, IN_PROCESS):
            name = f"{way}{note}"
            if way == COLD:
                found.append(Processes(name, host, cold_plugins()))
            elif way == AGENT:
                found.append(stack.enter_context(with_agent(name, host)))
            else:
                found.append(InProcess(name, host, cold_plugins()))
        yield found


@contextmanager
def everyone(peer: Path | None, *ways: str) -> Iterator[list[Contender]]:
    """The reference, a peer if its directory is given, and pycni in these or all ways."""
    with ExitStack() as stack:
        found: list[Contender] = [
            Processes(name, stack.enter_context(room(name)), directory)
            for name, directory in (("reference", REFERENCE), ("peer", peer))
            if directory is not None
        ]
        found += stack.enter_context(ours(stack.enter_context(room("pycni")), *ways))
        yield found


class Floor(Contender):
    """The kernel's own work for a bridge's ADD and DEL, by a program that does nothing else.

    It is given what a plugin has to find out: names, addresses, and that the bridge is there.
    inside: take the program's own time, without its start.
    """

    operations = ("ADD", "DEL")

    def __init__(self, name: str, host: Namespace, *, inside: bool) -> None:
        super().__init__(name, host, native.FOLDER)
        self._program = native.built("floor")
        self._inside = inside
        self._number = 0

    def call(
        self, command: str, config: Mapping[str, Any], attachment: Attachment
    ) -> tuple[Any, float]:
        nanoseconds, elapsed = super().call(command, config, attachment)
        return None, nanoseconds / 1e9 if self._inside else elapsed

    def prepare(self, command: str, config: Mapping[str, Any], attachment: Attachment) -> Call:
        self._number += command == "ADD"
        address = f"10.200.{self._number >> 8 & 255}.{self._number & 255 or 1}"
        words = (command, attachment.netns, config["bridge"], "floor0", address, "10.200.0.1")
        return Call("floor", {}, " ".join(words).encode())

    def perform(self, call: Call) -> tuple[int, bytes]:
        argv = [self._program, *call.stdin.decode().split()]
        reader, stdout = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, stdout, 1)]
        pid = os.posix_spawn(self._program, argv, {}, file_actions=actions)
        os.close(stdout)
        return _end((pid, reader))


def _end(started: tuple[int, int]) -> tuple[int, bytes]:
    pid, reader = started
    chunks = []
    while chunk := os.read(reader, 1 << 16):
        chunks.append(chunk)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), b"".join(chunks)
