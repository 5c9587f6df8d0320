"""`pycni repair` and `inspect`: how attachments stand, and what was removed of them put back."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from pycni.cli.options import (
    cache_dirs_option,
    combined,
    conf_dir_option,
    engine_option,
    output_option,
    plugin_dir_option,
    timeout_option,
)
from pycni.cli.output import Progress, count, info, show, table, table_with_pods
from pycni.plan.difference import FAILED, MISSING, REPAIRED
from pycni.runtime import find, namespaces
from pycni.runtime.repair import inspect_all, repair_all
from pycni.runtime.report import AttachmentReport
from pycni.spec.errors import UNKNOWN_CONTAINER, CNIError
from pycni.state.cache import ResultCache, roots

_selection = combined(
    click.option("--container-id", default="", metavar="ID", help="Only this container."),
    click.option("-i", "--ifname", default="", help="Only this interface of containers."),
    conf_dir_option,
    plugin_dir_option,
    engine_option,
    cache_dirs_option,
    output_option("table", "json"),
)


@click.command()
@click.argument("network", required=False, default="")
@click.argument("netns", metavar="[NETNS]", required=False, default="")
@click.option("--all", "everything", is_flag=True, help="All networks that have attachments.")
@click.option("--dry-run", is_flag=True, help="Show what is missing, and leave it.")
@_selection
@timeout_option
def repair(
    network: str,
    netns: str,
    everything: bool,
    container_id: str,
    ifname: str,
    dry_run: bool,
    conf_dir: str,
    plugin_dirs: tuple[str, ...],
    engine: str,
    cache_dirs: tuple[str, ...],
    timeout: float | None,
    output: str,
) -> int:
    """Put back what is missing of the attachments to NETWORK: rules, links, addresses, routes.

    With NETNS, a path or just a name, of those of this namespace only.

    What is sound is left alone. Each attachment is repaired with the configuration that it was made
    with; no address is taken or changed. The exit code is 0 if all were looked at and nothing is
    missing now, else 1.
    """
    if bool(network) == everything:
        raise click.UsageError("say what to repair: a network, or --all")
    with Progress() as progress:
        reports = repair_all(
            cache_dir=cache_dirs,
            plugin_dirs=plugin_dirs,
            engine=engine,
            network=network,
            container_id=container_id,
            ifname=ifname,
            netns=netns and namespaces.resolve(netns),
            on_call=progress.call,
            dry_run=dry_run,
            options={"timeout": timeout},
        )
    if output == "json":
        click.echo(json.dumps([report.to_json() for report in reports]))
    else:
        _print(reports)
    info(summary(reports))
    _require_known(reports, network, container_id, ifname, netns, conf_dir, cache_dirs)
    return 0 if all(report.ok for report in reports) else 1


def _require_known(
    found: Sequence[AttachmentReport],
    network: str,
    container_id: str,
    ifname: str,
    netns: str,
    conf_dir: str,
    cache_dirs: tuple[str, ...],
) -> None:
    """Raise CNIError if what was asked for is nowhere: that all is well is no answer to a slip."""
    if any(not one.file for one in found) or not (network or container_id or ifname or netns):
        return
    where = roots(cache_dirs)
    configured = {one.name for one in find.all_networks(find.directories(conf_dir))[0]}
    if network in configured and not (container_id or ifname or netns):
        return  # nothing is attached to it, so that nothing is amiss
    caches = [ResultCache(root) for root in where]
    attached = {entry.network for cache in caches for entry in cache.attachments()}
    what = ", ".join(
        part
        for part in (
            f"container {container_id}" if container_id else "",
            f"interface {ifname}" if ifname else "",
            f"the namespace {netns}" if netns else "",
            f"the network {network}" if network else "",
        )
        if part
    )
    raise CNIError(
        UNKNOWN_CONTAINER,
        f"nothing is known to be attached of {what}",
        f"looked through {', '.join(where)}, which have attachments to "
        f"{', '.join(sorted(attached)) or 'no network'}; --cache-dir names another directory",
    )


def summary(reports: list[AttachmentReport]) -> str:
    """What became of all attachments, in one line."""
    counts = dict.fromkeys((REPAIRED, MISSING, FAILED), 0)
    for report in reports:
        for finding in report.findings:
            counts[finding.state] += 1
    skipped = sum(bool(report.skipped) for report in reports)
    sound = sum(report.is_sound for report in reports)
    parts = [count(len(reports), "attachment"), f"{sound} sound"]
    parts += [f"{number} {state}" for state, number in counts.items() if number]
    parts += [f"{skipped} left alone"] if skipped else []
    return ", ".join(parts)


def _print(reports: list[AttachmentReport]) -> None:
    rows = [
        (report.network, report.endpoint.container_id, report.endpoint.ifname, report.pod, *cells)
        for report in reports
        for cells in _cells(report)
    ]
    if rows:
        table_with_pods(
            ("network", "container", "interface", "pod", "plugin", "state", "what"), rows
        )


def _cells(report: AttachmentReport) -> list[tuple[str, str, str]]:
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
@click.argument("netns", metavar="[NETNS]", required=False, default="")
@_selection
def inspect(
    network: str,
    netns: str,
    container_id: str,
    ifname: str,
    conf_dir: str,
    plugin_dirs: tuple[str, ...],
    engine: str,
    cache_dirs: tuple[str, ...],
    output: str,
) -> int:
    """Show what attachments to NETWORK, by default to all, are made of, and how that stands.

    With NETNS, a path or just a name, those of this namespace only.

    What pycni's plugins declare as their plan, step by step, in the order in which it was made. The
    exit code is 1 if something could not be looked at.
    """

    found = inspect_all(
        cache_dir=cache_dirs,
        plugin_dirs=plugin_dirs,
        engine=engine,
        network=network,
        container_id=container_id,
        ifname=ifname,
        netns=netns and namespaces.resolve(netns),
    )
    _show(found, output)
    if not found:
        info("0 attachments")
    _require_known(found, network, container_id, ifname, netns, conf_dir, cache_dirs)
    return 1 if any(item.skipped for item in found) else 0


def _show(found: Sequence[AttachmentReport], output: str) -> None:
    if output == "json":
        click.echo(json.dumps([item.to_json(with_steps=True) for item in found]))
        return
    for number, item in enumerate(found):
        if number:
            click.echo()
        if not item.file:
            pod = f", pod {item.pod}" if item.pod else ""
            show(f"{item.network} {item.endpoint.container_id} {item.endpoint.ifname}{pod}")
        if item.steps:
            rows = [
                (step.plugin, step.kind, "; ".join(step.differences) or "ok", step.what)
                for step in item.steps
            ]
            table(("plugin", "step", "state", "what"), rows)
        if item.skipped:
            show(item.skipped)
