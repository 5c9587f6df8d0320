"""A directory of small JSON documents, one for each attachment, that ADD leaves for DEL.

The files have the reference's names and content, so that its DEL reads ours and the other way
round. Called by the plugins that must remember something: tuning, flannel.
"""

from __future__ import annotations

import os

from pycni.spec.errors import IO_FAILURE, CNIError
from pycni.spec.jsontext import JSONError, loads
from pycni.state.files import (
    create_file,
    make_directories,
    open_directory,
    read_file,
    remove_file,
    write_file,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LIMIT = 1 << 20  # bytes of one document


class Documents:
    """The documents in a directory, which is made for the first one (mode 0700)."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def names(self) -> list[str]:
        """The names of what is in the directory; none if there is no directory."""
        try:
            return sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._failure("read", "", error) from None

    def read(self, name: str) -> dict[str, Any] | None:
        """A document; None if there is none. One that is damaged reads as empty."""
        try:
            data = read_file(self._path(name), limit=_LIMIT)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failure("read", name, error) from None
        try:
            document = loads(data)
        except JSONError:
            return {}
        return document if isinstance(document, dict) else {}

    def write(self, name: str, text: str) -> None:
        """Write a document whole, in the place of the one that may be there. Raises CNIError."""
        try:
            make_directories(self._directory, 0o700)
            write_file(self._path(name), text.encode())
        except OSError as error:
            raise self._failure("write", name, error) from None

    def create(self, name: str, text: str) -> bool:
        """Write a document whole if there is none of that name; whether that was so."""
        try:
            make_directories(self._directory, 0o700)
            directory = open_directory(self._directory)
            try:
                create_file(name, text.encode(), dir_fd=directory, sync=True)
            finally:
                os.close(directory)
        except FileExistsError:
            return False
        except OSError as error:
            raise self._failure("write", name, error) from None
        return True

    def remove(self, name: str) -> None:
        """Remove a document; that there is none is no error. Raises CNIError."""
        try:
            remove_file(self._path(name))
        except OSError as error:
            raise self._failure("remove", name, error) from None

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _failure(self, verb: str, name: str, error: OSError) -> CNIError:
        return CNIError(
            IO_FAILURE,
            f"cannot {verb} {self._path(name)}: {error.strerror}",
            f'{self._directory} is the network\'s "dataDir"; root must be able to use it',
        )
