"""The long run: `python -m adversary`, as root, in the folder tests. See `make adversary`."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from adversary import tenant_trials, trials
from harness import private_mounts
from harness.agent import AgentProcess
from harness.allowed import allow_paths
from harness.fault_cases import CASES
from harness.host import forget_attachments
from harness.namespaces import enter_new_netns
from harness.plugin import call_plugin, run_plugin
from pycni.plugins import NAMES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m adversary", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="each of them everything once")
    parser.add_argument("--seed", default="0", help="what all that is random follows from")
    parser.add_argument("--case", default="", help="only cases called so")
    parser.add_argument(
        "--examples", type=int, default=60, help="configurations of a tenant's a plugin and round"
    )
    options = parser.parse_args()
    private_mounts()
    allow_paths(private=True)
    tried = failed = calls = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="adversary-") as folder, enter_new_netns():
        for number in range(options.rounds):
            for found in _round(Path(folder), f"{options.seed}-{number}", options.case):
                tried += 1
                if found.wrong:
                    failed += 1
                    print(f"\n{found}", flush=True)
            for what, made, wrong in _tenant(Path(folder), options, number):
                calls += made
                if wrong:
                    failed += 1
                    print(f"\n{what}: {wrong}", flush=True)
            seconds = time.monotonic() - began
            print(
                f"round {number + 1}: {tried} tries, {calls} calls with a tenant's configuration, "
                f"{failed} failed, {seconds:.0f} s",
                flush=True,
            )
    return 1 if failed else 0


def _round(folder: Path, seed: str, words: str) -> Iterator[trials.Trial]:
    forget_attachments()
    agent = AgentProcess(folder / seed)
    agent.start()
    try:
        ways: Iterator[trials.Call] = itertools.cycle((run_plugin, call_plugin))
        for case in CASES:
            if words not in case.name:
                continue
            for attempt in (trials.container, trials.two_callers):
                yield attempt(case, agent.plugins, folder, seed, next(ways))
        for _ in range(2):
            yield trials.network(CASES[0], agent.plugins, folder, seed, next(ways))
    finally:
        agent.stop()


def _tenant(
    folder: Path, options: argparse.Namespace, number: int
) -> Iterator[tuple[str, int, str]]:
    agent = AgentProcess(folder / f"tenant-{number}")
    seed = f"{options.seed}-{number}"
    for what in ("networks", "executables", *NAMES):
        if options.case not in what:
            continue
        made, wrong = tenant_trials.attempt(
            what, agent.plugins, folder, seed=seed, number=number, examples=options.examples
        )
        yield f"tenant, {what}, seed {seed}", made, wrong


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("this needs root")
    sys.exit(main())
