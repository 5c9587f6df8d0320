"""The rule of conftest.py that CI accepts only the skips it knows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

SUITE = """
import pytest

def test_known():
    pytest.skip("no such device")

def test_new():
    pytest.skip("no such luck")

@pytest.mark.xfail
def test_broken():
    assert False
"""


@pytest.mark.parametrize(
    ("ci", "code", "summary"),
    [
        ("", 0, "2 skipped, 1 xfailed"),
        ("true", 1, "1 failed, 1 skipped, 1 xfailed"),
    ],
)
def test_skip_that_is_not_listed_fails_in_ci(
    tmp_path: Path, ci: str, code: int, summary: str
) -> None:
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "known-skips.txt").write_text("# why\ntest_it.py::test_known | no such dev*\n")
    (tmp_path / "test_it.py").write_text(SUITE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--rootdir", tmp_path, tmp_path],
        env={**os.environ, "PYTHONPATH": str(TESTS), "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout
    assert done.stdout.splitlines()[-1].startswith(summary)
    assert ("skipped (no such luck), and tests/known-skips.txt" in done.stdout) == bool(ci)
