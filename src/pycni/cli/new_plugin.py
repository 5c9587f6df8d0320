"""`pycni new-plugin NAME`: the beginnings of a plugin of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from pycni.cli.output import info
from pycni.sdk.new_plugin import KINDS
from pycni.sdk.new_plugin import new_plugin as write_project


@click.command("new-plugin")
@click.argument("name")
@click.argument("directory", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--kind",
    type=click.Choice(list(KINDS)),
    default="chained",
    show_default=True,
    help="Whether it works on the interface of a plugin before it, or makes one.",
)
def new_plugin(name: str, directory: Path | None, kind: str) -> None:
    """Begin a plugin called NAME: a project that builds, is tested and can be installed.

    It is written into DIRECTORY, by default one called NAME.
    """
    directory = directory or Path(name)
    try:
        write_project(name, directory, kind=kind)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        raise click.ClickException(str(error)) from error
    info(f"wrote {directory}; see {directory / 'README.md'} for how to go on")
