"""`pycni ipam`: the addresses that host-local has handed out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import click

from pycni.cli.network import living_attachments
from pycni.cli.options import cache_option, conf_dir_option, keep_options, output_option
from pycni.cli.output import table, tell, warn
from pycni.kernel import census
from pycni.plugins.host_local import DATA_DIR
from pycni.runtime import find
from pycni.runtime.reclaim import FREE, UNKNOWN, Evidence, Verdict, machine_started
from pycni.spec.errors import INVALID_ENVIRONMENT, UNKNOWN_CONTAINER, CNIError
from pycni.state.cache import ResultCache
from pycni.state.leases import LeaseStore, networks


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
@cache_option
@keep_options
@click.option("--none", "nothing", is_flag=True, help="None is alive.")
@click.option("--dry-run", is_flag=True, help="Show what would be freed and why, and leave it.")
@output_option("table", "json")
def reclaim(
    names: tuple[str, ...],
    data_dirs: tuple[str, ...],
    conf_dir: str,
    cache_dir: str,
    keep: tuple[str, ...],
    keep_file: Any,
    nothing: bool,
    dry_run: bool,
    output: str,
) -> None:
    """Free the addresses of containers that are not there any more.

    An address is freed if it was handed out before this machine was started, or if its container's
    namespace, which the cache knows, has gone. With --keep, --keep-file or --none, which say what
    is alive, all others are freed. An address that is set in any namespace is never freed. Prints
    what was.
    """
    if nothing and (keep or keep_file):
        raise click.UsageError("--none says that nothing is alive; drop it, or what is to be kept")
    if os.geteuid() != 0:
        raise CNIError(
            INVALID_ENVIRONMENT,
            "only root sees which addresses are in use",
            "run it as root; nothing has been freed",
        )
    told = bool(keep or keep_file or nothing)
    living = frozenset(living_attachments(keep, keep_file))
    cache = ResultCache(cache_dir)
    freed: list[Verdict] = []
    unknown: list[Verdict] = []
    places = data_dirs or _data_dirs(conf_dir)
    missing = set(names).difference(*(networks(data_dir) for data_dir in places))
    for network in sorted(missing):
        warn(f"there are no leases of a network {network} in {', '.join(places)}")
    for data_dir in places:
        for network in names or networks(data_dir):
            with LeaseStore(data_dir, network, note=warn) as store:
                # Looked at under the lock: what is handed out meanwhile cannot be missed.
                cached = cache.attachments(network=network)
                evidence = Evidence(
                    in_use=census.addresses([entry.netns for entry in cached if entry.netns]),
                    living=living if told else None,
                    complete=nothing,
                    exists=census.exists,
                    now=time.time(),
                    started=machine_started(),
                )
                verdicts = evidence.judge(network, store.leases(), cached)
                unknown += [one for one in verdicts if one.fate == UNKNOWN]
                for one in verdicts:
                    if one.fate == FREE:
                        if not dry_run:
                            store.release(one.lease.attachment, [one.lease.address])
                        freed.append(one)
    _print(freed, output)
    tell(f"{len(freed)} {'would be' if dry_run else 'were'} freed")
    if unknown:
        for one in unknown:
            lease = one.lease
            warn(f"{one.network}: {lease.address} of {lease.container_id} stays: {one.reason}")
        raise CNIError(
            UNKNOWN_CONTAINER,
            f"cannot tell of {len(unknown)} addresses whether their containers are alive",
            "say which are: --keep ID/IFNAME, --keep-file FILE, or --none",
        )


def _data_dirs(conf_dir: str) -> Sequence[str]:
    """The usual directory, and those that configured networks name."""
    found = [DATA_DIR]
    for network in find.all_networks(find.directories(conf_dir))[0]:
        for plugin in network.plugins:
            section = plugin.document.get("ipam")
            if isinstance(section, dict) and isinstance(section.get("dataDir"), str):
                found.append(os.path.normpath(section["dataDir"] or DATA_DIR))
    return list(dict.fromkeys(found))


def _print(freed: Sequence[Verdict], output: str) -> None:
    if output == "json":
        click.echo(json.dumps([_as_json(one) for one in freed]))
    elif freed:
        table(
            ("network", "address", "container", "interface", "why"),
            [
                (one.network, one.lease.address, one.lease.container_id, one.lease.ifname,
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
        "reason": one.reason,
    }
