"""`tools/check-words`: which sentences it finds, and which may stay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "tools/check-words"


def check(*paths: Path) -> tuple[int, str]:
    argv = [sys.executable, PROGRAM, *paths]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("# The kernel tells of it.\n", "tells"),
        ("Nobody has the address.\n", "nobody"),
        ("self._told = set()\n", "told"),
        ("# It imports that first\n# thing.\n", "first thing"),
    ],
)
def test_a_word_is_found(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"\n{text}")
    code, output = check(tmp_path)
    assert code == 1
    assert output.startswith(f"{path}:2: {word!r}: write ")
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "The kernel reports it; no one has the address.\n",
        "A cookie is what tells one namespace\nfrom another apart.\n",
        "It runs as the user nobody, `nobody` in passwd.\n",
        "amended, intelligent, retell\n",
    ],
)
def test_a_sentence_may_stay(tmp_path: Path, text: str) -> None:
    path = tmp_path / "page.md"
    path.write_text(text)
    assert check(path) == (0, "")


def test_what_is_no_text_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"\x7fELF\xff nobody")
    (tmp_path / "values.json").write_text("nobody")
    assert check(tmp_path) == (0, "")
