"""Processes that run sequences, each with machines, files and addresses of its own."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from sequences.cases import CASES
from sequences.find import Finding, find
from sequences.mistakes import MISTAKES
from sequences.run import Failure, Runner

_runners: list[Runner] = []  # a worker's own one


@contextmanager
def workers(count: int, without: frozenset[str] = frozenset()) -> Iterator[ProcessPoolExecutor]:
    """A pool of them, for the functions below. without: what is left out, or passed over."""
    context = multiprocessing.get_context("fork")
    folder = Path(tempfile.mkdtemp(prefix="sequences-"))
    arguments = (context.Value("i", 0), folder, without)
    try:
        with ProcessPoolExecutor(count, context, _begin, arguments) as pool:
            yield pool
    finally:
        shutil.rmtree(folder)


def _begin(numbers: Synchronized[int], folder: Path, without: frozenset[str]) -> None:
    with numbers.get_lock():
        number = numbers.value
        numbers.value += 1
    own = folder / str(number)
    own.mkdir()
    _runners.append(Runner(own, f"10.{200 + number}", without))


def sequence(seed: str, length: int, way: str, seconds: float) -> Failure | None:
    """One of a seed; what fails is made small, if that may take so many seconds."""
    (runner,) = _runners
    failure = runner.seeded(seed, length, way)
    return runner.minimised(failure, seconds) if failure and seconds else failure


def case(number: int) -> Failure | None:
    """One of `CASES`."""
    (runner,) = _runners
    return runner.given(CASES[number].setup, CASES[number].operations)


def mistake(number: int, seed: str, most: int, length: int) -> Finding:
    """Look for one of `MISTAKES`, in at most so many sequences."""
    (runner,) = _runners
    return find(runner, MISTAKES[number], seed=seed, most=most, operations=length)
