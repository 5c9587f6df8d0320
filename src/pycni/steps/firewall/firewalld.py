"""The firewalld backend of `firewall`: addresses are sources of a zone that it trusts.

They name no owner. firewalld forgets them at a reload.
"""

from __future__ import annotations

import errno

from pycni.kernel.netfilter import firewalld
from pycni.spec.errors import INVALID_ENVIRONMENT, CNIError
from pycni.steps.backend import Applied, Leftovers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import Firewall
    from pycni.spec.ip import IPAddress
    from pycni.spec.owner import Owners
    from pycni.steps.firewall.closing import Closing
    from pycni.steps.namespaces import HostAndSandbox


def apply(step: Firewall, kernel: HostAndSandbox, *, thorough: bool = False) -> Applied:
    """Have firewalld trust the addresses."""
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
    return Applied(undo if added else None)


def check(step: Firewall, kernel: HostAndSandbox) -> list[str]:
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


def made(step: Firewall, kernel: HostAndSandbox) -> bool:
    return not check(step, kernel)


def leftovers(
    owners: Owners, kernel: HostAndSandbox, gone: Closing, step: Firewall | None
) -> Leftovers:
    """What has addresses be sources no more."""
    return Leftovers(then=lambda: _remove(gone))


def _remove(gone: Closing) -> None:
    zone = gone.zone
    try:
        with firewalld.Firewalld() as connection:
            zones = {one: zone or connection.zone_of(_source(one)) for one in gone.closed}
            trusted = {
                one for one, where in zones.items() if where and connection.has(where, _source(one))
            }
            gone.doubt(trusted)
            for one in trusted & gone.closed:
                connection.remove(zones[one], _source(one))
    except firewalld.FirewalldError as error:
        # Without the library nothing of ours is there.
        if error.errno != errno.ENOPKG:
            raise


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
