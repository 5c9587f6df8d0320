"""The `pycni` command when a signal comes while it is being loaded."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

WORDS = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}

SCRIPT = """
import importlib, os, sys
from pycni.cli import entry

class Signalled:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), {number})

class Finder:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            class Of:
                attribute = Signalled()

sys.meta_path.insert(0, Finder())
sys.argv = ["pycni", "schema", "bridge"]
entry.main()
"""


@pytest.mark.parametrize("number", WORDS)
@pytest.mark.parametrize("module", ["pycni.cli.main", "pycni.cli.schema"])
def test_a_signal_while_a_class_is_defined(module: str, number: signal.Signals) -> None:
    """Python 3.11 makes a RuntimeError of what is raised there."""
    script = SCRIPT.format(number=int(number), module=module)
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (run.returncode, run.stderr, run.stdout) == (128 + number, f"{WORDS[number]}\n", "")
