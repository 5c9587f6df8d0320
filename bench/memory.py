"""Memory: the peak of one call's processes, and what the agent comes to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import native
from contenders import Processes, everyone, room, sandboxes, with_agent
from measure import Measurement, cycle
from scenarios import MASQUERADE

from harness import inside

KIB = 1024


class Peaks(Processes):
    """Calls that answer with the peak of their memory in KiB."""

    def argv(self, plugin: str) -> list[str]:
        return [native.built("peak"), *super().argv(plugin)]


def of_calls(peer: Path | None, rounds: int) -> Iterator[Measurement]:
    """Bytes resident at the peak of an ADD's and a DEL's largest process."""
    peaks: dict[str, dict[str, list[float]]] = {}
    with everyone(peer) as contenders, sandboxes(1, "peak") as (box,):
        for contender in contenders:
            if not isinstance(contender, Processes):
                continue
            watched = Peaks(contender.name, contender.room, contender.directory)
            with inside(contender.room):
                (config,) = MASQUERADE.configured(0, contender.room.name)
                for _ in range(rounds):
                    for operation in ("ADD", "DEL"):
                        kib, _ = watched.call(operation, config, box)
                        values = peaks.setdefault(operation, {}).setdefault(contender.name, [])
                        values.append(kib * KIB)
    for operation, found in peaks.items():
        yield Measurement(f"{MASQUERADE.name}, peak", operation, found, "B")


def of_agent(requests: int) -> list[Measurement]:
    """Bytes resident when it has started, and after so many requests."""
    with room("agent") as host, with_agent("agent", host) as contender:
        configs = MASQUERADE.configured(0, host.name)
        with sandboxes(1, "agent") as (box,):
            first = _resident(contender.pid)
            for _ in range(requests // 2):
                cycle(contender, configs, box, operations=("ADD", "DEL"))
            last = _resident(contender.pid)
    work = f"agent, idle and after {requests:,} requests"
    return [Measurement(work, "", {"idle": [first], "afterwards": [last]}, "B")]


def _resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return float(line.split()[1]) * KIB
    raise RuntimeError(f"process {pid} has no memory")
