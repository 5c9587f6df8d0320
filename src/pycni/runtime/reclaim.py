"""Which leases of host-local nobody lives on any more: after a lost DEL, or a start of the machine.

A lease is freed only on evidence that its container has gone, and never while its address is set
anywhere on the machine. Evidence is, in this order:

1. the caller has named all that live, and it is not among them;
2. its attachment is in the cache, or noted by pycni's plugins, and the namespace it went to is not
   there any more: nothing is at its path, or another namespace;
3. it is from before the machine was started, by its time: no container outlives that. Where the
   namespace is there nevertheless, the lease stays: a clock that was set since, as after a start
   without a battery, makes a lease look old.

Where there is none, nobody can know, and it stays.

Before a lease is freed its attachment is deleted, by the configuration of its ADD where the cache
has that, and by the marks on what pycni's plugins made otherwise: an address is free only when
nothing names it any more. What cannot be deleted keeps its lease, and so does a container that was
attached again since it was judged. Called by `pycni ipam reclaim`.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

from pycni.runtime import attached, operation
from pycni.runtime import config as configs
from pycni.runtime.chain import Chain
from pycni.runtime.endpoint import Endpoint, pod_of
from pycni.runtime.engine import Engine
from pycni.runtime.locks import ATTACHMENT_LOCKS, ProcessLock
from pycni.sdk.collection import remove_leftovers
from pycni.spec.errors import CNIError
from pycni.spec.identity import now
from pycni.spec.names import is_name
from pycni.spec.owner import Owner
from pycni.spec.record import Record
from pycni.state.cache import ROOT, ResultCache
from pycni.state.leases import LeaseStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pycni.spec.config import Attachment
    from pycni.spec.ip import IPAddress
    from pycni.state.cache import CachedAttachment
    from pycni.state.leases import Lease

_OLD = "from before the machine was started"
FREE, KEEP, UNKNOWN = "free", "keep", "unknown"
FRESH = 120.0  # seconds that an ADD may take from its lease to its runtime's list


class Verdict(Record):
    """What is to become of a lease (FREE, KEEP or UNKNOWN), and why. pod: see `Endpoint.pod`."""

    network: str
    lease: Lease
    fate: str
    reason: str
    pod: str = ""


class Evidence(Record):
    """What is known of what lives.

    in_use: addresses that are set somewhere, with the namespace; living: attachments that the
    caller named as (container id, interface), None if it named none; complete: and said that these
    are all, so that what is fresh is no exception; path_of: the path at ADD of an attachment's
    namespace by its owner, as plugins noted it, "" for nothing; is_there: whether that of an owner
    is at a path still; now, started: the time, and when the machine was started, in seconds since
    the epoch.
    """

    in_use: Mapping[IPAddress, str]
    living: frozenset[tuple[str, str]] | None
    complete: bool
    path_of: Callable[[Owner], str]
    is_there: Callable[[Owner, str], bool]
    now: float
    started: float

    def judge(
        self, network: str, leases: Iterable[Lease], cached: Iterable[CachedAttachment]
    ) -> list[Verdict]:
        """A verdict on each lease of a network. cached: its attachments in the cache."""
        known = {(entry.container_id, entry.ifname): entry for entry in cached}
        pods = {entry.container_id: pod_of(entry.cni_args) for entry in known.values()}
        return [
            Verdict(
                network,
                lease,
                *self._judge(network, lease, known),
                pods.get(lease.container_id, ""),
            )
            for lease in leases
        ]

    def _judge(
        self, network: str, lease: Lease, known: Mapping[tuple[str, str], CachedAttachment]
    ) -> tuple[str, str]:
        if not is_name(lease.container_id):
            return KEEP, "names no container: written by hand"
        living = self.living
        if living is not None and _is_among(lease, living):
            return KEEP, "is among the living"
        where = self.in_use.get(lease.address)
        if where is not None:
            return KEEP, f"its address is set in {where}"
        old = lease.since < self.started
        if living is not None:
            if old:
                return FREE, _OLD
            if not self.complete and lease.since > self.now - FRESH:
                return KEEP, "reserved a moment ago: its ADD may be under way"
            return FREE, "is not among the living"
        entries = [entry for key, entry in known.items() if _is_among(lease, {key})]
        paths = {entry.owner: entry.netns or self.path_of(entry.owner) for entry in entries}
        owner = Owner(network, lease.container_id, lease.ifname)
        if not paths and (noted := self.path_of(owner)):
            paths[owner] = noted
        for owner, path in paths.items():
            if path and self.is_there(owner, path):
                return KEEP, f"its namespace {path} is there"
        if old:
            return FREE, _OLD
        if not paths:
            return UNKNOWN, "the cache does not know its container"
        if not all(paths.values()):
            return UNKNOWN, "the cache does not say what namespace it went to"
        return FREE, f"its namespace {next(iter(paths.values()))} has gone"


class Outcome(Record):
    """What became of a network's leases: freed, or kept for want of evidence or after a failure."""

    freed: tuple[Verdict, ...] = ()
    unknown: tuple[Verdict, ...] = ()
    failed: tuple[Verdict, ...] = ()


def reclaim(
    network: str,
    data_dir: str,
    evidence: Callable[[Sequence[CachedAttachment]], Evidence],
    *,
    cache_dirs: Sequence[str] = (ROOT,),
    plugin_dirs: Sequence[str] = (),
    note: Callable[[str], None],
    dry_run: bool = False,
) -> Outcome:
    """Free the leases of a network on which nobody lives any more. Raises CNIError.

    evidence: gives what is known, for the network's attachments in the caches.
    """
    return operation.run(
        lambda _: _reclaim(
            network, data_dir, evidence, cache_dirs, plugin_dirs, note, dry_run=dry_run
        ),
        {},
    )


def _reclaim(
    network: str,
    data_dir: str,
    evidence: Callable[[Sequence[CachedAttachment]], Evidence],
    cache_dirs: Sequence[str],
    plugin_dirs: Sequence[str],
    note: Callable[[str], None],
    *,
    dry_run: bool,
) -> Outcome:
    caches = [ResultCache(root) for root in cache_dirs]
    began = now()
    with LeaseStore(data_dir, network, note=note) as store:
        cached = {cache.root: cache.attachments(network=network) for cache in caches}
        entries = [entry for found in cached.values() for entry in found]
        verdicts = evidence(entries).judge(network, store.leases(), entries)
    unknown = tuple(one for one in verdicts if one.fate == UNKNOWN)
    stale = [one for one in verdicts if one.fate == FREE]
    if dry_run:
        return Outcome(tuple(stale), unknown)
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
    return Outcome(tuple(freed), unknown, tuple(failed))


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


def machine_started() -> float:
    """When the machine was started, in seconds since the epoch, by today's clock."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _is_among(lease: Lease, attachments: Iterable[tuple[str, str]]) -> bool:
    """Whether it is one's of these; the oldest leases do not name an interface."""
    return any(
        container_id == lease.container_id and lease.ifname in ("", ifname)
        for container_id, ifname in attachments
    )
