"""What the agent knows of its own work: counts, latencies, failures; as JSON or for Prometheus."""

from __future__ import annotations

import bisect
import os
import threading
import time
from typing import Any

# Upper bounds of the latency histogram, seconds.
BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
LAST_ERRORS = 20
LONGEST_ERROR = 2000  # characters
COMMANDS = ("ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION", "")


class Series:
    """Calls of one operation of one plugin."""

    def __init__(self) -> None:
        self.count = 0
        self.failed = 0
        self.seconds = 0.0
        self.longest = 0.0
        self.buckets = [0] * (len(BUCKETS) + 1)


class Metrics:
    """Counters of an agent, safe to use from its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[tuple[str, str], Series] = {}
        self._started = time.time()
        self._errors: list[dict[str, Any]] = []
        self.running = 0
        self.refused: dict[str, int] = {}
        self._repairs = {"passes": 0, "repaired": 0, "failed": 0}

    def begin(self) -> None:
        """A call was taken."""
        with self._lock:
            self.running += 1

    def end(self, plugin: str, command: str, seconds: float, error: str) -> None:
        """A call was answered; error is "" for a success."""
        if command not in COMMANDS:  # each would be a series of its own, for ever
            command = "other"
        with self._lock:
            self.running -= 1
            series = self._series.setdefault((plugin, command), Series())
            series.count += 1
            series.seconds += seconds
            series.longest = max(series.longest, seconds)
            series.buckets[bisect.bisect_left(BUCKETS, seconds)] += 1
            if error:
                series.failed += 1
                self._errors.append(
                    {
                        "time": time.time(),
                        "plugin": plugin,
                        "command": command,
                        "error": error[:LONGEST_ERROR],
                    }
                )
                del self._errors[:-LAST_ERRORS]

    def refuse(self, reason: str) -> None:
        """A call was left to its launcher."""
        with self._lock:
            self.refused[reason] = self.refused.get(reason, 0) + 1

    def repaired(self, done: int, failed: int) -> None:
        """All attachments were repaired: so much was put back, so much could not be."""
        with self._lock:
            for name, count in (("passes", 1), ("repaired", done), ("failed", failed)):
                self._repairs[name] += count

    @property
    def served(self) -> int:
        """Calls answered so far."""
        with self._lock:
            return sum(series.count for series in self._series.values())

    def to_json(self) -> dict[str, Any]:
        """All of it; latencies in milliseconds."""
        with self._lock:
            return {
                "pid": os.getpid(),
                "uptime_s": round(time.time() - self._started, 1),
                "memory_bytes": memory(),
                "running": self.running,
                "refused": dict(self.refused),
                "repairs": dict(self._repairs),
                "calls": [
                    {
                        "plugin": plugin,
                        "command": command,
                        "count": series.count,
                        "failed": series.failed,
                        "mean_ms": round(series.seconds / series.count * 1e3, 3),
                        "longest_ms": round(series.longest * 1e3, 3),
                    }
                    for (plugin, command), series in sorted(self._series.items())
                ],
                "errors": list(self._errors),
            }

    def to_prometheus(self) -> str:
        """The text exposition format of Prometheus, version 0.0.4."""
        with self._lock:
            lines = [
                "# TYPE pycni_agent_running gauge",
                f"pycni_agent_running {self.running}",
                "# TYPE pycni_agent_memory_bytes gauge",
                f"pycni_agent_memory_bytes {memory()}",
                "# TYPE pycni_agent_start_time_seconds gauge",
                f"pycni_agent_start_time_seconds {self._started:.3f}",
                "# TYPE pycni_agent_refused_total counter",
            ]
            lines += (
                f'pycni_agent_refused_total{{reason="{reason}"}} {count}'
                for reason, count in sorted(self.refused.items())
            )
            for name, count in self._repairs.items():
                lines.append(f"# TYPE pycni_agent_repair_{name}_total counter")
                lines.append(f"pycni_agent_repair_{name}_total {count}")
            lines.append("# TYPE pycni_agent_failed_total counter")
            for (plugin, command), series in sorted(self._series.items()):
                labels = f'plugin="{plugin}",command="{command}"'
                lines.append(f"pycni_agent_failed_total{{{labels}}} {series.failed}")
            lines.append("# TYPE pycni_agent_call_seconds histogram")
            for (plugin, command), series in sorted(self._series.items()):
                lines += _histogram(f'plugin="{plugin}",command="{command}"', series)
        return "\n".join(lines) + "\n"


def memory() -> int:
    """The process's resident memory in bytes."""
    return _pages(1)


def address_space() -> int:
    """The process's address space in bytes, which RLIMIT_AS limits."""
    return _pages(0)


def _pages(column: int) -> int:
    """A column of /proc/self/statm in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[column]) * os.sysconf("SC_PAGESIZE")


def _histogram(labels: str, series: Series) -> list[str]:
    lines = []
    total = 0
    for bound, count in zip((*map(str, BUCKETS), "+Inf"), series.buckets, strict=True):
        total += count
        lines.append(f'pycni_agent_call_seconds_bucket{{{labels},le="{bound}"}} {total}')
    lines.append(f"pycni_agent_call_seconds_sum{{{labels}}} {series.seconds:.6f}")
    lines.append(f"pycni_agent_call_seconds_count{{{labels}}} {series.count}")
    return lines
