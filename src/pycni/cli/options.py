"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from pycni.runtime.find import DEFAULT_DIRECTORY
from pycni.state.cache import ROOT, ROOTS_OF_CLIENTS

Command = Callable[..., Any]


def combined(*decorators: Any) -> Callable[[Command], Command]:
    """Several decorators as one, in the order that they would be written in."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


def output_option(default: str, *others: str) -> Callable[..., Any]:
    """How a command prints."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice([default, *others]),
        default=default,
        show_default=True,
        help="How to print.",
    )


def plugin_dirs_option(without: str) -> Callable[..., Any]:
    """Where plugins are. without: a sentence that says what counts where none is given."""
    return click.option(
        "--plugin-dir",
        "plugin_dirs",
        multiple=True,
        type=click.Path(),
        envvar="CNI_PATH",
        show_envvar=True,
        help=f"Where plugins are; may be repeated. {without}",
    )


conf_dir_option = click.option(
    "--conf-dir",
    envvar="NETCONFPATH",
    default=DEFAULT_DIRECTORY,
    show_default=True,
    show_envvar=True,
    help="Where network configurations are; several with ':' between them.",
)
plugin_dir_option = plugin_dirs_option(
    "Without any, pycni's own plugins are used, in this process."
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "exec"]),
    default="auto",
    show_default=True,
    help="auto: plugins that are pycni's own run in this process; exec: none does.",
)
cache_option = click.option(
    "--cache-dir",
    help=f"Where attachments are noted.  [default: {ROOT}]",
)
cache_dirs_option = click.option(
    "--cache-dir",
    "cache_dirs",
    multiple=True,
    help="Where attachments are noted; may be repeated.  [default: "
    f"{', '.join((ROOT, *ROOTS_OF_CLIENTS))}, as far as they are there]",
)
timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="End a plugin's process that takes longer.",
)
keep_options = combined(
    click.option(
        "--keep", multiple=True, metavar="ID/IFNAME", help="A living attachment; may be repeated."
    ),
    click.option(
        "--keep-file",
        type=click.File(),
        help="Living attachments, one ID/IFNAME a line; '-' for stdin.",
    ),
)
