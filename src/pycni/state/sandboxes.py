"""A lock on a network namespace, for steps that look for something free there and then take it.

The lock is an flock on a file of root's own, /run/pycni/sandboxes/<device>-<inode>, not on the
namespace itself as the reference has it: that one can be taken, and kept, by any process in the
container and by any user of the host who can open the namespace's file. Called through
`AttachmentLock`.
"""

from __future__ import annotations

from pycni.state.files import remove_file
from pycni.state.run_lock import RunLock

DIRECTORY = "/run/pycni/sandboxes"


class SandboxLock(RunLock):
    """The lock of a namespace, which has these numbers in the kernel."""

    def __init__(self, device: int, inode: int, cancel: int | None = None) -> None:
        super().__init__(DIRECTORY, f"{device}-{inode}", cancel)

    def __exit__(self, *_: object) -> None:
        try:
            remove_file(self._path)  # while locked: what waits looks for the name again
        except OSError:
            pass  # an empty file more
        super().__exit__()
