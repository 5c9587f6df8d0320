"""A plugin's log: one line an event, on stderr or in the file that the configuration names.

    "logFile": "web.log", "logLevel": "debug"

The file is a plain name in /var/log/pycni, or the path of one right in a directory that the host's
administrator allows (`pycni.sdk.allowed_paths`); any other is refused, and a DEL or GC goes on
without it. Nothing but a plain file is opened, and no link is followed: root writes here what a
configuration may have chosen.

Either key switches it on, for any plugin made with the SDK: each call is logged when it ends, as
`info`, or as `error` with what went wrong. A plugin adds its own by `request.log.debug(...)`.
Without the keys nothing of this is loaded by a call. A line:

    2026-01-31T12:00:00.123456Z info bridge ADD net=web id=3f9a if=eth0 done ms=1.2

and after the interface `trace=...`, what the runtime gave as TRACEPARENT. What is not plain is
quoted, so that neither a terminal nor a shell that gets to see the line acts on it. A log that
cannot be written is no reason for a call to fail: its lines go to stderr then.
"""

from __future__ import annotations

import posix
import time

from pycni.sdk import allowed_paths
from pycni.spec.errors import INVALID_CONFIG, CNIError
from pycni.spec.names import is_name
from pycni.spec.record import Record
from pycni.spec.schema import Fault, describe, faults_error
from pycni.spec.versions import quote
from pycni.state.append import append_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pycni.sdk.plugin import Plugin
    from pycni.sdk.request import Request
    from pycni.spec.result import Result

LEVELS = ("error", "warning", "info", "debug")
DEFAULT = "info"
KEY = "logFile"

_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.,:/@%+-")
# Characters that a shell acts on within double quotes too.
_ACTIVE = (("$", "\\x24"), ("`", "\\x60"))


class Log(Record):
    """Where lines go, and what each begins with. level: the last of `LEVELS` to write, -1 for none.

    path: the file, "" for the descriptor `stderr`.
    """

    level: int = -1
    path: str = ""
    stderr: int = 2
    subject: str = ""

    def error(self, event: str, **values: object) -> None:
        """What keeps the plugin from its task."""
        self._write(0, event, values)

    def warning(self, event: str, **values: object) -> None:
        """What is wrong, and no obstacle."""
        self._write(1, event, values)

    def info(self, event: str, **values: object) -> None:
        """What was done."""
        self._write(2, event, values)

    def debug(self, event: str, **values: object) -> None:
        """How it was done."""
        self._write(3, event, values)

    def _write(self, level: int, event: str, values: dict[str, object]) -> None:
        if level > self.level:
            return
        text = event if _PLAIN.issuperset(event.replace(" ", "")) else _quoted(event)
        words = [_now(), LEVELS[level], self.subject, text]
        words += [f"{key}={_value(value)}" for key, value in values.items()]
        line = (" ".join(words) + "\n").encode("utf-8", "replace")
        if self.path:
            try:
                append_file(self.path, line, 0o640)
                return
            except OSError as error:
                line = f"pycni: cannot log to {self.path}: {error.strerror}\n".encode() + line
        try:
            posix.write(self.stderr, line)
        except OSError:
            pass  # no one reads it


def log_of(request: Request, plugin_type: str = "") -> Log:
    """The log of a request, one that writes nothing if its configuration has none.

    Raises CNIError (code 7) for a file that is not allowed; a DEL or GC logs on stderr instead.
    """
    document = request.document
    given, level = document.get(KEY), document.get("logLevel")
    if not given and not level:
        return Log()
    if level not in LEVELS:
        level = DEFAULT
    try:
        path = _path(given, request) if given else ""
    except CNIError:
        if request.command not in ("DEL", "GC"):
            raise
        path = ""
    words = [_value(plugin_type or document.get("type", "?")), request.command]
    for key, value in (
        ("net", document.get("name")),
        ("id", request.container_id),
        ("if", request.ifname),
        ("trace", request.environ.get("TRACEPARENT")),
    ):
        if value:
            words.append(f"{key}={_value(value)}")
    return Log(LEVELS.index(level), path, request.stderr, " ".join(words))


def _path(given: Any, request: Request) -> str:
    """The file of a log. Raises CNIError (code 7)."""
    if not isinstance(given, str):
        raise faults_error([Fault(KEY, f"{describe(given)} is not valid", "expected a string")])
    folder, slash, name = given.rpartition("/")
    added = allowed_paths.directories(KEY, request.environ)
    allowed = (*added, *allowed_paths.DEFAULTS[KEY])
    if is_name(name) and (not slash or folder in allowed):
        return f"{folder if slash else allowed[0]}/{name}"
    raise allowed_paths.PathNotAllowed(
        INVALID_CONFIG,
        f"{KEY}: {quote(given)} is not where a configuration may have a log",
        f"expected a name of letters, digits, '_', '.' and '-' for a file in {allowed[0]}, or the "
        f"path of one right in {' or '.join(allowed)}; "
        + allowed_paths.way_out(KEY, "DIRECTORY", request.environ),
    )


def logged(
    plugin: Plugin, request: Request, perform: Callable[[Plugin, Request], Result | None]
) -> Result | None:
    """Do an operation, and log how it ended. Called by `dispatch`."""
    log = log_of(request, plugin.type)
    if not log.path and request.document.get(KEY):
        log.warning("file refused", logFile=request.document[KEY])
    log.debug("begins", version=request.document.get("cniVersion", ""))
    start = time.monotonic()
    try:
        result = perform(plugin, request)
    except Exception as error:
        log.error("failed", ms=_since(start), code=getattr(error, "code", "none"), error=error)
        raise
    values: dict[str, Any] = {"ms": _since(start)}
    if result is not None and result.ips:
        values["ips"] = ",".join(str(entry.address) for entry in result.ips)
    log.info("done", **values)
    return result


def _since(start: float) -> str:
    return f"{(time.monotonic() - start) * 1000:.1f}"


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{nanoseconds // 1000:06}Z"


def _value(value: object) -> str:
    text = str(value)
    return text if text and _PLAIN.issuperset(text) else _quoted(text)


def _quoted(text: str) -> str:
    quoted = quote(text)
    for sign, escaped in _ACTIVE:
        quoted = quoted.replace(sign, escaped)
    return quoted
