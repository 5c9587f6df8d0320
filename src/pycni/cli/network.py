"""`pycni add`, `check`, `del`, `gc`, `status`, `version`: one operation on one network.

Arguments, variables and output are those of the reference's `cnitool`, so that scripts written for
it work; the options beside them say the same more conveniently.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pycni.cli import interrupts, timings
from pycni.cli.crio import warn_of_crio
from pycni.cli.given import (
    AttachmentOptions,
    NetworkOptions,
    attachment_options,
    living_attachments,
    network_options,
)
from pycni.cli.options import keep_options, output_option
from pycni.cli.output import Progress, info, table, warn
from pycni.cli.result import print_result
from pycni.runtime import (
    Canceled,
    Cancellation,
    Endpoint,
    Network,
    NetworkNotFound,
    namespaces,
)
from pycni.spec import versions
from pycni.spec.errors import INVALID_ENVIRONMENT, UNKNOWN_CONTAINER, CNIError
from pycni.state.cache import ROOT, ResultCache, roots

if TYPE_CHECKING:
    from pycni.runtime.garbage import Survivor

_NOTHING_LEFT = "nothing of the attachment is left"


_format_option = output_option("json", "table")


@click.command()
@attachment_options
@click.option("--create-netns", is_flag=True, help="Make the namespace if it is not there.")
@_format_option
def add(given: AttachmentOptions, output: str, create_netns: bool) -> None:
    """Attach the network namespace NETNS to NETWORK, and print the result.

    NETNS is a path, such as /run/netns/NAME, or just NAME.
    """
    with Progress() as progress:
        network = _network(progress, given)
        endpoint = given.endpoint()
        _warn_of_unused(network, endpoint)
        warn_of_crio(given.conf_dir)
        cancel = Cancellation()
        with interrupts.held(cancel.cancel, _left_of) as held:
            made = create_netns and _create(endpoint.path)
            try:
                with timings.Timings(given.timings):
                    result = network.add_endpoint(endpoint, timeout=given.timeout, cancel=cancel)
                try:
                    held.finish(lambda: print_result(result, output))
                except BaseException:
                    network.delete_endpoint(endpoint)  # no one knows of it
                    raise
            except BaseException as error:
                if made:
                    namespaces.delete(os.path.basename(endpoint.path))
                elif (
                    isinstance(error, CNIError)
                    and not held.number
                    and not os.path.exists(endpoint.path)
                ):
                    hint = f"nothing is at {endpoint.path}: --create-netns makes a namespace there"
                    error.details = f"{hint}; {error.details}" if error.details else hint
                raise


def _left_of(error: BaseException) -> str:
    """What an ADD that was interrupted leaves, by its error."""
    if isinstance(error, Canceled):
        known = Canceled().details
        return error.details.removeprefix(known).removeprefix("; ") or _NOTHING_LEFT
    return str(error) if isinstance(error, CNIError) else _NOTHING_LEFT


@click.command()
@attachment_options
def check(given: AttachmentOptions) -> None:
    """Check that NETNS is attached to NETWORK as `add` left it.

    Without --cap and --arg, those that were given to `add` hold.
    """
    with Progress() as progress, timings.Timings(given.timings):
        endpoint = given.endpoint()
        given = replace(given, cache_dir=_cache_of(endpoint, given))
        network = _known_network(progress, given, endpoint)
        network.check(
            endpoint.container_id,
            endpoint.netns,
            endpoint.ifname,
            args=endpoint.args,
            capabilities=endpoint.capabilities,
            timeout=given.timeout,
        )


@click.command("del")
@attachment_options
@click.option("--delete-netns", is_flag=True, help="Remove the namespace as well.")
def delete(given: AttachmentOptions, delete_netns: bool) -> None:
    """Detach NETNS from NETWORK; that there is nothing to detach is no error.

    Works without the namespace too, and without the network's configuration if `add` was done with
    this cache. Without --cap and --arg, those that were given to `add` hold.
    """
    with Progress() as progress, timings.Timings(given.timings):
        endpoint = given.endpoint()
        cache_dir = _cache_of(endpoint, given)
        network = _known_network(progress, replace(given, cache_dir=cache_dir), endpoint)
        is_known = os.path.exists(endpoint.path) or _is_cached(network.name, endpoint, cache_dir)
        network.delete_endpoint(endpoint, timeout=given.timeout)
    if not is_known:
        # As like as not a slip: that all is well is no answer to it.
        info(
            f"nothing is known of {endpoint.ifname} of {endpoint.container_id} in the network "
            f"{network.name}, and {endpoint.path} is not there: nothing to detach"
        )
    if delete_netns and os.path.exists(endpoint.path):
        namespaces.delete(_name(endpoint.path))


@click.command()
@network_options
@click.argument("netns", metavar="[NETNS]", required=False)
@keep_options
@click.option("--none", "nothing", is_flag=True, help="None is alive: remove all.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and leave it.")
@click.option("--force", is_flag=True, help="Remove what is alive as well, if no list has it.")
@_format_option
def gc(
    given: NetworkOptions,
    keep: tuple[str, ...],
    keep_file: Any,
    nothing: bool,
    dry_run: bool,
    force: bool,
    output: str,
    netns: str | None,
) -> None:
    """Remove what is left in NETWORK of attachments that are not alive any more.

    Unlike cnitool's, this needs to know which are: by --keep, --keep-file or --none. Prints what
    was deleted: what is noted and not to be kept, and what only plugins or leases know. What is
    alive and in no list may be another client's: it is named, kept unless --force is given, and
    makes the exit code 1. NETNS is not used.
    """
    if not (keep or keep_file or nothing):
        raise click.UsageError(
            "say which attachments are alive: --keep ID/IFNAME, --keep-file FILE, or --none"
        )
    if nothing and (keep or keep_file):
        raise click.UsageError("--none says that nothing is alive; drop it, or what is to be kept")
    living = living_attachments(keep, keep_file)
    with Progress() as progress:
        network = _configured_or_cached(progress, given)
        found = network.garbage(living)
        for file in found.unreadable:
            warn(f"left alone: {file.path} {file.reason}")
        stale = network.gc(living, dry_run=dry_run, force=force, timeout=given.timeout)
    if output == "json":
        click.echo(
            json.dumps(
                [{"containerID": item.container_id, "ifname": item.ifname} for item in stale]
            )
        )
    else:
        table(
            ("container", "interface", "namespace"),
            [(item.container_id, item.ifname, item.path) for item in stale],
        )
    verb = "would be deleted" if dry_run else "deleted"
    info(f"{len(stale)} {verb}, {len(living)} to keep, in the network {network.name}")
    if found.living and not force:
        _complain_of_living(network.name, found.living)


def _complain_of_living(network: str, survivors: Sequence[Survivor]) -> None:
    """Name who is alive, and in no list. Raises CNIError."""
    for one in survivors:
        pod = f" ({one.endpoint.pod})" if one.endpoint.pod else ""
        key = f"{one.endpoint.container_id}/{one.endpoint.ifname}"
        warn(f"{network}: {key}{pod} is alive, {one.reason}; it is in no list, and kept")
    first = survivors[0].endpoint
    raise CNIError(
        UNKNOWN_CONTAINER,
        f"{len(survivors)} alive in the network {network} and in no list",
        f"keep them, --keep {first.container_id}/{first.ifname}, or remove them, --force",
    )


@click.command()
@network_options
@click.argument("netns", metavar="[NETNS]", required=False)
def status(given: NetworkOptions, netns: str | None) -> None:
    """Ask NETWORK's plugins whether they could attach a container now.

    Silent if they could. Plugins of others can be asked in networks from 1.1.0 on; those that
    could not be asked are named. NETNS is not used.
    """
    with Progress() as progress:
        network = _network(progress, given)
        unasked = network.status(timeout=given.timeout)
    if unasked:
        version = network.config.version or versions.DEFAULT
        info(
            f"could not ask {', '.join(unasked)}: STATUS came with {versions.SINCE['STATUS']}, "
            f"and {network.name} is of {version}"
        )


@click.command()
@network_options
@click.argument("netns", metavar="[NETNS]", required=False)
@_format_option
def version(given: NetworkOptions, netns: str | None, output: str) -> None:
    """Show which versions of the specification NETWORK's plugins speak. NETNS is not used."""
    with Progress() as progress:
        found = _network(progress, given).versions(timeout=given.timeout)
    if output == "json":
        click.echo(json.dumps(found))
    else:
        table(("plugin", "versions"), [(name, " ".join(known)) for name, known in found.items()])


