"""`tools/soak/run`: load and faults, at full length or any other, and the figures that come of it.

    tools/soak/run load --cycles 200 --callers 4,16,4
    tools/soak/run inside --case bridge
    tools/soak/run outside --every 50

`--write` puts the figures into docs/reliability.md. The exit code is 1 if ours left anything.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

import load  # noqa: E402
import outside  # noqa: E402
import report  # noqa: E402

from harness.allowed import allow_paths  # noqa: E402
from harness.fault_cases import CASES, DHCP, FIREWALLD  # noqa: E402
from harness.injection import OPERATIONS, trials  # noqa: E402
from harness.namespaces import enter_new_netns, private_mounts  # noqa: E402
from pycni.agent.executables import install  # noqa: E402

# The first and the last thousand are by as many callers, so that they can be compared.
CALLERS = "8,1,2,4,8,16,32,64,16,8"


def main() -> None:
    """Run one of the three, and report."""
    parser = argparse.ArgumentParser(description="load and faults for docs/reliability.md")
    commands = parser.add_subparsers(dest="command", required=True)
    loading = commands.add_parser("load", help="attach and detach, by many callers at once")
    loading.add_argument("--cycles", type=int, default=10_000)
    loading.add_argument("--callers", default=CALLERS, help="of each phase, with commas")
    within = commands.add_parser("inside", help="disturb each change of our plugins")
    without = commands.add_parser("outside", help="the same faults for ours and the reference's")
    for command in (within, without):
        command.add_argument("--every", type=int, default=1, help="only every Nth change or fault")
        command.add_argument("--case", action="append", help="only this; may be repeated")
    for command in (loading, within, without):
        command.add_argument("--write", action="store_true", help="into docs/reliability.md")
        command.add_argument("--json", type=Path, help="a file for the figures")
    given = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("this takes the rights of root")
    private_mounts()
    allow_paths(private=True)
    with tempfile.TemporaryDirectory(dir="/run") as folder, enter_new_netns():
        run = {"load": _load, "inside": _inside, "outside": _outside}[given.command]
        text, figures, failed = run(Path(folder), given)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    if given.write:
        report.write(given.command, text)
    print(text)
    sys.exit(1 if failed else 0)


def _load(folder: Path, given: argparse.Namespace) -> tuple[str, Any, bool]:
    phases = [int(count) for count in given.callers.split(",")]
    try:
        figures = load.run(folder, given.cycles, phases)
    except load.Failed as error:
        return f"FAILED: {error}", {}, True
    return report.load(figures), figures, False


def _inside(folder: Path, given: argparse.Namespace) -> tuple[str, Any, bool]:
    plugins = folder / "plugins"
    install(plugins)
    began = time.monotonic()
    found = []
    for case in _chosen((*CASES, DHCP, FIREWALLD), given.case):
        for operation in OPERATIONS:
            for trial in trials(case, operation, plugins, folder, full=True, every=given.every):
                found.append(trial)
                if trial.wrong:
                    _say(str(trial))
        _say(f"{case.name}: {sum(one.case == case.name for one in found)} trials")
    text = report.inside(found, time.monotonic() - began, given.every)
    wrong = [str(trial) for trial in found if trial.wrong]
    return text, {"trials": len(found), "wrong": wrong}, bool(wrong)


def _outside(folder: Path, given: argparse.Namespace) -> tuple[str, Any, bool]:
    plugins = folder / "plugins"
    install(plugins, socket=folder / "no-agent")
    began = time.monotonic()
    found: list[outside.Outcome] = []
    for case in _chosen(outside.COMPARED, given.case):
        for side, directory in (("ours", plugins), ("reference", outside.REFERENCE)):
            for one in outside.outcomes(case, side, directory, folder, given.every):
                found.append(one)
                if side == "ours" and (one.undone or one.left):
                    _say(str(one))
            count = sum((one.case, one.side) == (case.name, side) for one in found)
            _say(f"{case.name}, {side}: {count} faults")
    text = report.outside(found, time.monotonic() - began, given.every)
    wrong = [str(one) for one in found if one.left or one.undone]
    failed = any(one.side == "ours" and (one.left or one.undone) for one in found)
    return text, {"faults": len(found), "wrong": wrong}, failed


def _chosen(cases: Iterable[Any], names: list[str] | None) -> list[Any]:
    found = [case for case in cases if names is None or case.name in names]
    if not found:
        raise SystemExit(f"no such case: {names}")
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
