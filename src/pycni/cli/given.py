"""What commands on networks and attachments are given, as cnitool takes it: options, variables."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import partial, wraps
from typing import Any

import click

from pycni.cli import timings
from pycni.cli.options import (
    Command,
    cache_option,
    combined,
    conf_dir_option,
    engine_option,
    plugin_dir_option,
    timeout_option,
)
from pycni.runtime import Endpoint, namespaces
from pycni.spec.errors import INVALID_CONFIG, INVALID_ENVIRONMENT, CNIError
from pycni.spec.jsontext import JSONError, loads

Key = tuple[str, str]


@dataclass(frozen=True)
class NetworkOptions:
    """Which network, and how its plugins are called."""

    network: str
    conf_dir: str
    plugin_dirs: tuple[str, ...]
    engine: str
    cache_dir: str | None
    timeout: float | None


@dataclass(frozen=True)
class AttachmentOptions(NetworkOptions):
    """And which interface of which container."""

    netns: str
    ifname: str
    container_id: str | None
    capabilities: tuple[str, ...]
    arguments: tuple[str, ...]
    timings: bool

    def endpoint(self) -> Endpoint:
        """The attachment. Raises CNIError, click.UsageError for what cannot be read."""
        path = namespaces.resolve(self.netns)
        return Endpoint(
            self.container_id or _container_id(path),
            path,
            self.ifname,
            _args(self.arguments) or None,
            _capabilities(self.capabilities) or None,
        )


def _gathered(options: type[NetworkOptions], command: Command) -> Command:
    """A command that is called with options in one object, and the others by name."""
    names = [one.name for one in fields(options)]

    @wraps(command)
    def run(**given: Any) -> Any:
        return command(options(**{name: given.pop(name) for name in names}), **given)

    return run


_network = combined(
    click.argument("network", metavar="NETWORK"),
    conf_dir_option,
    plugin_dir_option,
    engine_option,
    cache_option,
    timeout_option,
)

_attachment = combined(
    _network,
    click.argument("netns", metavar="NETNS"),
    click.option(
        "-i",
        "--ifname",
        envvar="CNI_IFNAME",
        default="eth0",
        show_default=True,
        show_envvar=True,
        help="The interface's name in the namespace.",
    ),
    click.option(
        "--container-id",
        metavar="ID",
        help="The container's id.  [default: made from NETNS, as cnitool does]",
    ),
    click.option(
        "--cap",
        "capabilities",
        multiple=True,
        metavar="NAME=JSON",
        help="A setting for the plugins that have this capability, such as "
        "'mac=\"02:00:00:00:00:01\"'; may be repeated.  [env var: CAP_ARGS, one JSON object]",
    ),
    click.option(
        "--arg",
        "arguments",
        multiple=True,
        metavar="NAME=VALUE",
        help="An argument for the plugins; may be repeated.  [env var: CNI_ARGS, with ';' between]",
    ),
    timings.option,
)

network_options = combined(_network, partial(_gathered, NetworkOptions))
attachment_options = combined(_attachment, partial(_gathered, AttachmentOptions))


def _container_id(path: str) -> str:
    return f"cnitool-{hashlib.sha512(os.fsencode(path)).hexdigest()[:20]}"


def _capabilities(given: tuple[str, ...]) -> dict[str, Any]:
    text = os.environ.get("CAP_ARGS", "")
    capabilities = _json(text, "CAP_ARGS") if text else {}
    if not isinstance(capabilities, dict | None):
        raise CNIError(
            INVALID_ENVIRONMENT,
            "CAP_ARGS is not a JSON object",
            'expected one such as {"mac": "02:00:00:00:00:01"}',
        )
    named = {}
    for option in given:
        name, equals, value = option.partition("=")
        if not (name and equals):
            raise click.UsageError(f"--cap {option}: expected NAME=JSON")
        named[name] = _json(value, f"--cap {name}")
    return {**(capabilities or {}), **named}


def _json(text: str, what: str) -> Any:
    try:
        return loads(text)
    except JSONError as error:
        raise CNIError(
            INVALID_ENVIRONMENT,
            f"{what} is not JSON: {error}",
            "text needs its double quotes: --cap 'mac=\"02:00:00:00:00:01\"'",
        ) from None


def _args(given: tuple[str, ...]) -> list[tuple[str, str]]:
    text = os.environ.get("CNI_ARGS", "")
    pairs: dict[str, str] = {}
    for pair in text.split(";") if text else ():
        name, equals, value = pair.partition("=")
        if not (name and equals and value) or "=" in value:
            raise CNIError(
                INVALID_ENVIRONMENT,
                f'invalid CNI_ARGS pair "{pair}"',
                "CNI_ARGS is NAME=VALUE pairs with ';' between them",
            )
        pairs[name] = value
    for option in given:
        name, equals, value = option.partition("=")
        if not (name and equals):
            raise click.UsageError(f"--arg {option}: expected NAME=VALUE")
        pairs[name] = value
    return list(pairs.items())


def living_attachments(keep: Iterable[str], keep_file: Iterable[str] | None) -> list[Key]:
    """What --keep and --keep-file name, as (container id, interface). Raises CNIError."""
    lines = [line.strip() for line in (*keep, *(keep_file or ()))]
    return [_key(line) for line in lines if line and line[0] != "#"]


def _key(text: str) -> Key:
    container_id, slash, ifname = text.partition("/")
    if not (container_id and slash and ifname):
        raise CNIError(
            INVALID_CONFIG,
            f'"{text}" names no attachment',
            "expected a container's id and an interface, ID/IFNAME",
        )
    return container_id, ifname
