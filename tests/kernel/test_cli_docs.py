"""The page on the command runs as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness import Host
from harness.examples import blocks, matches, sessions


def test_command(host: Host, tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NETCONFPATH": "",
        "CNI_PATH": "",
        "COLUMNS": "200",
    }
    commands = [pair for block in blocks("cli.md", "console") for pair in sessions(block)]
    assert len(commands) > 15
    for command, shown in commands:
        done = subprocess.run(
            ["bash", "-c", command],
            env=environ,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert matches(shown, done.stdout), f"$ {command}\n{done.stdout}\nis not as shown:\n{shown}"
