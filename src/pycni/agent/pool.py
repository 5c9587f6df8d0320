"""Threads for connections: a thread each, up to a bound, and one apart for those beyond it.

A call may wait for a lock, an answer or a container for a minute, and threads that wait cost next
to nothing; so there are many, made when they are needed and kept. Beyond the bound, or where the
system gives no thread or no memory, connections go to the thread apart, which has nothing to wait
for: it answers questions about the agent, and leaves calls to their launchers.
"""

from __future__ import annotations

import queue
import resource
import threading
from typing import TYPE_CHECKING

from pycni.agent.metrics import address_space

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    Serve = Callable[[socket.socket], None]

DESCRIPTORS_PER_CALL = 24
_OTHER_DESCRIPTORS = 32
_STACK = 1 << 20  # bytes; only what is used of it is taken
_SPARE = 64 << 20  # bytes of address space for the calls at work, where that is limited


class Pool:
    """serve: for a connection that has a thread; decline: for one that has none.

    workers: how many threads at most; waiting: how many connections may wait to be declined. Each
    connection is closed once it has been served, declined or dropped.
    """

    def __init__(self, serve: Serve, decline: Serve, workers: int, waiting: int) -> None:
        threading.stack_size(_STACK)
        self._serve = serve
        self._decline = decline
        self._workers = min(workers, _affordable())
        self._threads: list[threading.Thread] = []
        self._free = threading.Semaphore(0)  # counts threads that wait for a connection
        self._calls: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self._surplus: queue.Queue[socket.socket | None] = queue.Queue(waiting)
        self._decliner = threading.Thread(target=self._decline_surplus, name="decliner")
        self._decliner.start()

    def take(self, connection: socket.socket) -> bool:
        """Have a connection served or declined; False if there are too many, and it is closed."""
        if _has_memory() and (self._free.acquire(blocking=False) or self._grow()):
            self._calls.put(connection)
            return True
        try:
            self._surplus.put_nowait(connection)
        except queue.Full:
            connection.close()
            return False
        return True

    def close(self) -> None:
        """Let connections that are being served finish, and take no others."""
        _drop(self._calls)
        _drop(self._surplus)
        self._surplus.put(None)
        for _ in self._threads:
            self._calls.put(None)
        for thread in (self._decliner, *self._threads):
            thread.join()

    def _grow(self) -> bool:
        if len(self._threads) >= self._workers:
            return False
        name = f"worker-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name)
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            return False
        self._threads.append(thread)
        return True

    def _work(self) -> None:
        while (connection := self._calls.get()) is not None:
            with connection:
                self._serve(connection)
            self._free.release()

    def _decline_surplus(self) -> None:
        while (connection := self._surplus.get()) is not None:
            with connection:
                self._decline(connection)


def _drop(
    connections: queue.SimpleQueue[socket.socket | None] | queue.Queue[socket.socket | None],
) -> None:
    while True:
        try:
            connection = connections.get_nowait()
        except queue.Empty:
            return
        if connection is not None:
            connection.close()


def _affordable() -> int:
    """How many calls this process has descriptors for, after it has asked for all it can have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most == resource.RLIM_INFINITY:
        return 1 << 16
    return max(1, (most - _OTHER_DESCRIPTORS) // DESCRIPTORS_PER_CALL)


def _has_memory() -> bool:
    """Whether address space is left: libraries end the process when they get no memory."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return limit == resource.RLIM_INFINITY or address_space() + _SPARE < limit
