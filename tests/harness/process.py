"""What this process has open, and who its children are."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from pycni.kernel.netfilter import nfnetlink


def of_this_process() -> tuple[int, int]:
    """How many descriptors and children it has; those that have ended count.

    Not those that are kept for the next operation, which are bounded.
    """
    gc.collect()
    nfnetlink.close_idle()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return len(os.listdir("/proc/self/fd")), len(children)
