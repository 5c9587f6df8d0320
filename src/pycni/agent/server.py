"""The agent's server: takes calls from launchers and serves them in threads.

Bounded in all directions: as many calls at once as there are threads, as many waiting as the queue
holds, every further one refused at once, so that its launcher serves it in a process of its own.
A call is refused as well, before anything is done, if it comes from another user, from another
network or mount namespace, where paths and "the host" mean something else, or from another version.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import select
import signal
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pycni import __version__, plugins
from pycni.agent import protocol, systemd
from pycni.agent.metrics import Metrics
from pycni.sdk.dispatch import VERSION_SECONDS, serve
from pycni.sdk.execute import tell
from pycni.spec.errors import IO_FAILURE, CNIError
from pycni.spec.jsontext import MAX_SIZE

if TYPE_CHECKING:
    from pycni.runtime.repair import Repaired

WORKERS = 32
WAITING = 256
REQUEST_SECONDS = 5.0  # for a launcher to say what it wants
STDIN_SECONDS = 30.0  # for a runtime to write the configuration
_BACKLOG = 512
_GARBAGE = 20_000  # objects that came and stayed before Python looks for cycles among them


class Agent:
    """A server on a listening socket.

    workers: calls served at once; waiting: calls that may wait for a thread; idle: seconds without
    a call after which it leaves, None to stay.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        workers: int = WORKERS,
        waiting: int = WAITING,
        idle: float | None = None,
    ) -> None:
        self.metrics = Metrics()
        self._listener = listener
        self._calls: queue.Queue[socket.socket | None] = queue.Queue(waiting)
        self._workers = workers
        self._threads: list[threading.Thread] = []
        self._free = threading.Semaphore(0)  # counts threads that wait for a call
        self._idle = idle
        self._namespaces = _namespaces("self")
        self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def stop_at(self, *signals: signal.Signals) -> None:
        """Have signals end `run`: no further calls are taken, and those at work finish.

        For the main thread. If it is about to wait when a signal comes, a handler in Python would
        only run when the next call wakes it; what Python writes to a descriptor wakes it at once.
        """
        for number in signals:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._stop_writer)

    def run(self) -> None:
        """Serve until a signal or idleness ends it."""
        for name in plugins.NAMES:
            plugins.load(name)
        gc.collect()
        gc.freeze()  # what is loaded now stays for good, no need to look at it again
        gc.set_threshold(_GARBAGE)  # calls leave few cycles
        systemd.notify("READY=1")
        try:
            self._accept()
        finally:
            systemd.notify("STOPPING=1")
            for _ in self._threads:
                self._calls.put(None)
            for thread in self._threads:
                thread.join()
            self._listener.close()

    def _accept(self) -> None:
        watchdog = systemd.watchdog_interval()
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._stop_reader, select.POLLIN)
        last = time.monotonic()
        self._listener.setblocking(False)
        while True:
            waits = [wait for wait in (watchdog, self._idle) if wait is not None]
            ready = dict(poll.poll(min(waits) * 1000 if waits else None))
            if self._stop_reader in ready:
                return
            if watchdog is not None:
                systemd.notify("WATCHDOG=1")
            if ready:
                last = time.monotonic()
                self._take()
            elif self._idle is not None and time.monotonic() - last >= self._idle:
                if not self.metrics.running:
                    return
                last = time.monotonic()

    def _take(self) -> None:
        """Hand one connection to a thread, or refuse it."""
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it hung up again
        try:
            self._calls.put_nowait(connection)
        except queue.Full:
            self.metrics.refuse("busy")
            connection.close()
            return
        if not self._free.acquire(blocking=False) and len(self._threads) < self._workers:
            thread = threading.Thread(target=self._work, name=f"worker-{len(self._threads)}")
            self._threads.append(thread)
            thread.start()

    def _next(self) -> socket.socket | None:
        try:
            return self._calls.get_nowait()
        except queue.Empty:
            self._free.release()
            return self._calls.get()

    def _work(self) -> None:
        while (connection := self._next()) is not None:
            with connection:
                try:
                    self._serve(connection)
                except protocol.Refused as refusal:
                    self.metrics.refuse(str(refusal))
                except OSError as error:
                    self.metrics.refuse(error.strerror or "no request in time")

    def _serve(self, connection: socket.socket) -> None:
        """Serve one connection. Raises Refused or OSError while its call has not begun."""
        self._check_peer(connection)
        call = protocol.receive_call(connection, REQUEST_SECONDS)
        try:
            if call.plugin == protocol.STATUS:
                _answer(connection, 0, self._status(call))
                return
            if call.version != __version__:
                raise protocol.Refused("another version")
            if call.plugin not in plugins.NAMES or len(call.descriptors) < 2:
                raise protocol.Refused("a malformed request")
            self._perform(connection, call)
        finally:
            call.close()

    def _perform(self, connection: socket.socket, call: protocol.Call) -> None:
        connection.settimeout(STDIN_SECONDS)
        connection.sendall(protocol.BEGUN)
        self.metrics.begin()
        begin = time.monotonic()
        stdin, stderr = call.descriptors[:2]
        command = call.environ.get("CNI_COMMAND", "")
        patience = VERSION_SECONDS if command == "VERSION" else STDIN_SECONDS
        outcome = serve(
            plugins.load(call.plugin),
            call.environ,
            lambda: read_stdin(stdin, time.monotonic() + patience),
            netns_fd=call.netns_fd,
            resolve=plugins.resolve,
            cancel=connection.fileno(),
            stderr=stderr,
        )
        error = outcome.stdout if outcome.code else ""
        self.metrics.end(call.plugin, command, time.monotonic() - begin, error)
        try:
            tell(stderr, outcome.stderr.encode())
            protocol.send_answer(connection, outcome.code, outcome.stdout)
        except OSError:
            self.metrics.refuse("gone before its answer")

    def _status(self, call: protocol.Call) -> str:
        if call.environ.get("FORMAT") == "prometheus":
            return self.metrics.to_prometheus()
        return json.dumps({"version": __version__, **self.metrics.to_json()})

    def _check_peer(self, connection: socket.socket) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("=iII", credentials)
        if uid not in (0, os.geteuid()):
            raise protocol.Refused("another user")
        if _namespaces(str(pid)) != self._namespaces:
            raise protocol.Refused("another namespace")


