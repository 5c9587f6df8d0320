"""`pycni conformance`: try a plugin, in any language, against the specification."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pycni.cli.options import output_option
from pycni.cli.output import info
from pycni.conformance import report, runner
from pycni.conformance.host import HostError
from pycni.conformance.requirement import KINDS, Finding
from pycni.conformance.subject import Subject, SubjectError, load_subject

_STYLES = {"passed": "green", "failed": "red", "skipped": "yellow"}


@click.command()
@click.argument("executable", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--config",
    "config_file",
    type=click.File(),
    help="The plugin's configuration, or a list that has it. In strings {n} stands for the "
    "number of the container, and a whole string '{8000+n}' for that sum.  [default: one for the "
    "well-known plugins]",
)
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    help="Whether it makes an interface, works on one (chained), or gives addresses (ipam).  "
    "[default: by its name, or its configuration]",
)
@click.option(
    "--plugin-dir",
    "plugin_dirs",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, resolve_path=True),
    help="Where plugins are that it delegates to, besides its own folder; may be repeated.",
)
@click.option(
    "--setup",
    multiple=True,
    metavar="COMMAND",
    help="A shell command that prepares the host, such as 'ip link add ...'; may be repeated. "
    "$PLUGIN is the executable. What it starts in the background must not keep its output open.",
)
@click.option(
    "--container-setup",
    multiple=True,
    metavar="COMMAND",
    help="A shell command that prepares each container, with $NETNS, the name of its namespace, "
    "$IFNAME, and its number $N; may be repeated.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="ID",
    help="Try this requirement, or all whose id begins so ('del.'); may be repeated.",
)
@click.option("--strict", is_flag=True, help="Fail for a SHOULD as for a MUST.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1), default=runner.JOBS, show_default=True,
    help="How many checks at a time.",
)  # fmt: skip
@output_option("table", "json", "junit")
def conformance(
    executable: Path,
    config_file: Any,
    kind: str | None,
    plugin_dirs: tuple[str, ...],
    setup: tuple[str, ...],
    container_setup: tuple[str, ...],
    only: tuple[str, ...],
    strict: bool,
    jobs: int,
    output: str,
) -> int:
    """Try the plugin EXECUTABLE against the specification, version 1.1.0.

    Each MUST and SHOULD is tried on a host of its own, made of namespaces; this machine's network
    and files are not touched. Needs root, and `ip`. The exit code is 0 if no MUST failed.
    """
    try:
        config = None if config_file is None else _read(config_file)
        subject = runner.prepare(
            load_subject(
                executable,
                config=config,
                kind=kind or "",
                directories=plugin_dirs,
                setup=setup,
                container_setup=container_setup,
            )
        )
    except (SubjectError, HostError) as error:
        raise click.ClickException(str(error)) from error
    requirements = runner.requirements_of(subject, only)
    if not requirements:
        raise click.UsageError(f"there is no requirement {', '.join(only)} for {subject.kind}")
    findings = report.ordered(_progress(runner.run(subject, requirements, jobs), len(requirements)))
    if output == "json":
        click.echo(report.to_json(subject, findings))
    elif output == "junit":
        click.echo(report.to_junit(subject, findings))
    else:
        _table(subject, findings)
    info(f"{subject.type}: {report.summary(findings)}")
    return 0 if report.conforms(findings, strict=strict) else 1


def _read(file: Any) -> dict[str, Any]:
    try:
        document = json.load(file)
    except ValueError as error:
        raise click.ClickException(f"{file.name} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise click.ClickException(f"{file.name} is not a JSON object")
    return document


def _progress(findings: Any, total: int) -> Any:
    """Hand findings on, and show on a terminal how far it is."""
    shown = sys.stderr.isatty()
    for number, finding in enumerate(findings, 1):
        if shown:
            click.echo(f"\r\033[K{number}/{total} {finding.requirement.id}", nl=False, err=True)
        yield finding
    if shown:
        click.echo("\r\033[K", nl=False, err=True)


def _table(subject: Subject, findings: Sequence[Finding]) -> None:
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("requirement", no_wrap=True)
    grid.add_column("", no_wrap=True)
    grid.add_column("section", no_wrap=True)
    grid.add_column("outcome", no_wrap=True)
    grid.add_column("what it asks; what was seen", overflow="fold")
    for finding in findings:
        one = finding.requirement
        text: Any = Text(one.text)
        if finding.outcome == "failed":
            seen = Text(finding.seen, style="red")
            text = Group(text, seen, Text(f"\u201c{one.sentence}\u201d", style="italic"))
        elif finding.outcome == "skipped":
            text = Text(finding.seen, style="yellow")
        outcome = Text(finding.outcome, style=_STYLES[finding.outcome])
        grid.add_row(one.id, one.keyword, one.section, outcome, text)
    width = None if sys.stdout.isatty() else 160
    console = Console(width=width, highlight=False)
    claimed = ", ".join(subject.versions) or "none"
    console.print(
        f"{subject.path}, {subject.kind}, claims {claimed}; tried with {subject.version}\n",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    console.print(grid)
