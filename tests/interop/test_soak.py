"""The tools of `make soak`, in a short form: load, and faults from outside for both sides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import Host

pytestmark = pytest.mark.slow

TOOL = Path(__file__).parents[2] / "tools/soak/main.py"


def soak(tmp_path: Path, *arguments: str) -> Any:
    """Its figures."""
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, TOOL, *arguments, "--json", figures],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(figures.read_text())


def test_load(host: Host, reference_dir: Path, tmp_path: Path) -> None:
    """Callers by the dozen, of ours and of the reference's plugins, on one network."""
    report = soak(tmp_path, "load", "--cycles", "200", "--callers", "4,16,4")
    calls = report["calls"]
    assert calls["agent ADD"] > 100
    assert calls["reference ADD"] == calls["reference DEL"] > 30
    assert calls["process ADD"] >= calls["process DEL"] > 20
    assert calls["agent GC"] + calls["process GC"] >= 4


@pytest.mark.parametrize(("case", "every"), [("host-local", 8), ("ptp", 25)])
def test_faults_from_outside(
    host: Host, reference_dir: Path, tmp_path: Path, case: str, every: int
) -> None:
    """By strace; ours must leave nothing, whatever the reference does."""
    report = soak(tmp_path, "outside", "--case", case, "--every", str(every))
    assert report["faults"] > 4, report
