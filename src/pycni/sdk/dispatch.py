"""From environment and stdin to a request, and from a plugin's answer to stdout and exit code.

This is the protocol's other half of what the reference calls `skel`. `serve` is one call of a
plugin as a process sees it, without touching the process: the caller (an executable's entry, the
agent, a test) reads stdin and writes stdout. `perform` is the part that in-process callers share:
version rules, the namespace rule, and the operation itself.
"""

from __future__ import annotations

import errno
import posix

from pycni.sdk.request import Request
from pycni.spec import versions
from pycni.spec.config import config_version, network_name, parse_config
from pycni.spec.errors import (
    DECODING_FAILURE,
    INCOMPATIBLE_VERSION,
    INTERNAL,
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    INVALID_NETNS,
    IO_FAILURE,
    NEEDS_ROOT,
    TRY_AGAIN_LATER,
    CNIError,
    short_of,
)
from pycni.spec.jsontext import dumps, lookup
from pycni.spec.names import check_container_id, check_interface_name
from pycni.spec.record import Record
from pycni.spec.result import print_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pycni.sdk.plugin import Plugin
    from pycni.spec.result import Result

    Action = Callable[[Plugin, Request], Result | None]

# How long a caller by hand, who leaves stdin open and says nothing, waits for VERSION.
VERSION_SECONDS = 1.0

_ATTACHMENT = ("ADD", "CHECK", "DEL")
_EVERY = ("ADD", "CHECK", "DEL", "GC", "STATUS")

# Which operations need a variable (SPEC 1.1.0, "CNI operations"), in the order they are reported.
# Whether there is a use for CNI_PATH turns out when another plugin is to be found by it.
_REQUIRED = {
    "CNI_CONTAINERID": _ATTACHMENT,
    "CNI_NETNS": ("ADD", "CHECK"),
    "CNI_IFNAME": _ATTACHMENT,
}
_VALIDATORS = {"CNI_CONTAINERID": check_container_id, "CNI_IFNAME": check_interface_name}


class Outcome(Record):
    """What a plugin's process leaves: the texts for stdout and stderr, and the exit code."""

    stdout: str = ""
    code: int = 0
    stderr: str = ""


def serve(
    plugin: Plugin,
    environ: Mapping[str, str],
    read_stdin: Callable[[], bytes],
    *,
    netns_fd: int | None = None,
    resolve: Callable[[str], Plugin | None] | None = None,
    cancel: int | None = None,
    stderr: int = 2,
) -> Outcome:
    """One call of a plugin by environment and stdin. Never raises: failures are in the outcome.

    The keywords are the fields of `Request` that a process's environment does not hold.
    """
    own = plugin.answer(environ, read_stdin)
    if own is not None:
        return own
    if not environ.get("CNI_COMMAND"):
        return Outcome(stderr=about(plugin))
    version = versions.CURRENT
    try:
        check_variables(environ)
        if environ["CNI_COMMAND"] == "VERSION":
            reply = versions.version_reply(plugin.versions, _asked_version(read_stdin))
            return Outcome(dumps(reply) + "\n")
        document = _read_config(read_stdin)
        version = _known_version(document)
        request = make_request(environ, document)
        request = request.replace(netns_fd=netns_fd, cancel=cancel, stderr=stderr)
        if resolve is not None:
            request = request.replace(resolve=resolve)
        result = perform(plugin, request)
        if cancel is not None and result is not None and _has_gone(cancel):
            _take_back(plugin, request)
            raise CNIError(TRY_AGAIN_LATER, "cancelled: the caller that asked for it has gone")
        return Outcome("" if result is None else _print(result, plugin, request))
    except CNIError as error:
        return failure(error, version)
    except Exception as error:  # noqa: BLE001 - a fault of ours is an error object too
        return failure(internal_error(error, plugin), version)


def _print(result: Result, plugin: Plugin, request: Request) -> str:
    """An ADD's result as text; the attachment is taken back if its version cannot say it."""
    try:
        return print_result(result, request.version)
    except CNIError:
        _take_back(plugin, request)
        raise


