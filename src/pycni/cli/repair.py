"""`pycni repair` and `inspect`: how attached containers stand, and what others took put back."""

from __future__ import annotations

import json
from typing import Any

import click

from pycni.cli.options import (
    cache_option,
    engine_option,
    output_option,
    plugin_dir_option,
    timeout_option,
)
from pycni.cli.output import Progress, table, tell
from pycni.runtime.repair import FAILED, MENDED, MISSING, Repaired, repair_all


@click.command()
@click.argument("network", required=False)
@click.option("--all", "everything", is_flag=True, help="All networks that have attachments.")
@click.option("--container-id", default="", metavar="ID", help="Only this container.")
@click.option("-i", "--ifname", default="", help="Only this interface of containers.")
@click.option("--dry-run", is_flag=True, help="Show what is missing, and leave it.")
@plugin_dir_option
@engine_option
@cache_option
@timeout_option
@output_option("table", "json")
def repair(
    network: str | None,
    everything: bool,
    container_id: str,
    ifname: str,
    dry_run: bool,
    plugin_dirs: tuple[str, ...],
    engine: str,
    cache_dir: str,
    timeout: float | None,
    output: str,
) -> int:
    """Put back what is missing of the attachments to NETWORK: rules, links, addresses, routes.

    What is sound is left alone. Each attachment is repaired with the configuration that it was made
    with; no address is taken or changed. The exit code is 0 if nothing is missing now, else 1.
    """
    if bool(network) == everything:
        raise click.UsageError("say what to repair: a network, or --all")
    with Progress() as progress:
        reports = repair_all(
            cache_dir=cache_dir,
            plugin_dirs=plugin_dirs,
            engine=engine,
            network=network or "",
            container_id=container_id,
            ifname=ifname,
            on_call=progress.call,
            dry_run=dry_run,
            options={"timeout": timeout},
        )
    if output == "json":
        click.echo(json.dumps([report.to_json() for report in reports]))
    else:
        _print(reports)
    tell(summary(reports))
    return 0 if all(report.ok for report in reports) else 1


def summary(reports: list[Repaired]) -> str:
    """What became of all attachments, in one line."""
    counts = dict.fromkeys((MENDED, MISSING, FAILED), 0)
    for report in reports:
        for finding in report.findings:
            counts[finding.state] += 1
    skipped = sum(bool(report.skipped) for report in reports)
    sound = sum(report.is_sound and not report.skipped for report in reports)
    noun = "attachment" if len(reports) == 1 else "attachments"
    parts = [f"{len(reports)} {noun}", f"{sound} sound"]
    parts += [f"{count} {state}" for state, count in counts.items() if count]
    parts += [f"{skipped} left alone"] if skipped else []
    return ", ".join(parts)


def _print(reports: list[Repaired]) -> None:
    rows = [
        (report.network, report.endpoint.container_id, report.endpoint.ifname, *cells)
        for report in reports
        for cells in _cells(report)
    ]
    if rows:
        table(("network", "container", "interface", "plugin", "state", "what"), rows)


def _cells(report: Repaired) -> list[tuple[str, str, str]]:
    if report.skipped:
        return [("", "left alone", report.skipped)]
    return [
        (
            finding.plugin,
            finding.state,
            f"{finding.what}: {finding.reason}" if finding.reason else finding.what,
        )
        for finding in report.findings
    ]


@click.command()
@click.argument("network", required=False, default="")
@click.option("--container-id", default="", metavar="ID", help="Only this container.")
@click.option("-i", "--ifname", default="", help="Only this interface of containers.")
@plugin_dir_option
@engine_option
@cache_option
@output_option("table", "json")
def inspect(network: str, output: str, **given: Any) -> None:
    """Show what attachments to NETWORK, by default to all, are made of, and how that stands.

    What pycni's plugins declare as their plan, step by step, in the order in which it was made.
    """
    from pycni.runtime.inspection import inspect_all

    found = inspect_all(network=network, **given)
    if output == "json":
        click.echo(json.dumps([item.to_json() for item in found]))
        return
    for number, item in enumerate(found):
        if number:
            click.echo()
        click.echo(f"{item.network} {item.endpoint.container_id} {item.endpoint.ifname}")
        if item.steps:
            rows = [
                (step.plugin, step.kind, "; ".join(step.differences) or "ok", step.what)
                for step in item.steps
            ]
            table(("plugin", "step", "state", "what"), rows)
        if item.skipped:
            click.echo(item.skipped)
