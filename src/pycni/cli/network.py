"""`pycni add`, `check`, `del`, `gc`, `status`, `version`: one operation on one network.

Arguments, variables and output are those of the reference's `cnitool`, so that scripts written for
it work; the options beside them say the same more conveniently.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pycni.cli import interrupts, timings
from pycni.cli.crio import warn_of_crio
from pycni.cli.options import (
    cache_option,
    combined,
    conf_dir_option,
    engine_option,
    keep_options,
    output_option,
    plugin_dir_option,
    timeout_option,
)
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
from pycni.spec.errors import (
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    UNKNOWN_CONTAINER,
    CNIError,
)
from pycni.spec.jsontext import JSONError, loads
from pycni.state.cache import ROOT, ResultCache, roots

if TYPE_CHECKING:
    from pycni.runtime.garbage import Survivor

Key = tuple[str, str]

_NOTHING_LEFT = "nothing of the attachment is left"


_network_options = combined(
    click.argument("network", metavar="NETWORK"),
    conf_dir_option,
    plugin_dir_option,
    engine_option,
    cache_option,
    timeout_option,
)

_attachment_options = combined(
    _network_options,
    click.argument("netns", metavar="NETNS"),
    click.option(
        "-i",
        "--ifname",
        envvar="CNI_IFNAME",
        default="eth0",
        show_default=True,
        show_envvar=True,
        help="The interface's name in the namespace.",
    ),
    click.option(
        "--container-id",
        metavar="ID",
        help="The container's id.  [default: made from NETNS, as cnitool does]",
    ),
    click.option(
        "--cap",
        "capabilities",
        multiple=True,
        metavar="NAME=JSON",
        help="A setting for the plugins that have this capability, such as "
        "'mac=\"02:00:00:00:00:01\"'; may be repeated.  [env var: CAP_ARGS, one JSON object]",
    ),
    click.option(
        "--arg",
        "arguments",
        multiple=True,
        metavar="NAME=VALUE",
        help="An argument for the plugins; may be repeated.  [env var: CNI_ARGS, with ';' between]",
    ),
    timings.option,
)

_format_option = output_option("json", "table")


@click.command()
@_attachment_options
@click.option("--create-netns", is_flag=True, help="Make the namespace if it is not there.")
@_format_option
def add(output: str, create_netns: bool, **given: Any) -> None:
    """Attach the network namespace NETNS to NETWORK, and print the result.

    NETNS is a path, such as /run/netns/NAME, or just NAME.
    """
    with Progress() as progress:
        network = _network(progress, **given)
        endpoint = _endpoint(**given)
        _warn_of_unused(network, endpoint)
        warn_of_crio(given["conf_dir"])
        cancel = Cancellation()
        with interrupts.held(cancel.cancel, _left_of) as held:
            made = create_netns and _create(endpoint.path)
            try:
                with timings.Timings(given["timings"]):
                    result = network.add_endpoint(endpoint, timeout=given["timeout"], cancel=cancel)
                try:
                    held.finish(lambda: print_result(result, output))
                except BaseException:
                    network.delete_endpoint(endpoint)  # nobody knows of it
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
@_attachment_options
def check(**given: Any) -> None:
    """Check that NETNS is attached to NETWORK as `add` left it.

    Without --cap and --arg, those that were given to `add` hold.
    """
    with Progress() as progress, timings.Timings(given["timings"]):
        network, endpoint = _known_network(progress, given)
        network.check(
            endpoint.container_id,
            endpoint.netns,
            endpoint.ifname,
            args=endpoint.args,
            capabilities=endpoint.capabilities,
            timeout=given["timeout"],
        )


@click.command("del")
@_attachment_options
@click.option("--delete-netns", is_flag=True, help="Remove the namespace as well.")
def delete(delete_netns: bool, **given: Any) -> None:
    """Detach NETNS from NETWORK; that there is nothing to detach is no error.

    Works without the namespace too, and without the network's configuration if `add` was done with
    this cache. Without --cap and --arg, those that were given to `add` hold.
    """
    with Progress() as progress, timings.Timings(given["timings"]):
        network, endpoint = _known_network(progress, given)
        is_known = os.path.exists(endpoint.path) or _is_cached(
            network.name, endpoint, given["cache_dir"]
        )
        network.delete_endpoint(endpoint, timeout=given["timeout"])
    if not is_known:
        # As like as not a slip: that all is well is no answer to it.
        info(
            f"nothing is known of {endpoint.ifname} of {endpoint.container_id} in the network "
            f"{network.name}, and {endpoint.path} is not there: nothing to detach"
        )
    if delete_netns and os.path.exists(endpoint.path):
        namespaces.delete(_name(endpoint.path))


@click.command()
@_network_options
@click.argument("netns", metavar="[NETNS]", required=False)
@keep_options
@click.option("--none", "nothing", is_flag=True, help="None is alive: remove all.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and leave it.")
@click.option("--force", is_flag=True, help="Remove what is alive as well, if no list has it.")
@_format_option
def gc(
    keep: tuple[str, ...],
    keep_file: Any,
    nothing: bool,
    dry_run: bool,
    force: bool,
    output: str,
    netns: str | None,
    **given: Any,
) -> None:
    """Remove what is left in NETWORK of attachments that are not alive any more.

    Unlike cnitool's, this needs to be told which are: by --keep, --keep-file or --none. Prints what
    was deleted: what is noted and not to be kept, and what only plugins or leases know. Whoever is
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
        network = _configured_or_cached(progress, **given)
        found = network.garbage(living)
        for file in found.unreadable:
            warn(f"left alone: {file.path} {file.reason}")
        stale = network.gc(living, dry_run=dry_run, force=force, timeout=given["timeout"])
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
@_network_options
@click.argument("netns", metavar="[NETNS]", required=False)
def status(netns: str | None, **given: Any) -> None:
    """Ask NETWORK's plugins whether they could attach a container now.

    Silent if they could. Plugins of others can be asked in networks from 1.1.0 on; whoever could
    not be asked is named. NETNS is not used.
    """
    with Progress() as progress:
        network = _network(progress, **given)
        unasked = network.status(timeout=given["timeout"])
    if unasked:
        version = network.config.version or versions.DEFAULT
        info(
            f"could not ask {', '.join(unasked)}: STATUS came with {versions.SINCE['STATUS']}, "
            f"and {network.name} is of {version}"
        )


