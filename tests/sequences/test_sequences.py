"""A bounded round of sequences, those that failed once, and some mistakes that it has to see.

`make sequences` runs the long one. The seed is fixed, so that a change is judged by the same
sequences as the one before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from sequences import workers
from sequences.cases import CASES
from sequences.mistakes import MISTAKES
from sequences.run import WAYS

SEQUENCES, LENGTH = 50, 20
# Such as are found by the first sequences.
QUICK = ("an element of a port map is left", "a lease is kept", "a bridge port is isolated")


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with workers.workers(2) as made:
        yield made


@pytest.mark.timeout(600)
def test_random_sequences(pool: ProcessPoolExecutor) -> None:
    tasks = [
        pool.submit(workers.sequence, f"test-{number}", LENGTH, WAYS[number % len(WAYS)], 20.0)
        for number in range(SEQUENCES)
    ]
    failures = [str(failure) for task in tasks if (failure := task.result()) is not None]
    assert not failures, "\n".join(failures)


@pytest.mark.timeout(300)
def test_sequences_that_failed_once(pool: ProcessPoolExecutor) -> None:
    tasks = {one.fault: pool.submit(workers.case, number) for number, one in enumerate(CASES)}
    failures = {fault: str(task.result()) for fault, task in tasks.items() if task.result()}
    assert not failures


@pytest.mark.timeout(300)
def test_mistakes_are_seen(pool: ProcessPoolExecutor) -> None:
    tasks = {
        one.name: pool.submit(workers.mistake, number, "test", 10, LENGTH)
        for number, one in enumerate(MISTAKES)
        if one.name in QUICK
    }
    assert tasks.keys() == set(QUICK)
    assert [name for name, task in tasks.items() if task.result().failure is None] == []
