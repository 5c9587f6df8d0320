"""Ctrl-C and SIGTERM: a command takes back what it did, says so, and ends with 128 + the signal.

A signal raises `Interrupted` wherever the main thread is, but for `held`: there the first one
cancels, and no other gets in the way of what is taken back.
"""

from __future__ import annotations

import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_WORDS = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}


class Interrupted(BaseException):
    """A command was interrupted. number: the signal; outcome: what came of it, in words."""

    def __init__(self, number: int, outcome: str = "") -> None:
        super().__init__(number, outcome)
        self.number = number
        self.outcome = outcome

    @property
    def status(self) -> int:
        """The exit code, as shells have it."""
        return 128 + self.number

    def __str__(self) -> str:
        word = _WORDS[signal.Signals(self.number)]
        return f"{word}: {self.outcome}" if self.outcome else word


def install() -> None:
    """Have signals raise Interrupted, but for those that this process was started without."""
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == usual:
            signal.signal(number, _act)


def cause_of(error: BaseException) -> Interrupted | None:
    """The interruption that a command's error is, or has led to; None if there was none."""
    if isinstance(error, Interrupted):
        return error
    if isinstance(error.__cause__, Interrupted):  # as Python 3.11 wraps it in a class's definition
        return error.__cause__
    return Interrupted(_Now.first, str(error)) if _Now.first else None


def ignore() -> None:
    """Have signals do nothing from now on, to the very end: what is to be said is said."""
    for number in _WORDS:
        if signal.getsignal(number) == _act:
            # The interpreter gives handlers of Python's back before it ends, but not this.
            signal.signal(number, signal.SIG_IGN)


def _act(number: int, _: FrameType | None) -> None:
    _Now.act(number)


def _raise(number: int) -> None:
    _Now.first = _Now.first or number
    raise Interrupted(number)


class _Now:
    """What a signal does; a process has this once."""

    act: Callable[[int], None] = staticmethod(_raise)
    first = 0  # signal that raised something


class held:  # noqa: N801 - read as a statement
    """A block that no signal interrupts: the first one calls `cancel`.

    Raises Interrupted at its end, with what the block's error says of what could not be undone.
    """

    number = 0  # of the first signal
    _is_open = False

    def __init__(self, cancel: Callable[[], None], left_of: Callable[[BaseException], str]) -> None:
        """left_of: what an error says of what could not be undone."""
        self._cancel = cancel
        self._left_of = left_of

    def __enter__(self) -> held:
        _Now.act = self._note
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            return  # `ignore` still holds: what has been reported is not taken back
        if self.number:
            raise Interrupted(self.number, self._left_of(error)) from error
        _Now.act = _raise

    def check(self) -> None:
        """Raise Interrupted if there was a signal."""
        if self.number:
            raise Interrupted(self.number)

    def finish(self, report: Callable[[], None]) -> None:
        """Report the outcome, which a signal interrupts; from then on none does anything."""
        self._is_open = True
        self.check()
        report()
        ignore()

    def _note(self, number: int) -> None:
        if self.number:
            return
        self.number = number
        self._cancel()
        if self._is_open:
            raise Interrupted(number)
