"""What `firewall` keeps in nftables, whatever the backend: who has each address it lets through.

    set firewall4 { 10.1.0.2 comment "<owner>" }
    set firewall4-waiting { 10.1.0.2 . <tag> comment "<another owner>" }

An address that two networks gave out is both's: the first owner has the element, the second one
waits beside it and gets it when the first one goes, see `pycni.kernel.netfilter.shared_elements`.
The chain that filters by the sets is backend nftables; other backends have the sets for DEL and GC:
their rules name no owner.
"""

from __future__ import annotations

import errno
from _socket import AF_INET, AF_INET6

from pycni.kernel.netfilter import constant_rules, nfnetlink, shared_elements
from pycni.kernel.netfilter.constant_rules import TABLE, ConstantChain
from pycni.kernel.netfilter.nfnetlink import NFPROTO_INET
from pycni.spec.ip import IPAddress
from pycni.steps.backend import Applied

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from pycni.kernel.netfilter.nfnetlink import Element, NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import Firewall
    from pycni.steps.namespaces import HostAndSandbox

SETS = {AF_INET: "firewall4", AF_INET6: "firewall6"}
BRIDGES = "firewall-bridges"
PAIRS = "firewall-pairs"
ADMIN = "firewall-admin"

_TYPES = {AF_INET: "ipv4_addr", AF_INET6: "ipv6_addr"}

DECLARATIONS = (
    *(f"set {SETS[family]} {{ type {kind}; }}" for family, kind in _TYPES.items()),
    f"set {BRIDGES} {{ type ifname; }}",
    f"set {PAIRS} {{ type ifname . ifname; }}",
    f"chain {ADMIN}",
)
REGISTRY = ConstantChain(ADMIN, {})  # is there when the sets are


class Registered(Applied):
    """What `register` has done. new: the addresses whose elements it made; replaced: those of them
    that an owner had who is gone.
    """

    new: frozenset[IPAddress] = frozenset()
    replaced: frozenset[IPAddress] = frozenset()


def register(
    step: Firewall, kernel: HostAndSandbox, chain: ConstantChain | None = None
) -> Registered:
    """Enter the addresses into the sets, in place of owners that are gone, or beside another one.

    chain: what filters by the sets, to be made with them. Without one, a host may lack nftables.
    """
    netfilter, owner = kernel.host.netfilter, step.owner
    made: set[IPAddress] = set()
    replaced: set[IPAddress] = set()
    waiting: set[IPAddress] = set()

    def missing() -> list[NetlinkRequest]:
        constant_rules.set_up(netfilter, DECLARATIONS, [chain or REGISTRY])
        requests: list[NetlinkRequest] = []
        for record in (made, replaced, waiting):
            record.clear()
        for address in step.addresses:
            name, found = SETS[address.family], element(netfilter, address)
            if found is not None:
                if found.comment == owner.comment:
                    continue
                if not owner.owns(found.comment):
                    if not shared_elements.is_stale(found.comment, owner, kernel.is_attached):
                        if not shared_elements.is_waiting(netfilter, name, address.packed, owner):
                            waiting.add(address)
                            kind = _TYPES[address.family]
                            requests.append(shared_elements.wait(name, kind, address.packed, owner))
                        continue
                    replaced.add(address)
                requests.append(nfnetlink.delete_element(NFPROTO_INET, TABLE, name, found.key))
            made.add(address)
            requests.append(
                nfnetlink.add_element(NFPROTO_INET, TABLE, name, address.packed, owner.comment)
            )
        return requests

    try:
        netfilter.update(missing)
    except OSError as error:
        from pycni.kernel.netfilter.nftables import NftError

        if chain is not None or not isinstance(error, NftError) or error.errno == errno.EPERM:
            raise
        return Registered()

    def undo() -> None:
        netfilter.update(lambda: departures(kernel, owner.owns, among=made | waiting))

    if not (made or waiting):
        return Registered()
    return Registered(undo, new=frozenset(made), replaced=frozenset(replaced))


