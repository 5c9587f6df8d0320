"""Running a plugin as a process: its exit, and what its failure means.

Used where a plugin delegates to one that is not ours, and by the runtime's exec engine. Texts of
failures are the reference's, since runtimes match on some of them.
"""

from __future__ import annotations

import posix

from pycni.spec.errors import SHORTAGES, TRY_AGAIN_LATER, UNKNOWN, CNIError
from pycni.spec.jsontext import JSONError, loads
from pycni.spec.versions import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_SHOWN = 2000  # bytes of output that was to be an error object


class PluginFailure(CNIError):
    """What a plugin's process failed with; stderr: what it wrote there, not part of the message."""

    def __init__(self, code: int, message: str, details: str = "", stderr: str = "") -> None:
        super().__init__(code, message, details)
        self.stderr = stderr


def execute(
    path: str,
    environ: Mapping[str, str],
    stdin: bytes,
    *,
    timeout: float | None = None,
    cancel: int | None = None,
    stderr: int = 2,
) -> bytes:
    """Run a plugin and return its stdout. Raises PluginFailure: what it said, or why it did not.

    timeout: seconds until it is killed, None waits; cancel: a descriptor, it is killed when that
    can be read. Its stderr is passed on to the descriptor `stderr` if it succeeds, and kept in the
    error if it fails.
    """
    # Most delegates are ours and never get here.
    from pycni.kernel.child import StatusLost
    from pycni.kernel.process import Killed, run

    try:
        code, stdout, said = run([path], stdin, environ, timeout=timeout, cancel=cancel)
    except Killed as error:
        words = str(error.stderr, "utf-8", "replace").strip()
        raise PluginFailure(
            UNKNOWN,
            "netplugin failed with no error message: signal: killed",
            f"{path}: {error.strerror}",
            words,
        ) from error
    except StatusLost as error:
        failure = failed(None, error.stdout, error.stderr)
        failure.details = failure.details or error.way_out
        raise failure from error
    except OSError as error:
        has_means = error.errno not in SHORTAGES
        raise PluginFailure(
            UNKNOWN if has_means else TRY_AGAIN_LATER,
            f"netplugin failed with no error message: fork/exec {path}: {error.strerror}",
            "the plugin's file must be an executable for this machine"
            if has_means
            else "this process, or the machine, lacks the means to run it; try again later",
        ) from error
    if code == 0:
        if said:
            write_or_give_up(stderr, said)
        return stdout
    raise failed(code, stdout, said)


def write_or_give_up(descriptor: int, text: bytes, timeout: float = 5.0) -> None:
    """Write to a caller's stderr or socket, or give up: perhaps no one ever reads from it.

    timeout: seconds for all of it.
    """
    import time
    from select import PIPE_BUF, POLLOUT, poll

    waiting = poll()
    waiting.register(descriptor, POLLOUT)
    until = time.monotonic() + timeout
    try:
        while text and waiting.poll(max(0.0, until - time.monotonic()) * 1000):
            # So much a pipe takes without waiting, once it can be written to.
            text = text[posix.write(descriptor, text[:PIPE_BUF]) :]
    except OSError:
        pass  # the answer is what counts


def failed(code: int | None, stdout: bytes, stderr: bytes) -> PluginFailure:
    """The error that a plugin's failed process stands for; code is negative for a signal.

    None where it is not known: then only what reads as an error object stands for itself.
    """
    if code is None:
        reason = "exit status unknown"
        stdout = stdout if _is_error_object(stdout) else b""
    else:
        reason = f"exit status {code}" if code > 0 else f"signal: {_signal_name(-code)}"
    words = str(stderr, "utf-8", "replace").strip()
    if not stdout:
        if words:
            return PluginFailure(UNKNOWN, f"netplugin failed: {quote(words)}: {reason}")
        return PluginFailure(UNKNOWN, f"netplugin failed with no error message: {reason}")
    try:
        document = loads(stdout)
        if not isinstance(document, dict):
            raise JSONError("not an error object")
    except JSONError as error:
        output = quote(str(stdout[:_SHOWN], "utf-8", "replace"))
        return PluginFailure(
            UNKNOWN,
            f"netplugin failed but error parsing its diagnostic message {output}: {error}",
            stderr=words,
        )
    number, message, details = (document.get(key) for key in ("code", "msg", "details"))
    return PluginFailure(
        number if isinstance(number, int) and number >= 0 else UNKNOWN,
        message if isinstance(message, str) and message else f"netplugin failed: {reason}",
        details if isinstance(details, str) else "",
        words,
    )


def _is_error_object(stdout: bytes) -> bool:
    try:
        document = loads(stdout)
    except JSONError:
        return False
    return isinstance(document, dict) and "code" in document and "msg" in document


def _signal_name(number: int) -> str:
    return {9: "killed", 15: "terminated", 11: "segmentation fault", 6: "aborted"}.get(
        number, str(number)
    )
