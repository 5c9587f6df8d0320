"""Firewall: the host forwards what containers send, and the answers (`plan.steps.Firewall`).

Which backend counts depends on who decides on this host, see `chosen`: rules in iptables, for each
container or for a set of them; a source of a zone of firewalld; or the chain `firewall-forward` of
table `inet pycni`. Whichever it is, the sets firewall4 and firewall6 there, where the host has
nftables, say who has each address:

    set firewall4 { 10.1.0.2 comment "<owner>" }

By them DEL needs no addresses, and GC knows what is stale. Rules of iptables and sources of
firewalld name no owner, and the reference enters none, so an element may be of a container that is
gone while another has the address. Whose it is by now interfaces say (`pycni.steps.interfaces`):
nothing is taken from an address that another attachment has, nothing left to one that nobody has.
"""

from __future__ import annotations

from pycni.kernel.netfilter import constant_rules, nfnetlink
from pycni.kernel.netfilter.constant_rules import TABLE
from pycni.kernel.netfilter.nfnetlink import NFPROTO_INET
from pycni.spec.errors import CNIError
from pycni.spec.ip import parse_address
from pycni.spec.owner import tag_of
from pycni.steps import address_flows, ownership
from pycni.steps.executor import give_up, undo_all
from pycni.steps.firewall import nftables as firewall_sets
from pycni.steps.firewall.nftables import ADMIN, CHAIN, SETS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.plan.steps import Firewall
    from pycni.spec.ip import IPAddress
    from pycni.spec.owner import Owners
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox

_FEW = 8  # addresses: with more, to list the sets takes less than to look for each


def chosen(backend: str, families: Collection[int], netfilter: NetfilterSocket) -> str:
    """The backend named, or the one whose word counts on this host; "ipset" is one of iptables.

    firewalld rejects what it does not know, whatever other tables accept; so does a policy of
    iptables, which docker and others set to DROP. nftables is left where neither is there.
    """
    if backend:
        return backend
    from pycni.kernel.netfilter import firewalld, iptables

    if firewalld.is_active(netfilter):
        return "firewalld"
    if not all(map(iptables.available, families)):
        return "nftables"
    from pycni.steps.firewall import ipset as firewall_ipset

    return "ipset" if firewall_ipset.is_usable(netfilter, families) else "iptables"


def apply(step: Firewall, kernel: HostAndSandbox) -> Undo | None:
    if not step.addresses:
        return None
    netfilter = kernel.host.netfilter
    backend = chosen(step.backend, _families_of(step), netfilter)
    done: list[Undo] = []

    try:
        registered = firewall_sets.register(step, kernel, filters=backend == "nftables")
        if registered.undo is not None:
            done.append(registered.undo)
        # Who had the address before has gone without DEL.
        address_flows.end(registered.replaced, kernel)
        if backend == "iptables":
            from pycni.steps.firewall import iptables as firewall_iptables

            fresh = registered.new.issuperset(step.addresses)
            done += firewall_iptables.apply(step, kernel, fresh=fresh)
        elif backend == "ipset":
            done += _apply_sets(step, kernel)
        elif backend == "firewalld":
            from pycni.steps.firewall import firewalld as firewall_firewalld

            done += firewall_firewalld.apply(step)
    except (OSError, CNIError):
        give_up(done, kernel)
        raise
    return lambda: undo_all(done)


def _apply_sets(step: Firewall, kernel: HostAndSandbox) -> list[Undo]:
    """Let the addresses through by sets of iptables. Returns how to undo it."""
    from pycni.kernel.netfilter.iptables import IPTablesError
    from pycni.steps.firewall import ipset as firewall_ipset
    from pycni.steps.firewall import iptables as firewall_iptables

    try:
        return [*firewall_ipset.apply(step, kernel)]
    except IPTablesError:
        # The program lacks the match, or the right to look for a set (CAP_NET_RAW).
        return [*firewall_iptables.apply(step, kernel, fresh=False)]


