"""The machine that figures were taken on, and how much of it others had meanwhile."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

_LAPS = 200
_PAUSE = 0.002


class Watch:
    """Looks on while a benchmark runs: a virtual machine shares its processors with others.

    Time in which another guest has the processor is stolen. A guest on the other half of a core
    (SMT) steals none, and yet halves its speed.
    """

    def __init__(self) -> None:
        self._begin = _processor_time()
        self._laps: list[float] = []

    def look(self) -> None:
        """Time a loop of Python, 200 times within half a second. To be called now and then."""
        for _ in range(_LAPS):
            self._laps.append(min(_lap(), _lap()))  # the first after a pause finds caches cold
            time.sleep(_PAUSE)

    def found(self) -> dict[str, float]:
        """stolen: share of the processors' time, since the watch began, that other guests had;
        slowdown: the median time of the loop over its shortest, 1 on a machine of one's own."""
        all_of_it, stolen = (
            end - begin for begin, end in zip(self._begin, _processor_time(), strict=True)
        )
        return {
            "stolen": round(stolen / all_of_it, 3),
            "slowdown": round(statistics.median(self._laps) / min(self._laps), 2),
        }


def describe() -> dict[str, Any]:
    """Hardware, kernel, and the versions of what is compared."""
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


def _lap() -> float:
    begin = time.perf_counter()
    found = {}
    for number in range(1_000):
        found[number % 97] = str(number)
    return time.perf_counter() - begin


def _processor_time() -> tuple[int, int]:
    """All there was since the start, and what of it was stolen, in ticks: /proc/stat, proc(5)."""
    # user nice system idle iowait irq softirq steal; what guests of ours have is in user.
    times = [int(word) for word in Path("/proc/stat").read_text().split()[1:9]]
    return sum(times), times[7]
