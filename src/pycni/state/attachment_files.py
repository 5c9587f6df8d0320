"""A directory of small JSON documents, one for each attachment, that ADD leaves for DEL.

The files have the reference's names and content, so that its DEL reads ours and the other way
round. Called by the plugins that must remember something: tuning, flannel.
"""

from __future__ import annotations

import posix

from pycni.spec.errors import IO_FAILURE, CNIError
from pycni.spec.jsontext import JSONError, loads
from pycni.state.files import (
    below,
    create_file,
    is_remnant,
    make_directories,
    open_directory,
    read_file,
    remove_file,
    write_file,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

_LIMIT = 1 << 20  # bytes of one document


class Documents:
    """The documents in a directory, which is made for the first one (mode 0700)."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def path(self, name: str) -> str:
        """Where a document is."""
        return below(self._directory, name)

    def names(self) -> list[str]:
        """The names of what is in the directory; none if there is no directory.

        What a crash left of a document that was being written is removed.
        """
        try:
            with _Opened(self._directory) as directory:
                return sorted(_without_remnants(directory.fd))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._failure("read", "", error) from None

    def read(self, name: str) -> dict[str, Any] | None:
        """A document; None if there is none. One that is damaged reads as empty.

        So does another user's: what is found here decides what root does next.
        """
        try:
            with _Opened(self._directory) as directory:
                data = read_file(name, directory.fd, _LIMIT, own=True)
        except FileNotFoundError:
            return None
        except PermissionError:
            return {}
        except OSError as error:
            raise self._failure("read", name, error) from None
        try:
            document = loads(data)
        except JSONError:
            document = None
        if not isinstance(document, dict):
            path = below(self._directory, name)
            posix.write(2, f"{path} is damaged, and not used\n".encode())
            return {}
        return document

    def write(self, name: str, text: str) -> None:
        """Write a document whole, in the place of the one that may be there. Raises CNIError."""
        try:
            make_directories(self._directory, 0o700)
            with _Opened(self._directory) as directory:
                write_file(name, text.encode(), dir_fd=directory.fd)
        except OSError as error:
            raise self._failure("write", name, error) from None

    def create(self, name: str, text: str) -> bool:
        """Write a document whole if there is none of that name; whether that was so."""
        try:
            make_directories(self._directory, 0o700)
            with _Opened(self._directory) as directory:
                create_file(name, text.encode(), dir_fd=directory.fd, sync=True)
        except FileExistsError:
            return False
        except OSError as error:
            raise self._failure("write", name, error) from None
        return True

    def remove(self, name: str) -> None:
        """Remove a document; that there is none is no error. Raises CNIError."""
        try:
            with _Opened(self._directory) as directory:
                remove_file(name, directory.fd)
                _without_remnants(directory.fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._failure("remove", name, error) from None

    def _failure(self, verb: str, name: str, error: OSError) -> CNIError:
        return CNIError(
            IO_FAILURE,
            f"cannot {verb} {below(self._directory, name)}: {error.strerror}",
            f'{self._directory} is the network\'s "dataDir"; root must be able to use it',
        )


def _without_remnants(directory: int) -> list[str]:
    """The names in a directory, without what is removed: files whose writer has died."""
    names = []
    for name in posix.listdir(directory):
        if is_remnant(name):
            remove_file(name, directory)
        else:
            names.append(name)
    return names


class _Opened:
    """An open directory, for the length of a `with` block."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.fd = -1

    def __enter__(self) -> Self:
        self.fd = open_directory(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        posix.close(self.fd)
