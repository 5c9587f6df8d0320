"""Run a program and wait for it: what `subprocess` does, without its import.

Safe in many threads at once. The program runs in the calling thread's namespaces; it inherits no
descriptors but its three, and no signal settings. Used by `iptables` and by the runtime, for
plugins.
"""

from __future__ import annotations

import errno
import posix
import time
from _stat import S_ISREG
from fcntl import F_DUPFD_CLOEXEC, fcntl
from select import POLLIN, POLLOUT, poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SIGKILL = 9
_SIGPIPE = 13
_CHUNK = 65536
_BUSY_PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.3)


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
) -> tuple[int, bytes, bytes]:
    """Run a program, given by its path; return its exit code (negative: the signal that ended it),
    its stdout and its stderr.

    It is over when the program itself ends, whoever else still holds its output. env: its whole
    environment, None for this process's own; timeout: seconds after which it is killed; cancel: a
    descriptor, it is killed when that can be read. Raises OSError if it cannot be started, Killed
    if it was killed.
    """
    if env is None:
        import os  # plugins hand on what they were given

        env = os.environ
    ours: list[int] = []
    theirs: list[int] = []
    try:
        for inward in (True, False, False):
            reader, writer = _pipe()
            ours.append(writer if inward else reader)
            theirs.append(reader if inward else writer)
        pid = _spawn(argv, theirs, env)
        while theirs:
            posix.close(theirs.pop())
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            stdout, stderr = _converse(pid, ours, stdin, deadline, cancel)
        except BaseException:
            posix.kill(pid, _SIGKILL)
            raise
        finally:
            _, status = posix.waitpid(pid, 0)
    except _GivenUp as given_up:
        if given_up.overdue:
            reason = (errno.ETIMEDOUT, f"not finished after {timeout:g} seconds, killed")
        else:
            reason = (errno.ECANCELED, "canceled, killed")
        raise Killed(*reason, argv[0], given_up.stderr) from None
    finally:
        for fd in ours + theirs:
            if fd >= 0:
                posix.close(fd)
    return posix.waitstatus_to_exitcode(status), stdout, stderr


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


def _spawn(argv: Sequence[str], ends: Sequence[int], env: Mapping[str, str]) -> int:
    actions = [(posix.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(ends)]
    for pause in (*_BUSY_PAUSES, None):
        try:
            return posix.posix_spawn(
                argv[0],
                [*argv],
                env,
                file_actions=actions,
                setsigmask=(),
                setsigdef=(_SIGPIPE,),  # Python ignores it
            )
        except OSError as error:
            # Someone is still writing the file, or a fork of theirs holds it open for a moment.
            if error.errno != errno.ETXTBSY or pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _converse(
    pid: int, ours: list[int], stdin: bytes, deadline: float | None, cancel: int | None
) -> tuple[bytes, bytes]:
    """Feed and read a program until it ends. Raises _GivenUp. Closes the end it writes to."""
    for fd in ours:
        posix.set_blocking(fd, False)
    write_end, *read_ends = ours
    output: dict[int, list[bytes]] = {fd: [] for fd in read_ends}
    waiting = poll()
    for fd in read_ends:
        waiting.register(fd, POLLIN)
    end = posix.pidfd_open(pid)
    try:
        waiting.register(end, POLLIN)
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
            for fd in ready:
                if fd == write_end and rest:
                    try:
                        rest = rest[posix.write(fd, rest[:_CHUNK]) :]
                    except BlockingIOError:
                        continue
                    except BrokenPipeError:
                        rest = rest[:0]  # it does not want to read on
                    if not rest:
                        waiting.unregister(fd)
                        _close(ours, fd)
                elif fd in output and _read(fd, output[fd]) == b"":
                    waiting.unregister(fd)
            if end in ready:
                for fd in read_ends:
                    while _read(fd, output[fd]):
                        pass
                return b"".join(output[read_ends[0]]), b"".join(output[read_ends[1]])
    finally:
        posix.close(end)


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
