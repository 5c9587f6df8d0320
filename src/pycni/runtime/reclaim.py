"""Which leases of host-local nobody lives on any more: after a lost DEL, or a start of the machine.

A lease is freed only on evidence that its container has gone, and never while its address is set
anywhere on the machine. Evidence is, in this order:

1. it is from before the machine was started: no container outlives that;
2. the caller has named all that live, and it is not among them;
3. its attachment is in the cache, and the namespace it went to is not there any more.

Where there is none, nobody can know, and it stays. Called by `pycni ipam reclaim`.
"""

from __future__ import annotations

import time

from pycni.spec.names import is_name
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pycni.spec.ip import IPAddress
    from pycni.state.cache import CachedAttachment
    from pycni.state.leases import Lease

FREE, KEEP, UNKNOWN = "free", "keep", "unknown"
FRESH = 120.0  # seconds that an ADD may take from its lease to its runtime's list


class Verdict(Record):
    """What is to become of a lease (FREE, KEEP or UNKNOWN), and why."""

    network: str
    lease: Lease
    fate: str
    reason: str


class Evidence(Record):
    """What is known of what lives.

    in_use: addresses that are set somewhere, with the namespace; living: attachments that the
    caller named as (container id, interface), None if it named none; complete: and said that these
    are all, so that what is fresh is no exception; exists: whether there is a namespace at a path;
    now, started: the time, and when the machine was started, in seconds since the epoch.
    """

    in_use: Mapping[IPAddress, str]
    living: frozenset[tuple[str, str]] | None
    complete: bool
    exists: Callable[[str], bool]
    now: float
    started: float

    def judge(
        self, network: str, leases: Iterable[Lease], cached: Iterable[CachedAttachment]
    ) -> list[Verdict]:
        """A verdict on each lease of a network. cached: its attachments in the cache."""
        known = {(entry.container_id, entry.ifname): entry for entry in cached}
        return [Verdict(network, lease, *self._judge(lease, known)) for lease in leases]

    def _judge(
        self, lease: Lease, known: Mapping[tuple[str, str], CachedAttachment]
    ) -> tuple[str, str]:
        if not is_name(lease.container_id):
            return KEEP, "names no container: written by hand"
        living = self.living
        if living is not None and _is_among(lease, living):
            return KEEP, "is among the living"
        where = self.in_use.get(lease.address)
        if where is not None:
            return KEEP, f"its address is set in {where}"
        if lease.since < self.started:
            return FREE, "from before the machine was started"
        if living is not None:
            if not self.complete and lease.since > self.now - FRESH:
                return KEEP, "reserved a moment ago: its ADD may be under way"
            return FREE, "is not among the living"
        entries = [entry for key, entry in known.items() if _is_among(lease, {key})]
        if not entries:
            return UNKNOWN, "the cache does not know its container"
        for entry in entries:
            if not entry.netns:
                return UNKNOWN, "the cache does not say what namespace it went to"
            if self.exists(entry.netns):
                return KEEP, f"its namespace {entry.netns} is there"
        return FREE, f"its namespace {entries[0].netns} has gone"


def machine_started() -> float:
    """When the machine was started, in seconds since the epoch, by today's clock."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _is_among(lease: Lease, attachments: Iterable[tuple[str, str]]) -> bool:
    """Whether it is one's of these; the oldest leases do not name an interface."""
    return any(
        container_id == lease.container_id and lease.ifname in ("", ifname)
        for container_id, ifname in attachments
    )
