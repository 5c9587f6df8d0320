"""A word of warning where CRI-O runs, for `pycni init` and `add`.

At each start CRI-O has every network that it finds in its directory collect garbage, by a list of
its own containers: whatever else is attached to them counts as left over, and is deleted.
"""

from __future__ import annotations

import os

from pycni.cli.output import warn
from pycni.runtime.find import DEFAULT_DIRECTORY, directories

_SOCKETS = ("/run/crio/crio.sock", "/var/run/crio/crio.sock")


def warn_of_crio(conf_dir: str) -> None:
    """Say so where CRI-O runs and a network is, or is to be, in the directory that it reads."""
    where = {os.path.realpath(path) for path in directories(conf_dir)}
    if os.path.realpath(DEFAULT_DIRECTORY) in where and any(map(os.path.exists, _SOCKETS)):
        warn(
            f"CRI-O runs here: whenever it starts, it deletes what others attached to networks in "
            f"{DEFAULT_DIRECTORY}; keep such networks in a directory of their own, --conf-dir"
        )
