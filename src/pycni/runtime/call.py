"""What every operation takes besides the attachment: a time-out, a way to cancel, a trace."""

from __future__ import annotations

import os
import threading
from typing import TypedDict

from pycni.runtime.errors import Canceled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Cancellation:
    """Tell operations to stop: give it to them as `cancel`, and call `cancel()` from any thread.

    A plugin's process is killed, and no further plugin is called; what an ADD had done is undone. A
    plugin that runs in this process is let finish, which is a matter of milliseconds.
    """

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def cancel(self) -> None:
        """Stop; more than once is fine."""
        self.canceled = True  # before anyone is woken to look at it
        os.eventfd_write(self._event, 1)

    canceled = False

    def fileno(self) -> int:
        """A descriptor that can be read once `cancel` was called."""
        return self._event

    def check(self) -> None:
        """Raise Canceled if `cancel` was called."""
        if self.canceled:
            raise Canceled

    def __del__(self) -> None:
        os.close(self._event)


class Options(TypedDict, total=False):
    """Keyword arguments of every operation.

    timeout: seconds that each plugin's process may take before it is killed; cancel: see
    `Cancellation`; trace: the W3C trace context (`traceparent`, `tracestate`, `baggage`), which
    plugins get as environment variables.
    """

    timeout: float | None
    cancel: Cancellation | None
    trace: Mapping[str, str] | None


def with_cancel(options: Options, cancel: Cancellation | None) -> Options:
    """The same options but for this."""
    return {**options, "cancel": cancel}


def environment(options: Options) -> Mapping[str, str]:
    """The environment of a plugin: this process's, and the trace."""
    trace = options.get("trace")
    if not trace:
        return os.environ  # to copy it takes longer than anything else here
    return {**os.environ, **{name.upper(): value for name, value in trace.items() if value}}


class Turns:
    """Who may work at the same time: one operation per container, and GC alone.

    The specification asks both of runtimes. It holds within this process; runtimes that share a
    host must keep out of each other's containers anyway.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy: set[str] = set()
        self._collecting = False
        self._waiting = 0

    def container(self, container_id: str) -> Turn:
        """A context manager: no other operation on this container, and no GC, meanwhile."""
        return Turn(self, container_id)

    def everything(self) -> Turn:
        """A context manager: no operation at all meanwhile."""
        return Turn(self, None)

    def take(self, container_id: str | None) -> None:
        with self._changed:
            if container_id is None:
                # Who waits to collect goes before those who would attach.
                self._waiting += 1
                try:
                    self._changed.wait_for(lambda: not self._busy and not self._collecting)
                    self._collecting = True
                finally:
                    self._waiting -= 1
                return
            self._changed.wait_for(
                lambda: not (self._collecting or self._waiting or container_id in self._busy)
            )
            self._busy.add(container_id)

    def give_back(self, container_id: str | None) -> None:
        with self._changed:
            if container_id is None:
                self._collecting = False
            else:
                self._busy.discard(container_id)
            self._changed.notify_all()


class Turn:
    """A turn that is held during a `with` block."""

    def __init__(self, turns: Turns, container_id: str | None) -> None:
        self._turns = turns
        self._container_id = container_id

    def __enter__(self) -> None:
        self._turns.take(self._container_id)

    def __exit__(self, *_: object) -> None:
        self._turns.give_back(self._container_id)
