"""What every operation takes besides the attachment: a time-out, a way to cancel, a trace."""

from __future__ import annotations

import os
from _thread import RLock
from collections.abc import Callable, Mapping
from math import inf, isnan
from typing import TypedDict

from pycni.runtime.errors import Canceled, TimedOut
from pycni.spec.errors import IO_FAILURE, CNIError


class Cancellation:
    """Stops operations: give it to them as `cancel`, and call `cancel()` from any thread.

    A plugin's process is killed, and no further plugin is called; what an ADD had done is undone. A
    plugin that runs in this process stops at its next step. One may be given to many operations,
    which all stop then; parent: one that stops this one too.
    """

    canceled = False

    def __init__(self, parent: Cancellation | None = None) -> None:
        self._guard = RLock()  # of the descriptor; a signal's handler may cancel what is cancelled
        self._descriptor = -1
        self._seconds: float | None = None  # that were too few
        self._listeners: set[Callable[[], object]] = set()
        self._parent = parent
        if parent is not None:
            parent.listen(self._follow)

    def cancel(self) -> None:
        """Stop; more than once is fine."""
        self.canceled = True  # before anyone is woken to look at it
        with self._guard:
            if self._descriptor >= 0:
                os.eventfd_write(self._descriptor, 1)
        for listener in tuple(self._listeners):
            listener()

    def expire(self, seconds: float) -> None:
        """Stop, since the time that an operation had is over."""
        self._seconds = seconds
        self.cancel()

    def check(self, failure: str = "") -> None:
        """Raise Canceled, or TimedOut, if it is to stop; failure: what came of it, in words."""
        if self.canceled:
            raise Canceled if self._seconds is None else TimedOut(self._seconds, failure)

    def fileno(self) -> int:
        """A descriptor that can be read once `cancel` was called. Raises CNIError without any."""
        with self._guard:
            if self._descriptor < 0:
                try:
                    flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
                    self._descriptor = os.eventfd(int(self.canceled), flags)
                except OSError as error:
                    raise CNIError(
                        IO_FAILURE,
                        f"no descriptor to learn by when to stop: {error.strerror}",
                        "the program has too many files open: see RLIMIT_NOFILE",
                    ) from None
            return self._descriptor

    def listen(self, listener: Callable[[], object]) -> None:
        """Have something called when it is to stop; at once if it is by now."""
        self._listeners.add(listener)
        if self.canceled:
            listener()

    def unlisten(self, listener: Callable[[], object]) -> None:
        """Have it called no more."""
        self._listeners.discard(listener)

    def close(self) -> None:
        """Follow the parent no more, and give the descriptor back."""
        if self._parent is not None:
            self._parent.unlisten(self._follow)
        with self._guard:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _follow(self) -> None:
        assert self._parent is not None
        self._seconds = self._parent._seconds
        self.cancel()

    def __del__(self) -> None:
        self.close()


class Options(TypedDict, total=False):
    """Keyword arguments of every operation.

    timeout: seconds until it is cancelled, and then takes back what it has done, as for `cancel`;
    of several attachments, for each of them. cancel: see `Cancellation`; trace: the W3C trace
    context (`traceparent`, `tracestate`, `baggage`), which plugins get as environment variables.
    """

    timeout: float | None
    cancel: Cancellation | None
    trace: Mapping[str, str] | None


def checked(options: Options) -> Options:
    """The same, if they are options. Raises TypeError, ValueError."""
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(
            f"unexpected keyword argument {', '.join(sorted(unknown))}: an operation takes "
            f"{', '.join(Options.__annotations__)}"
        )
    cancel, timeout = options.get("cancel"), options.get("timeout")
    if not (cancel is None or isinstance(cancel, Cancellation)):
        raise TypeError(f"cancel must be a Cancellation, not {type(cancel).__name__}")
    if timeout is None:
        return options
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, not {type(timeout).__name__}")
    if isnan(timeout) or timeout < 0:
        raise ValueError(f"timeout must be 0 seconds or more, not {timeout}")
    return {**options, "timeout": None if timeout == inf else timeout}


def with_cancel(options: Options, cancel: Cancellation | None) -> Options:
    """The same options but for this."""
    return {**options, "cancel": cancel}


def environment(options: Options) -> Mapping[str, str]:
    """The environment of a plugin: this process's, and the trace."""
    trace = options.get("trace")
    if not trace:
        return os.environ  # to copy it takes longer than anything else here
    return {**os.environ, **{name.upper(): value for name, value in trace.items() if value}}
