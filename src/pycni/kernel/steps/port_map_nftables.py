"""The nftables backend of `port_map`: all ports of the host are elements of a few maps.

A packet to an address of the host costs a look-up for that address and one for all, however many
ports are mapped; packets to other addresses pass (CVE-2025-67499). Table `inet pycni`:

    map port-map4 { tcp . 8080 comment "<owner>" : 10.1.0.2 . 80 }
    map port-map-address4 { 192.0.2.1 . tcp . 443 comment "<owner>" : 10.1.0.2 . 443 }
    set port-map-from-10.1.0.0/24 { tcp . 10.1.0.2 . 80 comment "<owner>" }

By the set, of a subnet's containers (see `pycni.kernel.subnet_sets`), packets that were mapped are
masqueraded if they come from that subnet or from localhost: their answers would not come back
through the host. Packets to 127.0.0.0/8 that come from elsewhere are dropped, since
`route_localnet` would let them in (CVE-2020-8558).

Mappings with conditions are the exception: see `port_map_conditional`.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel import constant_rules, nfnetlink
from pycni.kernel.constant_rules import TABLE
from pycni.kernel.nfnetlink import NFPROTO_INET
from pycni.kernel.steps import port_map_conditional
from pycni.kernel.steps.port_map_layout import (
    ADDRESS,
    ANY,
    CHAINS,
    DECLARATIONS,
    MAPS,
    PROTOCOLS,
    SOURCES,
    TAG_LENGTH,
    Flow,
    entries,
    sources,
)
from pycni.kernel.subnet_sets import Membership
from pycni.spec.errors import ALREADY_EXISTS, CNIError
from pycni.spec.ip import IPAddress
from pycni.spec.owner import Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from pycni.kernel.netlink.codec import Request
    from pycni.kernel.nfnetlink import Element, NetfilterSocket
    from pycni.kernel.steps.port_map_layout import Entry
    from pycni.plan.steps import PortMap

HARM = "no port leads to a container"

_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


def apply(step: PortMap, netfilter: NetfilterSocket) -> Callable[[], None] | None:
    """Make what is missing. Raises CNIError if a port is another container's."""
    made: list[Entry] = []
    membership = Membership(netfilter, SOURCES, sources(step), step.owner)

    def missing() -> list[Request]:
        constant_rules.set_up(netfilter, DECLARATIONS, CHAINS)
        requests: list[Request] = []
        made.clear()
        for entry in entries(step):
            found = _find(netfilter, entry)
            if found is not None:
                if _is_whole(found, entry, step.owner) or not _gives_way(found, entry, step):
                    continue
                requests.append(_delete(entry.map, entry.key))
            made.append(entry)
            requests.append(_add(entry, step.owner))
        return requests + membership.missing()

    def undo() -> None:
        netfilter.update(
            lambda: [
                *(
                    _delete(entry.map, entry.key)
                    for entry in made
                    if _is_owned(_find(netfilter, entry), step.owner)
                ),
                *membership.undone(),
                *port_map_conditional.leftovers(step.owner, netfilter),
            ]
        )

    netfilter.update(missing)
    try:
        changed = port_map_conditional.apply(step, netfilter)
    except BaseException:
        undo()
        raise
    membership.collect_earlier()
    return undo if made or membership.made or changed else None


def check(step: PortMap, netfilter: NetfilterSocket) -> list[str]:
    """What is not as `apply` leaves it, a sentence each."""
    differences = constant_rules.differences(netfilter, CHAINS, HARM)
    for entry in entries(step):
        found = _find(netfilter, entry)
        place = f"map inet {TABLE} {entry.map}"
        text = _text(entry)
        if found is None:
            differences.append(f"nftables: {text} is not in {place}")
        elif not _is_owned(found, step.owner):
            if not _is_same_container(found, step.owner):
                differences.append(
                    f"nftables: {text} in {place} belongs to another attachment: {found.comment}"
                )
        elif found.data != entry.data:
            differences.append(f"nftables: {text} in {place} leads elsewhere")
    differences += Membership(netfilter, SOURCES, sources(step), step.owner).differences(
        lambda found: _is_owned(found, step.owner) or _is_same_container(found, step.owner), HARM
    )
    return differences + port_map_conditional.check(step, netfilter)


def leftovers(owner: Owner, netfilter: NetfilterSocket) -> tuple[list[Request], set[Flow]]:
    """What deletes all that is the owner's, and the UDP flows that it concerns.

    Whatever the mappings were: those of a DEL need not be those of the ADD.
    """
    found = [
        (name, item) for name, item in _elements(netfilter, owner.tag) if _is_owned(item, owner)
    ]
    requests = [_delete(name, item.key) for name, item in found]
    requests += port_map_conditional.leftovers(owner, netfilter)
    return requests, set(_flows_of(found))