@click.command()
@_network_options
@click.argument("netns", metavar="[NETNS]", required=False)
@_format_option
def version(netns: str | None, output: str, **given: Any) -> None:
    """Show which versions of the specification NETWORK's plugins speak. NETNS is not used."""
    with Progress() as progress:
        found = _network(progress, **given).versions(timeout=given["timeout"])
    if output == "json":
        click.echo(json.dumps(found))
    else:
        table(("plugin", "versions"), [(name, " ".join(known)) for name, known in found.items()])


def _network(
    progress: Progress,
    *,
    network: str,
    conf_dir: str,
    plugin_dirs: tuple[str, ...],
    engine: str,
    cache_dir: str | None,
    **_: Any,
) -> Network:
    found = Network.load(
        network,
        conf_dir=conf_dir,
        plugin_dirs=plugin_dirs,
        engine=engine,
        cache_dir=cache_dir or ROOT,
        on_call=progress.call,
    )
    for fault in (fault for error in found.skipped for fault in error.faults):
        warn(f"skipped {fault}")
    return found


def _configured_or_cached(progress: Progress, **given: Any) -> Network:
    """The network as it is configured or, where it is not any more, as one was attached to it."""
    try:
        return _network(progress, **given)
    except NetworkNotFound:
        cache_dir = given["cache_dir"] or ROOT
        for entry in ResultCache(cache_dir).attachments(network=given["network"]):
            found = Network.from_cache(
                entry.network,
                entry.container_id,
                entry.ifname,
                plugin_dirs=given["plugin_dirs"],
                engine=given["engine"],
                cache_dir=cache_dir,
                on_call=progress.call,
            )
            if found is not None:
                warn(f"{found.name} is not configured any more; using what it was at 'add'")
                return found
        raise


def _known_network(progress: Progress, given: dict[str, Any]) -> tuple[Network, Endpoint]:
    """The network as it is configured or, where it is not any more, as it was at `add`."""
    endpoint = _endpoint(**given)
    given["cache_dir"] = _cache_of(endpoint, given)
    try:
        return _network(progress, **given), endpoint
    except NetworkNotFound:
        found = Network.from_cache(
            given["network"],
            endpoint.container_id,
            endpoint.ifname,
            plugin_dirs=given["plugin_dirs"],
            engine=given["engine"],
            cache_dir=given["cache_dir"],
            on_call=progress.call,
        )
        if found is None:
            raise
        warn(f"{given['network']} is not configured any more; using what it was at 'add'")
        return found, endpoint


