"""`--timings`: how long each step of a plan took, on stderr."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import click

from pycni.cli.output import info
from pycni.plan.difference import described
from pycni.steps import executor

if TYPE_CHECKING:
    from pycni.steps.handler import Handler

option = click.option(
    "--timings",
    is_flag=True,
    help="Show on stderr how long each step took of what plugins did in this process.",
)

_VERBS = ("apply", "check", "remove")


class Timings:
    """Times the executor's steps during a `with` block, if it is on. Not for several threads."""

    def __init__(self, on: bool) -> None:
        self._on = on

    def __enter__(self) -> None:
        self._real = executor.handler
        if self._on:
            executor.handler = self._handler

    def __exit__(self, *_: object) -> None:
        executor.handler = self._real

    def _handler(self, kind: str) -> Handler[Any]:
        timed: Any = Timed(self._real(kind))
        return cast("Handler[Any]", timed)


class Timed:
    """A handler whose verbs say how long they take."""

    def __init__(self, real: Handler[Any]) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if name not in _VERBS:
            return real

        def timed(step: Any, kernel: Any) -> Any:
            begin = time.perf_counter()
            try:
                return real(step, kernel)
            finally:
                milliseconds = (time.perf_counter() - begin) * 1e3
                info(f"{milliseconds:8.3f} ms  {name} {step.kind}: {described(step)}")

        return timed
