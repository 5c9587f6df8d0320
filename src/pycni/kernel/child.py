"""A process that was started: its end, its exit status, and the end of all that it has started.

An exit status goes to the one that reaps the child, and that may be other code: the program that
calls us reaps all that ends, or ignores SIGCHLD, and then the kernel reaps at once. From Linux 6.15
on the pidfd still has the status then; before, it is lost. What the process wrote does not replace
it: one that was killed writes as little as one that had nothing to remove, and to take that for
success would leave rules and leases for ever. So without a way to know, nothing is started.
Called by `process`.
"""

from __future__ import annotations

import errno
import posix
import time
from _signal import SIG_DFL, SIG_IGN, SIGCHLD, SIGKILL, getsignal, pidfd_send_signal  # type: ignore[import-not-found]
from _struct import pack_into, unpack_from
from fcntl import ioctl
from select import poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_TIMEOUT = 10.0  # seconds for the kernel to end what was killed
_WHOLE_GROUP = 1 << 2  # linux/pidfd.h, PIDFD_SIGNAL_PROCESS_GROUP
_GET_INFO = 0xC040FF0B  # PIDFD_GET_INFO: with the first version of struct pidfd_info
_INFO_SIZE = 64
_INFO_EXIT = 1 << 3  # asks for the exit status, in the last four bytes
_KEEPS_STATUS = tuple(int(part) for part in posix.uname().release.split(".")[:2]) >= (6, 15)


class StatusLost(ChildProcessError):
    """How a program ended, or would end, is lost. stdout, stderr: what it had written there.

    way_out: what to do, in words.
    """

    def __init__(self, program: str, stdout: bytes = b"", stderr: bytes = b"") -> None:
        super().__init__(errno.ECHILD, "exit status unknown", program)
        self.stdout = stdout
        self.stderr = stderr
        habit = "ignores SIGCHLD" if _ignores_children() else "reaps all its children"
        self.way_out = (
            f"the program {habit}, and the exit status is lost with that: it must have "
            "signal.SIG_DFL for SIGCHLD, or Linux 6.15, and wait for no children but its own"
        )


def _ignores_children() -> bool:
    return bool(getsignal(SIGCHLD) == SIG_IGN)


def can_be_judged() -> bool:
    """Whether the exit status of a child can be had, unless other code reaps it."""
    return _KEEPS_STATUS or not _ignores_children()


def may_be_reaped() -> bool:
    """Whether this process's children may be reaped by other code as soon as they end."""
    return bool(getsignal(SIGCHLD) != SIG_DFL)


class Child:
    """A child during a `with` block, which it does not outlive.

    end: its pidfd, which can be read once it has ended; status: then its exit code, negative for a
    signal, None if that is lost; is_over: whether nothing of it is left after it was killed.
    """

    status: int | None = None
    is_over = True

    def __init__(self, pid: int, leads_group: bool) -> None:
        """Take over a child, which may lead a process group. Raises OSError; it is killed then."""
        self._pid = pid
        self._leads_group = leads_group
        self._is_reaped = False
        try:
            self.end = posix.pidfd_open(pid)
        except ProcessLookupError:
            self._is_reaped = True
            self.end = _ended()
        except OSError:
            self._kill_by_number()
            self._reap_by_number()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is not None:
                self._end_all()
        finally:
            posix.close(self.end)

    def reap(self) -> None:
        """Take the status of a child that has ended."""
        if self._is_reaped:
            return
        try:
            found = posix.waitid(posix.P_PIDFD, self.end, posix.WEXITED)
        except ChildProcessError:
            self.status = _kept_status(self.end)
        else:
            assert found is not None  # only without waiting it may be
            killed = found.si_code != posix.CLD_EXITED
            self.status = -found.si_status if killed else found.si_status
        self._is_reaped = True

    def _end_all(self) -> None:
        """Kill it, with its group, and wait for a time until no process of that is left."""
        until = time.monotonic() + _TIMEOUT
        try:
            # By the pidfd, since its number is another's once it was reaped.
            pidfd_send_signal(self.end, SIGKILL, None, _WHOLE_GROUP if self._leads_group else 0)
        except ProcessLookupError:
            pass
        except OSError:  # before Linux 6.9 for a group
            self._kill_by_number()
        waiting = poll()
        waiting.register(self.end, 1)
        self.is_over = bool(waiting.poll(_TIMEOUT * 1000))
        if self.is_over:
            self.reap()
            if self._leads_group:
                self.is_over = _wait_for_group(self._pid, until)

    def _kill_by_number(self) -> None:
        try:
            (posix.killpg if self._leads_group else posix.kill)(self._pid, SIGKILL)
        except ProcessLookupError:
            pass

    def _reap_by_number(self) -> None:
        try:
            posix.waitpid(self._pid, 0)
        except ChildProcessError:
            pass


def _ended() -> int:
    """A descriptor that can be read, as the pidfd of a process that has ended."""
    reader, writer = posix.pipe()
    posix.close(writer)
    return reader


def _kept_status(end: int) -> int | None:
    """The status that the kernel keeps of a reaped process; None if it does not."""
    waiting = poll()
    waiting.register(end, 0)
    waiting.poll(_TIMEOUT * 1000)  # POLLHUP: it is kept from then on
    info = bytearray(_INFO_SIZE)
    pack_into("=Q", info, 0, _INFO_EXIT)
    try:
        ioctl(end, _GET_INFO, info)
    except OSError:
        return None
    if not unpack_from("=Q", info)[0] & _INFO_EXIT:
        return None
    return posix.waitstatus_to_exitcode(unpack_from("=i", info, _INFO_SIZE - 4)[0])


def _wait_for_group(group: int, until: float) -> bool:
    """Wait until no process of a killed group is left; the kernel does not announce it."""
    pause = 0.001
    while True:
        is_empty = not _is_anyone_in(group)
        try:
            while posix.waitpid(-group, posix.WNOHANG)[0]:
                pass  # orphans, which are ours where this process is a subreaper
        except ChildProcessError:
            pass
        if is_empty or time.monotonic() > until:
            return is_empty
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _is_anyone_in(group: int) -> bool:
    """Whether a group has a process that has not ended; an ended one may never be reaped."""
    try:
        posix.killpg(group, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    try:
        return any(_is_alive_in(group, name) for name in posix.listdir("/proc") if name.isdigit())
    except OSError:
        return True


def _is_alive_in(group: int, pid: str) -> bool:
    try:
        fd = posix.open(f"/proc/{pid}/stat", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return False
    try:
        state, _, found = posix.read(fd, 1024).rpartition(b")")[2].split(None, 3)[:3]
    except (OSError, ValueError):
        return False
    finally:
        posix.close(fd)
    return int(found) == group and state not in (b"Z", b"X")