def _network(progress: Progress, given: NetworkOptions) -> Network:
    found = Network.load(
        given.network,
        conf_dir=given.conf_dir,
        plugin_dirs=given.plugin_dirs,
        engine=given.engine,
        cache_dir=given.cache_dir or ROOT,
        on_call=progress.call,
    )
    for fault in (fault for error in found.skipped for fault in error.faults):
        warn(f"skipped {fault}")
    return found


def _cached_network(
    progress: Progress, given: NetworkOptions, container_id: str, ifname: str
) -> Network | None:
    """The network as it was at an attachment's `add`; None if the cache does not know."""
    found = Network.from_cache(
        given.network,
        container_id,
        ifname,
        plugin_dirs=given.plugin_dirs,
        engine=given.engine,
        cache_dir=given.cache_dir or ROOT,
        on_call=progress.call,
    )
    if found is not None:
        warn(f"{found.name} is not configured any more; using what it was at 'add'")
    return found


def _configured_or_cached(progress: Progress, given: NetworkOptions) -> Network:
    """The network as it is configured or, where it is not any more, as one was attached to it."""
    try:
        return _network(progress, given)
    except NetworkNotFound:
        for entry in ResultCache(given.cache_dir or ROOT).attachments(network=given.network):
            found = _cached_network(progress, given, entry.container_id, entry.ifname)
            if found is not None:
                return found
        raise


