"""Run `pycni conformance` as a user does, and read its report."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from harness.agent import PYCNI


def report(plugin: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON report for a plugin."""
    argv = [str(PYCNI), "conformance", str(plugin), "-o", "json", *options]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def outcomes(document: dict[str, Any], outcome: str = "failed") -> dict[str, str]:
    """The ids of the findings with an outcome, and what was seen."""
    return {
        finding["id"]: finding.get("seen", "")
        for finding in document["findings"]
        if finding["outcome"] == outcome
    }