def _take_back(plugin: Plugin, request: Request) -> None:
    """Undo an ADD that succeeded, since no caller will have its result."""
    try:
        plugin.delete(request.replace(command="DEL", cancel=None))
    except CNIError:
        pass  # the runtime's DEL will report it


def _has_gone(cancel: int) -> bool:
    from select import POLLIN, poll  # only the agent's callers can go

    waiting = poll()
    waiting.register(cancel, POLLIN)
    return bool(waiting.poll(0))


def about(plugin: Plugin) -> str:
    """What a plugin says of itself when it is started by hand, without CNI_COMMAND."""
    from pycni import __version__

    return (
        f"CNI {plugin.type} plugin (pycni {__version__})\n"
        f"CNI protocol versions supported: {', '.join(plugin.versions)}\n"
    )


def failure(error: CNIError, version: str = versions.CURRENT) -> Outcome:
    """The outcome of a failed call: the error object on stdout, exit code 1."""
    return Outcome(dumps(error.to_json(version), indent=4), 1)


def internal_error(error: Exception, plugin: Plugin | None = None) -> CNIError:
    """A fault of our own, without a traceback but with the place it comes from.

    plugin: the one that was called, whose fault it is if it does not come with pycni. The same for
    what the system refuses where it hardly ever does, such as entering a namespace.
    """
    where = "?"
    trace = error.__traceback__
    while trace is not None:
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    # Of a library that is loaded late, the loader gives the errno in words alone.
    too_many = posix.strerror(errno.EMFILE)
    if isinstance(error, ImportError) and too_many in str(error):
        return short_of(OSError(errno.EMFILE, too_many))
    if isinstance(error, PermissionError):
        at = f"{error.filename}: " if error.filename else ""
        return CNIError(INVALID_ENVIRONMENT, f"{at}{error.strerror}", NEEDS_ROOT)
    if isinstance(error, OSError):
        return CNIError(IO_FAILURE, str(error), f"the system refused it at {where}")
    whose = "in pycni" if plugin is None or is_pycnis(plugin) else f"of the plugin {plugin.type}"
    return CNIError(
        INTERNAL,
        f"internal error: {type(error).__name__}: {error}",
        f"this is a fault {whose} at {where}; nothing is wrong with the configuration",
    )


def is_pycnis(plugin: object) -> bool:
    """Whether a plugin comes with pycni."""
    return type(plugin).__module__.startswith("pycni.plugins.")


def check_variables(environ: Mapping[str, str]) -> None:
    """Raise a CNIError for variables of the protocol that are missing, all in one, or not valid."""
    command = environ["CNI_COMMAND"]
    missing = []
    for name, commands in _REQUIRED.items():
        if command not in commands:
            continue
        value = environ.get(name, "")
        if not value:
            missing.append(name)
        elif name in _VALIDATORS:
            _VALIDATORS[name](value)
    if missing:
        raise CNIError(
            INVALID_ENVIRONMENT,
            f"required env variables [{','.join(missing)}] missing",
            f"{command} needs {', '.join(_required_by(command))}",
        )


def _read_config(read_stdin: Callable[[], bytes]) -> dict[str, Any]:
    try:
        data = read_stdin()
    except OSError as error:
        raise CNIError(IO_FAILURE, f"error reading from stdin: {error.strerror}") from None
    return parse_config(data)


def _asked_version(read_stdin: Callable[[], bytes]) -> str:
    """The version that VERSION was asked in; runtimes of old send nothing."""
    try:
        asked = lookup(_read_config(read_stdin), "cniVersion")
    except CNIError:
        return versions.CURRENT
    return asked if isinstance(asked, str) and asked else versions.CURRENT


def _known_version(document: Mapping[str, Any]) -> str:
    """The version to answer a configuration in, the newest if its own is none that there is."""
    try:
        version = config_version(document)
    except CNIError:
        return versions.CURRENT
    return version if version in versions.ALL else versions.CURRENT


