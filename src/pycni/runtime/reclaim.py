"""Freeing the leases of host-local on which no container lives any more (`lease_evidence`): after a
lost DEL, or a start of the machine.

Before a lease is freed its attachment is deleted, by the configuration of its ADD where the cache
has that, and by the marks on what pycni's plugins made otherwise: an address is free only when
nothing names it any more. What cannot be deleted keeps its lease, and so does a container that was
attached again since it was judged.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

from pycni.runtime import attached, find, operation
from pycni.runtime import config as configs
from pycni.runtime.chain import Chain
from pycni.runtime.endpoint import Endpoint
from pycni.runtime.engine import Engine
from pycni.runtime.garbage import data_dir as checked_data_dir
from pycni.runtime.lease_evidence import FREE, KEEP, UNKNOWN, Evidence, machine_started
from pycni.runtime.locks import ATTACHMENT_LOCKS, ProcessLock
from pycni.sdk.alive import addresses_in_use, has_namespace
from pycni.sdk.collection import remove_leftovers
from pycni.spec.errors import INVALID_ENVIRONMENT, CNIError
from pycni.spec.identity import now
from pycni.spec.owner import Owner
from pycni.spec.record import Record
from pycni.state.cache import ROOT, ResultCache, roots
from pycni.state.leases import DATA_DIR, LeaseStore
from pycni.state.leases import networks as networks_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from pycni.runtime.config import NetworkConfig
    from pycni.runtime.lease_evidence import Verdict
    from pycni.spec.config import Attachment
    from pycni.state.cache import CachedAttachment

    Path = str | os.PathLike[str]
    Note = Callable[[str], None]


class Reclaimed(Record):
    """What became of leases: freed, or kept for want of evidence or after a failure."""

    freed: tuple[Verdict, ...] = ()
    unknown: tuple[Verdict, ...] = ()
    failed: tuple[Verdict, ...] = ()

    def with_more(self, other: Reclaimed) -> Reclaimed:
        """The leases of both."""
        return Reclaimed(
            self.freed + other.freed, self.unknown + other.unknown, self.failed + other.failed
        )


def _ignore(_: str) -> None:
    pass


def reclaim(
    networks: Collection[str] = (),
    *,
    living: Iterable[tuple[str, str]] | None = None,
    complete: bool = False,
    data_dirs: Sequence[str] = (),
    conf_dir: Path | Sequence[Path] = find.DEFAULT_DIRECTORY,
    cache_dirs: Sequence[str] = (),
    plugin_dirs: Path | Sequence[Path] = (),
    dry_run: bool = False,
    note: Note = _ignore,
) -> Reclaimed:
    """Free the addresses of containers that are not there any more, as `pycni ipam reclaim` does.

    networks: their names, by default all that have leases. living: attachments that are alive, as
    (container id, interface), if the caller knows; complete: and there are no others, not even such
    as are being attached. data_dirs: where leases are, by default host-local's directory and those
    of networks that are configured in `conf_dir`, or were at an ADD. cache_dirs, plugin_dirs: by
    default those of well-known runtimes, and pycni's own plugins. note: called with what is amiss
    and no obstacle. Raises CNIError, and for who is not root: others do not see which addresses are
    in use.
    """
    if os.geteuid() != 0:
        raise CNIError(
            INVALID_ENVIRONMENT,
            "only root sees which addresses are in use",
            "run it as root; nothing has been freed",
        )
    alive = None if living is None else frozenset(living)

    def evidence(cached: Sequence[CachedAttachment]) -> Evidence:
        return Evidence(
            in_use=addresses_in_use([entry.netns for entry in cached if entry.netns]),
            living=alive,
            complete=complete,
            path_of=attached.noted_path,
            is_there=_is_there,
            now=time.time(),
            started=machine_started(),
        )

    caches = roots(cache_dirs)
    places = data_dirs or _data_dirs(conf_dir, caches, note)
    for missing in sorted(set(networks).difference(*map(networks_in, places))):
        note(f"there are no leases of a network {missing} in {', '.join(places)}")

    def reclaim_one(network: str, place: str) -> Reclaimed:
        return operation.run(
            lambda _: reclaim_network(
                network,
                place,
                evidence,
                cache_dirs=caches,
                plugin_dirs=find.directories(plugin_dirs),
                note=note,
                dry_run=dry_run,
            ),
            {},
        )

    found = Reclaimed()
    for place in places:
        for network in networks or networks_in(place):
            found = found.with_more(reclaim_one(network, place))
    return found


def reclaim_network(
    network: str,
    data_dir: str,
    evidence: Callable[[Sequence[CachedAttachment]], Evidence],
    *,
    cache_dirs: Sequence[str] = (ROOT,),
    plugin_dirs: Sequence[str] = (),
    note: Note = _ignore,
    dry_run: bool = False,
) -> Reclaimed:
    """Free the leases of one network in one directory. Raises CNIError.

    evidence: gives what is known, for the network's attachments in the caches.
    """
    caches = [ResultCache(root) for root in cache_dirs]
    began = now()
    with LeaseStore(data_dir, network, note=note) as store:
        cached = {cache.root: cache.attachments(network=network) for cache in caches}
        entries = [entry for found in cached.values() for entry in found]
        verdicts = evidence(entries).judge(network, store.leases(), entries)
    unknown = tuple(one for one in verdicts if one.fate == UNKNOWN)
    stale = [one for one in verdicts if one.fate == FREE]
    if dry_run:
        return Reclaimed(tuple(stale), unknown)
    engine = Engine(tuple(plugin_dirs))
    by_attachment: dict[Attachment, list[Verdict]] = {}
    for one in stale:
        by_attachment.setdefault(one.lease.attachment, []).append(one)
    failed: list[Verdict] = []
    freed: list[Verdict] = []
    for attachment, theirs in by_attachment.items():
        owner = Owner(network, attachment.container_id, attachment.ifname)
        known = {
            root: entry for root, found in cached.items() for entry in found if entry.owner == owner
        }

        def is_as_judged(theirs: Sequence[Verdict] = theirs) -> bool:
            with LeaseStore(data_dir, network, note=note) as store:
                return all(store.holder(one.lease.address) == one.lease for one in theirs)

        try:
            if _delete(owner, known, caches, engine, began, is_as_judged):
                freed += theirs
        except CNIError as error:
            reason = f"its DEL failed: {error}"
            failed += [one.replace(fate=KEEP, reason=reason) for one in theirs]
    with LeaseStore(data_dir, network, note=note) as store:
        # Looked at again under the lock: DEL has released most, and some may be another's by now.
        for one in freed:
            if store.holder(one.lease.address) == one.lease:
                store.release(one.lease.attachment, [one.lease.address])
    return Reclaimed(tuple(freed), unknown, tuple(failed))


def _delete(
    owner: Owner,
    known: Mapping[str, CachedAttachment],
    caches: Sequence[ResultCache],
    engine: Engine,
    began: float,
    is_as_judged: Callable[[], bool],
) -> bool:
    """Remove what is left of an attachment: have it deleted, then look for pycni's marks.

    known, began: what the caches had of it, by their roots, and when. Returns False, and removes
    nothing, if it was attached again since.
    """
    if not owner.ifname:  # the oldest leases do not name it
        return True
    endpoint = Endpoint(owner.container_id, None, owner.ifname)
    endpoint.check()
    with ATTACHMENT_LOCKS.container(owner.container_id), ExitStack() as locks:
        for root in known:
            locks.enter_context(ProcessLock(root, owner))
        noted = attached.noted(owner)
        if noted is not None and noted.since > began:
            return False
        found = {
            cache.root: cache.read(owner.network, owner.container_id, owner.ifname)
            for cache in caches
        }
        if any(entry != known.get(root) for root, entry in found.items()) or not is_as_judged():
            return False
        for cache in caches:
            entry = known.get(cache.root)
            if entry is not None and entry.config:
                config = configs.parse_network(entry.config)
                Chain(config, engine, cache).delete(endpoint, {})
            else:
                cache.delete(owner.network, owner.container_id, owner.ifname)
        remove_leftovers(owner, began)
    return True


def _is_there(owner: Owner, path: str) -> bool:
    return has_namespace(path) and attached.own_path(owner, path) == path


def _data_dirs(conf_dir: Path | Sequence[Path], caches: Sequence[str], note: Note) -> Sequence[str]:
    """The usual directory, and those of networks that are configured, or were at an ADD."""
    found = [DATA_DIR]
    configured = find.all_networks(find.directories(conf_dir))[0]
    for network in (*configured, *_cached_networks(caches)):
        for plugin in network.plugins:
            section = plugin.document.get("ipam")
            if isinstance(section, dict) and isinstance(section.get("dataDir"), str):
                try:
                    found.append(checked_data_dir(section["dataDir"]))
                except CNIError as error:
                    note(f"{network.name}: {error}")
    return list(dict.fromkeys(found))


def _cached_networks(caches: Sequence[str]) -> Iterator[NetworkConfig]:
    for entry in (entry for root in caches for entry in ResultCache(root).attachments()):
        try:
            if entry.config:
                yield configs.parse_network(entry.config)
        except CNIError:
            continue  # a damaged entry, which others report
