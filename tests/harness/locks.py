"""Files that somebody else has locked."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

HOLD = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("has it", flush=True)
sys.stdin.read()
"""
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@contextmanager
def held(path: str, *prefix: str) -> Iterator[None]:
    """A file that another process has locked; prefix: of its command, such as NOBODY."""
    holder = subprocess.Popen(
        [*prefix, "/usr/bin/python3", "-c", HOLD, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "has it\n"
    yield
    assert holder.poll() is None  # it had it all the time
    holder.communicate("")
