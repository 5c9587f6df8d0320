"""The page on the Python API runs as it stands, and prints what its comments say."""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness import Host
from harness.examples import blocks

# What a line prints stands behind it, or for several lines in lines of their own.
SHOWN = re.compile(r"^(?:.*\bprint\(.*\)  # |# )(.+)$", re.MULTILINE)


def test_python_api(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    examples = blocks("python-api.md", "python")
    assert len(examples) > 10
    known: dict[str, Any] = {"__name__": "example"}
    for example in examples:
        exec(compile(example, "python-api.md", "exec"), known)
        assert capsys.readouterr().out.splitlines() == SHOWN.findall(example), example