def _cache_of(endpoint: Endpoint, given: dict[str, Any]) -> str:
    """The cache that has an attachment: the one that was named, or one of those that are usual."""
    known: list[str] = roots([given["cache_dir"]] if given["cache_dir"] else ())
    for root in known if len(known) > 1 else ():
        if _is_cached(given["network"], endpoint, root):
            return root
    return known[0]


def _is_cached(network: str, endpoint: Endpoint, cache_dir: str) -> bool:
    try:
        key = network, endpoint.container_id, endpoint.ifname
        return ResultCache(cache_dir).read(*key) is not None
    except CNIError:
        return True  # something is there, if damaged


def _endpoint(
    *,
    netns: str,
    ifname: str,
    container_id: str | None,
    capabilities: tuple[str, ...],
    arguments: tuple[str, ...],
    **_: Any,
) -> Endpoint:
    path = _path(netns)
    return Endpoint(
        container_id or _container_id(path),
        path,
        ifname,
        _args(arguments) or None,
        _capabilities(capabilities) or None,
    )


def _warn_of_unused(network: Network, endpoint: Endpoint) -> None:
    """Settings go to the plugins that declare the capability; one that none declares is lost."""
    declared = {name for plugin in network.config.plugins for name in plugin.capabilities}
    for name in endpoint.capabilities or ():
        if name not in declared:
            warn(
                f"no plugin of {network.name} declares the capability {name}; it needs "
                f'"capabilities": {{"{name}": true}}'
            )


def _path(netns: str) -> str:
    """NETNS as cnitool has it, absolute; a mere name is one of `ip netns`."""
    if "/" not in netns and not os.path.exists(netns):
        return namespaces.path(netns)
    return os.path.abspath(netns)


def _container_id(path: str) -> str:
    return f"cnitool-{hashlib.sha512(os.fsencode(path)).hexdigest()[:20]}"


def _capabilities(given: tuple[str, ...]) -> dict[str, Any]:
    text = os.environ.get("CAP_ARGS", "")
    capabilities = _json(text, "CAP_ARGS") if text else {}
    if not isinstance(capabilities, dict | None):
        raise CNIError(
            INVALID_ENVIRONMENT,
            "CAP_ARGS is not a JSON object",
            'expected one such as {"mac": "02:00:00:00:00:01"}',
        )
    named = {}
    for option in given:
        name, equals, value = option.partition("=")
        if not (name and equals):
            raise click.UsageError(f"--cap {option}: expected NAME=JSON")
        named[name] = _json(value, f"--cap {name}")
    return {**(capabilities or {}), **named}


def _json(text: str, what: str) -> Any:
    try:
        return loads(text)
    except JSONError as error:
        raise CNIError(
            INVALID_ENVIRONMENT,
            f"{what} is not JSON: {error}",
            "text needs its double quotes: --cap 'mac=\"02:00:00:00:00:01\"'",
        ) from None


def _args(given: tuple[str, ...]) -> list[tuple[str, str]]:
    text = os.environ.get("CNI_ARGS", "")
    pairs: dict[str, str] = {}
    for pair in text.split(";") if text else ():
        name, equals, value = pair.partition("=")
        if not (name and equals and value) or "=" in value:
            raise CNIError(
                INVALID_ENVIRONMENT,
                f'invalid CNI_ARGS pair "{pair}"',
                "CNI_ARGS is NAME=VALUE pairs with ';' between them",
            )
        pairs[name] = value
    for option in given:
        name, equals, value = option.partition("=")
        if not (name and equals):
            raise click.UsageError(f"--arg {option}: expected NAME=VALUE")
        pairs[name] = value
    return list(pairs.items())


def living_attachments(keep: Iterable[str], keep_file: Iterable[str] | None) -> list[Key]:
    """What --keep and --keep-file name, as (container id, interface). Raises CNIError."""
    lines = [line.strip() for line in (*keep, *(keep_file or ()))]
    return [_key(line) for line in lines if line and line[0] != "#"]


def _key(text: str) -> Key:
    container_id, slash, ifname = text.partition("/")
    if not (container_id and slash and ifname):
        raise CNIError(
            INVALID_CONFIG,
            f'"{text}" names no attachment',
            "expected a container's id and an interface, ID/IFNAME",
        )
    return container_id, ifname


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