def stale(
    network: str, kept: Container[str], netfilter: NetfilterSocket
) -> tuple[list[Request], set[Flow]]:
    """The same for all owners of a network (its tag) whose own tag is not kept."""

    def is_stale(tag: str) -> bool:
        return tag.startswith(f"{network}-") and tag not in kept

    found = [
        (name, item)
        for name, item in _elements(netfilter, network)
        if is_stale(item.comment[:TAG_LENGTH])
    ]
    requests = [_delete(name, item.key) for name, item in found]
    requests += port_map_conditional.stale(is_stale, netfilter)
    return requests, set(_flows_of(found))


# --- elements ------------------------------------------------------------------------------------


def _find(netfilter: NetfilterSocket, entry: Entry) -> Element | None:
    return nfnetlink.element(netfilter, NFPROTO_INET, TABLE, entry.map, entry.key)


def _elements(netfilter: NetfilterSocket, tag: str) -> list[tuple[str, Element]]:
    """The elements of all maps and sets whose comment contains a tag."""
    return [
        (name, item)
        for name in nfnetlink.sets(netfilter, NFPROTO_INET, TABLE)
        if name in MAPS or name.startswith(SOURCES.prefix)
        for item in nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name, tag)
    ]


def _add(entry: Entry, owner: Owner) -> Request:
    return nfnetlink.add_element(
        NFPROTO_INET, TABLE, entry.map, entry.key, owner.comment, entry.data
    )


def _delete(name: str, key: bytes) -> Request:
    return nfnetlink.delete_element(NFPROTO_INET, TABLE, name, key)


def _is_owned(found: Element | None, owner: Owner) -> bool:
    return found is not None and found.comment.startswith(owner.tag)


def _is_whole(found: Element, entry: Entry, owner: Owner) -> bool:
    return (found.comment, found.data) == (owner.comment, entry.data)


def _gives_way(found: Element, entry: Entry, step: PortMap) -> bool:
    """Whether an element may be replaced by the step's own.

    False if the same container has the port by another network already. Raises CNIError if
    another container has it.
    """
    if _is_owned(found, step.owner):
        return True
    size = len(found.data) - 4
    # The lease is ours, so whoever had the address before is gone.
    if any(found.data[:size] == network.address.packed for network in step.addresses):
        return True
    if _is_same_container(found, step.owner):
        return False
    raise CNIError(
        ALREADY_EXISTS,
        f"{_text(entry)} is taken by {_holder(found)}",
        "choose another hostPort, or detach that container; "
        "if it is gone, GC of its network removes what it left",
    )


def _holder(found: Element) -> str:
    """Who has an element, for people: from `net: NAME, if: NAME, id: ID`."""
    network, ifname, container = _names(found)
    target = f"{IPAddress(found.data[:-4])} port {int.from_bytes(found.data[-4:-2], 'big')}"
    return f"container {container} (network {network}, interface {ifname}, {target})"


def _names(found: Element) -> tuple[str, str, str]:
    """Network, interface and container in a comment, as far as they were not cut."""
    rest = found.comment.partition(", net: ")[2]
    network, _, rest = rest.partition(", if: ")
    ifname, _, container = rest.partition(", id: ")
    return network, ifname, container


def _is_same_container(found: Element, owner: Owner) -> bool:
    """Whether an element is of another attachment of the owner's container."""
    network, ifname, _ = _names(found)
    return found.comment.startswith(Owner(network, owner.container_id, ifname).tag)


def _text(entry: Entry) -> str:
    """What an element stands for: `host port 8080/tcp of 192.0.2.1`."""
    key = entry.key
    port = int.from_bytes(key[-4:-2], "big")
    family = "IPv4" if entry.map in (ANY[AF_INET], ADDRESS[AF_INET]) else "IPv6"
    where = f" of {IPAddress(key[:-8])}" if len(key) > 8 else f" ({family})"
    return f"host port {port}/{_PROTOCOL_NAMES[key[-8]]}{where}"


def _flows_of(found: Iterable[tuple[str, Element]]) -> list[Flow]:
    """The UDP flows that elements concern."""
    return [
        Flow(
            AF_INET if name in (ANY[AF_INET], ADDRESS[AF_INET]) else AF_INET6,
            int.from_bytes(item.key[-4:-2], "big"),
            IPAddress(item.key[:-8]) if len(item.key) > 8 else None,
        )
        for name, item in found
        if item.data and item.key[-8] == PROTOCOLS["udp"]
    ]
