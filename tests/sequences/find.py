"""Find a mistake of `mistakes`: run sequences with it until one fails by it.

That the mistake is what was found, and not a fault that is there anyway, is seen by the same
sequence without it: nothing is wrong then.
"""

from __future__ import annotations

from dataclasses import dataclass

from sequences.generate import WEIGHTS
from sequences.mistakes import Mistake
from sequences.run import Failure, Runner

# What else than operations may be chosen, and is left out where a mistake does not need it.
_BESIDE = frozenset(
    ("two networks", "two interfaces", "strangers", "other ids", "second", "taken", "reuse",
     "a file", "iptables")
)  # fmt: skip


@dataclass
class Finding:
    """After how many sequences a mistake was found, and how; others: faults of the product's own
    that were met on the way."""

    sequences: int
    failure: Failure | None
    others: int


def leave_out(mistake: Mistake) -> frozenset[str]:
    """What sequences for a mistake do without."""
    kinds = set(WEIGHTS) - {"Add", "Del", "Fix", "Appear", *mistake.operations}
    return frozenset(kinds) | _BESIDE.difference(mistake.beside) | frozenset(mistake.without)


def find(runner: Runner, mistake: Mistake, *, seed: str, most: int, operations: int) -> Finding:
    """Try up to `most` sequences, of operations that are more likely to show it."""
    before, runner.without = runner.without, leave_out(mistake)
    try:
        return _found(runner, mistake, seed, most, operations)
    finally:
        runner.without = before


def _found(runner: Runner, mistake: Mistake, seed: str, most: int, operations: int) -> Finding:
    others = 0
    for number in range(most):
        with mistake.made():
            failure = runner.seeded(
                f"{seed}-{number}",
                operations,
                "in process",
                settings=mistake.settings,
                often=mistake.operations,
            )
        if failure is None:
            continue
        if runner.given(failure.setup, failure.operations) is None:
            with mistake.made():
                return Finding(number + 1, runner.minimised(failure, 20.0), others)
        others += 1
    return Finding(most, None, others)
