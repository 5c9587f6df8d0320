"""Interleaved rounds of one scenario, and what they give: medians of ratios."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contenders import Attachment, Contender
from scenarios import Scenario


@dataclass(frozen=True)
class Measurement:
    """Times of one operation of one scenario: seconds by contender, a value a round."""

    scenario: str
    operation: str
    times: dict[str, list[float]]

    def milliseconds(self, contender: str) -> float:
        """The contender's median time."""
        return statistics.median(self.times[contender]) * 1e3

    def ratio(self, contender: str, reference: str) -> tuple[float, float, float]:
        """Quartiles of the contender's time over the reference's, round by round."""
        pairs = zip(self.times[contender], self.times[reference], strict=True)
        lower, middle, upper = statistics.quantiles([ours / theirs for ours, theirs in pairs], n=4)
        return lower, middle, upper

    def to_json(self, reference: str) -> dict[str, Any]:
        """The measurement for other programs; times in milliseconds."""
        return {
            "scenario": self.scenario,
            "operation": self.operation,
            "median_ms": {name: round(self.milliseconds(name), 3) for name in self.times},
            "ratio_quartiles": {
                name: [round(value, 4) for value in self.ratio(name, reference)]
                for name in self.times
                if name != reference
            },
        }


def measure(scenario: Scenario, contenders: Sequence[Contender], rounds: int) -> list[Measurement]:
    """Attach and detach once a round by every contender; the first round warms up."""
    times: dict[str, dict[str, list[float]]] = {
        operation: {contender.name: [] for contender in contenders} for operation in ("ADD", "DEL")
    }
    for number in range(rounds + 1):
        for turn in range(len(contenders)):
            # Who comes first changes, so that nobody always pays for what others left to do.
            contender = contenders[(number + turn) % len(contenders)]
            config = scenario.configured(contender.name)
            attachment = Attachment(f"bench-{number}-{turn}")
            subprocess.run(["ip", "netns", "add", attachment.container_id], check=True)
            for operation, values in times.items():
                begin = time.perf_counter()
                result = contender.call(operation, config, attachment)
                elapsed = time.perf_counter() - begin
                if operation == "ADD":
                    config = {**config, "prevResult": result}
                if number > 0:
                    values[contender.name].append(elapsed)
            subprocess.run(["ip", "netns", "delete", attachment.container_id], check=True)
    return [Measurement(scenario.name, operation, values) for operation, values in times.items()]


def table(measurements: Sequence[Measurement], reference: str) -> str:
    """The measurements as text: ratios with quartiles, and medians in milliseconds."""
    names = [name for name in measurements[0].times if name != reference]
    width = max(34, *(len(item.scenario) + len(item.operation) + 3 for item in measurements))
    header = f"{'work':<{width}}{reference + ' ms':>14}"
    header += "".join(f"{name:>24}" for name in names)
    lines = [header, "-" * len(header)]
    for item in measurements:
        line = (
            f"{item.scenario + ' ' + item.operation:<{width}}{item.milliseconds(reference):>14.2f}"
        )
        for name in names:
            lower, middle, upper = item.ratio(name, reference)
            line += f"{middle:>11.3f} [{lower:.2f}-{upper:.2f}]".rjust(24)
        lines.append(line)
    return "\n".join(lines)
