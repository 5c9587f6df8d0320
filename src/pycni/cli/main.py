"""The `pycni` command."""

from __future__ import annotations

from pathlib import Path

import click

from pycni import __version__
from pycni.cli.agent import agent


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pycni", message="%(prog)s %(version)s")
def main() -> None:
    """CNI (Container Network Interface) in Python."""


@main.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def install(directory: Path) -> None:
    """Write one executable per plugin into DIRECTORY."""
    from pycni.cli.install import install as write_executables

    try:
        written = write_executables(directory)
    except OSError as error:
        raise click.ClickException(f"cannot install into {directory}: {error.strerror}") from error
    click.echo(f"installed {', '.join(path.name for path in written)} in {directory}")


main.add_command(agent)
