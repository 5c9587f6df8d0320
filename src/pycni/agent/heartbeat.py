"""A sign of life beside the agent's socket: when it last took or finished a call.

In a burst of calls the agent cannot begin each within milliseconds, and to serve them without it
would take many times as long. So a launcher whose time is over reads this, and waits on while the
agent makes progress with other calls; an agent that is stopped or hangs makes none. The file
holds 8 bytes, nanoseconds of CLOCK_MONOTONIC in the machine's byte order. See launcher/launcher.c.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from pathlib import Path

from pycni.spec.errors import IO_FAILURE, CNIError

_SUFFIX = ".alive"
_SIZE = 8


class Heartbeat:
    """The file of the agent that listens on a socket. Raises CNIError if it cannot be made."""

    def __init__(self, path: Path) -> None:
        name = f"{path}{_SUFFIX}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            Path(name).unlink(missing_ok=True)  # another's, which goes on with it until it ends
            descriptor = os.open(name, flags, 0o600)
            try:
                os.ftruncate(descriptor, _SIZE)
                self._memory = mmap.mmap(descriptor, _SIZE)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise CNIError(IO_FAILURE, f"cannot make {name}: {error.strerror}") from error

    def beat(self) -> None:
        """Say that the agent is at work."""
        self._memory[:] = time.monotonic_ns().to_bytes(_SIZE, sys.byteorder)
