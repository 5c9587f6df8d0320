"""The agent's server: takes calls from launchers and serves them in threads.

Whatever one call waits for, others go on: each has a thread, and what there is no thread for is
left to its launcher at once. A call is left as well, before anything is done, if it comes from
another user, from another network or mount namespace or root directory, where paths and "the host"
mean something else, from another version, or if its launcher has stopped waiting.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING

from pycni import __version__, plugins
from pycni.agent import protocol, systemd
from pycni.agent.heartbeat import Heartbeat
from pycni.agent.listener import Listener, listen
from pycni.agent.metrics import Metrics
from pycni.agent.package import Package, load
from pycni.agent.pool import Pool
from pycni.sdk.dispatch import serve
from pycni.sdk.execute import write_or_give_up
from pycni.spec.errors import IO_FAILURE, CNIError
from pycni.spec.jsontext import MAX_SIZE

if TYPE_CHECKING:
    from pycni.runtime.options import Cancellation
    from pycni.runtime.report import AttachmentReport

WORKERS = 256
WAITING = 256
REQUEST_SECONDS = 1.0  # for a launcher to say what it wants
ASK_SECONDS = 5.0  # for the agent to report on itself
_GARBAGE = 20_000  # objects that came and stayed before Python looks for cycles among them
_UCRED = Struct("=iII")  # a peer's process, user and group (unix(7))
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_MS = 10  # before the next try where there is no descriptor for a connection
REPLACED = "the package has been replaced"


class Agent:
    """A server on a listening socket.

    workers: calls at work at once, fewer where the process has descriptors for fewer; waiting:
    connections beyond them that may wait to be declined; idle: seconds without a call after which
    it leaves, None to stay.
    """

    def __init__(
        self,
        listener: Listener,
        heartbeat: Heartbeat,
        *,
        workers: int = WORKERS,
        waiting: int = WAITING,
        idle: float | None = None,
    ) -> None:
        self.metrics = Metrics()
        self._listener = listener
        self._heartbeat = heartbeat
        self._idle = idle
        self._home = _home("self")
        self._package = Package()
        self._replaced = False
        self._stop_reader, self._stop_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._spare = _spare_descriptor()
        self._pool = Pool(self._serve, self._decline, workers, waiting)

    def stop_at(self, *signals: signal.Signals) -> None:
        """Have signals end `run`: no further calls are taken, and those at work finish.

        For the main thread. If it is about to wait when a signal comes, a handler in Python would
        only run when the next call wakes it; what Python writes to a descriptor wakes it at once.
        """
        for number in signals:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._stop_writer)

    def run(self) -> None:
        """Serve until a signal or idleness ends it. Raises CNIError if the package is another."""
        gc.collect()
        gc.freeze()  # what is loaded now stays for good, no need to look at it again
        gc.set_threshold(_GARBAGE)  # calls leave few cycles
        systemd.notify("READY=1")
        try:
            self._accept()
        finally:
            systemd.notify("STOPPING=1")
            self._listener.close()  # at once: new calls go to another agent, or to none
            self._pool.close()
        if self._replaced:
            raise CNIError(IO_FAILURE, f"{REPLACED}; start the agent again", "launchers do without")

    def _accept(self) -> None:
        watchdog = systemd.watchdog_interval()
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._stop_reader, select.POLLIN)
        stop = self._stop_reader
        last = time.monotonic()
        while True:
            waits = [wait for wait in (watchdog, self._idle) if wait is not None]
            ready = dict(poll.poll(min(waits) * 1000 if waits else None))
            if stop in ready:
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
        """Have one connection served, or refuse it."""
        try:
            connection = self._listener.accept()
        except OSError as error:
            if error.errno in _SHORT:
                self._shed()
            return  # or it hung up again
        if not self._pool.take(connection):
            self.metrics.refuse("busy")

    def _shed(self) -> None:
        """Hang up on a connection that there is no descriptor for: its launcher serves the call."""
        self.metrics.refuse("no descriptor for it")
        if self._spare is not None:
            os.close(self._spare)
        try:
            self._listener.accept().close()
        except OSError:
            # Other threads were quicker to take the spare one: not again at once.
            select.poll().poll(_PAUSE_MS)
        self._spare = _spare_descriptor()

    def _serve(self, connection: socket.socket) -> None:
        self._answer(connection, self._perform)

    def _decline(self, connection: socket.socket) -> None:
        self._answer(connection, _busy)

    def _answer(
        self, connection: socket.socket, perform: Callable[[socket.socket, protocol.Call], None]
    ) -> None:
        """Have one connection's call performed, or count why not. Never raises."""
        try:
            self._check_peer(connection)
            call = protocol.receive_call(connection, REQUEST_SECONDS)
            try:
                if call.plugin == protocol.STATUS:
                    connection.sendall(protocol.BEGUN)
                    write_or_give_up(call.reply, protocol.encode_answer(0, self._status(call)))
                else:
                    perform(connection, call)
            finally:
                call.close()
        except protocol.Refused as refusal:
            self.metrics.refuse(str(refusal))
        except OSError as error:
            self.metrics.refuse(error.strerror or "no request in time")
        except Exception as error:  # noqa: BLE001 - a thread that ends would be missed
            self.metrics.refuse(type(error).__name__)

    def _perform(self, connection: socket.socket, call: protocol.Call) -> None:
        """Serve a call. Raises Refused or OSError, before anything is done."""
        if call.version != __version__:
            raise protocol.Refused("another version")
        if call.plugin not in plugins.NAMES:
            raise protocol.Refused("a malformed request")
        if self._package.has_changed():
            self._replaced = True
            os.write(self._stop_writer, b"\0")
            raise protocol.Refused(REPLACED)
        reply = call.reply
        stdin, stderr = call.descriptors[:2]
        document = read_stdin(stdin)
        command = call.environ.get("CNI_COMMAND", "")
        # A DEL or GC goes on for the sake of a caller that has gone.
        is_needed = command in ("DEL", "GC")
        connection.setblocking(False)
        try:
            connection.sendall(protocol.BEGUN)
        except OSError:  # from now on its launcher does it
            raise protocol.Refused("begun too late") from None
        self.metrics.begin()
        self._heartbeat.beat()
        begin = time.monotonic()
        outcome = serve(
            plugins.load(call.plugin),
            call.environ,
            lambda: document,
            netns_fd=call.netns_fd,
            resolve=plugins.resolve,
            cancel=None if is_needed else connection.fileno(),
            stderr=stderr,
        )
        error = outcome.stdout if outcome.code else ""
        self.metrics.end(call.plugin, command, time.monotonic() - begin, error)
        write_or_give_up(stderr, outcome.stderr.encode())
        write_or_give_up(reply, protocol.encode_answer(outcome.code, outcome.stdout))
        self._heartbeat.beat()

    def _status(self, call: protocol.Call) -> str:
        if call.environ.get("FORMAT") == "prometheus":
            return self.metrics.to_prometheus()
        return json.dumps({"version": __version__, **self.metrics.to_json()})

    def _check_peer(self, connection: socket.socket) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _ = _UCRED.unpack(credentials)
        if uid not in (0, os.geteuid()):
            raise protocol.Refused("another user")
        net, mnt, root = _home(str(pid))
        if (net, mnt) != self._home[:2]:
            raise protocol.Refused("another namespace")
        if root != self._home[2]:
            raise protocol.Refused("another root directory")


