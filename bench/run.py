"""`make bench`: pycni against the reference plugins, as ratios taken in the same run.

    bench/run.py [--only WORD] [--rounds N] [--long] [--peer DIR] [--json FILE] [--plot FILE]
    bench/run.py --write-docs [--from FILE]

Each contender has a host of its own, a network namespace, and works once in every round. A
round's figure is one contender's time over the reference's; the tables show the median of all
rounds, with quartiles. Milliseconds stand beside it for orientation only: they say as much about
the machine as about the code. docs/benchmark.md says what each piece of work is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import growth
import machine
import memory
import plot
import report
import runtime
from contenders import IN_PROCESS, Contender, Floor, everyone, ours, room, settle
from measure import Measurement, Table, measure, measure_at_once
from packets import packets
from pods import present
from scenarios import BRIDGE, MASQUERADE, POD, SINGLE, Scenario

from harness import private_mounts
from pycni.spec.errors import CNIError

DOCS = Path(__file__).resolve().parents[1] / "docs"
FLOOR = "kernel"


@dataclass
class Job:
    """A piece of work that can be asked for by name, and the measurements it gives."""

    name: str
    run: Callable[[], Iterable[Measurement]]


@dataclass
class Section:
    """Jobs whose measurements make one table."""

    title: str
    reference: str
    jobs: list[Job] = field(default_factory=list)


def main() -> None:
    options = _parse_options()
    complete = True
    if options.read:
        document = json.loads(options.read.read_text())
    else:
        if os.geteuid() != 0:
            sys.exit("bench: needs root, to make network namespaces")
        private_mounts()
        watch = machine.Watch()
        measured, complete = _run(options, watch)
        if not measured:
            sys.exit(f"bench: nothing to measure is named {options.only!r}")
        where = machine.describe() | watch.found()
        document = report.to_json(measured, options.rounds, where)
    print(report.to_text(document))
    if options.write_docs:
        options.json, options.plot = DOCS / "benchmark.json", DOCS / "benchmark.svg"
        report.write_page(DOCS / "benchmark.md", document)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.plot:
        plot.write(report.from_json(document), options.plot)
    if not complete:
        sys.exit(1)


def _run(options: argparse.Namespace, watch: machine.Watch) -> tuple[list[Table], bool]:
    """The tables, and whether all of the work could be measured. watch: looks at the machine."""
    tables = []
    failed = False
    for section in _sections(options):
        rows: list[Measurement] = []
        for job in section.jobs:
            if options.only in f"{section.title}: {job.name}":
                print(f"  {section.title}: {job.name}", file=sys.stderr)
                settle()
                watch.look()
                try:
                    rows += job.run()
                except (CNIError, OSError, RuntimeError, subprocess.SubprocessError) as error:
                    print(
                        f"bench: {section.title}: {job.name} is left out: {error}", file=sys.stderr
                    )
                    failed = True
        if rows:
            tables.append(Table(section.title, section.reference, rows))
    return tables, not failed


def _sections(options: argparse.Namespace) -> list[Section]:
    """Everything there is to measure, in the order of the tables."""
    peer, rounds = options.peer, options.rounds
    few = max(2, rounds // 4)  # for what takes long, or changes little
    pods = (0, 200, 1_000)
    return [
        Section(
            "plugins",
            "reference",
            [
                *(Job(one.name, partial(_by_everyone, one, peer, rounds)) for one in SINGLE),
                Job("64 at once", partial(_at_once, MASQUERADE, 64, peer, few)),
            ],
        ),
        Section(
            "pods", "reference", [Job(f"{n:,}", partial(_pods, n, peer, rounds)) for n in pods]
        ),
        Section(
            "leases",
            "reference",
            [
                Job(f"{n:,}", partial(growth.leases, n, peer, rounds))
                for n in (0, 1_000, 20_000, 60_000)
            ],
        ),
        Section("the kernel's share", FLOOR, [Job("bridge", partial(_floor, peer, rounds))]),
        Section(
            "growth",
            growth.FEW,
            [
                Job("pods", partial(growth.pods, 1_000, rounds)),
                Job("port mappings", partial(growth.mappings, 5_000, rounds)),
                Job("ports", partial(growth.ports, 1_000, rounds)),
                Job("results", partial(growth.results, 10_000, rounds)),
                Job("GC", partial(growth.collection, 1_000, few)),
            ],
        ),
        Section(
            "memory of a call", "reference", [Job("call", partial(memory.of_calls, peer, few))]
        ),
        Section("memory of the agent", "idle", [Job("agent", partial(memory.of_agent, 1_000))]),
        Section(
            "packets",
            "reference",
            [
                Job("0 pods", partial(packets, 0, False, peer, few)),
                Job("1,000 pods", partial(packets, 1_000, False, peer, few)),
                Job("1,000 pods with firewall", partial(packets, 1_000, True, peer, few)),
            ],
        ),
        Section("a list", "reference", [Job("runtime", partial(runtime.measure_list, rounds))]),
        Section("many", "in turn", [Job("runtime", partial(runtime.measure_many, 200, 2))]),
    ]


def _by_everyone(scenario: Scenario, peer: Path | None, rounds: int) -> list[Measurement]:
    with everyone(peer) as contenders:
        return measure(scenario, contenders, rounds)


def _at_once(scenario: Scenario, count: int, peer: Path | None, rounds: int) -> list[Measurement]:
    with everyone(peer) as contenders:
        return measure_at_once(scenario, contenders, count, rounds)


def _pods(count: int, peer: Path | None, rounds: int) -> list[Measurement]:
    with everyone(peer) as contenders, present(count, POD, contenders):
        work = f"pod, {count:,} present" if count else "pod"
        return measure(POD, contenders, rounds, work, first=count)


def _floor(peer: Path | None, rounds: int) -> list[Measurement]:
    """A bridge's attachment, and the kernel's own work for it."""
    with ExitStack() as stack:
        contenders: list[Contender] = []
        for name, inside in ((FLOOR, True), ("and a process", False)):
            host = stack.enter_context(room(name.replace(" ", "-")))
            (helper,) = stack.enter_context(ours(host, IN_PROCESS))
            stack.enter_context(present(1, BRIDGE, [helper]))  # the bridge
            contenders.append(Floor(name, host, inside=inside))
        contenders += stack.enter_context(everyone(peer))
        return measure(
            BRIDGE, contenders, rounds, "bridge beside the kernel", operations=("ADD", "DEL")
        )


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="pycni against the reference plugins")
    parser.add_argument("--only", default="", help="only work with this in its name")
    parser.add_argument("--rounds", type=int, default=10, help="rounds that count (10)")
    parser.add_argument("--long", action="store_true", help="40 rounds")
    parser.add_argument("--peer", type=Path, help="a directory of other plugins, as a contender")
    parser.add_argument("--json", type=Path, help="also write all values to this file")
    parser.add_argument("--plot", type=Path, help="also draw them, as SVG")
    parser.add_argument(
        "--write-docs", action="store_true", help="put figures, values and plot into docs/"
    )
    parser.add_argument(
        "--from", dest="read", type=Path, metavar="FILE", help="measure nothing: read such a file"
    )
    options = parser.parse_args()
    if options.long:
        options.rounds = 40
    return options


if __name__ == "__main__":
    main()
