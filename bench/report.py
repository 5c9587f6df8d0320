"""What was measured as text, as JSON, and as the figures of docs/benchmark.md."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import Measurement, Table
from targets import TARGETS

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"

# How a unit is printed: the factor to it, its name, decimals.
_UNITS = {
    "s": (1e3, "ms", 2),
    "B": (2**-20, "MiB", 1),
    "bit/s": (1e-9, "Gbit/s", 2),
}


def to_text(document: Any) -> str:
    """For a terminal."""
    tables = from_json(document)
    parts = [_text(table) for table in tables if table.rows]
    if found := verdicts(tables):
        lines = [
            f"{work:<32}{way:<12}at most {limit:<6}{middle:<8}{verdict}"
            for work, way, limit, middle, verdict in found
        ]
        parts.append("\n".join(["what must hold", *lines]))
    parts.append(_shared(document["machine"]))
    return "\n\n".join(parts)


def to_json(tables: Sequence[Table], rounds: int, machine: dict[str, Any]) -> dict[str, Any]:
    """All values, with where and when they were taken. machine: as `machine` describes it."""
    return {
        "taken": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine,
        "rounds": rounds,
        "tables": [
            {
                "title": table.title,
                "reference": table.reference,
                "rows": [
                    {
                        "work": row.work,
                        "operation": row.operation,
                        "unit": row.unit,
                        "values": {
                            name: [float(f"{value:.5g}") for value in values]
                            for name, values in row.values.items()
                        },
                    }
                    for row in table.rows
                ],
            }
            for table in tables
        ],
    }


def from_json(document: Any) -> list[Table]:
    """The tables of such a document."""
    return [
        Table(table["title"], table["reference"], [Measurement(**row) for row in table["rows"]])
        for table in document["tables"]
    ]


def write_page(page: Path, document: Any) -> None:
    """Put the figures of a document into a page, between its two marks."""
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise SystemExit(f"bench: {page} lacks {BEGIN} and {END}")
    figures = f"{BEGIN}\n\n{_markdown(document)}\n\n{END}"
    pattern = f"{re.escape(BEGIN)}.*{re.escape(END)}"
    page.write_text(re.sub(pattern, lambda _: figures, text, flags=re.DOTALL))


def verdicts(tables: Sequence[Table]) -> list[tuple[str, str, str, str, str]]:
    """The targets that were measured: work, way, limit, what was found, and whether it holds."""
    rows = {
        (row.work, row.operation): (row, table.reference) for table in tables for row in table.rows
    }
    found = []
    for work, operation, way, contender, limit in TARGETS:
        if (work, operation) in rows:
            row, reference = rows[work, operation]
            _, middle, _ = row.ratio(contender, reference)
            verdict = "held" if middle <= limit else "missed"
            found.append((f"{work} {operation}", way, f"{limit:g}", _ratio(middle), verdict))
    return found


def _text(table: Table) -> str:
    others = table.contenders[1:]
    first = max(len(table.title), *(len(_name(row)) for row in table.rows))
    lines = [f"{table.title:<{first}}{table.reference:>14}"]
    lines[0] += "".join(f"{name:>30}" for name in others)
    lines.append("-" * len(lines[0]))
    for row in table.rows:
        line = f"{_name(row):<{first}}{_value(row, table.reference):>14}"
        for name in others:
            cell = ""
            if name in row.values:
                lower, middle, upper = row.ratio(name, table.reference)
                spread = f"[{_ratio(lower)}-{_ratio(upper)}]"
                cell = f"{_value(row, name)}  {_ratio(middle)} {spread}"
            line += f"{cell:>30}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _markdown(document: Any) -> str:
    tables = from_json(document)
    machine = document["machine"]
    taken = (
        f"Taken {document['taken']} on {machine['cpus']} × {machine['cpu']}, Linux "
        f"{machine['kernel']}, Python {machine['python']}, reference plugins "
        f"{machine['reference']}; {document['rounds']} rounds. " + _shared(machine)
    )
    lines = ["| work | | at most | measured | |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(line)} |" for line in verdicts(tables)]
    parts = [taken, "### Targets", "\n".join(lines)]
    for table in tables:
        header = ["", *table.contenders]
        lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
        for row in table.rows:
            cells = [_name(row), _value(row, table.reference)]
            for name in table.contenders[1:]:
                if name not in row.values:
                    cells.append("")
                    continue
                lower, middle, upper = row.ratio(name, table.reference)
                spread = f"({_ratio(lower)}–{_ratio(upper)})"
                cells.append(f"{_value(row, name)} **{_ratio(middle)}** {spread}")
            lines.append(f"| {' | '.join(cells)} |")
        parts += [f"### {table.title[0].upper()}{table.title[1:]}", "\n".join(lines)]
    return "\n\n".join(parts)


def _shared(machine: dict[str, Any]) -> str:
    if "stolen" not in machine:  # values of an earlier state of the benchmark
        return "How much others had of the machine was not looked at."
    return (
        f"Other guests of the host had {machine['stolen']:.1%} of the processors' time, and a loop "
        f"of Python took {machine['slowdown']:g} times its shortest time (median)."
    )


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.1g}"


def _value(row: Measurement, contender: str) -> str:
    factor, _, decimals = _UNITS.get(row.unit, (1, "", 0))
    return f"{row.median(contender) * factor:,.{decimals}f}"


def _name(row: Measurement) -> str:
    unit = _UNITS.get(row.unit, (1, row.unit, 0))[1]
    return f"{' '.join(filter(None, (row.work, row.operation)))}, {unit}"
