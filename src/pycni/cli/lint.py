"""`pycni lint`: all that is wrong with network configurations, at once."""

from __future__ import annotations

import json
import sys

import click

from pycni.cli.options import conf_dir_option, output_option, plugin_dirs_option
from pycni.cli.output import count, info, show
from pycni.runtime.errors import FaultInFile
from pycni.runtime.lint import config_files, configured_files
from pycni.runtime.lint import lint as lint_files


@click.command()
@click.argument("paths", nargs=-1, metavar="[FILE]...", type=click.Path(exists=True))
@conf_dir_option
@plugin_dirs_option("Without any: /opt/cni/bin, if it is there.")
@output_option("text", "json")
def lint(paths: tuple[str, ...], conf_dir: str, plugin_dirs: tuple[str, ...], output: str) -> None:
    """Find all that is wrong with network configurations.

    FILE is a .conflist, .conf or .json file, or a directory of them; without any, those in
    --conf-dir are looked at. Each fault is one line: FILE:LINE: KEY: what is wrong; what was
    expected. The exit code is 1 if there are any.

    A plugin is known if it is pycni's, a well-known one of others, or in a plugin directory.
    """
    files = config_files(paths) if paths else configured_files(conf_dir)
    faults = lint_files(files, plugin_dirs=plugin_dirs)
    if output == "json":
        click.echo(json.dumps([_as_json(fault) for fault in faults], indent=2))
    else:
        for fault in faults:
            show(f"{fault}; {fault.expected}" if fault.expected else str(fault))
    info(f"{count(len(faults), 'fault')} in {count(len(files), 'file')}")
    sys.exit(1 if faults else 0)


def _as_json(fault: FaultInFile) -> dict[str, str | int]:
    return {
        "file": fault.file,
        "line": fault.line,
        "key": fault.path,
        "problem": fault.problem,
        "expected": fault.expected,
    }
