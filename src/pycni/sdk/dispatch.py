"""From environment and stdin to a request, and from a plugin's answer to stdout and exit code.

This is the protocol's other half of what the reference calls `skel`. `serve` is one call of a
plugin as a process sees it, without touching the process: the caller (an executable's entry, the
agent, a test) reads stdin and writes stdout. `perform` is the part that in-process callers share:
version rules, the namespace rule, and the operation itself.
"""

from __future__ import annotations

import os

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
    CNIError,
)
from pycni.spec.jsontext import dumps
from pycni.spec.names import check_container_id, check_interface_name
from pycni.spec.record import Record
from pycni.spec.result import print_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pycni.sdk.plugin import Plugin
    from pycni.spec.result import Result

_ATTACHMENT = ("ADD", "CHECK", "DEL")
_EVERY = ("ADD", "CHECK", "DEL", "GC", "STATUS")

# Which operations need a variable (SPEC 1.1.0, "Parameters"), in the order they are reported.
_REQUIRED = {
    "CNI_CONTAINERID": _ATTACHMENT,
    "CNI_NETNS": ("ADD", "CHECK"),
    "CNI_IFNAME": _ATTACHMENT,
    "CNI_PATH": _EVERY,
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
    try:
        request = read_request(environ, read_stdin)
        if request is None:
            return Outcome(dumps(versions.version_reply(plugin.versions)) + "\n")
        request = request.replace(netns_fd=netns_fd, cancel=cancel, stderr=stderr)
        if resolve is not None:
            request = request.replace(resolve=resolve)
        result = perform(plugin, request)
        return Outcome("" if result is None else _print(result, plugin, request))
    except CNIError as error:
        return failure(error)
    except Exception as error:  # noqa: BLE001 - a fault of ours is an error object too
        return failure(internal_error(error))


def _print(result: Result, plugin: Plugin, request: Request) -> str:
    """An ADD's result as text; the attachment is taken back if its version cannot say it."""
    try:
        return print_result(result, request.version)
    except CNIError:
        try:
            plugin.delete(request.replace(command="DEL"))
        except CNIError:
            pass  # the runtime's DEL will tell
        raise


def about(plugin: Plugin) -> str:
    """What a plugin says of itself when it is started by hand, without CNI_COMMAND."""
    from pycni import __version__

    return (
        f"CNI {plugin.type} plugin (pycni {__version__})\n"
        f"CNI protocol versions supported: {', '.join(plugin.versions)}\n"
    )


def failure(error: CNIError) -> Outcome:
    """The outcome of a failed call: the error object on stdout, exit code 1."""
    return Outcome(dumps(error.to_json(), indent=4), 1)


def internal_error(error: Exception) -> CNIError:
    """A fault of our own, told without a traceback but with the place it comes from."""
    where = "?"
    trace = error.__traceback__
    while trace is not None:
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return CNIError(
        INTERNAL,
        f"internal error: {type(error).__name__}: {error}",
        f"this is a fault in pycni at {where}; nothing is wrong with the configuration",
    )


def read_request(environ: Mapping[str, str], read_stdin: Callable[[], bytes]) -> Request | None:
    """The request that environment and stdin make; None for VERSION, which reads no stdin.

    Raises CNIError for every rule of the specification that they break, missing variables all in
    one error.
    """
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
    if command == "VERSION":
        return None
    try:
        data = read_stdin()
    except OSError as error:
        raise CNIError(IO_FAILURE, f"error reading from stdin: {error.strerror}") from None
    document = parse_config(data)
    network_name(document)
    if command not in _EVERY:
        raise CNIError(
            INVALID_ENVIRONMENT,
            f"unknown CNI_COMMAND: {command}",
            f"expected {', '.join((*_EVERY, 'VERSION'))}",
        )
    attachment = command in _ATTACHMENT
    return Request(
        command,
        document,
        container_id=environ["CNI_CONTAINERID"] if attachment else "",
        netns=environ.get("CNI_NETNS", "") if attachment else "",
        ifname=environ["CNI_IFNAME"] if attachment else "",
        args=environ.get("CNI_ARGS", "") if attachment else "",
        path=tuple(environ["CNI_PATH"].split(os.pathsep)),
        environ=environ,
    )


def _required_by(command: str) -> list[str]:
    return [name for name, commands in _REQUIRED.items() if command in commands]


def perform(plugin: Plugin, request: Request) -> Result | None:
    """Do the operation a request asks for; ADD returns its result, the others None.

    Raises CNIError, from the plugin or for a version or namespace that breaks the rules.
    """
    if "logFile" in request.document or "logLevel" in request.document:
        from pycni.sdk.log import logged

        return logged(plugin, request, _perform)
    return _perform(plugin, request)


def _perform(plugin: Plugin, request: Request) -> Result | None:
    _check_version(plugin, request)
    if request.command in ("ADD", "DEL"):
        _check_namespace(request)
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


def _check_namespace(request: Request) -> None:
    """Refuse a sandbox that is the plugin's own namespace, before anything is done to it."""
    if request.environ.get("CNI_NETNS_OVERRIDE", "").lower() in ("1", "true"):
        return
    try:
        if request.netns_fd is not None:
            theirs = os.fstat(request.netns_fd)
        else:
            theirs = os.stat(request.netns)
        ours = os.stat("/proc/thread-self/ns/net")
    except OSError:
        return  # a path that cannot be opened is the operation's to judge
    if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
        raise CNIError(
            INVALID_NETNS,
            "plugin's netns and netns from CNI_NETNS should not be the same",
            f"CNI_NETNS={request.netns} is the namespace the plugin itself runs in; "
            "give the container's, or set CNI_NETNS_OVERRIDE=1 if you mean it",
        )
