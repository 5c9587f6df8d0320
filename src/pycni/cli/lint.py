"""`pycni lint`: all that is wrong with network configurations, at once."""

from __future__ import annotations

import json
import sys

import click

from pycni.cli.linter import config_files, lint_file
from pycni.cli.options import output_option
from pycni.cli.output import tell


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="FILE...", type=click.Path(exists=True))
@output_option("text", "json")
def lint(paths: tuple[str, ...], output: str) -> None:
    """Find all that is wrong with network configurations.

    FILE is a .conflist, .conf or .json file, or a directory of them. Each fault is one line:
    FILE:LINE: KEY: what is wrong; what was expected. The exit code is 1 if there are any.
    """
    files = [file for path in paths for file in config_files(path)]
    faults = [fault for file in files for fault in lint_file(file)]
    if output == "json":
        click.echo(
            json.dumps(
                [
                    {
                        "file": fault.file,
                        "line": fault.line,
                        "key": fault.path,
                        "problem": fault.problem,
                        "expected": fault.expected,
                    }
                    for fault in faults
                ],
                indent=2,
            )
        )
    else:
        for fault in faults:
            click.echo(f"{fault}; {fault.expected}" if fault.expected else str(fault))
    tell(f"{_count(len(faults), 'fault')} in {_count(len(files), 'file')}")
    sys.exit(1 if faults else 0)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
