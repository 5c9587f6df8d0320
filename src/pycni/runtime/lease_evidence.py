"""On which leases of host-local no container lives any more, by what is known of what lives.

A lease is free only on evidence that its container has gone, and never while its address is set
anywhere on the machine. Evidence is, in this order:

1. the caller has named all that live, and it is not among them;
2. its attachment is in the cache, or noted by pycni's plugins, and the namespace it went to is not
   there any more: nothing is at its path, or another namespace;
3. it is from before the machine was started, by its time: no container outlives that. Where the
   namespace is there nevertheless, the lease stays: a clock that was set since, as after a start
   without a battery, makes a lease look old.

Where there is none, it cannot be known, and the lease stays.
"""

from __future__ import annotations

import time

from pycni.runtime.endpoint import pod_of
from pycni.spec.names import is_name
from pycni.spec.owner import Owner
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

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


def machine_started() -> float:
    """When the machine was started, in seconds since the epoch, by today's clock."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _is_among(lease: Lease, attachments: Iterable[tuple[str, str]]) -> bool:
    """Whether it is one's of these; the oldest leases do not name an interface."""
    return any(
        container_id == lease.container_id and lease.ifname in ("", ifname)
        for container_id, ifname in attachments
    )