def make_request(environ: Mapping[str, str], document: Mapping[str, Any]) -> Request:
    """The request that variables, checked before, and a configuration make. Raises CNIError."""
    command = environ["CNI_COMMAND"]
    network_name(document)
    if command not in _EVERY:
        raise CNIError(
            INVALID_ENVIRONMENT,
            f"unknown CNI_COMMAND: {command}",
            f"expected {', '.join((*_EVERY, 'VERSION'))}",
        )
    attachment = command in _ATTACHMENT
    path = environ.get("CNI_PATH", "")
    return Request(
        command,
        document,
        container_id=environ["CNI_CONTAINERID"] if attachment else "",
        netns=environ.get("CNI_NETNS", "") if attachment else "",
        ifname=environ["CNI_IFNAME"] if attachment else "",
        args=environ.get("CNI_ARGS", "") if attachment else "",
        path=tuple(path.split(":")) if path else (),
        environ=environ,
    )


def _required_by(command: str) -> list[str]:
    return [name for name, commands in _REQUIRED.items() if command in commands]


def perform(plugin: Plugin, request: Request) -> Result | None:
    """Do the operation a request asks for; ADD returns its result, the others None.

    Raises CNIError, from the plugin or for a version or namespace that breaks the rules.
    """
    return _logged(plugin, request, _perform)


def perform_in(plugin: Plugin, request: Request) -> Result | None:
    """`perform` where the namespace has been judged, by the plugin that delegates."""
    return _logged(plugin, request, _operate)


def _logged(plugin: Plugin, request: Request, action: Action) -> Result | None:
    if "logFile" in request.document or "logLevel" in request.document:
        from pycni.sdk.log import logged

        return logged(plugin, request, action)
    return action(plugin, request)


def _perform(plugin: Plugin, request: Request) -> Result | None:
    if request.command in ("ADD", "DEL") and _is_own_namespace(request):
        if request.command == "ADD":
            raise CNIError(
                INVALID_NETNS,
                "plugin's netns and netns from CNI_NETNS should not be the same",
                f"CNI_NETNS={request.netns} is the namespace the plugin itself runs in; "
                "give the container's, or set CNI_NETNS_OVERRIDE=1 if you mean it",
            )
        # What is in there is the host's. DEL goes on as without a namespace.
        request = request.replace(netns="", netns_fd=None)
    return _operate(plugin, request)


def _operate(plugin: Plugin, request: Request) -> Result | None:
    _check_version(plugin, request)
    if request.command == "ADD":
        return plugin.add(request)
    if request.command == "CHECK":
        plugin.check(request)
    elif request.command == "DEL":
        plugin.delete(request)
    elif request.command == "STATUS":
        plugin.status(request)
    else:
        keep = request.valid_attachments
        if keep is None:
            raise CNIError(
                INVALID_CONFIG,
                "GC without cni.dev/valid-attachments",
                "a missing list is refused, since it says nothing of what is alive; "
                "an empty list removes everything of the network",
            )
        plugin.gc(request, keep)
    return None


def _check_version(plugin: Plugin, request: Request) -> None:
    version = config_version(request.document)
    minimum = versions.SINCE.get(request.command)
    if minimum is not None:
        try:
            if not versions.at_least(version, minimum):
                raise CNIError(
                    INCOMPATIBLE_VERSION,
                    f"config version does not allow {request.command}",
                    f'"cniVersion" is {versions.quote(version)}, {request.command} needs {minimum}',
                )
            if not any(versions.at_least(known, version) for known in plugin.versions):
                raise CNIError(
                    INCOMPATIBLE_VERSION, f"plugin version does not allow {request.command}"
                )
        except ValueError as error:
            raise CNIError(DECODING_FAILURE, str(error)) from None
    versions.require(version, plugin.versions)


def _is_own_namespace(request: Request) -> bool:
    """Whether the sandbox is the plugin's own namespace, and the runtime does not insist."""
    try:
        if request.netns_fd is not None:
            theirs = posix.fstat(request.netns_fd)
        else:
            theirs = posix.stat(request.netns)
        ours = posix.stat("/proc/thread-self/ns/net")
    except (OSError, ValueError):
        return False  # a path that cannot be opened is the operation's to judge
    if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
        return False
    return request.environ.get("CNI_NETNS_OVERRIDE", "").lower() not in ("1", "true")
