"""`pycni ipam`: the addresses that host-local has handed out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from pycni.cli.given import living_attachments
from pycni.cli.options import (
    cache_dirs_option,
    conf_dir_option,
    keep_options,
    output_option,
    plugin_dir_option,
)
from pycni.cli.output import count, info, table_with_pods, warn
from pycni.runtime import reclaim as reclaiming
from pycni.runtime.lease_evidence import Verdict
from pycni.runtime.reclaim import Reclaimed
from pycni.spec.errors import TRY_AGAIN_LATER, UNKNOWN_CONTAINER, CNIError
from pycni.state.leases import DATA_DIR


@click.group()
def ipam() -> None:
    """The addresses that host-local has handed out."""


@ipam.command()
@click.argument("names", metavar="[NETWORK]...", nargs=-1)
@click.option(
    "--data-dir",
    "data_dirs",
    multiple=True,
    help=f'Where leases are; may be repeated.  [default: {DATA_DIR}, and every "dataDir" of the '
    "configured networks]",
)
@conf_dir_option
@cache_dirs_option
@plugin_dir_option
@keep_options
@click.option("--none", "nothing", is_flag=True, help="None is alive.")
@click.option("--dry-run", is_flag=True, help="Show what would be freed and why, and leave it.")
@output_option("table", "json")
def reclaim(
    names: tuple[str, ...],
    data_dirs: tuple[str, ...],
    conf_dir: str,
    cache_dirs: tuple[str, ...],
    plugin_dirs: tuple[str, ...],
    keep: tuple[str, ...],
    keep_file: Any,
    nothing: bool,
    dry_run: bool,
    output: str,
) -> None:
    """Free the addresses of containers that are not there any more.

    What else is left of them goes first: each is deleted as by 'del'.

    An address is freed if it was handed out before this machine was started, or if its container's
    namespace, which the cache knows, has gone. With --keep, --keep-file or --none, which say what
    is alive, all others are freed. An address that is set in any namespace is never freed. Prints
    what was.
    """
    if nothing and (keep or keep_file):
        raise click.UsageError("--none says that nothing is alive; drop it, or what is to be kept")
    living = living_attachments(keep, keep_file)
    outcome = reclaiming.reclaim(
        names,
        living=living if keep or keep_file or nothing else None,
        complete=nothing,
        data_dirs=data_dirs,
        conf_dir=conf_dir,
        cache_dirs=cache_dirs,
        plugin_dirs=plugin_dirs,
        dry_run=dry_run,
        note=warn,
    )
    _print(outcome.freed, output)
    addresses = count(len(outcome.freed), "address", "addresses")
    info(f"{addresses} {'would be ' if dry_run else ''}freed")
    _complain(outcome)


def _complain(outcome: Reclaimed) -> None:
    """Name what stays, and why; raise CNIError if anything does."""
    for one in (*outcome.failed, *outcome.unknown):
        whose = f"{one.lease.container_id} ({one.pod})" if one.pod else one.lease.container_id
        warn(f"{one.network}: {one.lease.address} of {whose} stays: {one.reason}")
    if outcome.failed:
        raise CNIError(
            TRY_AGAIN_LATER,
            f"{count(len(outcome.failed), 'address stays', 'addresses stay')} reserved, since what "
            "names them could not be removed",
            "see the reasons above; if plugins are missing, name their directory: --plugin-dir",
        )
    if outcome.unknown:
        raise CNIError(
            UNKNOWN_CONTAINER,
            f"cannot say of {count(len(outcome.unknown), 'address', 'addresses')} whether their "
            "containers are alive",
            "say which are: --keep ID/IFNAME, --keep-file FILE, or --none",
        )


def _print(freed: Sequence[Verdict], output: str) -> None:
    if output == "json":
        click.echo(json.dumps([_as_json(one) for one in freed]))
    elif freed:
        table_with_pods(
            ("network", "address", "container", "interface", "pod", "why"),
            [
                (one.network, one.lease.address, one.lease.container_id, one.lease.ifname, one.pod,
                 one.reason)
                for one in freed
            ],
        )  # fmt: skip


def _as_json(one: Verdict) -> dict[str, str]:
    return {
        "network": one.network,
        "address": str(one.lease.address),
        "containerID": one.lease.container_id,
        "ifname": one.lease.ifname,
        "pod": one.pod,
        "reason": one.reason,
    }
