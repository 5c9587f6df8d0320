"""`pycni ipam`: the addresses that host-local has handed out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click

from pycni.cli.network import living_attachments
from pycni.cli.options import (
    cache_dirs_option,
    conf_dir_option,
    keep_options,
    output_option,
    plugin_dir_option,
)
from pycni.cli.output import count, info, table_with_pods, warn
from pycni.kernel import all_addresses
from pycni.runtime import attached, find
from pycni.runtime.config import NetworkConfig, parse_network
from pycni.runtime.garbage import data_dir
from pycni.runtime.reclaim import Evidence, Outcome, Verdict, machine_started
from pycni.runtime.reclaim import reclaim as runtime_reclaim
from pycni.spec.errors import (
    INVALID_ENVIRONMENT,
    TRY_AGAIN_LATER,
    UNKNOWN_CONTAINER,
    CNIError,
)
from pycni.spec.owner import Owner
from pycni.state.cache import CachedAttachment, ResultCache, roots
from pycni.state.leases import DATA_DIR, networks


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
    if os.geteuid() != 0:
        raise CNIError(
            INVALID_ENVIRONMENT,
            "only root sees which addresses are in use",
            "run it as root; nothing has been freed",
        )
    told = bool(keep or keep_file or nothing)
    living = frozenset(living_attachments(keep, keep_file))

    def evidence(cached: Sequence[CachedAttachment]) -> Evidence:
        return Evidence(
            in_use=all_addresses.addresses([entry.netns for entry in cached if entry.netns]),
            living=living if told else None,
            complete=nothing,
            path_of=attached.noted_path,
            is_there=_is_there,
            now=time.time(),
            started=machine_started(),
        )

    caches = roots(cache_dirs)
    outcome = Outcome()
    places = data_dirs or _data_dirs(conf_dir, caches)
    missing = set(names).difference(*map(networks, places))
    for network in sorted(missing):
        warn(f"there are no leases of a network {network} in {', '.join(places)}")
    for place in places:
        for network in names or networks(place):
            found = runtime_reclaim(
                network,
                place,
                evidence,
                cache_dirs=caches,
                plugin_dirs=find.directories(plugin_dirs),
                note=warn,
                dry_run=dry_run,
            )
            outcome = Outcome(
                outcome.freed + found.freed,
                outcome.unknown + found.unknown,
                outcome.failed + found.failed,
            )
    _print(outcome.freed, output)
    addresses = count(len(outcome.freed), "address", "addresses")
    info(f"{addresses} {'would be ' if dry_run else ''}freed")
    _complain(outcome)


def _complain(outcome: Outcome) -> None:
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
            f"cannot tell of {count(len(outcome.unknown), 'address', 'addresses')} whether their "
            "containers are alive",
            "say which are: --keep ID/IFNAME, --keep-file FILE, or --none",
        )


def _is_there(owner: Owner, path: str) -> bool:
    return all_addresses.exists(path) and attached.own_path(owner, path) == path


def _data_dirs(conf_dir: str, caches: Sequence[str]) -> Sequence[str]:
    """The usual directory, and those of networks that are configured, or were at an ADD."""
    found = [DATA_DIR]
    configured = find.all_networks(find.directories(conf_dir))[0]
    for network in (*configured, *_cached_networks(caches)):
        for plugin in network.plugins:
            section = plugin.document.get("ipam")
            if isinstance(section, dict) and isinstance(section.get("dataDir"), str):
                try:
                    found.append(data_dir(section["dataDir"]))
                except CNIError as error:
                    warn(f"{network.name}: {error}")
    return list(dict.fromkeys(found))


def _cached_networks(caches: Sequence[str]) -> Iterator[NetworkConfig]:
    for entry in (entry for root in caches for entry in ResultCache(root).attachments()):
        try:
            if entry.config:
                yield parse_network(entry.config)
        except CNIError:
            continue  # a damaged entry, which others report


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
