"""Run a program and wait for it: what `subprocess` does, without its import.

Safe in many threads at once. The program runs in the calling thread's namespaces; it inherits no
descriptors but its three, and no signal settings. Used by `iptables` and by the runtime, for
plugins.

It gets a process group of its own, so that all it has started is killed with it, and a terminal's
Ctrl-C reaches only this program, which takes back what was done. What a plugin's process runs stays
in that process's group, which the plugin's caller may kill.
"""

from __future__ import annotations

import errno
import posix
import time
from _stat import S_ISREG
from fcntl import F_DUPFD_CLOEXEC, fcntl
from select import POLLIN, POLLOUT, poll

from pycni.kernel.child import Child, StatusLost, can_be_judged, may_be_reaped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_SIGPIPE = 13
_SIGCHLD = 17
_CHUNK = 65536
_BUSY_PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.3)
_SHELL = "/bin/sh"
# Becomes the program once a first line comes: until then it cannot have ended and be reaped, and
# its pidfd can be had. posix_spawn has no way to give that at once.
_AFTER_LINE = 'read -r _ && exec "$0" "$@"'
_IS_PLUGIN = b"CNI_COMMAND" in posix.environ


def find(name: str, folders: str) -> str | None:
    """The first executable file of this name in folders, separated by colons."""
    for folder in folders.split(":"):
        path = f"{folder}/{name}"
        if folder and _is_program(path):
            return path
    return None


def _is_program(path: str) -> bool:
    try:
        return S_ISREG(posix.stat(path).st_mode) and posix.access(path, posix.X_OK)
    except OSError:
        return False


def run(
    argv: Sequence[str],
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    cancel: int | None = None,
    own_group: bool = not _IS_PLUGIN,
) -> tuple[int, bytes, bytes]:
    """Run a program, given by its path; return its exit code (negative: the signal that ended it),
    its stdout and its stderr.

    It is over when the program itself ends, even if another still holds its output. env: its whole
    environment, None for this process's own; timeout: seconds after which it is killed; cancel: a
    descriptor, it is killed when that can be read; own_group: with all that it has started. Raises
    OSError if it cannot be started, Killed if it was killed, StatusLost if its end is not known.
    """
    program = argv[0]
    if not can_be_judged():
        raise StatusLost(program)
    if env is None:
        import os  # plugins hand on what they were given

        env = os.environ
    if may_be_reaped() and posix.access(_SHELL, posix.X_OK):
        argv = [_SHELL, "-c", _AFTER_LINE, *argv]
        stdin = b"\n" + stdin
    ours: list[int] = []
    theirs: list[int] = []
    try:
        for inward in (True, False, False):
            reader, writer = _pipe()
            ours.append(writer if inward else reader)
            theirs.append(reader if inward else writer)
        with Child(_spawn(argv, theirs, env, own_group), own_group) as child:
            while theirs:
                posix.close(theirs.pop())
            deadline = None if timeout is None else time.monotonic() + timeout
            stdout, stderr = _converse(child, ours, stdin, deadline, cancel)
            if child.status is None:
                raise StatusLost(program, stdout, stderr)
            return child.status, stdout, stderr
    except _GivenUp as given_up:
        number, reason = errno.ECANCELED, "canceled, killed"
        if given_up.overdue:
            number, reason = errno.ETIMEDOUT, f"not finished after {timeout:g} seconds, killed"
        reason += "" if child.is_over else "; what it has started is still running"
        raise Killed(number, reason, program, given_up.stderr) from None
    finally:
        for fd in ours + theirs:
            if fd >= 0:
                posix.close(fd)


class Killed(TimeoutError):
    """A program was killed: its time was over (ETIMEDOUT) or the caller gave up (ECANCELED).

    stderr: what it had written there.
    """

    def __init__(self, number: int, reason: str, program: str, stderr: bytes) -> None:
        super().__init__(number, reason, program)
        self.stderr = stderr


class _GivenUp(Exception):
    def __init__(self, overdue: bool, stderr: bytes) -> None:
        self.overdue = overdue
        self.stderr = stderr


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are not 0, 1 or 2, which the program's own ends are put on."""
    ends = list(posix.pipe())
    for position, fd in enumerate(ends):
        if fd < 3:
            ends[position] = fcntl(fd, F_DUPFD_CLOEXEC, 3)
            posix.close(fd)
    return ends[0], ends[1]


def _spawn(
    argv: Sequence[str], ends: Sequence[int], env: Mapping[str, str], own_group: bool
) -> int:
    group: dict[str, Any] = {"setpgroup": 0} if own_group else {}
    actions = [(posix.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(ends)]
    spare = posix.dup(ends[0])  # to have a descriptor for its end, before it does anything
    try:
        for pause in (*_BUSY_PAUSES, None):
            try:
                return posix.posix_spawn(
                    argv[0],
                    list(argv),
                    env,
                    file_actions=actions,
                    setsigmask=(),
                    setsigdef=(_SIGPIPE, _SIGCHLD),  # Python ignores one, a program maybe both
                    **group,
                )
            except OSError as error:
                # A process is still writing the file, or its fork holds it open for a moment.
                if error.errno != errno.ETXTBSY or pause is None:
                    raise
                time.sleep(pause)
    finally:
        posix.close(spare)
    raise AssertionError("the last attempt returns or raises")


def _converse(
    child: Child, ours: list[int], stdin: bytes, deadline: float | None, cancel: int | None
) -> tuple[bytes, bytes]:
    """Feed and read a program until it ends. Raises _GivenUp. Closes the end it writes to."""
    for fd in ours:
        posix.set_blocking(fd, False)
    write_end, *read_ends = ours
    output: dict[int, list[bytes]] = {fd: [] for fd in read_ends}
    waiting = poll()
    for fd in (*read_ends, child.end):
        waiting.register(fd, POLLIN)
    if cancel is not None:
        waiting.register(cancel, POLLIN)
    rest = memoryview(stdin)
    if rest:
        waiting.register(write_end, POLLOUT)
    else:
        _close(ours, write_end)
    ready: list[int] = []
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        overdue = left is not None and left <= 0
        if overdue or cancel in ready:
            raise _GivenUp(overdue, b"".join(output[read_ends[1]]))
        ready = [fd for fd, _ in waiting.poll(None if left is None else left * 1000 + 1)]
        if child.end in ready:
            child.reap()  # before other code does
            stdout, stderr = (_read_all(fd, output[fd]) for fd in read_ends)
            return stdout, stderr
        for fd in ready:
            if fd == write_end and rest:
                rest = _write(fd, rest)
                if not rest:
                    waiting.unregister(fd)
                    _close(ours, fd)
            elif fd in output and _read(fd, output[fd]) == b"":
                waiting.unregister(fd)


def _write(fd: int, data: memoryview) -> memoryview:
    """Write what fits; what is left, which is nothing if the program does not read on."""
    try:
        return data[posix.write(fd, data[:_CHUNK]) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return data[:0]


def _read_all(fd: int, into: list[bytes]) -> bytes:
    """What a program that has ended wrote, after what was read before."""
    while _read(fd, into):
        pass
    return b"".join(into)


def _read(fd: int, into: list[bytes]) -> bytes | None:
    """Take what is there; b"" at the end, None if there is nothing for now."""
    try:
        data = posix.read(fd, _CHUNK)
    except BlockingIOError:
        return None
    into.append(data)
    return data


def _close(ours: list[int], fd: int) -> None:
    ours[ours.index(fd)] = -1
    posix.close(fd)
