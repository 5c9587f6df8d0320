"""Handing an operation to another plugin: an address plugin, or whatever a meta plugin wraps.

The other plugin is found on CNI_PATH by its name. If the executable found is one of ours, its
object is called right here; if not, it runs as a process with our environment and the same stdin.
Either way the answer and the errors are the same.
"""

from __future__ import annotations

import posix
from _stat import S_ISREG

from pycni.sdk.dispatch import perform_in
from pycni.spec.errors import (
    DECODING_FAILURE,
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    UNKNOWN,
    CNIError,
)
from pycni.spec.jsontext import JSONError, dumps, loads
from pycni.spec.names import check_plugin_type
from pycni.spec.result import decode_result
from pycni.spec.versions import quote
from pycni.state.attachments import HELD, is_held
from pycni.state.files import below

# In a delegated plugin's environment: how many plugins deep it is called.
DEPTH = "PYCNI_DEPTH"
_MAX_DEPTH = 8

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from pycni.sdk.plugin import Plugin
    from pycni.sdk.request import Request
    from pycni.spec.result import Result

    Found = tuple[Plugin | None, str]


def delegate(
    request: Request,
    plugin_type: str,
    command: str,
    document: Mapping[str, Any] | None = None,
    found: Found | None = None,
) -> Result | None:
    """Have another plugin do an operation for the same attachment; ADD returns its result.

    document: the configuration to hand on, the request's own if not given. found: what
    `find_delegate` gave, where it has been called. Raises CNIError: the other plugin's own error,
    or one that says why it could not be run.
    """
    # What takes an ADD back is not given up with it.
    cancel = request.cancel if command == request.command else None
    inner = request.replace(command=command, document=document or request.document, cancel=cancel)
    plugin, path = found or find_delegate(request, plugin_type)
    if plugin is not None:
        return perform_in(plugin, inner)
    from pycni.sdk.execute import execute  # most are ours

    output = execute(
        path,
        {**process_environ(inner), DEPTH: str(_depth(request, plugin_type))},
        dumps(inner.document, sort_keys=True).encode(),
        cancel=cancel,
        stderr=request.stderr,
    )
    return read_answer(output, inner.version) if command == "ADD" else None


def _depth(request: Request, plugin_type: str) -> int:
    """How many plugins deep the other one is called. Raises CNIError: they may call each other."""
    before = request.environ.get(DEPTH, "")
    depth = int(before) + 1 if before.isascii() and before.isdigit() else 1
    if depth > _MAX_DEPTH:
        raise CNIError(
            INVALID_CONFIG,
            f'"{plugin_type}" would be called by {_MAX_DEPTH} plugins, each by the one before',
            "plugins that hand an operation to each other come to no end",
        )
    return depth


def find_delegate(request: Request, plugin_type: str) -> Found:
    """The plugin of a type, if it is one of ours, and else None and its executable's path.

    Raises CNIError if there is none.
    """
    # Without directories there are only the plugins that the caller has built in, by their names.
    plugin = None if request.path else request.resolve(plugin_type)
    if plugin is not None:
        return plugin, ""
    if not any(request.path):
        raise CNIError(
            INVALID_ENVIRONMENT,
            "required env variables [CNI_PATH] missing",
            f'it must name the directories to find the plugin "{plugin_type}" in',
        )
    path = find_plugin(plugin_type, request.path)
    return request.resolve(path), path


def find_plugin(plugin_type: str, directories: Sequence[str]) -> str:
    """The path of a plugin's executable: the first directory that has a regular file so named.

    Raises CNIError: for a name that is none (code 7), or if no directory has it (code 0).
    """
    check_plugin_type(plugin_type)
    if not any(directories):
        raise CNIError(
            UNKNOWN,
            "no paths provided",
            f"CNI_PATH must name the directories to find the plugin {quote(plugin_type)} in",
        )
    for directory in directories:
        path = below(directory, plugin_type)
        try:
            if S_ISREG(posix.stat(path).st_mode):
                return path
        except OSError:
            continue
    raise CNIError(
        UNKNOWN,
        f"failed to find plugin {quote(plugin_type)} in path [{' '.join(directories)}]",
        f"{did_you_mean(plugin_type, _names_in(directories))}install the plugin into one of these "
        'directories, or correct CNI_PATH or the plugin\'s "type"',
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'did you mean "bridge"? ' for a name that is much like a known one, else ""."""
    from difflib import get_close_matches  # slow to load, and hardly ever needed

    meant = get_close_matches(name, list(known), 1, 0.75)
    return f"did you mean {quote(meant[0])}? " if meant else ""


def _names_in(directories: Iterable[str]) -> Iterator[str]:
    for directory in directories:
        try:
            yield from posix.listdir(directory or ".")
        except OSError:
            continue


def process_environ(request: Request) -> dict[str, str]:
    """The environment of a plugin's process that serves this request."""
    tag = request.owner.tag if request.container_id else ""
    held = {HELD: tag} if is_held(tag) else {}
    return {
        **request.environ,
        **held,
        "CNI_COMMAND": request.command,
        "CNI_CONTAINERID": request.container_id,
        "CNI_NETNS": request.netns,
        "CNI_IFNAME": request.ifname,
        "CNI_ARGS": request.args,
        "CNI_PATH": ":".join(request.path),
    }


def read_answer(output: bytes, version: str) -> Result:
    """The result in a plugin's output; one that names no version has the configuration's."""
    try:
        document = loads(output)
    except JSONError as error:
        raise CNIError(DECODING_FAILURE, f"failed to unmarshal raw result: {error}") from None
    if not isinstance(document, dict | None):
        raise CNIError(DECODING_FAILURE, "failed to unmarshal raw result: not a JSON object")
    document = document or {}
    own = document.get("cniVersion")
    if not isinstance(own, str) or not own:
        own = version
    return decode_result({**document, "cniVersion": own}, own)
