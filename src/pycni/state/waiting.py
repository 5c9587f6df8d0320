"""Waiting for an flock that is held elsewhere: in the order of arrival, with an end, and cheaply.

However many threads of this process wait for one file, only the first of them looks whether its
lock is free; the others sleep until they are first. A wait for a caller that has gone ends at once.
Loaded only when there is something to wait for: `files` calls it, and has the queues, in which the
thread that releases a lock sees whether another one waits.
"""

from __future__ import annotations

import fcntl
import posix
import time
from _thread import allocate_lock
from select import POLLIN, poll

from pycni.spec.errors import TRY_AGAIN_LATER, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    # By device and inode of a file: an eventfd of each thread that waits for its lock.
    Queues = dict[tuple[int, int], list[int]]

_FIRST_PAUSE = 0.0005  # seconds between two tries, doubled each time
_LONGEST_PAUSE = 0.01
_guard = allocate_lock()  # of the queues


def acquire(
    queues: Queues, descriptor: int, what: str, deadline: float | None, cancel: int | None
) -> bool:
    """Wait for an exclusive flock on an open file; False once the time is over.

    deadline: that time, of time.monotonic(), None for never; cancel: a descriptor that is readable
    once the lock is not wanted any more. Raises CNIError (code 11) then, naming `what`; OSError.
    """
    status = posix.fstat(descriptor)
    key = (status.st_dev, status.st_ino)
    signal = posix.eventfd(0, posix.EFD_CLOEXEC | posix.EFD_NONBLOCK)
    waiting = poll()
    waiting.register(signal, POLLIN)
    if cancel is not None:
        waiting.register(cancel, POLLIN)
    with _guard:
        queue = queues.setdefault(key, [])
        queue.append(signal)
    pause: float | None = None
    try:
        while True:
            if queue[0] == signal:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                except BlockingIOError:
                    pause = _FIRST_PAUSE if pause is None else min(pause * 2, _LONGEST_PAUSE)
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            waits = [wait for wait in (pause, left) if wait is not None]
            ready = [fd for fd, _ in waiting.poll(min(waits) * 1000 if waits else None)]
            if cancel in ready:
                raise CNIError(
                    TRY_AGAIN_LATER,
                    f"cancelled while waiting for {what}",
                    "its caller has gone",
                )
            if signal in ready:
                posix.eventfd_read(signal)
    finally:
        with _guard:
            queue.remove(signal)
            if queue:
                posix.eventfd_write(queue[0], 1)
            else:
                del queues[key]
            posix.close(signal)


def wake(queues: Queues, key: tuple[int, int]) -> None:
    """Have the first thread that waits for a file's lock, by device and inode, look at once."""
    with _guard:
        queue = queues.get(key)
        if queue:
            posix.eventfd_write(queue[0], 1)
