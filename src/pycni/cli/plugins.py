"""`pycni plugins`: what is on the path, what it speaks and what it takes from the runtime."""

from __future__ import annotations

import json
from typing import Any

import click

from pycni.cli.options import output_option, plugin_dirs_option
from pycni.cli.output import Progress, table
from pycni.plugins import NAMES, load, resolve
from pycni.runtime import find
from pycni.runtime.engine import Engine, Found
from pycni.runtime.lint import capabilities
from pycni.spec.errors import CNIError

_SECONDS = 5.0  # for a plugin to say its versions


@click.command()
@plugin_dirs_option("Without any: those that come with pycni.")
@output_option("table", "json")
def plugins(plugin_dirs: tuple[str, ...], output: str) -> None:
    """Show the plugins that there are, with versions and capabilities.

    Each executable in the plugin directories is asked for its versions.
    """
    rows = _listed(plugin_dirs) if plugin_dirs else [_own(name, "") for name in NAMES]
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    table(
        ("plugin", "versions", "capabilities", "where"),
        [
            (
                row["plugin"],
                row.get("error") or _range(row["versions"]),
                " ".join(row["capabilities"]),
                row["where"],
            )
            for row in rows
        ],
    )


def _listed(directories: tuple[str, ...]) -> list[dict[str, Any]]:
    with Progress() as progress:
        return _asked(directories, progress)


def _asked(directories: tuple[str, ...], progress: Progress) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for name, path in find.executables(directories).items():
        progress.call("VERSION", name)
        rows[name] = _own(name, path) if resolve(path) else _other(name, path)
    return list(rows.values())


def _own(name: str, path: str) -> dict[str, Any]:
    plugin = load(name)
    return {
        "plugin": name,
        "versions": list(plugin.versions),
        "capabilities": sorted(capabilities(plugin)),
        "where": f"pycni, {path}" if path else "pycni",
    }


def _other(name: str, path: str) -> dict[str, Any]:
    row: dict[str, Any] = {"plugin": name, "versions": [], "capabilities": [], "where": path}
    try:
        known = Engine(kind="exec").versions(Found(name, path, None), {"timeout": _SECONDS})
        row["versions"] = list(known)
    except CNIError as error:
        row["error"] = f"does not answer: {error.message}"
    return row


def _range(versions: list[str]) -> str:
    return f"{versions[0]} to {versions[-1]}" if len(versions) > 1 else " ".join(versions)
