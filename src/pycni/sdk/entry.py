"""The way in of a plugin's executable: stdin and environment in, stdout and exit code out.

Only the result goes to stdout. While the plugin runs, descriptor 1 is stderr, so that a stray
`print` in a plugin or a library cannot break the protocol.
"""

from __future__ import annotations

import os

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

    The interpreter is not torn down: nothing is left to do, and it would take milliseconds.
    """
    stdout = os.dup(1)
    os.dup2(2, 1)
    outcome = serve(plugin, os.environ, _read_stdin, resolve=resolve)
    code = outcome.code
    try:
        _write(2, outcome.stderr)
        _write(stdout, outcome.stdout)
    except OSError:
        code = 1  # the caller is gone; it cannot have taken this for success
    os._exit(code)


def run(
    module: str, attribute: str, resolve: Callable[[str], Plugin | None] | None = None
) -> NoReturn:
    """The same for a plugin that is still to be imported; failing at that is told as an error."""
    try:
        plugin: Plugin = getattr(__import__(module, fromlist=[attribute]), attribute)
    except Exception as error:  # noqa: BLE001 - whatever another's module raises
        said = CNIError(
            INTERNAL,
            f"the plugin {module}:{attribute} cannot be loaded: {type(error).__name__}: {error}",
            "what it needs may have been removed; install the plugin again",
        )
        _write(1, failure(said).stdout)
        os._exit(1)
    main(plugin, resolve)


def _read_stdin() -> bytes:
    if os.environ.get("CNI_COMMAND") == "VERSION" and not _is_coming(VERSION_SECONDS):
        return b""
    chunks = []
    size = 0
    # One byte more than is read as JSON is enough to refuse it: what comes may have no end.
    while size <= MAX_SIZE and (chunk := os.read(0, _CHUNK)):
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def _is_coming(seconds: float) -> bool:
    """Whether there is something to read on stdin within a time, its end included."""
    import select

    poll = select.poll()
    poll.register(0, select.POLLIN)
    return not os.isatty(0) and bool(poll.poll(seconds * 1000))


def _write(descriptor: int, text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(descriptor, data) :]
