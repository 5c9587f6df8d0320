"""Locks of root's own below /run/pycni, each the flock of a file. See `masters` and `sandboxes`."""

from __future__ import annotations

from pycni.spec.errors import IO_FAILURE, CNIError
from pycni.state.files import LOCK_TIMEOUT, Lock, make_directories

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class RunLock:
    """Held inside a `with` block, against other processes and other threads of this one.

    directory, name: where the file is; cancel: a descriptor that can be read once no one wants the
    lock any more. Raises CNIError: code 11 when it stays taken or was cancelled, code 5 for what
    the file system refuses.
    """

    def __init__(self, directory: str, name: str, cancel: int | None) -> None:
        self._directory = directory
        self._path = f"{directory}/{name}"
        self._lock = Lock(self._path, mode=0o600, timeout=LOCK_TIMEOUT, cancel=cancel)

    def __enter__(self) -> Self:
        try:
            make_directories(self._directory, 0o700)
        except OSError as error:
            raise CNIError(
                IO_FAILURE,
                f"cannot make {self._directory}: {error.strerror}",
                "locks are kept there",
            ) from None
        self._lock.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.__exit__()
