"""What was measured as text, as JSON, and as the figures of docs/benchmark.md."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
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


def to_text(tables: Sequence[Table]) -> str:
    """For a terminal."""
    return "\n\n".join(_text(table) for table in tables if table.rows)


def to_json(tables: Sequence[Table], rounds: int) -> dict[str, Any]:
    """All values, with where and when they were taken."""
    return {
        "taken": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": _machine(),
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


def held(tables: Sequence[Table]) -> Iterator[tuple[str, str, float, float | None]]:
    """Each target of issue 5: work, way, limit, and the median that was measured, if it was."""
    rows = {
        (row.work, row.operation): (row, table.reference) for table in tables for row in table.rows
    }
    for work, operation, way, contender, limit in TARGETS:
        row, reference = rows.get((work, operation), (None, ""))
        found = None
        if row is not None and contender in row.values:
            found = row.ratio(contender, reference)[1]
        yield f"{work}: {operation}", way, limit, found


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
                cell = f"{_value(row, name)}  {middle:.3f} [{lower:.2f}-{upper:.2f}]"
            line += f"{cell:>30}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _markdown(document: Any) -> str:
    tables = from_json(document)
    machine = document["machine"]
    taken = (
        f"Taken {document['taken']} on {machine['cpus']} × {machine['cpu']}, Linux "
        f"{machine['kernel']}, Python {machine['python']}, reference plugins "
        f"{machine['reference']}; {document['rounds']} rounds."
    )
    lines = ["| work | | at most | measured | |", "| --- | --- | --- | --- | --- |"]
    for work, way, limit, found in held(tables):
        if found is not None:
            verdict = "held" if found <= limit else "missed"
            lines.append(f"| {work} | {way} | {limit:g} | {found:.3f} | {verdict} |")
    parts = [taken, "### Targets", "\n".join(lines)]
    for table in tables:
        header = [table.title, table.reference, *table.contenders[1:]]
        lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
        for row in table.rows:
            cells = [_name(row), _value(row, table.reference)]
            for name in table.contenders[1:]:
                if name not in row.values:
                    cells.append("")
                    continue
                lower, middle, upper = row.ratio(name, table.reference)
                cells.append(f"{_value(row, name)}; **{middle:.2f}** ({lower:.2f}–{upper:.2f})")
            lines.append(f"| {' | '.join(cells)} |")
        parts += [f"### {table.title}", "\n".join(lines)]
    return "\n\n".join(parts)


def _value(row: Measurement, contender: str) -> str:
    factor, _, decimals = _UNITS.get(row.unit, (1, "", 0))
    return f"{row.median(contender) * factor:,.{decimals}f}"


def _name(row: Measurement) -> str:
    unit = _UNITS.get(row.unit, (1, row.unit, 0))[1]
    return f"{' '.join(filter(None, (row.work, row.operation)))}, {unit}"


def _machine() -> dict[str, Any]:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    package = ["dpkg-query", "-W", "-f", "${Version}", "containernetworking-plugins"]
    found = subprocess.run(package, capture_output=True, text=True, check=False)
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "cpu": names[0] if names else platform.machine(),
        "python": platform.python_version(),
        "reference": found.stdout or "of unknown version",
    }
