"""The figures as a picture: each way's time over the reference's, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from contenders import AGENT, COLD, IN_PROCESS
from measure import Table

COLOURS = {COLD: "#4c78a8", AGENT: "#e45756", IN_PROCESS: "#54a24b", "peer": "#b279a2"}
OPERATIONS = ("ADD", "DEL")


def write(tables: Sequence[Table], path: Path) -> None:
    """Write the picture as SVG. Needs matplotlib, of the dependency group `bench`."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("bench: a plot needs matplotlib: pip install --group bench") from None
    rows = [
        (f"{row.work} {row.operation}", {name: row.ratio(name, "reference") for name in ways})
        for table in tables
        if table.reference == "reference"
        for row in table.rows
        if row.unit == "s"
        and row.operation in OPERATIONS
        and (ways := [way for way in COLOURS if way in row.values])
    ]
    # Text stays text, and the same figures give the same file.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "pycni", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(9, 1.5 + 0.32 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for way, colour in COLOURS.items():
            places = [
                (index, ratios[way]) for index, (_, ratios) in enumerate(rows) if way in ratios
            ]
            if not places:
                continue
            middles = [middle for _, (_, middle, _) in places]
            spread = [
                [middle - lower for _, (lower, middle, _) in places],
                [upper - middle for _, (_, middle, upper) in places],
            ]
            axes.errorbar(
                middles,
                [index for index, _ in places],
                xerr=spread,
                fmt="o",
                color=colour,
                label=way,
            )
        axes.axvline(1, color="#888888")
        axes.set_xscale("log")
        axes.set_xlabel("time over the reference's, median and quartiles; left of 1 is faster")
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(y=0.01)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, 1.05), ncols=len(COLOURS), frameon=False
        )
        figure.savefig(path, format="svg", metadata={"Date": None})
