"""The administrator's part of a test: which paths configurations may use on its host."""

from __future__ import annotations

import atexit
import os
import tempfile
from pathlib import Path

from pycni.sdk import allowed_paths

# Where tests keep what they name in configurations.
_PLACES = {**dict.fromkeys(allowed_paths.DEFAULTS, ("/run", tempfile.gettempdir()))}
_PROGRAMS = ("/bin", "/usr/bin", "/sbin", "/usr/sbin")


def allow_paths(*, private: bool) -> None:
    """Allow the places of tests: on an /etc/cni of their own (private), or by the environment."""
    lines = [f"{key} {place}\n" for key, places in _PLACES.items() for place in places]
    lines += [f"debug.hooks {place}\n" for place in _PROGRAMS]
    if private:
        file = Path(allowed_paths.FILE)
        file.parent.mkdir(parents=True, exist_ok=True)
    else:
        descriptor, name = tempfile.mkstemp(prefix="pycni-allowed-")
        os.close(descriptor)
        atexit.register(os.unlink, name)
        os.environ[allowed_paths.VARIABLE] = name
        allowed_paths.FILE = name  # for calls with an environment of their own
        file = Path(name)
    file.write_text("".join(lines))
    file.chmod(0o644)
