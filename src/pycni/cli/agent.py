"""`pycni agent`: be the agent, or ask the one that runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pycni.agent.protocol import SOCKET
from pycni.cli.options import cache_dirs_option, plugin_dir_option
from pycni.spec.errors import CNIError

if TYPE_CHECKING:
    from pycni.runtime.options import Cancellation
    from pycni.runtime.report import AttachmentReport

_socket_option = click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    default=SOCKET,
    show_default=True,
    help="The socket that launchers connect to.",
)


@click.group(invoke_without_command=True)
@_socket_option
@click.option("--workers", type=click.IntRange(1), help="Calls at work at once.")
@click.option(
    "--waiting", type=click.IntRange(1), help="Further ones that may wait to be declined."
)
@click.option(
    "--idle",
    type=click.FloatRange(0, min_open=True),
    help="Leave after so many seconds without a call.",
)
@click.option(
    "--watch-rules",
    is_flag=True,
    help="Put back what others flush of attached containers' rules, as pycni repair --all does.",
)
@plugin_dir_option
@cache_dirs_option
@click.pass_context
def agent(
    context: click.Context,
    path: Path,
    workers: int | None,
    waiting: int | None,
    idle: float | None,
    watch_rules: bool,
    plugin_dirs: tuple[str, ...],
    cache_dirs: tuple[str, ...],
) -> None:
    """Serve plugin calls without starting an interpreter for each.

    Runs until SIGTERM, on systemd's socket if it is given one. Plugins work the same without it.
    --plugin-dir and --cache-dir are for --watch-rules.
    """
    if context.invoked_subcommand is not None:
        return
    if watch_rules and idle is not None:
        raise click.UsageError("--idle would end what --watch-rules is to do")
    from pycni.agent import server

    repair = _repair(plugin_dirs, cache_dirs) if watch_rules else None
    try:
        server.run(
            path,
            repair,
            workers=workers or server.WORKERS,
            waiting=waiting or server.WAITING,
            idle=idle,
        )
    except CNIError as error:
        raise click.ClickException(str(error)) from error


@agent.command()
@_socket_option
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")
def status(path: Path, output: str) -> None:
    """What the agent has done: calls, latencies, errors."""
    text = _ask(path, "json")
    if output == "json":
        click.echo(text)
    else:
        from pycni.cli.output import show

        show(_table(json.loads(text)))


@agent.command()
@_socket_option
def metrics(path: Path) -> None:
    """The same in the text format of Prometheus, for its node exporter's textfile collector."""
    click.echo(_ask(path, "prometheus"), nl=False)


def _repair(
    plugin_dirs: tuple[str, ...], cache_dirs: tuple[str, ...]
) -> Callable[[Cancellation], list[AttachmentReport]]:
    from pycni.runtime.repair import repair_all

    def repair(cancel: Cancellation) -> list[AttachmentReport]:
        return repair_all(
            cache_dir=cache_dirs,
            plugin_dirs=plugin_dirs,
            remake=False,  # an interface that has gone may be on its way out, by a DEL elsewhere
            options={"cancel": cancel},
        )

    return repair


def _ask(path: Path, output_format: str) -> str:
    from pycni.agent import server

    try:
        return server.ask(path, output_format)
    except OSError as error:
        raise click.ClickException(
            f"no agent answers on {path}: {error.strerror or error}"
        ) from error


def _table(state: dict[str, Any]) -> str:
    memory = state["memory_bytes"] / 2**20
    head = f"pycni {state['version']}, pid {state['pid']}, up {state['uptime_s']} s"
    lines = [f"{head}, {memory:.1f} MiB, {state['running']} at work"]
    lines += [f"refused {count}: {reason}" for reason, count in state["refused"].items()]
    repairs = state["repairs"]
    if repairs["passes"]:
        lines.append(
            f"looked after attachments {repairs['passes']} times: "
            f"{repairs['repaired']} repaired, {repairs['failed']} not"
        )
    if state["calls"]:
        columns = ("calls", "failed", "mean ms", "longest ms")
        lines.append(f"{'plugin':<16}{'command':<8}" + "".join(f"{name:>12}" for name in columns))
    lines += [
        f"{row['plugin']:<16}{row['command']:<8}{row['count']:>12}{row['failed']:>12}"
        f"{row['mean_ms']:>12.2f}{row['longest_ms']:>12.2f}"
        for row in state["calls"]
    ]
    lines += [f"failed {row['plugin']} {row['command']}: {row['error']}" for row in state["errors"]]
    return "\n".join(lines)
