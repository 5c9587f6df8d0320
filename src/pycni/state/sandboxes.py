"""A lock on a network namespace, for steps that look for something free there and then take it.

The lock is an flock on a file of root's own, /run/pycni/sandboxes/<device>-<inode>, not on the
namespace itself as the reference has it: that one can be taken, and kept, by any process in the
container and by any user of the host who can open the namespace's file. Called through
`AttachmentLock`.
"""

from __future__ import annotations

from pycni.spec.errors import IO_FAILURE, CNIError
from pycni.state.attachments import LOCK_TIMEOUT
from pycni.state.files import Lock, make_directories, remove_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

DIRECTORY = "/run/pycni/sandboxes"


class SandboxLock:
    """Held inside a `with` block, against other processes and other threads of this one.

    device, inode: the kernel's numbers of the namespace; cancel: a descriptor that is readable
    once the lock is not wanted any more. Raises CNIError: code 11 when it stays taken or was
    cancelled, code 5 for what the file system refuses.
    """

    def __init__(self, device: int, inode: int, cancel: int | None = None) -> None:
        self._path = f"{DIRECTORY}/{device}-{inode}"
        self._lock = Lock(self._path, mode=0o600, timeout=LOCK_TIMEOUT, cancel=cancel)

    def __enter__(self) -> Self:
        try:
            make_directories(DIRECTORY, 0o700)
        except OSError as error:
            raise CNIError(
                IO_FAILURE, f"cannot make {DIRECTORY}: {error.strerror}", "locks are kept there"
            ) from None
        self._lock.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            remove_file(self._path)  # while locked: what waits looks for the name again
        except OSError:
            pass  # an empty file more
        self._lock.__exit__()
