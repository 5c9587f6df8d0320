"""The `pycni` command: which commands there are, and how they report errors.

A command's module is imported when the command runs, so that `pycni --version` is quick. An error
is shown once, on stderr, with what to do about it; the exit code is then 1.
"""

from __future__ import annotations

import importlib
import os
import sys
from signal import SIGINT
from typing import Any, NoReturn

import click

from pycni import __version__
from pycni.cli.interrupts import Interrupted, cause_of

# Name, where it is, and its line in the list; in the order of that list.
COMMANDS = {
    "add": ("pycni.cli.network:add", "Attach a network namespace to a network"),
    "check": ("pycni.cli.network:check", "Check that it is still attached as it was"),
    "del": ("pycni.cli.network:delete", "Detach it"),
    "inspect": ("pycni.cli.repair:inspect", "Show what attachments are made of, and how it stands"),
    "repair": ("pycni.cli.repair:repair", "Put back what others took from attachments"),
    "gc": ("pycni.cli.network:gc", "Remove what is left of attachments that are gone"),
    "status": ("pycni.cli.network:status", "Ask the plugins whether they can attach now"),
    "version": ("pycni.cli.network:version", "Show which versions a network's plugins speak"),
    "ipam": ("pycni.cli.ipam:ipam", "Free addresses of containers that are gone"),
    "lint": ("pycni.cli.lint:lint", "Find all that is wrong with network configurations"),
    "init": ("pycni.cli.init:init", "Write a network configuration"),
    "plugins": ("pycni.cli.plugins:plugins", "Show the plugins that there are"),
    "schema": ("pycni.cli.schema:schema", "Print a plugin's configuration as JSON Schema"),
    "install": ("pycni.cli.install:command", "Write the plugins' executables into a directory"),
    "agent": ("pycni.cli.agent:agent", "Serve plugin calls without starting an interpreter"),
    "dhcp": ("pycni.cli.dhcp:dhcp", "Keep the leases of the dhcp plugin's containers"),
    "new-plugin": ("pycni.cli.new_plugin:new_plugin", "Begin a plugin of your own"),
    "conformance": (
        "pycni.cli.conformance:conformance",
        "Try a plugin against the specification",
    ),
    "completion": ("pycni.cli.completion:completion", "Print a shell's completion script"),
}


class Commands(click.Group):
    """The commands of `COMMANDS`, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            meant = get_close_matches(args[0], COMMANDS, 1)
            if not meant:
                raise
            raise click.UsageError(f"{error.message} Did you mean '{meant[0]}'?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run, and end the process: 0 for success, 1 for a failure, as cnitool does; 130 after
        Ctrl-C, 143 after SIGTERM."""
        # What is written here root reads or runs: no one else is to write to it.
        os.umask(os.umask(0o077) | 0o022)
        try:
            status = super().main(*args, **{**extra, "standalone_mode": False})
        except (Exception, Interrupted) as error:  # noqa: BLE001 - the one place that shows them
            from pycni.cli.output import info, report

            interrupted = Interrupted(SIGINT) if isinstance(error, click.Abort) else cause_of(error)
            if interrupted is not None:
                info(str(interrupted).replace("\n", " "))
                status = interrupted.status
            elif isinstance(error, Exception):
                report(error)
                status = 1
        sys.exit(status if isinstance(status, int) else 0)


@click.command(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="pycni", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """CNI (Container Network Interface) in Python."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
