"""Firewall: the host forwards what containers send, and the answers (`plan.steps.Firewall`).

Which backend counts depends on who decides on this host, see `chosen`: rules in iptables, for each
container or for a set of them; a source of a zone of firewalld; or the chain `firewall-forward` of
table `inet pycni`. Whichever it is, the sets firewall4 and firewall6 there, where the host has
nftables, say who has each address (`registry`):

    set firewall4 { 10.1.0.2 comment "<owner>" }

By them DEL needs no addresses, and GC knows what is stale. Rules of iptables and sources of
firewalld name no owner, and the reference enters none, so an element may be of a container that is
gone while another has the address. Whose it is by now interfaces say (`pycni.steps.interfaces`):
nothing is taken from an address that another attachment has, nothing left to one that none has.
"""

from __future__ import annotations

from pycni.kernel.netfilter import nfnetlink
from pycni.spec.errors import CNIError
from pycni.spec.ip import parse_address
from pycni.spec.owner import Owners
from pycni.steps import address_flows, backend, ownership
from pycni.steps.executor import give_up, undo_all
from pycni.steps.firewall import registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.plan.steps import Firewall
    from pycni.spec.ip import IPAddress
    from pycni.steps.backend import Backend
    from pycni.steps.executor import Undo
    from pycni.steps.firewall.closing import Closing
    from pycni.steps.firewall.registry import Registered
    from pycni.steps.namespaces import HostAndSandbox


def _load(name: str) -> Backend[Firewall, Closing]:
    if name == "firewalld":
        from pycni.steps.firewall import firewalld

        return firewalld
    if name == "ipset":
        from pycni.steps.firewall import ipset

        return ipset
    if name == "iptables":
        from pycni.steps.firewall import iptables

        return iptables
    from pycni.steps.firewall import nftables

    return nftables


# The sets come last: they say whose the rest is.
_ALL = ("ipset", "iptables", "firewalld", "nftables")


def chosen(named: str, families: Collection[int], netfilter: NetfilterSocket) -> str:
    """The backend named, or the one in charge on this host; "ipset" is one of iptables.

    firewalld rejects what it does not know, whatever other tables accept; so does a policy of
    iptables, which docker and others set to DROP. nftables is left where neither is there.
    """
    if named:
        return named
    from pycni.kernel.netfilter import firewalld, iptables

    if firewalld.is_active(netfilter):
        return "firewalld"
    if not all(map(iptables.available, families)):
        return "nftables"
    from pycni.steps.firewall import ipset

    return "ipset" if ipset.is_usable(netfilter, families) else "iptables"


def _names(step: Firewall, kernel: HostAndSandbox) -> tuple[str, ...]:
    """The backend that counts for a step, and what takes its place."""
    families = {address.family for address in step.addresses}
    name = chosen(step.backend, families, kernel.host.netfilter)
    # CHECK accepts the reference's rules as well.
    return ("ipset", "iptables") if name == "ipset" else (name,)


def apply(step: Firewall, kernel: HostAndSandbox) -> Undo | None:
    if not step.addresses:
        return None
    names = _names(step, kernel)
    done: list[Undo] = []
    try:
        registered = _register(step, kernel, names)
        if registered.undo is not None:
            done.append(registered.undo)
        # Who had the address before has gone without DEL.
        address_flows.end(registered.replaced, kernel)
        if "nftables" not in names:
            thorough = not registered.new.issuperset(step.addresses)
            made = backend.apply(step, kernel, names, _load, thorough=thorough)
            if made.undo is not None:
                done.append(made.undo)
    except (OSError, CNIError):
        give_up(done, kernel)
        raise
    return lambda: undo_all(done)


def repair(step: Firewall, kernel: HostAndSandbox) -> None:
    """As ADD does, but never taking rules of iptables for missing because the set was flushed."""
    names = _names(step, kernel)
    _register(step, kernel, names)
    if "nftables" not in names:
        backend.apply(step, kernel, names, _load, thorough=True)


def _register(step: Firewall, kernel: HostAndSandbox, names: Collection[str]) -> Registered:
    """Enter the addresses into the sets, which is all that nftables needs."""
    if "nftables" not in names:
        return registry.register(step, kernel)
    from pycni.steps.firewall import nftables

    return nftables.apply(step, kernel)


def check(step: Firewall, kernel: HostAndSandbox) -> list[str]:
    """What keeps the host from forwarding; the sets count for backend nftables only."""
    if not step.addresses:
        return []
    names = _names(step, kernel)
    differences = backend.check(step, kernel, names, _load)
    return (
        differences if "nftables" in names else differences + registry.lost(kernel.host.netfilter)
    )


def repairable(step: Firewall, kernel: HostAndSandbox) -> list[str]:
    """Addresses that rules of another backend let through, and GC would not find."""
    if not step.addresses or not nfnetlink.supported(kernel.host.netfilter):
        return []
    if "nftables" in _names(step, kernel):
        return []  # CHECK reports it
    return registry.differences(step, kernel, ", by which GC knows whose it is")


def remove(step: Firewall, kernel: HostAndSandbox) -> None:
    """Remove what lets the owner's addresses through, whichever backend made it."""
    from pycni.steps.interfaces import Interfaces, in_use

    owners = Owners(step.owner.network, (step.owner.attachment,))

    def used(doubtful: set[IPAddress]) -> set[IPAddress]:
        """Those that another attachment has."""
        return in_use(kernel, doubtful - Interfaces(kernel, step.owner).own(), owners.includes)

    named = step.addresses or ownership.noted_addresses(kernel)
    zone = step.zone if step.backend in ("", "firewalld") else None
    gone = _close(owners, kernel, named, zone, used, step)
    _release_ports(owners, kernel)
    address_flows.end_with_interface(gone, kernel)


def collect(kernel: HostAndSandbox, owners: Owners) -> None:
    """Remove what lets addresses through that the sets give to them.

    What lets an address through that an interface has which is not ours stays, and so does its
    element: whether that is one of them cannot be known while the interface is there.
    """
    from pycni.steps.interfaces import in_use

    def used(doubtful: set[IPAddress]) -> set[IPAddress]:
        return in_use(kernel, doubtful, owners.includes)

    _release_ports(owners, kernel)
    noted = map(parse_address, owners.addresses("firewall"))
    gone = _close(owners, kernel, noted, "", used)
    registry.delete_unused(kernel.host.netfilter)
    address_flows.end(gone, kernel)


def _close(
    owners: Owners,
    kernel: HostAndSandbox,
    named: Iterable[IPAddress],
    zone: str | None,
    used: Callable[[set[IPAddress]], set[IPAddress]],
    step: Firewall | None = None,
) -> set[IPAddress]:
    """Let owners' addresses through no longer, but those that others have: see `Closing`.

    zone: of firewalld, None to leave that alone. Returns those that no attachment has any more.
    """
    from pycni.kernel.netfilter import firewalld
    from pycni.steps.firewall.closing import Closing

    closing = Closing(owners, kernel, named, zone or "", used)
    names = list(_ALL)
    if not closing.addresses or zone is None or not firewalld.is_active(kernel.host.netfilter):
        names.remove("firewalld")
    backend.remove(map(_load, names), owners, kernel, closing, step)
    return closing.closed


def _release_ports(owners: Owners, kernel: HostAndSandbox) -> None:
    """Take the owners' ports out of the set of isolated ones."""
    from pycni.steps import port_isolation

    netfilter = kernel.host.netfilter
    netfilter.update(lambda: port_isolation.release(netfilter, owners.includes, owners.tag))
