"""noop: does nothing but what a file says. For tests of runtimes.

The file (CNI_ARGS "DEBUG=PATH", or "debugFile") says what to answer, and gets what was asked. Names
and keys are those of the reference's plugin, whose Go structures the file mirrors.
"""

from __future__ import annotations

from pycni.sdk import allowed_paths
from pycni.sdk.dispatch import Outcome, serve
from pycni.sdk.plugin import Plugin
from pycni.spec import versions
from pycni.spec.config import NetConf, config_version, parse_config
from pycni.spec.errors import INTERNAL, UNKNOWN, CNIError
from pycni.spec.jsontext import JSONError, dumps, loads, lookup
from pycni.spec.result import FAMILIES, Result, decode_result, encode_result, parse_prev_result
from pycni.spec.schema import Text, field
from pycni.state.files import Lock, read_file, write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, ClassVar

    from pycni.sdk.request import Request
    from pycni.spec.config import Attachment

VERSIONS = ("0.-42.0", *versions.ALL)
CRASHED = 2  # the exit status of a Go program that panics
NO_DEBUG = "CNI_ARGS or config empty, no debug behavior\n"
INJECTED = "1.2.3.4"


class NoopConfig(NetConf):
    """The keys of noop."""

    debug_file: str = field(
        "debugFile",
        Text(),
        "",
        doc="what to answer, and what was asked; `DEBUG=PATH` in CNI_ARGS goes before it",
    )
    command_log: str = field(
        "commandLog", Text(), "", doc="a file that exists, possibly empty: gets a list of all calls"
    )


class Crash(Exception):
    """What makes the reference's noop panic."""


class Noop(Plugin):
    """A test double for a plugin."""

    type: ClassVar[str] = "noop"
    versions: ClassVar[tuple[str, ...]] = VERSIONS
    config = NoopConfig

    def answer(self, environ: Mapping[str, str], read_stdin: Callable[[], bytes]) -> Outcome | None:
        if not environ.get("CNI_COMMAND"):
            return None
        try:
            stdin = read_stdin()
            double = _Double(supported(environ, stdin), stdin)
        except (Crash, CNIError, OSError) as error:
            return Outcome(code=CRASHED, stderr=f"{error}\n")
        outcome = serve(double, environ, lambda: stdin)
        said = double.said
        if outcome.code or said is None:
            return outcome.replace(stderr=outcome.stderr + (said.stderr if said else ""))
        return said

    # In a process of its own the plugin may say anything; here it has to be a result or an error.

    def add(self, request: Request) -> Result:
        text = self._perform(request)
        try:
            return decode_result(loads(text or "{}"), request.version)
        except JSONError as error:
            raise CNIError(INTERNAL, f"ReportResult is no result: {error}") from None

    def check(self, request: Request) -> None:
        self._perform(request)

    def delete(self, request: Request) -> None:
        self._perform(request)

    def gc(self, request: Request, keep: frozenset[Attachment]) -> None:
        self._perform(request)

    def status(self, request: Request) -> None:
        self._perform(request)

    def _perform(self, request: Request) -> str:
        try:
            said = act(request, dumps(request.document).encode())
        except Crash as error:
            raise CNIError(INTERNAL, str(error)) from None
        if said.code:
            raise CNIError(
                UNKNOWN, f"netplugin failed with no error message: exit status {said.code}"
            )
        return said.stdout


class _Double(Plugin):
    """One call: takes the part of the plugin in it, and keeps what it said."""

    type = "noop"
    config = NoopConfig

    def __init__(self, supported: tuple[str, ...], stdin: bytes) -> None:
        self.versions = supported  # type: ignore[misc]
        self.said: Outcome | None = None
        self._stdin = stdin

    def add(self, request: Request) -> Any:
        self.check(request)

    def check(self, request: Request) -> None:
        try:
            self.said = act(request, self._stdin)
        except Crash as error:
            self.said = Outcome(code=CRASHED, stderr=f"{error}\n")

    def delete(self, request: Request) -> None:
        self.check(request)

    def gc(self, request: Request, keep: frozenset[Attachment]) -> None:
        self.check(request)

    def status(self, request: Request) -> None:
        self.check(request)


