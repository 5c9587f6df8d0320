"""Addresses that are let through no longer, but for those that other attachments have as well.

Rules of iptables and sources of firewalld name no owner, and the reference enters none into a set.
So each backend of `firewall` says first which addresses it lets through; what interfaces others
have says then which of them stay. That is asked only for what would be taken away.
"""

from __future__ import annotations

from pycni.spec.owner import tag_of
from pycni.steps.firewall import registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pycni.spec.ip import IPAddress
    from pycni.spec.owner import Owners
    from pycni.steps.namespaces import HostAndSandbox


class Closing:
    """What is closed for some owners.

    addresses: theirs, but those that another attachment is known to have; recorded: those that the
    sets give to them; others: the comments of all other owners, by address. zone: of firewalld, ""
    for whichever they are in.
    """

    def __init__(
        self,
        owners: Owners,
        kernel: HostAndSandbox,
        named: Iterable[IPAddress],
        zone: str,
        used: Callable[[set[IPAddress]], set[IPAddress]],
    ) -> None:
        """named: the owners' addresses, besides those in the sets. used: gives those of some that
        others use."""
        netfilter = kernel.host.netfilter
        self.zone = zone
        self.recorded = registry.registered(netfilter, owners.includes, owners.tag)
        found = self.recorded.union(named)
        self.others = registry.others(netfilter, found, self.recorded, owners.includes)
        self.addresses = found - {
            address
            for address, comments in self.others.items()
            if any(kernel.is_attached(tag_of(comment)) for comment in comments)
        }
        self._used = used
        self._doubtful = {*self.others} & self.addresses
        self._asked: set[IPAddress] = set()
        self._spared: set[IPAddress] = set()

    @property
    def own(self) -> set[IPAddress]:
        """Those that the sets give to no one else, so that what names them is the owners'."""
        return self.recorded - {*self.others}

    def doubt(self, addresses: Iterable[IPAddress]) -> None:
        """Say that something lets addresses through which names no owner."""
        self._doubtful.update(addresses)

    @property
    def spared(self) -> set[IPAddress]:
        """Those of the doubtful ones that others use."""
        new = self._doubtful - self._asked
        if new:
            self._asked |= new
            self._spared |= self._used(new)
        return self._spared

    @property
    def closed(self) -> set[IPAddress]:
        """Those that nothing is to let through any more."""
        return self.addresses - self.spared
