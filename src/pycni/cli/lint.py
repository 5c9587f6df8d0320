"""`pycni lint`: all that is wrong with network configurations, at once."""

from __future__ import annotations

import json
import os
import sys

import click

from pycni.cli.lint_together import faults_between
from pycni.cli.linter import OTHERS, config_files, lint_file
from pycni.cli.options import output_option, plugin_dirs_option
from pycni.cli.output import count, info, show
from pycni.cli.plugins import executables
from pycni.runtime import find

_DIRECTORY = "/opt/cni/bin"  # where nearly all runtimes look for plugins


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="FILE...", type=click.Path(exists=True))
@plugin_dirs_option(f"Without any: {_DIRECTORY}, if it is there.")
@output_option("text", "json")
def lint(paths: tuple[str, ...], plugin_dirs: tuple[str, ...], output: str) -> None:
    """Find all that is wrong with network configurations.

    FILE is a .conflist, .conf or .json file, or a directory of them. Each fault is one line:
    FILE:LINE: KEY: what is wrong; what was expected. The exit code is 1 if there are any.

    A plugin is known if it is pycni's, a well-known one of others, or in a plugin directory.
    """
    default = [_DIRECTORY] if os.path.isdir(_DIRECTORY) else []
    others = OTHERS | executables(find.directories(plugin_dirs) or default).keys()
    files = [file for path in paths for file in config_files(path)]
    faults = [fault for file in files for fault in lint_file(file, others)]
    faults += faults_between(files)
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
            show(f"{fault}; {fault.expected}" if fault.expected else str(fault))
    info(f"{count(len(faults), 'fault')} in {count(len(files), 'file')}")
    sys.exit(1 if faults else 0)