def differences(step: Firewall, kernel: HostAndSandbox, purpose: str = "") -> list[str]:
    """How the sets differ from what `register` makes of them, a sentence each.

    purpose: what follows if an address is in no set.
    """
    netfilter, owner = kernel.host.netfilter, step.owner
    found = []
    for address in step.addresses:
        name, item = SETS[address.family], element(netfilter, address)
        place = f"set inet {TABLE} {name}"
        if item is None:
            found.append(f"nftables: {address} is not in {place}{purpose}")
        elif owner.owns(item.comment):
            continue
        elif shared_elements.is_stale(item.comment, owner, kernel.is_attached):
            found.append(
                f"nftables: {address} in {place} belongs to another attachment, which is gone:"
                f" {item.comment}"
            )
        elif not shared_elements.is_waiting(netfilter, name, address.packed, owner):
            found.append(
                f"nftables: {address} in {place} is another attachment's as well, and would be"
                f" closed with that: {item.comment}"
            )
    return found


def lost(netfilter: NetfilterSocket) -> list[str]:
    """The sets that are missing where they were made before, a sentence each."""
    if not nfnetlink.chain_exists(netfilter, NFPROTO_INET, TABLE, ADMIN):
        return []  # a host without nftables, or one on which only the reference was at work
    present = nfnetlink.sets(netfilter, NFPROTO_INET, TABLE)
    return [
        f"nftables: set inet {TABLE} {name} is not there, by which GC knows whose an address is"
        for name in SETS.values()
        if name not in present
    ]


def element(netfilter: NetfilterSocket, address: IPAddress) -> Element | None:
    """The element of an address, whose comment says who has it; None if no one is registered."""
    name = SETS[address.family]
    return nfnetlink.element(netfilter, NFPROTO_INET, TABLE, name, address.packed)


def registered(
    netfilter: NetfilterSocket, wanted: Callable[[str], bool], tag: str
) -> set[IPAddress]:
    """The addresses whose elements' comments contain a tag and are wanted."""
    return {
        IPAddress(item.key)
        for name in SETS.values()
        for item in nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name, tag)
        if wanted(item.comment)
    }


def others(
    netfilter: NetfilterSocket,
    addresses: Iterable[IPAddress],
    recorded: Collection[IPAddress],
    is_own: Callable[[str], bool],
) -> dict[IPAddress, set[str]]:
    """The comments of all other owners of some addresses, for each that has any.

    recorded: those of them whose elements are the own ones.
    """
    found: dict[IPAddress, set[str]] = {}
    by_family: dict[int, dict[bytes, IPAddress]] = {}
    for address in addresses:
        by_family.setdefault(address.family, {})[address.packed] = address
        item = None if address in recorded else element(netfilter, address)
        if item is not None and not is_own(item.comment):
            found.setdefault(address, set()).add(item.comment)
    for family, known in by_family.items():
        for key, item in shared_elements.waiting(netfilter, SETS[family]):
            if key in known and not is_own(item.comment):
                found.setdefault(known[key], set()).add(item.comment)
    return found


def departures(
    kernel: HostAndSandbox,
    goes: Callable[[str], bool],
    tag: str | None = None,
    *,
    among: Iterable[IPAddress] = (),
    spared: Collection[IPAddress] = (),
) -> list[NetlinkRequest]:
    """What takes owners out of the sets: deletes their elements, or hands them on, and who waits.

    goes: who of the owners, by their comments; tag: what the comments of those contain of whom
    every element goes, None for none; among: further addresses whose elements go; spared: those
    whose elements stay.
    """
    netfilter = kernel.host.netfilter
    further = list(among)
    requests: list[NetlinkRequest] = []
    for family, name in SETS.items():
        found = []
        if tag is not None:
            found = nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name, tag)
        known = {item.key for item in found}
        for address in further:
            if address.family == family and address.packed not in known:
                item = element(netfilter, address)
                found += [] if item is None else [item]
        going = [item for item in found if goes(item.comment) and IPAddress(item.key) not in spared]
        requests += shared_elements.deletions(netfilter, name, going, goes, kernel.is_attached)
    return requests


def delete_unused(netfilter: NetfilterSocket) -> None:
    """Delete the sets beside that hold nothing."""
    names = nfnetlink.sets(netfilter, NFPROTO_INET, TABLE)
    shared_elements.delete_unused(
        netfilter, [name for name in names if name.startswith((*SETS.values(),))]
    )