def check(step: Firewall, kernel: HostAndSandbox) -> list[str]:
    """What keeps the host from forwarding; the sets count for backend nftables only."""
    if not step.addresses:
        return []
    netfilter = kernel.host.netfilter
    backend = chosen(step.backend, _families_of(step), netfilter)
    if backend == "iptables":
        from pycni.steps.firewall import iptables as firewall_iptables

        return firewall_iptables.check(step) + _lost_sets(netfilter)
    if backend == "ipset":
        from pycni.steps.firewall import ipset as firewall_ipset
        from pycni.steps.firewall import iptables as firewall_iptables

        differences = firewall_ipset.check(step, netfilter)
        if differences and not firewall_iptables.check(step):
            differences = []  # rules of the reference's do as well
        return differences + _lost_sets(netfilter)
    if backend == "firewalld":
        from pycni.steps.firewall import firewalld as firewall_firewalld

        return firewall_firewalld.check(step) + _lost_sets(netfilter)
    differences = constant_rules.differences(netfilter, [CHAIN], "no container is let through")
    return differences + firewall_sets.differences(step, kernel)


def _lost_sets(netfilter: NetfilterSocket) -> list[str]:
    """The sets that are missing where they were made before, by which GC knows whose what is."""
    if not nfnetlink.chain_exists(netfilter, NFPROTO_INET, TABLE, ADMIN):
        return []  # a host without nftables, or one on which only the reference was at work
    present = nfnetlink.sets(netfilter, NFPROTO_INET, TABLE)
    return [
        f"nftables: set inet {TABLE} {name} is not there, by which GC knows whose an address is"
        for name in SETS.values()
        if name not in present
    ]


def repair(step: Firewall, kernel: HostAndSandbox) -> None:
    """As ADD does, but never taking rules of iptables for missing because the set was flushed."""
    netfilter = kernel.host.netfilter
    backend = chosen(step.backend, _families_of(step), netfilter)
    firewall_sets.register(step, kernel, filters=backend == "nftables")
    if backend == "iptables":
        from pycni.steps.firewall import iptables as firewall_iptables

        firewall_iptables.apply(step, kernel, fresh=False)
    elif backend == "ipset":
        _apply_sets(step, kernel)
    elif backend == "firewalld":
        from pycni.steps.firewall import firewalld as firewall_firewalld

        firewall_firewalld.apply(step)


def repairable(step: Firewall, kernel: HostAndSandbox) -> list[str]:
    """Addresses that rules of another backend let through, and GC would not find."""
    netfilter = kernel.host.netfilter
    if not step.addresses or not nfnetlink.supported(netfilter):
        return []
    if chosen(step.backend, _families_of(step), netfilter) == "nftables":
        return []  # CHECK reports it
    return firewall_sets.differences(step, kernel, ", by which GC knows whose it is")


def remove(step: Firewall, kernel: HostAndSandbox) -> None:
    """Remove what lets the owner's addresses through, whichever backend made it."""
    from pycni.steps import port_isolation
    from pycni.steps.interfaces import Interfaces, in_use

    netfilter = kernel.host.netfilter
    tag = step.owner.tag

    def is_own(comment: str) -> bool:
        return comment.startswith(tag)

    def used(doubtful: set[IPAddress]) -> set[IPAddress]:
        """Those that another attachment has."""
        gone = doubtful - Interfaces(kernel, step.owner).own() if doubtful else set()
        return in_use(kernel, gone, is_own)

    zone = step.zone if step.backend in ("", "firewalld") else None
    named = step.addresses or ownership.noted_addresses(kernel)
    gone = _leave(kernel, is_own, tag, named, zone, used)
    netfilter.update(lambda: port_isolation.release(netfilter, is_own, tag))
    address_flows.end_with_interface(gone, kernel)


