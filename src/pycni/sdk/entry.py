"""The way in of a plugin's executable: stdin and environment in, stdout and exit code out.

Only the result goes to stdout. While the plugin runs, descriptor 1 is stderr, so that a stray
`print` in a plugin or a library cannot break the protocol.
"""

from __future__ import annotations

import posix
import sys

from pycni.sdk.dispatch import VERSION_SECONDS, failure, serve
from pycni.spec.errors import INTERNAL, CNIError
from pycni.spec.jsontext import MAX_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from pycni.sdk.plugin import Plugin

_CHUNK = 1 << 16


def main(plugin: Plugin, resolve: Callable[[str], Plugin | None] | None = None) -> NoReturn:
    """Serve one call and end the process.

    An ADD whose result cannot be written is taken back: its caller does not know of it. The
    interpreter is not torn down: nothing is left to do, and it would take milliseconds.
    """
    stdout = posix.dup(1)
    posix.dup2(2, 1)
    environ = _environ()
    given: list[bytes] = []

    def read_stdin() -> bytes:
        if not given:
            given.append(_read_stdin())
        return given[0]

    outcome = serve(plugin, environ, read_stdin, resolve=resolve)
    code = outcome.code
    try:
        _write(2, outcome.stderr)
        _write(stdout, outcome.stdout)
    except OSError:
        if environ.get("CNI_COMMAND") == "ADD" and not code:
            serve(plugin, {**environ, "CNI_COMMAND": "DEL"}, read_stdin, resolve=resolve)
        code = 1  # the caller is gone; it cannot have taken this for success
    posix._exit(code)


def run(
    module: str, attribute: str, resolve: Callable[[str], Plugin | None] | None = None
) -> NoReturn:
    """The same for a plugin that is still to be imported; failing at that is an error object."""
    try:
        plugin: Plugin = getattr(__import__(module, fromlist=[attribute]), attribute)
    except Exception as error:  # noqa: BLE001 - whatever another's module raises
        said = CNIError(
            INTERNAL,
            f"the plugin {module}:{attribute} cannot be loaded: {type(error).__name__}: {error}",
            "what it needs may have been removed; install the plugin again",
        )
        _write(1, failure(said).stdout)
        posix._exit(1)
    main(plugin, resolve)


def _environ() -> dict[str, str]:
    """The environment, as `os.environ` has it."""
    encoding = sys.getfilesystemencoding()
    return {
        name.decode(encoding, "surrogateescape"): value.decode(encoding, "surrogateescape")
        for name, value in posix.environ.items()
    }


def _read_stdin() -> bytes:
    if posix.environ.get(b"CNI_COMMAND") == b"VERSION" and not _is_coming(VERSION_SECONDS):
        return b""
    chunks = []
    size = 0
    # One byte more than is read as JSON is enough to refuse it: what comes may have no end.
    while size <= MAX_SIZE and (chunk := posix.read(0, _CHUNK)):
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def _is_coming(seconds: float) -> bool:
    """Whether there is something to read on stdin within a time, its end included."""
    import select

    poll = select.poll()
    poll.register(0, select.POLLIN)
    return not posix.isatty(0) and bool(poll.poll(seconds * 1000))


def _write(descriptor: int, text: str) -> None:
    data = text.encode()
    while data:
        data = data[posix.write(descriptor, data) :]
