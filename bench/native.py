"""The benchmark's programs in C, built when it starts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

FOLDER = Path("/run/pycni-bench/native")
SOURCES = Path(__file__).parent


def built(name: str) -> str:
    """The path of a program, which is compiled if it is not there yet."""
    program = FOLDER / name
    if not program.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        source = SOURCES / f"{name}.c"
        subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", program, source], check=True)
    return os.fspath(program)
