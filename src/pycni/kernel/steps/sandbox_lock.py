"""One at a time in a sandbox: for steps that look for something free there and then take it.

The lock is the reference's: an flock on the namespace itself. Used by source_routing and vrf.
"""

from __future__ import annotations

import posix
from fcntl import LOCK_EX, flock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from pycni.kernel.context import Site


class SandboxLock:
    """Held inside a `with` block, also against other threads of this process."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def __enter__(self) -> Self:
        # Opened anew: who shares a descriptor shares its locks.
        path = f"/proc/self/fd/{self._site.namespace.fd}"
        self._descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            flock(self._descriptor, LOCK_EX)
        except BaseException:
            posix.close(self._descriptor)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        posix.close(self._descriptor)
