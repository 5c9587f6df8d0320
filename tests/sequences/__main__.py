"""Run sequences, or look for mistakes: `python -m sequences --help`, in tests/, as root.

What fails is printed small, as what `Runner.given` takes, with the seed that made it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from sequences import workers
from sequences.mistakes import MISTAKES
from sequences.run import WAYS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sequences", description=__doc__)
    parser.add_argument("--sequences", type=int, default=2000, help="how many, or at most")
    parser.add_argument("--length", type=int, default=20, help="operations of each")
    parser.add_argument("--way", choices=[*WAYS, "all"], default="all")
    parser.add_argument("--seed", default="0", help="what all that is random follows from")
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="go on from one")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one of them")
    parser.add_argument("--failures", type=int, default=5, help="stop after so many")
    parser.add_argument("--minimise", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--without", nargs="*", default=(), help="kinds to leave out or pass over")
    parser.add_argument(
        "--mistakes", nargs="?", const="", metavar="WORDS", help="look for those called so, or all"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    with workers.workers(options.jobs, frozenset(options.without)) as pool:
        look = _sequences if options.mistakes is None else _mistakes
        return 0 if look(pool, options) else 1


def _sequences(pool: ProcessPoolExecutor, options: argparse.Namespace) -> bool:
    """Run them; whether none failed."""
    ways = WAYS if options.way == "all" else (options.way,)
    chosen = range(options.first, options.sequences)
    numbers = chosen if options.only is None else [options.only]
    began = time.monotonic()
    tasks = {
        number: pool.submit(
            workers.sequence,
            f"{options.seed}-{number}",
            options.length,
            ways[number % len(ways)],
            options.minimise,
        )
        for number in numbers
    }
    failed = done = 0
    for number, task in tasks.items():
        failure = task.result()
        done += 1
        if failure is not None:
            failed += 1
            print(f"\nnumber {number}, {ways[number % len(ways)]}:\n{failure}", flush=True)
            if failed >= options.failures:
                pool.shutdown(wait=False, cancel_futures=True)
                break
        if done % 100 == 0:
            print(f"{done} sequences, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{done} sequences of {options.length} operations, {failed} failed")
    return not failed


def _mistakes(pool: ProcessPoolExecutor, options: argparse.Namespace) -> bool:
    """Look for them; whether all were found."""
    tasks = {
        one.name: pool.submit(
            workers.mistake, number, options.seed, options.sequences, options.length
        )
        for number, one in enumerate(MISTAKES)
        if options.mistakes in one.name
    }
    missed = 0
    for name, task in tasks.items():
        finding = task.result()
        if finding.failure is None:
            missed += 1
            print(f"NOT FOUND in {finding.sequences} sequences: {name}", flush=True)
        else:
            kind, steps = finding.failure.kind, len(finding.failure.operations)
            where = f"in sequence {finding.sequences}, as {kind!r}, by {steps} operations"
            print(f"found {where}: {name}", flush=True)
        if finding.others:
            print(f"  {finding.others} sequences failed without it, too", flush=True)
    print(f"{len(tasks)} mistakes, {missed} not found")
    return not missed


if __name__ == "__main__":
    sys.exit(main())
