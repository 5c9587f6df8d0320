"""What GC of a network would remove, and who of it is alive: looked at before anything is done.

GC goes by a list of what is alive, and plugins take away whatever is not in it. Their list may lack
what another client attached, which notes that in a cache of its own. So everything is asked that
knows of attachments: this runtime's cache, those of well-known clients, what pycni's plugins noted,
and the leases of host-local. What is in no list and has a living interface or address is listed
apart. Called by `Network.gc`.
"""

from __future__ import annotations

import os

from pycni.runtime import attached
from pycni.runtime.chain import as_endpoint
from pycni.runtime.endpoint import IFNAME, Endpoint
from pycni.sdk import allowed_paths
from pycni.sdk.alive import addresses_in_use, interface_at, noted_interfaces
from pycni.spec.errors import CNIError
from pycni.spec.names import is_name
from pycni.spec.record import Record
from pycni.state import attachments
from pycni.state.cache import ResultCache, Unreadable, roots
from pycni.state.leases import DATA_DIR, LeaseStore, networks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from pycni.runtime.config import NetworkConfig
    from pycni.spec.identity import Identity
    from pycni.spec.ip import IPAddress
    from pycni.spec.owner import Owner

    Key = tuple[str, str]


class Survivor(Record):
    """An attachment that is alive although no list has it. reason: what shows that."""

    endpoint: Endpoint
    reason: str


class Garbage(Record):
    """What there is of a network that is not to be kept.

    noted: attachments of this runtime's cache, for DEL; leftovers: those that only plugins' notes
    or leases know, and that have gone; living: those that have not, or that another client's cache
    has; unreadable: files of the cache that do not say what is attached.
    """

    noted: tuple[Endpoint, ...] = ()
    leftovers: tuple[Endpoint, ...] = ()
    living: tuple[Survivor, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()


def find_garbage(config: NetworkConfig, cache: ResultCache, keep: Collection[Key]) -> Garbage:
    """Look for it. keep: attachments that are said to be alive. Raises CNIError."""
    entries, unreadable = cache.scan(network=config.name)
    noted = [as_endpoint(entry) for entry in entries]
    listed = {*keep, *((one.container_id, one.ifname) for one in noted)}
    living: dict[Key, Survivor] = {}
    gone: dict[Key, Endpoint] = {}
    for endpoint, alive in _unlisted(config, cache, listed):
        key = endpoint.container_id, endpoint.ifname
        if alive:
            living.setdefault(key, Survivor(endpoint, alive))
            gone.pop(key, None)
        elif key not in living:
            gone.setdefault(key, endpoint)
    return Garbage(
        tuple(one for one in noted if (one.container_id, one.ifname) not in keep),
        tuple(gone.values()),
        tuple(living.values()),
        tuple(unreadable),
    )


def _unlisted(
    config: NetworkConfig, cache: ResultCache, listed: Collection[Key]
) -> Iterator[tuple[Endpoint, str]]:
    """What is in no list, each time that something knows of it, and what shows that it is alive."""
    for tag in attachments.tags(config.name):
        identity = attachments.read(tag)
        if identity is None or attached.noted(identity.owner) is None:
            continue  # an ADD under way, or of another host
        owner = identity.owner
        if (owner.container_id, owner.ifname) not in listed:
            yield Endpoint(owner.container_id, identity.path, owner.ifname), _noted(identity)
    for root in roots():
        if root == cache.root:
            continue
        try:
            entries = ResultCache(root).attachments(network=config.name)
        except CNIError:
            continue  # what is not to be seen cannot be named
        for entry in entries:
            endpoint = as_endpoint(entry)
            alive = _at_path(entry.owner, endpoint.path, [entry.ifname])
            # One that has gone may have nothing left but this entry, which is its client's.
            if alive and (entry.container_id, entry.ifname) not in listed:
                yield endpoint, alive
    yield from _leased(config, listed)


def _leased(config: NetworkConfig, listed: Collection[Key]) -> Iterator[tuple[Endpoint, str]]:
    """The holders of leases that are in no list."""
    containers = {container_id for container_id, _ in listed}
    in_use: dict[IPAddress, str] | None = None
    for data_dir in _data_dirs(config):
        try:
            if config.name not in networks(data_dir):
                continue
            with LeaseStore(data_dir, config.name) as store:
                leases = store.leases()
        except (CNIError, OSError):
            continue  # host-local's own GC frees none of them then, and says why
        for lease in leases:
            container_id, ifname = lease.container_id, lease.ifname
            known = (container_id, ifname) in listed if ifname else container_id in containers
            if known or not is_name(container_id):
                continue
            if in_use is None:
                in_use = addresses_in_use()
            where = in_use.get(lease.address, "")
            # The oldest leases name no interface; any keeps them.
            yield (
                Endpoint(container_id, where or None, ifname or IFNAME),
                f"its address {lease.address} is set in {where}" if where else "",
            )


def data_dir(given: str) -> str:
    """The directory of leases that a configuration names. Raises CNIError if it may not."""
    if given in ("", DATA_DIR):
        return DATA_DIR
    return os.path.normpath(allowed_paths.require("host-local.dataDir", given, os.environ))


def _data_dirs(config: NetworkConfig) -> list[str]:
    """Where host-local has the leases of a network."""
    found: dict[str, None] = {}
    for plugin in config.plugins:
        section = plugin.document.get("ipam")
        # flannel names no type, which is host-local then.
        if isinstance(section, dict) and section.get("type", "host-local") == "host-local":
            own = section.get("dataDir")
            try:
                found[data_dir(own if isinstance(own, str) else "")] = None
            except CNIError:
                continue  # no ADD has put any there
    return [*found]


def _noted(identity: Identity) -> str:
    """What shows that an attachment of a note is alive, "" if nothing does."""
    if identity.detaching:
        return ""
    return _at_path(identity.owner, identity.path, noted_interfaces(identity))


def _at_path(owner: Owner, path: str, interfaces: Sequence[int | str]) -> str:
    if not path or attached.own_path(owner, path) != path:
        return ""
    name = interface_at(path, interfaces)
    return f"its interface {name} is in {path}" if name else ""
