"""A plugin's log: one line an event, on stderr or in the file that the configuration names.

    "logFile": "/var/log/cni/web.log", "logLevel": "debug"

Either key switches it on, for any plugin made with the SDK: each call is told when it ends, as
`info`, or as `error` with what went wrong. A plugin adds its own by `request.log.debug(...)`.
Without the keys nothing of this is loaded by a call. A line:

    2026-01-31T12:00:00.123456Z info bridge ADD net=web id=3f9a if=eth0 done ms=1.2

and after the interface `trace=...`, what the runtime gave as TRACEPARENT. Values with blanks are
quoted. A log that cannot be written is no reason for a call to fail: its lines go to stderr then.
"""

from __future__ import annotations

import posix
import time

from pycni.spec.record import Record
from pycni.spec.versions import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pycni.sdk.plugin import Plugin
    from pycni.sdk.request import Request
    from pycni.spec.result import Result

LEVELS = ("error", "warning", "info", "debug")
DEFAULT = "info"


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
        words = [_now(), LEVELS[level], self.subject, event]
        words += [f"{key}={_value(value)}" for key, value in values.items()]
        line = (" ".join(words).replace("\n", " ") + "\n").encode("utf-8", "replace")
        if self.path:
            try:
                self._append(line)
                return
            except OSError as error:
                line = f"pycni: cannot log to {self.path}: {error.strerror}\n".encode() + line
        try:
            posix.write(self.stderr, line)
        except OSError:
            pass  # nobody listens

    def _append(self, line: bytes) -> None:
        """One write at the end of the file, which those of other processes do not mix with."""
        flags = posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NONBLOCK
        descriptor = posix.open(self.path, flags, 0o640)
        try:
            posix.write(descriptor, line)
        finally:
            posix.close(descriptor)


def log_of(request: Request, plugin_type: str = "") -> Log:
    """The log of a request, one that writes nothing if its configuration has none."""
    document = request.document
    path, level = document.get("logFile"), document.get("logLevel")
    if not path and not level:
        return Log()
    if level not in LEVELS:
        level = DEFAULT
    words = [plugin_type or str(document.get("type", "?")), request.command]
    for key, value in (
        ("net", document.get("name")),
        ("id", request.container_id),
        ("if", request.ifname),
        ("trace", request.environ.get("TRACEPARENT")),
    ):
        if value:
            words.append(f"{key}={_value(value)}")
    return Log(
        LEVELS.index(level),
        path if isinstance(path, str) and "\0" not in path else "",
        request.stderr,
        " ".join(words),
    )


def logged(
    plugin: Plugin, request: Request, perform: Callable[[Plugin, Request], Result | None]
) -> Result | None:
    """Do an operation, and tell the log how it ended. Called by `dispatch`."""
    log = log_of(request, plugin.type)
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
    plain = text.isprintable() and text and not any(sign in text for sign in ' "=')
    return text if plain else quote(text)
