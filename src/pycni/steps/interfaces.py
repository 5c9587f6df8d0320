"""Which interface has an address: for rules that are known by addresses alone.

Rules of iptables name a container and not its interface, or no one at all. They lead to addresses
or come from them, and the container's namespace says which interface has which. Where that is gone,
all namespaces are looked at (`pycni.kernel.all_addresses`), since a path that is gone does not mean
that the namespace is. Used by `port_map`, `masquerade` and `firewall`.
"""

from __future__ import annotations

from pycni.spec.owner import Owner, tag_of
from pycni.steps import ownership

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from pycni.kernel.all_addresses import Holder
    from pycni.spec.ip import IPAddress, IPNetwork
    from pycni.spec.owner import Owners
    from pycni.steps.namespaces import HostAndSandbox


class Interfaces:
    """The interfaces of an owner's container, its own and others; asked once, when needed."""

    def __init__(self, kernel: HostAndSandbox, owner: Owner) -> None:
        self._kernel = kernel
        self._owner = owner
        self._known: dict[IPAddress, str] | None = None

    def own(self) -> set[IPAddress]:
        """The addresses that the owner's interface has now; none without a namespace.

        An interface whose other end on the host is marked as another's is not the owner's.
        """
        found = {one for one, name in self._addresses().items() if name == self._owner.ifname}
        site = self._kernel.sandbox
        inner = site.find(self._owner.ifname) if site is not None and found else None
        outer = ownership.peer_on_host(self._kernel, inner)
        if outer is not None and tag_of(outer.alias) not in ("", self._owner.tag):
            return set()
        return found

    def of_others(self, addresses: Collection[IPAddress]) -> set[IPAddress]:
        """Those of some addresses that another interface of the container has.

        What belongs to none of its interfaces was left by one that has gone.
        """
        if not addresses:
            return set()
        own, known = self._owner.ifname, self._addresses()
        others = {one for one in addresses if known.get(one, own) != own}
        # There is no namespace, or the path leads to one that is not the container's.
        unknown = {one for one in addresses if one not in known}
        noted = self.noted_of_others(unknown)
        return others | noted | self._seen_of_others(unknown - noted)

    def spared(
        self, addresses: Collection[IPAddress], own: Collection[IPNetwork]
    ) -> set[IPAddress]:
        """Those of the addresses of rules that another interface has, at the DEL of one.

        own: the addresses of that; where they are not known, nor the namespace, notes decide.
        """
        if not own and self._kernel.sandbox is None:
            return self.noted_of_others(addresses)
        return self.of_others({*addresses} - {network.address for network in own})

    def _seen_of_others(self, addresses: Collection[IPAddress]) -> set[IPAddress]:
        """Those of some addresses that an interface of another name has, in any namespace."""
        if not addresses:
            return set()
        from pycni.kernel import (
            all_addresses,  # rarely: two interfaces in one network, no namespace
        )

        holders = all_addresses.holders(addresses, self._kernel.host.netlink)
        return {
            one
            for one, found in holders.items()
            if any(holder.ifname != self._owner.ifname for holder in found)
        }

    def noted_of_others(self, addresses: Collection[IPAddress]) -> set[IPAddress]:
        """Those of some addresses that another attachment of the network is noted with."""
        claim, owner = self._kernel.claim, self._owner
        if not addresses or claim is None:
            return set()
        noted = {
            address
            for other in claim.others()
            if other.owner.network == owner.network and other.owner != owner
            for address in other.addresses
        }
        return {one for one in addresses if str(one) in noted}

    def _addresses(self) -> Mapping[IPAddress, str]:
        """The addresses in the container's namespace, each with the name of its interface."""
        if self._known is None:
            from pycni.kernel import address, link

            self._known = {}
            site = self._kernel.sandbox
            if site is not None:
                names = {found.index: found.name for found in link.dump(site.netlink)}
                for one in address.dump(site.netlink):
                    self._known[one.network.address] = names.get(one.index, "")
        return self._known


def in_use(
    kernel: HostAndSandbox, addresses: Collection[IPAddress], is_own: Callable[[str], bool]
) -> set[IPAddress]:
    """Those of some addresses that another attachment's interface has, in any namespace.

    is_own: whether an interface is the attachment's own, by the alias of its other end on the host;
    that is "" for one that is not ours. What the reference made, prevResult lists.
    """
    if not addresses:
        return set()
    from pycni.kernel import all_addresses

    holders = all_addresses.holders(addresses, kernel.host.netlink)
    return {
        one
        for one, found in holders.items()
        if not all(
            is_own(holder.alias) or ownership.is_listed(kernel, holder.outer) for holder in found
        )
    }


def is_held(
    kernel: HostAndSandbox,
    address: IPAddress,
    is_named: Callable[[Owner], bool],
    is_own: Callable[[str], bool],
) -> bool:
    """Whether one of the attachments that rules may be of still has the address that they name.

    is_named: whether rules may be of an owner; is_own: whether it is one that asks, by its tag or
    an alias. Where nothing is noted of any, an interface of others that has the address counts.
    """
    claim = kernel.claim
    known = [
        other.owner.tag
        for other in (() if claim is None else claim.others())
        if str(address) in other.addresses and is_named(other.owner) and not is_own(other.owner.tag)
    ]
    if known:
        return any(map(kernel.is_attached, known))
    from pycni.kernel import all_addresses

    return any(
        not (
            is_own(holder.alias)
            or ownership.is_listed(kernel, holder.outer)
            or _is_own_interface(kernel, holder)
        )
        for holder in all_addresses.holders({address}, kernel.host.netlink).get(address, ())
    )


def _is_own_interface(kernel: HostAndSandbox, holder: Holder) -> bool:
    """Whether it is the attachment's, whose other end on the host may say nothing."""
    sandbox, claim = kernel.sandbox, kernel.claim
    if sandbox is None or claim is None or holder.ifname != claim.owner.ifname:
        return False
    from pycni.kernel import namespace

    own = sandbox.namespace
    try:
        with namespace.open_path(holder.path) as space:
            return (space.device, space.inode) == (own.device, own.inode)
    except OSError:  # gone meanwhile
        return False


def staying(
    kernel: HostAndSandbox, owners: Owners, by_container: Mapping[str, Collection[IPAddress]]
) -> dict[str, set[IPAddress]]:
    """The addresses that rules may still name, of each container of which some may have to go.

    by_container: those that rules of the network name. An address stays if an interface has it that
    does. So do all of a container where one of its interfaces that stay is not seen to have any:
    they may be inside a virtual machine.
    """
    asked = {
        container: addresses
        for container, addresses in by_container.items()
        if owners.may_include(container, len(addresses))
    }
    wanted = {one for addresses in asked.values() for one in addresses}
    if not wanted:
        return {container: set() for container in asked}
    from pycni.kernel import all_addresses

    holders = all_addresses.holders(wanted, kernel.host.netlink)
    found = {}
    for container, addresses in asked.items():
        names: dict[IPAddress, set[str]] = {
            one: {
                holder.ifname
                for holder in holders.get(one, ())
                if not owners.includes(Owner(owners.network, container, holder.ifname).tag)
            }
            for one in addresses
        }
        seen = {name for ones in names.values() for name in ones}
        if owners.spared(container) <= seen:
            found[container] = {one for one, ones in names.items() if ones}
    return found
