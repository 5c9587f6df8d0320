"""What host-local says of leases when an address cannot be had. Loaded then, and by STATUS."""

from __future__ import annotations

import time

from pycni.spec.errors import UNAVAILABLE, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plugins.shared.ranges import RangeSet
    from pycni.state.leases import Lease, LeaseStore


def usage(store: LeaseStore, range_set: RangeSet) -> str:
    """Which containers hold a full range set's addresses, for the details of an error."""
    leases = [item for item in store.leases() if range_set.range_of(item.address)]
    if not leases:
        return "the only addresses in it are gateways; widen the range"
    oldest = min(leases, key=lambda lease: lease.since)
    text = (
        f"{_count(len(leases), 'address', 'addresses')} held by "
        f"{_count(len({lease.container_id for lease in leases}), 'container', 'containers')}, "
        f"the oldest, {oldest.address},{held_by(oldest)}"
    )
    start = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    stale = sum(lease.since < start for lease in leases)
    if stale:
        text += f"; {stale} of them from before this machine was started"
    return (
        f"{text}. Containers that ended without DEL still hold theirs in {store.path}: "
        "'pycni ipam reclaim' frees them, or the runtime's GC. "
        "If all are alive, widen the range"
    )


def held_by(lease: Lease) -> str:
    """ " by container ID, interface NAME since DATE" of an address's lease."""
    interface = f", interface {lease.ifname}" if lease.ifname else ""
    date = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(lease.since))
    return f" by container {lease.container_id or '(unknown)'}{interface} since {date}"


def require_writable(path: str) -> None:
    """Raise a CNIError (code 50) if this user can make no leases at a path."""
    import os

    existing = path
    while not os.path.lexists(existing) and os.path.dirname(existing) != existing:
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        raise CNIError(
            UNAVAILABLE,
            f"host-local cannot keep addresses in {path}",
            f'{existing} must be a directory that this user may write to; "dataDir" of "ipam" '
            "names another",
        )


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"
