"""Networks in `atexit` handlers, where executors and, from Python 3.12 on, threads are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import atexit, sys, _thread
from pycni.runtime import Network
from pycni.runtime.endpoint import Endpoint

folder, call, threads = sys.argv[1:]
network = Network.from_dict(
    {"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "a"}]},
    plugin_dirs=folder + "/bin", cache_dir=folder + "/cache",
)
endpoints = [Endpoint(f"c{number}", "/nowhere") for number in range(5)]
calls = {
    "gc": lambda: network.gc([]),
    "delete_many": lambda: [outcome.error for outcome in network.delete_many(endpoints)],
    "add_many": lambda: [outcome.error for outcome in network.add_many(endpoints)],
}
if call != "add_many":
    network.add_many(endpoints)

def last():
    print(call, "before", len(network.attachments()))
    said = calls[call]()
    errors = [error for error in said if call != "gc" and error]
    print(call, "after", len(network.attachments()), errors)

def refuse(*_):
    raise RuntimeError("can't create new thread at interpreter shutdown")

if threads == "refused":
    atexit.register(last)
    atexit.register(setattr, _thread, "start_new_thread", refuse)
else:
    atexit.register(last)
"""


@pytest.mark.parametrize("threads", ["as they are", "refused"])
@pytest.mark.parametrize(
    ("call", "before", "after"), [("gc", 5, 0), ("delete_many", 5, 0), ("add_many", 0, 5)]
)
def test_at_exit(tmp_path: Path, call: str, before: int, after: int, threads: str) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/a").write_text("#!/bin/sh\n[ $CNI_COMMAND = ADD ] && echo '{}'\nexit 0\n")
    (tmp_path / "bin/a").chmod(0o755)
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path), call, threads]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{call} before {before}", f"{call} after {after} []"]