def _known_network(progress: Progress, given: AttachmentOptions, endpoint: Endpoint) -> Network:
    """The network as it is configured or, where it is not any more, as it was at `add`."""
    try:
        return _network(progress, given)
    except NetworkNotFound:
        found = _cached_network(progress, given, endpoint.container_id, endpoint.ifname)
        if found is None:
            raise
        return found


def _cache_of(endpoint: Endpoint, given: AttachmentOptions) -> str:
    """The cache that has an attachment: the one that was named, or one of those that are usual."""
    known: list[str] = roots([given.cache_dir] if given.cache_dir else ())
    for root in known if len(known) > 1 else ():
        if _is_cached(given.network, endpoint, root):
            return root
    return known[0]


def _is_cached(network: str, endpoint: Endpoint, cache_dir: str) -> bool:
    try:
        key = network, endpoint.container_id, endpoint.ifname
        return ResultCache(cache_dir).read(*key) is not None
    except CNIError:
        return True  # something is there, if damaged


def _warn_of_unused(network: Network, endpoint: Endpoint) -> None:
    """Settings go to the plugins that declare the capability; one that none declares is lost."""
    declared = {name for plugin in network.config.plugins for name in plugin.capabilities}
    for name in endpoint.capabilities or ():
        if name not in declared:
            warn(
                f"no plugin of {network.name} declares the capability {name}; it needs "
                f'"capabilities": {{"{name}": true}}'
            )


def _name(path: str) -> str:
    """The name of a namespace in /run/netns. Raises CNIError for one that is elsewhere."""
    directory, name = os.path.split(path)
    if os.path.realpath(directory) != os.path.realpath(namespaces.DIRECTORY):
        raise CNIError(
            INVALID_ENVIRONMENT,
            f"{path} is not in {namespaces.DIRECTORY}",
            "only namespaces there are made and removed by pycni",
        )
    return name


def _create(path: str) -> bool:
    """Make a namespace if it is not there; says whether it had to be made."""
    name = _name(path)
    if Path(path).exists():
        return False
    namespaces.create(name)
    return True
