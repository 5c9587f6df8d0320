"""Waiting for an flock that somebody else holds: in the order of arrival, with an end, and cheaply.

However many threads of this process wait for one file, only the first of them looks whether its
lock is free; the others sleep until it is their turn. What waits for a caller that has gone stops
at once. Loaded only when there is something to wait for: `files` calls it, and has the queues, in
which who releases a lock sees whether anything waits.
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
    queues: Queues, descriptor: int, what: str, give_up: float | None, cancel: int | None
) -> bool:
    """Wait for an exclusive flock on an open file; False once the time is over.

    give_up: that time, of time.monotonic(), None for never; cancel: a descriptor that can be read
    once the lock is not wanted any more. Raises CNIError (code 11) then, naming `what`; OSError.
    """
    status = posix.fstat(descriptor)
    key = (status.st_dev, status.st_ino)
    turn = posix.eventfd(0, posix.EFD_CLOEXEC | posix.EFD_NONBLOCK)
    waiting = poll()
    waiting.register(turn, POLLIN)
    if cancel is not None:
        waiting.register(cancel, POLLIN)
    with _guard:
        queue = queues.setdefault(key, [])
        queue.append(turn)
    pause: float | None = None
    try:
        while True:
            if queue[0] == turn:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                except BlockingIOError:
                    pause = _FIRST_PAUSE if pause is None else min(pause * 2, _LONGEST_PAUSE)
            left = None if give_up is None else give_up - time.monotonic()
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
            if turn in ready:
                posix.eventfd_read(turn)
    finally:
        with _guard:
            queue.remove(turn)
            if queue:
                posix.eventfd_write(queue[0], 1)
            else:
                del queues[key]
            posix.close(turn)


def wake(queues: Queues, key: tuple[int, int]) -> None:
    """Have the first that waits for a file's lock, by device and inode, look at once."""
    with _guard:
        queue = queues.get(key)
        if queue:
            posix.eventfd_write(queue[0], 1)
