"""The tables of docs/reliability.md, each between two markers, from figures.

<!-- figures: NAME -->
...
<!-- end of NAME -->
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs/reliability.md"


def write(name: str, text: str) -> None:
    """Put a text between the markers of this name."""
    page = PAGE.read_text()
    begin, end = f"<!-- figures: {name} -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{PAGE} has no markers for {name}")
    PAGE.write_text(f"{before}{begin}{text}\n{end}{after}")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown, figures to the right."""
    lines = [f"| {' | '.join(columns)} |"]
    lines.append("| --- |" + " ---: |" * (len(columns) - 1))
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def measured(seconds: float, every: int = 1) -> str:
    """When, where and how long, and whether that was all."""
    part = f"In part: one of {every} only. " if every > 1 else ""
    return (
        f"{part}Measured {time.strftime('%Y-%m-%d', time.gmtime())} on {os.cpu_count()} cores, "
        f"Linux {platform.release()}, Python {platform.python_version()}, in "
        f"{seconds / 60:.0f} minutes.\n"
    )


def inside(trials: Sequence[Any], seconds: float, every: int) -> str:
    """Faults given from inside, by case."""
    counted: Counter[tuple[str, str]] = Counter()
    for trial in trials:
        kind = "killed" if trial.fault.startswith("killed") else "refused"
        counted[trial.case, kind] += 1
        counted[trial.case, "left"] += bool(trial.wrong)
    cases = list(dict.fromkeys(trial.case for trial in trials))
    rows = [
        (case, counted[case, "refused"], counted[case, "killed"], counted[case, "left"])
        for case in cases
    ]
    total = ("**all**", *(sum(row[column] for row in rows) for column in (1, 2, 3)))
    columns = ("plugin", "changes refused", "killed at a change", "left or wrong")
    return table(columns, [*rows, total]) + "\n" + measured(seconds, every)


def outside(outcomes: Sequence[Any], seconds: float, every: int) -> str:
    """Faults given from outside, ours and the reference's side by side."""
    counted: Counter[tuple[str, str, str]] = Counter()
    for one in outcomes:
        counted[one.case, one.side, "faults"] += 1
        counted[one.case, one.side, "undone"] += bool(one.undone)
        counted[one.case, one.side, "left"] += bool(one.left)
    kinds = ("faults", "undone", "left")
    rows = [
        (case, *(counted[case, side, kind] for side in ("ours", "reference") for kind in kinds))
        for case in dict.fromkeys(one.case for one in outcomes)
    ]
    total = ("**all**", *(sum(row[column] for row in rows) for column in range(1, 7)))
    columns = ("plugin", "ours: faults", "ADD did not undo", "left after DEL",
               "reference: faults", "ADD did not undo", "left after DEL")  # fmt: skip
    return table(columns, [*rows, total]) + "\n" + measured(seconds, every)


def load(report: dict[str, Any]) -> str:
    """The phases, and how the first compares with the last."""
    kinds = ("agent", "process", "reference")
    rows = [
        (phase["callers"], phase["cycles"], phase["per second"],
         f"{phase['agent memory'] / 1024:.1f}",
         *(f"{phase.get(f'{kind} ADD p50', '')} / {phase.get(f'{kind} ADD p99', '')}"
           for kind in kinds))
        for phase in report["phases"]
    ]  # fmt: skip
    names = ("our agent, ms", "our processes, ms", "the reference, ms")
    columns = ("callers", "cycles", "per second", "agent, MiB", *names)
    first, last = report["first"], report["last"]
    sorts = [f"{kind} {command}" for kind in kinds for command in ("ADD", "DEL", "CHECK")]
    change = [
        (sort, *(f"{each[sort]['p50']} / {each[sort]['p90']} / {each[sort]['p99']}"
                 for each in (first, last)))
        for sort in sorts if sort in first and sort in last
    ]  # fmt: skip
    early, late = report["agent"]["early"], report["agent"]["late"]
    calls = report["calls"]
    words = (
        f"{report['cycles']} cycles, {sum(calls.values())} calls of plugins, "
        f"{sum(count for name, count in calls.items() if name.endswith('GC'))} of them GC and "
        f"{sum(count for name, count in calls.items() if name.endswith('CHECK'))} CHECK. "
        "Addresses given twice: 0. Left over: 0 links, addresses, rules' elements, leases.\n"
        f"The agent after the first phase and after the last: {early['memory'] / 1024:.1f} and "
        f"{late['memory'] / 1024:.1f} MiB, {early['descriptors']} and {late['descriptors']} "
        f"descriptors, {early['threads']} and {late['threads']} threads.\n"
    )
    return "\n".join(
        (
            words,
            "ADD of bridge, median and 99th percentile, by phase:\n",
            table(columns, rows),
            "The first phase and the last, by as many callers; 50, 90, 99 of 100, in ms:\n",
            table(("call of bridge", "first", "last"), change),
            measured(report["seconds"]),
        )
    )
