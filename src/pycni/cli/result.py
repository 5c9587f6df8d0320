"""How the result of an ADD is printed."""

from __future__ import annotations

import sys

import click

from pycni.cli.output import table
from pycni.spec.result import Result
from pycni.spec.result import print_result as as_text


def print_result(result: Result, output: str) -> None:
    """Print a result. output: "json", as plugins write it, or "table"."""
    if output == "table":
        _print_table(result)
    else:
        # cnitool ends without a newline; at a terminal that spoils the prompt.
        text = as_text(result, result.cni_version)
        click.echo(text, nl=sys.stdout.isatty())


def _print_table(result: Result) -> None:
    names = [interface.name for interface in result.interfaces]
    table(
        ("interface", "mac", "namespace"),
        [(item.name, item.mac, item.sandbox or "(host)") for item in result.interfaces],
    )
    if result.ips:
        click.echo()
        rows = []
        for entry in result.ips:
            index = entry.interface
            known = index is not None and 0 <= index < len(names)
            rows.append((entry.address, entry.gateway or "", names[index or 0] if known else ""))
        table(("address", "gateway", "interface"), rows)
    if result.routes:
        click.echo()
        table(("route", "via"), [(route.dst, route.gw or "") for route in result.routes])