def supported(environ: Mapping[str, str], stdin: bytes) -> tuple[str, ...]:
    """The versions that the plugin claims; with CNI_ARGS, what the file says.

    Raises Crash, CNIError.
    """
    cni_args = environ.get("CNI_ARGS", "")
    if not cni_args:
        return VERSIONS
    path = debug_file(cni_args, NoopConfig.read_lenient(parse_config(stdin), "", []), environ)
    claimed = _load(path).get("ReportVersionSupport")
    if claimed is None:
        return VERSIONS
    if not isinstance(claimed, list) or not claimed or not all(isinstance(v, str) for v in claimed):
        raise Crash("ReportVersionSupport is no list of versions")
    return tuple(claimed)


def debug_file(cni_args: str, config: NoopConfig, environ: Mapping[str, str]) -> str:
    """The path of the file, "" for none. Raises CNIError."""
    path = config.debug_file
    for pair in cni_args.split(";") if cni_args else ():
        parts = pair.split("=")
        if len(parts) != 2:
            raise CNIError(INTERNAL, f"CNI_ARGS invalid key/value pair: [{' '.join(parts)}]")
        if parts[0] == "DEBUG":
            path = parts[1]
            break
    return allowed_paths.require("noop.debugFile", path, environ) if path else ""


def act(request: Request, stdin: bytes) -> Outcome:
    """Do what the file says, and write down what was asked. Raises CNIError, Crash."""
    config = NoopConfig.decode(request.document)
    previous = parse_prev_result(request.document, request.version)
    # GC and STATUS have no arguments, but a test says where its file is all the same.
    environ = request.environ
    path = debug_file(request.args or environ.get("CNI_ARGS", ""), config, environ)
    if not path:
        return Outcome("{}", stderr=NO_DEBUG)
    debug = _load(path)
    asked = {"Command": request.command, "CmdArgs": _arguments(request, stdin)}
    write_file(path, dumps({**debug, **asked}).encode(), 0o600, sync=False)
    if config.command_log:
        allowed_paths.require("noop.commandLog", config.command_log, environ)
        with Lock(config.command_log):  # a runtime may call several at once
            log = read_file(config.command_log)
            entries = loads(log) if log.strip() else []
            write_file(config.command_log, dumps([*entries, asked]).encode(), 0o600, sync=False)
    stderr = _text(debug, "ReportStderr")
    error = _text(debug, "ReportError")
    if error:
        code = lookup(debug, "ReportErrorCode")
        raise CNIError(code if isinstance(code, int) and code else INTERNAL, error)
    code = lookup(debug, "ExitWithCode")
    return Outcome(
        _report(_text(debug, "ReportResult"), previous, config_version(request.document)),
        code if isinstance(code, int) and code > 0 else 0,
        stderr,
    )


def _report(asked: str, previous: Result | None, version: str) -> str:
    if asked not in ("PASSTHROUGH", "INJECT-DNS"):
        return asked
    if previous is None:
        raise Crash(f"{asked} without a prevResult")
    if asked == "INJECT-DNS":
        previous = previous.replace(dns=previous.dns.replace(nameservers=(INJECTED,)))
    modern = version in FAMILIES[2]
    return dumps(encode_result(previous, version), sort_keys=modern)


def _arguments(request: Request, stdin: bytes) -> dict[str, Any]:
    from binascii import b2a_base64

    environ = request.environ
    return {
        "ContainerID": request.container_id or environ.get("CNI_CONTAINERID", ""),
        "Netns": request.netns or environ.get("CNI_NETNS", ""),
        "IfName": request.ifname or environ.get("CNI_IFNAME", ""),
        "Args": request.args or environ.get("CNI_ARGS", ""),
        "Path": ":".join(request.path),
        "NetnsOverride": environ.get("CNI_NETNS_OVERRIDE", ""),
        "StdinData": b2a_base64(stdin, newline=False).decode(),
    }


def _load(path: str) -> dict[str, Any]:
    try:
        debug = loads(read_file(path))
    except (OSError, JSONError) as error:
        raise Crash(f"cannot read the debug file {path!r}: {error}") from None
    if not isinstance(debug, dict):
        raise Crash(f"the debug file {path!r} holds no JSON object")
    return debug


def _text(debug: Mapping[str, Any], key: str) -> str:
    value = lookup(debug, key)
    return value if isinstance(value, str) else ""


plugin = Noop()