def ask(path: Path, output_format: str = "json") -> str:
    """What the agent on a socket reports on itself. Raises OSError if none answers."""
    request = protocol.encode_call(__version__, protocol.STATUS, {"FORMAT": output_format})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ASK_SECONDS)
        connection.connect(str(path))
        return protocol.ask(connection, request)[1]


def run(
    path: Path = protocol.SOCKET,
    repair: Callable[[Cancellation], list[AttachmentReport]] | None = None,
    *,
    workers: int = WORKERS,
    waiting: int = WAITING,
    idle: float | None = None,
) -> None:
    """Be the agent: on systemd's socket if there is one, else on `path`, until SIGTERM.

    repair: what to do whenever rules have been flushed; None not to watch. workers, waiting, idle:
    see Agent. Raises CNIError.
    """
    load()
    inherited = systemd.inherited_listener()
    listener = Listener(inherited) if inherited else listen(path)
    heartbeat = Heartbeat(listener.name)
    agent = Agent(listener, heartbeat, workers=workers, waiting=waiting, idle=idle)
    agent.stop_at(signal.SIGTERM, signal.SIGINT)
    if repair is None:
        agent.run()
        return
    from pycni.agent.watch import Watch

    watch = Watch(repair, agent.metrics)
    watch.start()
    try:
        agent.run()
    finally:
        watch.stop()


def read_stdin(descriptor: int) -> bytes:
    """All of the file that holds a call's stdin, or so much that it is too long. Raises OSError."""
    size = min(os.fstat(descriptor).st_size, MAX_SIZE + 1)
    return os.pread(descriptor, size, 0)


def _busy(_connection: socket.socket, _call: protocol.Call) -> None:
    raise protocol.Refused("busy")


def _spare_descriptor() -> int | None:
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _home(pid: str) -> tuple[object, object, object]:
    """What paths and "the host" mean to a process: its network and mount namespace, its root."""
    net, mnt, root = (os.stat(f"/proc/{pid}/{name}") for name in ("ns/net", "ns/mnt", "root"))
    # As seen from here: what is mounted twice has one device and inode.
    place = os.readlink(f"/proc/{pid}/root")
    return (
        (net.st_dev, net.st_ino),
        (mnt.st_dev, mnt.st_ino),
        (root.st_dev, root.st_ino, place),
    )
