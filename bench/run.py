"""`make bench`: pycni against the reference plugins, as ratios taken in the same run.

    bench/run.py [--rounds N] [--peer DIR] [--json FILE] [--only WORD]

Every round does each piece of work once by each contender, in turn, in network namespaces of its
own. A round's figure is one contender's time over the reference's; the table shows the median of
all rounds, with quartiles. The reference's milliseconds stand beside it for orientation only: they
say as much about the machine as about the code.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from contenders import Contender, InProcess, Processes, WithAgent
from measure import Measurement, measure, table
from runtime import measure_list, measure_many
from scenarios import SCENARIOS

from harness import enter_new_netns, private_mounts
from pycni.cli.install import install

REFERENCE = Path("/usr/lib/cni")


def main() -> None:
    options = _parse_options()
    if os.geteuid() != 0:
        sys.exit("bench: needs root, to make network namespaces")
    private_mounts()
    with enter_new_netns():
        tables = _run(options)
    if not tables:
        sys.exit(f"bench: nothing to measure is named {options.only!r}")
    print("\n\n".join(table(items, against) for items, against in tables))
    if options.json:
        document = [item.to_json(against) for items, against in tables for item in items]
        options.json.write_text(json.dumps(document, indent=2) + "\n")


def _run(options: argparse.Namespace) -> list[tuple[list[Measurement], str]]:
    """Tables of measurements, each with the contender that the others are held against."""
    tables: list[tuple[list[Measurement], str]] = []
    scenarios = [scenario for scenario in SCENARIOS if options.only in scenario.name]
    if scenarios:
        contenders = _contenders(options.peer)
        measurements = []
        for scenario in scenarios:
            print(f"  {scenario.name}", file=sys.stderr)
            measurements += measure(scenario, contenders, options.rounds)
        tables.append((measurements, "reference"))
    if options.only in "runtime: list":
        print("  runtime: list", file=sys.stderr)
        tables.append((measure_list(options.peer, options.rounds), "reference"))
    if options.only in "runtime: many":
        print("  runtime: many", file=sys.stderr)
        tables.append((measure_many(max(2, options.rounds // 10)), "in turn"))
    return tables


def _contenders(peer: Path) -> list[Contender]:
    """The reference, and pycni in the ways that it can be called."""
    folder = Path("/run/pycni-bench")
    socket = folder / "agent" / "agent.sock"
    install(folder / "cold", socket=None)
    install(folder / "agent-bin", socket=socket)
    return [
        Processes("reference", peer),
        Processes("cold", folder / "cold"),
        WithAgent("agent", folder / "agent-bin", socket),
        InProcess("in process", folder / "cold"),
    ]


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="pycni against the reference plugins")
    parser.add_argument("--rounds", type=int, default=40, help="rounds that count, per scenario")
    parser.add_argument("--peer", type=Path, default=REFERENCE, help="the reference's directory")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--only", default="", help="only scenarios with this word in their name")
    return parser.parse_args()


if __name__ == "__main__":
    main()
