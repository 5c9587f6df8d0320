"""The firewalld backend of `firewall`: addresses are sources of a zone that it trusts.

They name no owner. firewalld forgets them at a reload.
"""

from __future__ import annotations

import errno

from pycni.kernel.netfilter import firewalld
from pycni.spec.errors import INVALID_ENVIRONMENT, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pycni.plan.steps import Firewall
    from pycni.spec.ip import IPAddress
    from pycni.steps.executor import Undo


def apply(step: Firewall) -> list[Undo]:
    """Have firewalld trust the addresses. Returns how to undo it."""
    added: list[str] = []

    def undo() -> None:
        with firewalld.Firewalld() as connection:
            for source in added:
                connection.remove(step.zone, source)

    try:
        with firewalld.Firewalld() as connection:
            for source in map(_source, step.addresses):
                if connection.add(step.zone, source):
                    added.append(source)  # noqa: PERF401 - also what a failure must take back
    except firewalld.FirewalldError as error:
        if added:
            undo()
        raise _explained(error, step) from error
    return [undo] if added else []


def check(step: Firewall) -> list[str]:
    """The addresses that are no sources of the zone, a sentence each."""
    try:
        with firewalld.Firewalld() as connection:
            return [
                f"firewalld: {_source(address)} is not a source of zone {step.zone}"
                for address in step.addresses
                if not connection.has(step.zone, _source(address))
            ]
    except firewalld.FirewalldError as error:
        return [str(_explained(error, step))]


def remove(
    addresses: set[IPAddress], zone: str, used: Callable[[set[IPAddress]], set[IPAddress]]
) -> set[IPAddress]:
    """Have addresses be sources no more, but those that others use, which are returned.

    zone: "" for whichever they are in. used: gives those of some addresses that others use.
    """
    try:
        with firewalld.Firewalld() as connection:
            zones = {one: zone or connection.zone_of(_source(one)) for one in addresses}
            trusted = {
                one for one, where in zones.items() if where and connection.has(where, _source(one))
            }
            spared = used(trusted)
            for one in trusted - spared:
                connection.remove(zones[one], _source(one))
    except firewalld.FirewalldError as error:
        # Without the library nothing of ours is there.
        if error.errno != errno.ENOPKG:
            raise
        return set()
    return spared


def _source(address: IPAddress) -> str:
    return f"{address}/{address.bits}"


def _explained(error: OSError, step: Firewall) -> CNIError:
    hints = {
        errno.ENOPKG: 'install pycni[firewalld], or choose another "backend"',
        errno.ENOTCONN: 'start dbus and firewalld, or choose another "backend"',
    }
    return CNIError(
        INVALID_ENVIRONMENT,
        str(error),
        hints.get(error.errno or 0, f'firewalld must run, and have the zone "{step.zone}"'),
    )
