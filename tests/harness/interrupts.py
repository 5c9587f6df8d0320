"""Exceptions out of nowhere in the calling thread, as Ctrl-C and a signal's handler raise them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Interrupt(BaseException):
    """One of a program's own."""


class Interrupter:
    """Raises Interrupt at the event of a number, counted in the calling thread.

    events: "line" or "opcode"; has_fired: whether there were so many.
    """

    def __init__(self, number: int, events: str) -> None:
        self._left = number
        self._events = events
        self.has_fired = False
        self.where = ""

    def __call__(self, work: Callable[[], object]) -> object:
        """Do the work; raises Interrupt."""
        sys.settrace(self._entered)
        try:
            return work()
        finally:
            sys.settrace(None)

    def _entered(self, frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes = self._events == "opcode"
        return self._traced

    def _traced(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == self._events and not self.has_fired and "pycni" in frame.f_code.co_filename:
            self._left -= 1
            if self._left < 0:
                self.has_fired = True
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                sys.settrace(None)
                raise Interrupt
        return self._traced


def each_interrupt(events: str, step: int = 1) -> Iterator[Interrupter]:
    """Interrupters for one event after the other, until there are no more."""
    number = 0
    while True:
        interrupter = Interrupter(number, events)
        yield interrupter
        if not interrupter.has_fired:
            return
        number += step
