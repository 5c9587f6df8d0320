"""`pycni install DIR`: one executable per plugin, as runtimes expect them in a plugin directory."""

from __future__ import annotations

from pathlib import Path

import click

from pycni.agent.executables import (
    PluginNotFound,
    changeable_by_others,
    install,
    install_plugin,
)
from pycni.cli.output import warn

_SHOWN = 3  # files or folders in a warning


@click.command("install")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--plugin",
    "references",
    multiple=True,
    metavar="MODULE[:NAME]",
    help="Only this plugin, one of your own made with pycni.sdk; may be repeated.  "
    "[default name: plugin]",
)
def command(directory: Path, references: tuple[str, ...]) -> None:
    """Write one executable per plugin into DIRECTORY."""
    try:
        if references:
            written = [install_plugin(directory, reference) for reference in references]
        else:
            written = install(directory)
    except PluginNotFound as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot install into {directory}: {error.strerror}") from error
    others = changeable_by_others(references)
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        warn(
            f"others can change what the plugins will run: {', '.join(others[:_SHOWN])}{more}; "
            "install pycni where root alone may write, such as a virtual environment in /opt, and "
            "run pycni install from there"
        )
    click.echo(f"installed {', '.join(path.name for path in written)} in {directory}")
