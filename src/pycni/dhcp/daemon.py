"""The daemon: answers the plugin's questions, and keeps every lease it acquired.

One process, one event loop; a lease at rest is a timer and a file, no thread and no descriptor. The
messages are described in `pycni.plugins.shared.dhcp`. Started by `pycni dhcp daemon`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import resource
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from pycni import __version__
from pycni.dhcp.exchange import Client, NoAnswer, Refused
from pycni.dhcp.keeper import Keeper
from pycni.dhcp.lease import Lease, LeaseRecord, Store, now
from pycni.dhcp.wire import LinkGone, Sandbox, Wire
from pycni.plugins.shared.dhcp import MAX_LINE, PROTOCOL
from pycni.spec.errors import (
    CHECK_FAILED,
    DECODING_FAILURE,
    INTERNAL,
    INVALID_NETNS,
    IO_FAILURE,
    TRY_AGAIN_LATER,
    UNKNOWN_CONTAINER,
    CNIError,
)

LOG = logging.getLogger(__name__)

_MAX_CLIENT_ID = 254  # bytes, without the type in front
_DEFAULT_WANTED = (1, 3, 15, 6)  # where the configuration asks for nothing at all
_MAX_CONNECTIONS = 1024
_CONFIRMING = 32  # leases that are confirmed at the same time after a restart
_FIRST_BACKOFF, _BACKOFF_JITTER = 2.0, 1.0  # seconds
_GREETING = 30  # seconds for a client to say what it wants
_MARGIN = 10  # seconds that an answer may take beyond the time for servers

Key = tuple[str, str, str]  # network, container, interface


@dataclass(frozen=True)
class Settings:
    """How the daemon runs; all times in seconds.

    host_prefix: goes before the paths of namespaces. timeout: of one message and its repetitions;
    resend_max: of the longest pause between two tries of an ADD; resend_timeout: of all tries.
    """

    state_dir: str
    host_prefix: str = ""
    broadcast: bool = False
    timeout: float = 10.0
    resend_max: float = 62.0
    resend_timeout: float = 208.0


class Daemon:
    """Leases by attachment, and the operations on them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._store = Store(settings.state_dir)
        self._keepers: dict[Key, Keeper] = {}
        self._adding: dict[Key, asyncio.Task[Any]] = {}
        self._locks: dict[Key, _KeyLock] = {}
        self._slots = asyncio.Semaphore(_CONFIRMING)

    async def serve(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """Answer on a listening socket until `stop` is set. Leases are kept, not released."""
        self._restore()
        connections: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._converse(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)
            if len(connections) > _MAX_CONNECTIONS:
                LOG.warning("more than %d connections: one was refused", _MAX_CONNECTIONS)
                task.cancel()

        # Not start_unix_server: that would remove a socket that is systemd's.
        server = await asyncio.start_server(
            accept, sock=listener, limit=MAX_LINE, backlog=_MAX_CONNECTIONS
        )
        try:
            await stop.wait()
        finally:
            server.close()
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)
            await asyncio.gather(*(keeper.stop() for keeper in self._keepers.values()))

    # --- the conversation ----------------------------------------------------------------------

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_GREETING):
                line = await reader.readline()
            if line.startswith(b"CONNECT "):
                writer.write(b"HTTP/1.0 501 This daemon serves the dhcp plugin of pycni\r\n\r\n")
            elif line:
                await self._answer(line, reader, writer)
            await writer.drain()
        except (TimeoutError, OSError, ValueError, asyncio.CancelledError):
            pass  # the client has gone, said nothing, or too much
        finally:
            writer.close()

    async def _answer(
        self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            question = json.loads(line)
            operation = self._operation(question)
        except CNIError as error:
            _write(writer, {"error": error.to_json()})
            return
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            text = f"{type(error).__name__}: {error}"
            failure = CNIError(DECODING_FAILURE, f"the DHCP daemon cannot read a question: {text}")
            _write(writer, {"error": failure.to_json()})
            return
        _write(writer, {"within": self.settings.resend_timeout + _MARGIN})
        work = asyncio.create_task(operation)
        hung_up = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait((work, hung_up), return_when=asyncio.FIRST_COMPLETED)
            if question["command"] != "ADD":
                await asyncio.wait((work,))  # a client that hung up would ask for the same again
            if work.done():
                _write(writer, _outcome(work))
        finally:
            hung_up.cancel()
            work.cancel()
            await asyncio.gather(work, hung_up, return_exceptions=True)

    def _operation(self, question: dict[str, Any]) -> Coroutine[Any, Any, dict[str, Any]]:
        if question.get("pycni") != PROTOCOL:
            raise CNIError(
                DECODING_FAILURE,
                f"the DHCP daemon of pycni {__version__} does not know this plugin's protocol",
                "plugin and daemon are of different releases: restart the daemon",
            )
        command = question["command"]
        if command == "STATUS":
            return self._status()
        if command == "LIST":
            return self._list()
        if command == "GC":
            keep = {(item["containerID"], item["ifname"]) for item in question["keep"]}
            return self._gc(str(question["network"]), keep)
        key = (str(question["network"]), str(question["containerID"]), str(question["ifname"]))
        if command == "ADD":
            return self._add(
                key,
                str(question["netns"]),
                {int(code): bytes.fromhex(value) for code, value in question["options"].items()},
                tuple(int(code) for code in question["request"]) or _DEFAULT_WANTED,
            )
        if command == "CHECK":
            return self._check(key)
        if command == "DEL":
            return self._delete(key)
        raise CNIError(DECODING_FAILURE, f"the DHCP daemon does not know the command {command}")

    # --- operations ------------------------------------------------------------------------------

    async def _add(
        self, key: Key, netns: str, options: dict[int, bytes], wanted: tuple[int, ...]
    ) -> dict[str, Any]:
        async with self._lock(key):
            sandbox = Sandbox(self.settings.host_prefix + netns, key[2])
            keeper = self._keepers.get(key)
            if keeper is not None:
                if keeper.state == "bound" and _same_place(keeper, sandbox):
                    return {"lease": _describe(keeper)}
                # Of a container that ended without DEL.
                await self._end(keeper)
            task = asyncio.current_task()
            assert task is not None
            self._adding[key] = task
            try:
                client = self._client(key, options, wanted)
                lease = await self._acquire(client, sandbox)
                record = LeaseRecord(
                    *key, netns, options, wanted, sandbox.identity, sandbox.mac, lease
                )
                keeper = self._keeper(record, client, sandbox)
                try:
                    self._store.save(record)
                except OSError as error:
                    await keeper.release()
                    raise CNIError(
                        IO_FAILURE,
                        f"the DHCP daemon cannot keep a lease: {error.strerror}",
                        f"it writes them to {self._store.directory}",
                    ) from error
            finally:
                del self._adding[key]
            self._keepers[key] = keeper
            keeper.start()
            LOG.info("%s: acquired from %s", keeper, lease.server)
            return {"lease": _describe(keeper)}

    async def _acquire(self, client: Client, sandbox: Sandbox) -> Lease:
        """Try until a server grants a lease or the time for all tries is over. Raises CNIError."""
        until = now() + self.settings.resend_timeout
        pause = _FIRST_BACKOFF
        failure = ""
        while (left := until - now()) > 0:
            try:
                with await Wire.open(sandbox, set_up=True) as wire:
                    return await replace(client, timeout=min(client.timeout, left)).acquire(wire)
            except LinkGone as error:
                raise CNIError(INVALID_NETNS, f"error calling DHCP.Allocate: {error}") from error
            except (NoAnswer, Refused, OSError) as error:
                failure = str(error)
                LOG.info("%s in %s: no lease yet: %s", sandbox.ifname, sandbox.path, failure)
            jittered = pause + random.uniform(-_BACKOFF_JITTER, _BACKOFF_JITTER)  # noqa: S311
            await asyncio.sleep(max(min(jittered, until - now()), 0))
            pause = min(pause * 2, self.settings.resend_max)
        raise CNIError(
            TRY_AGAIN_LATER,
            "error calling DHCP.Allocate: no more tries",
            f"no lease for {sandbox.ifname} within {self.settings.resend_timeout:g} s; "
            f"the last try: {failure or 'none was made'}",
        )

    async def _check(self, key: Key) -> dict[str, Any]:
        keeper = self._keepers.get(key)
        if keeper is None:
            raise CNIError(
                CHECK_FAILED,
                f"the DHCP daemon has no lease for container {key[1]}, interface {key[2]}",
                "it was not added with this network, or its lease has run out",
            )
        if keeper.state in ("lost", "gone", "failed"):
            raise CNIError(
                CHECK_FAILED,
                f"the lease of {keeper.lease.address} for container {key[1]}, interface {key[2]} "
                f"is {keeper.state}",
                "lost: no server grants it at present; gone: the interface is not there any more; "
                "failed: see the daemon's log",
            )
        return {"lease": _describe(keeper)}

    async def _delete(self, key: Key) -> dict[str, Any]:
        adding = self._adding.get(key)
        if adding is not None:
            adding.cancel()
        async with self._lock(key):
            keeper = self._keepers.get(key)
            if keeper is not None:
                await self._end(keeper)
        return {}

    async def _gc(self, network: str, keep: set[tuple[str, str]]) -> dict[str, Any]:
        stale = [key for key in self._keepers if key[0] == network and key[1:] not in keep]
        for key in stale:
            await self._delete(key)
        return {"released": len(stale)}

    async def _status(self) -> dict[str, Any]:
        if not os.access(self._store.directory, os.W_OK | os.X_OK):
            raise CNIError(
                IO_FAILURE, f"the DHCP daemon cannot keep leases in {self._store.directory}"
            )
        return {"version": __version__, "leases": len(self._keepers)}

    async def _list(self) -> dict[str, Any]:
        return {"leases": [_describe(keeper) for keeper in self._keepers.values()]}

    # --- keepers ---------------------------------------------------------------------------------

    def _restore(self) -> None:
        for record in self._store.load():
            path = self.settings.host_prefix + record.netns
            sandbox = Sandbox(path, record.ifname, record.identity, record.mac)
            client = self._client(record.key, record.options, record.wanted)
            keeper = self._keepers[record.key] = self._keeper(record, client, sandbox)
            keeper.start(restored=True)
        if self._keepers:
            LOG.info("%d leases of the daemon before", len(self._keepers))

    def _client(self, key: Key, options: dict[int, bytes], wanted: tuple[int, ...]) -> Client:
        network, container_id, ifname = key
        name = f"{container_id}/{network}/{ifname}".encode("utf-8", "surrogateescape")
        return Client(
            b"\0" + name[:_MAX_CLIENT_ID],
            wanted,
            options,
            self.settings.broadcast,
            self.settings.timeout,
        )

    def _keeper(self, record: LeaseRecord, client: Client, sandbox: Sandbox) -> Keeper:
        return Keeper(record, client, sandbox, self._save, self._forget, self._slots)

    def _save(self, record: LeaseRecord) -> None:
        try:
            self._store.save(record)
        except OSError as error:
            # The lease goes on; a restart would find the one before and confirm that.
            LOG.error("%s %s: not written: %s", record.container_id, record.ifname, error)

    async def _end(self, keeper: Keeper) -> None:
        await keeper.release()
        self._forget(keeper)

    def _forget(self, keeper: Keeper) -> None:
        self._keepers.pop(keeper.record.key, None)
        try:
            self._store.remove(keeper.record.key)
        except OSError as error:
            LOG.error("%s: its file could not be removed: %s", keeper, error)

    def _lock(self, key: Key) -> _KeyLock:
        return self._locks.setdefault(key, _KeyLock(lambda: self._locks.pop(key)))


class _KeyLock:
    """A lock for one attachment; `unused` is called when nothing wants it any more."""

    def __init__(self, unused: Callable[[], object]) -> None:
        self._lock = asyncio.Lock()
        self._unused = unused
        self._users = 0

    async def __aenter__(self) -> None:
        self._users += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
        self._leave()

    def _leave(self) -> None:
        self._users -= 1
        if not self._users:
            self._unused()


def run(settings: Settings, listener: socket.socket) -> None:
    """Serve on a listening socket until SIGINT or SIGTERM. Raises OSError."""
    _raise_descriptor_limit()
    asyncio.run(_run(settings, listener))


async def _run(settings: Settings, listener: socket.socket) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Daemon(settings).serve(listener, stop)


def _same_place(keeper: Keeper, sandbox: Sandbox) -> bool:
    """Whether a sandbox holds the very interface that a lease was acquired for."""
    try:
        with sandbox.open() as space:
            sandbox.find(space)
    except (LinkGone, OSError):
        return False
    return sandbox.identity == keeper.sandbox.identity


def _describe(keeper: Keeper) -> dict[str, Any]:
    """A lease for the plugin, and for people; times in seconds from now."""
    record, lease = keeper.record, keeper.lease
    return {
        "network": record.network,
        "containerID": record.container_id,
        "ifname": record.ifname,
        "state": keeper.state,
        "address": f"{lease.address}/{lease.prefix}",
        "server": lease.server,
        "routers": list(lease.routers),
        "routes": [{"dst": dst, "gw": router} for dst, router in lease.routes],
        "dns": lease.dns,
        "mtu": lease.mtu,
        "renewIn": None if lease.renew_at is None else round(lease.renew_at - now()),
        "expiresIn": None if lease.expires_at is None else round(lease.expires_at - now()),
    }


def _outcome(work: asyncio.Task[dict[str, Any]]) -> dict[str, Any]:
    if work.cancelled():
        error = CNIError(
            UNKNOWN_CONTAINER, "error calling DHCP.Allocate: deleted while being added"
        )
        return {"error": error.to_json()}
    failure = work.exception()
    if failure is None:
        return work.result()
    if isinstance(failure, CNIError):
        return {"error": failure.to_json()}
    LOG.error("an operation failed by a fault of the daemon", exc_info=failure)
    error = CNIError(INTERNAL, f"internal error: {failure!r}", "see the DHCP daemon's log")
    return {"error": error.to_json()}


def _write(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")


def _raise_descriptor_limit() -> None:
    """Each exchange takes two or three descriptors, and many may go on at the same time."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
