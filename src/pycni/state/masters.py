"""In which mode the ipvlans on a link of the host are, as pycni's last ADD there set it.

    /run/pycni/masters/<namespace>-<index of the link>    the mode: l2, l3 or l3s

Linux keeps one mode for all ipvlans on a link, and shows it only on one of them, which are in
containers' namespaces. The file is a lock as well: one ADD at a time on each link. The note may be
missing, or out of date where other programs make ipvlans too. Called through
`AttachmentLock`.
"""

from __future__ import annotations

import posix

from pycni.spec.errors import IO_FAILURE, CNIError
from pycni.state.files import read_file
from pycni.state.run_lock import RunLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from pycni.spec.identity import NetnsID

DIRECTORY = "/run/pycni/masters"
_SIZE = 4  # bytes of a note: always as many, so that it is whole at any instant


class MasterNote(RunLock):
    """The note of one link, locked inside a `with` block.

    netns: the namespace that the link's index counts in. mode: what is noted, "" for nothing that
    can be believed.
    """

    def __init__(self, netns: NetnsID, index: int, cancel: int | None = None) -> None:
        space = f"{netns.cookie}" if netns.cookie else f"{netns.device}.{netns.inode}"
        super().__init__(DIRECTORY, f"{space}-{index}", cancel)
        self.mode = ""

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.mode = read_file(self._path, limit=_SIZE, own=True).decode("latin-1").strip()
        except OSError:
            pass  # it is looked for then
        return self

    def write(self, mode: str) -> None:
        """Note a mode. Raises CNIError (code 5)."""
        flags = posix.O_WRONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC
        try:
            descriptor = posix.open(self._path, flags)
            try:
                posix.pwrite(descriptor, f"{mode:{_SIZE - 1}}\n".encode(), 0)
            finally:
                posix.close(descriptor)
        except OSError as error:
            raise CNIError(
                IO_FAILURE,
                f"cannot note a mode in {self._path}: {error.strerror}",
                "see its file system; without the note each ADD looks at all namespaces",
            ) from None
        self.mode = mode
