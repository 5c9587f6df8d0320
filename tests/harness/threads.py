"""Calls that begin at the same time, in a thread each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def at_once(call: Callable[[T], object], arguments: Sequence[T]) -> list[Exception]:
    """Make a call with each argument, all at once; returns what they raised."""
    failures: list[Exception] = []
    start = threading.Barrier(len(arguments))

    def run(argument: T) -> None:
        try:
            start.wait()
            call(argument)
        except Exception as error:  # noqa: BLE001 - reported by the test
            failures.append(error)

    threads = [threading.Thread(target=run, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures
