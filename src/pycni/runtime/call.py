"""What every operation takes besides the attachment: a time-out, a way to cancel, a trace."""

from __future__ import annotations

import os
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