def collect(kernel: HostAndSandbox, owners: Owners) -> None:
    """Remove what lets addresses through that the sets give to them.

    What lets an address through that somebody has who is not ours stays, and so does its element:
    whether that is one of them cannot be known while the interface is there.
    """
    from pycni.steps import port_isolation
    from pycni.steps.interfaces import in_use

    netfilter = kernel.host.netfilter
    netfilter.update(lambda: port_isolation.release(netfilter, owners.includes, owners.tag))

    def used(doubtful: set[IPAddress]) -> set[IPAddress]:
        return in_use(kernel, doubtful, owners.includes)

    noted = map(parse_address, owners.addresses("firewall"))
    gone = _leave(kernel, owners.includes, owners.tag, noted, "", used, spare_elements=True)
    firewall_sets.delete_unused(netfilter)
    address_flows.end(gone, kernel)


def _families_of(step: Firewall) -> set[int]:
    """The families (AF_INET, AF_INET6) of the addresses."""
    return {address.family for address in step.addresses}


def _leave(
    kernel: HostAndSandbox,
    goes: Callable[[str], bool],
    tag: str,
    named: Iterable[IPAddress],
    zone: str | None,
    used: Callable[[set[IPAddress]], set[IPAddress]],
    *,
    spare_elements: bool = False,
) -> set[IPAddress]:
    """Let owners' addresses through no longer, but those that others have as well.

    Returns those that nobody has any more.

    goes: who of the owners, by their comments, which contain tag; named: their addresses, besides
    those in the sets; zone, used: see `_close`; spare_elements: whether owners keep the elements of
    addresses that are in use.
    """
    netfilter = kernel.host.netfilter
    recorded = firewall_sets.registered(netfilter, goes, tag)
    addresses = recorded.union(named)
    others = firewall_sets.others(netfilter, addresses, recorded, goes)
    attached = {
        address
        for address, comments in others.items()
        if any(kernel.is_attached(tag_of(comment)) for comment in comments)
    }
    doubtful = {*others} - attached
    spared = _close(addresses - attached, recorded - {*others}, doubtful, zone, netfilter, used)
    stale = doubtful - spared
    gone = {comment for address in stale for comment in others[address]}
    kept = spared - {*others} if spare_elements else set()
    is_few = len(recorded) <= _FEW
    netfilter.update(
        lambda: firewall_sets.departures(
            kernel,
            lambda comment: goes(comment) or comment in gone,
            None if is_few else tag,
            among=recorded | stale if is_few else stale,
            spared=kept,
        )
    )
    return addresses - attached - spared


def _close(
    addresses: set[IPAddress],
    recorded: set[IPAddress],
    doubtful: set[IPAddress],
    zone: str | None,
    netfilter: NetfilterSocket,
    used: Callable[[set[IPAddress]], set[IPAddress]],
) -> set[IPAddress]:
    """Let addresses through no longer, but those in use by others, which are returned.

    recorded: those that the sets give to who goes alone, so that entries of ipset are theirs too;
    doubtful: those that the sets give to others. zone: of firewalld, "" for any, None to leave that
    alone. used: gives those of some addresses that others use; asked only for what would be taken
    away.
    """
    from pycni.kernel.netfilter import firewalld
    from pycni.steps.firewall import ipset as firewall_ipset
    from pycni.steps.firewall import iptables as firewall_iptables

    rules = firewall_iptables.Rules(addresses, netfilter)
    doubtful = doubtful | rules.addresses
    doubtful.update(one for one in addresses - recorded if firewall_ipset.has(one, netfilter))
    spared = used(doubtful)
    firewall_ipset.remove(recorded | (addresses - spared), netfilter)
    rules.remove(addresses - spared)
    if not addresses or zone is None or not firewalld.is_active(netfilter):
        return spared
    from pycni.steps.firewall import firewalld as firewall_firewalld

    return spared | firewall_firewalld.remove(
        addresses - spared, zone, lambda one: used(one - doubtful)
    )