def listen(path: Path) -> socket.socket:
    """A listening socket that only this user can reach, in a directory that is only theirs.

    A socket left by an agent that was killed is replaced; one that answers is not. Raises CNIError.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(path.parent)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if _answers(path):
            raise CNIError(IO_FAILURE, f"an agent listens on {path} already")
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise CNIError(IO_FAILURE, f"cannot listen on {path}: {error.strerror or error}") from error
    return listener


def ask(path: Path, output_format: str = "json") -> str:
    """What the agent on a socket tells of itself. Raises OSError if none answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(REQUEST_SECONDS)
        connection.connect(str(path))
        connection.sendall(
            protocol.encode_call(__version__, protocol.STATUS, {"FORMAT": output_format})
        )
        return protocol.receive_answer(connection)[1]


def run(
    path: Path = protocol.SOCKET,
    repair: Callable[[], list[Repaired]] | None = None,
    **limits: float | None,
) -> None:
    """Be the agent: on systemd's socket if there is one, else on `path`, until SIGTERM.

    repair: what to do whenever rules have been flushed; None not to watch.
    """
    inherited = systemd.inherited_listener()
    agent = Agent(inherited or listen(path), **limits)  # type: ignore[arg-type]
    agent.stop_at(signal.SIGTERM, signal.SIGINT)
    watch = None
    try:
        if repair is not None:
            from pycni.agent.watch import Watch

            watch = Watch(repair, agent.metrics)
            watch.start()
        agent.run()
    finally:
        if watch is not None:
            watch.stop()
        if inherited is None:
            path.unlink(missing_ok=True)


def _answer(connection: socket.socket, code: int, output: str) -> None:
    connection.settimeout(REQUEST_SECONDS)
    connection.sendall(protocol.BEGUN)
    protocol.send_answer(connection, code, output)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def _require_private(directory: Path) -> None:
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise CNIError(
            IO_FAILURE,
            f"{directory} is not a directory that only this user can enter",
            f"chown it to uid {os.geteuid()} and chmod it to 0700",
        )


def _namespaces(pid: str) -> tuple[tuple[int, int], ...]:
    """The network and mount namespace of a process, as (device, inode)."""
    found = (os.stat(f"/proc/{pid}/ns/{kind}") for kind in ("net", "mnt"))
    return tuple((status.st_dev, status.st_ino) for status in found)


def read_stdin(descriptor: int, deadline: float) -> bytes:
    """Read the launcher's stdin to its end. Raises OSError if that takes too long or too much."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    chunks: list[bytes] = []
    size = 0
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_SIZE:
            raise OSError(27, f"it is longer than {MAX_SIZE} bytes")
    raise OSError(110, "its end did not arrive in time")
