"""The nftables backend of `port_map`: all ports of the host are elements of a few maps.

A packet to an address of the host costs a look-up for that address and one for all, however many
ports are mapped; packets to other addresses pass (CVE-2025-67499). Table `inet pycni`:

    map port-map4 { tcp . 8080 comment "<owner>" : 10.1.0.2 . 80 }
    map port-map-address4 { 192.0.2.1 . tcp . 443 comment "<owner>" : 10.1.0.2 . 443 }
    set port-map-from-10.1.0.0/24 { tcp . 10.1.0.2 . 80 comment "<owner>" }

By the set, of a subnet's containers (see `pycni.kernel.netfilter.subnet_sets`), packets that were
mapped here are masqueraded if they come from that subnet or from localhost: their answers would not
come back through the host. Packets to 127.0.0.0/8 that come from elsewhere are dropped, since
`route_localnet` would let them in (CVE-2020-8558).

A port that a container has in two networks is the first one's, and the second one waits for
it: see `pycni.kernel.netfilter.shared_elements`.

Mappings with conditions are the exception: see `conditional`.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel.netfilter import constant_rules, nfnetlink, shared_elements, subnet_sets
from pycni.kernel.netfilter.constant_rules import TABLE
from pycni.kernel.netfilter.nfnetlink import NFPROTO_INET, Element
from pycni.kernel.netfilter.subnet_sets import Membership
from pycni.spec.errors import CNIError
from pycni.spec.ip import IPAddress
from pycni.spec.owner import tag_of
from pycni.steps.backend import Applied, Leftovers
from pycni.steps.executor import give_up
from pycni.steps.ownership import is_same_container
from pycni.steps.port_map import conditional
from pycni.steps.port_map.layout import (
    ADDRESS,
    ANY,
    CHAINS,
    DECLARATIONS,
    MAPS,
    PORT_SIZE,
    SOURCES,
    TYPES,
    MappedFlow,
    decoded,
    entries,
    place_of,
    port_text,
    sources,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import PortMap
    from pycni.spec.owner import Owner, Owners
    from pycni.steps.namespaces import HostAndSandbox
    from pycni.steps.port_map.layout import Entry

HARM = "no port leads to a container"


def apply(step: PortMap, kernel: HostAndSandbox, *, thorough: bool = False) -> Applied:
    """Make what is missing.

    thorough: look for rules that an ADD takes to be there with others. Raises CNIError if a port is
    another container's.
    """
    netfilter, is_attached = kernel.host.netfilter, kernel.is_attached
    made: list[Entry] = []
    waiting: list[Entry] = []
    has_written = False
    has_replaced = False
    membership = Membership(netfilter, SOURCES, sources(step), step.owner, is_attached)

    def missing() -> list[NetlinkRequest]:
        nonlocal has_written, has_replaced
        if constant_rules.set_up(netfilter, DECLARATIONS, CHAINS):
            has_written = True
            membership.renew()
        requests: list[NetlinkRequest] = []
        has_replaced = False
        made.clear()
        waiting.clear()
        for entry in entries(step):
            found = _find(netfilter, entry)
            if found is None:
                _require_free(entry, step, kernel)
            elif _is_whole(found, entry, step.owner):
                continue
            elif _gives_way(found, entry, step, kernel):
                has_replaced |= not _is_owned(found, step.owner)
                requests.append(_delete(entry.map, entry.key))
            else:
                if not _is_waiting(netfilter, entry, step.owner):
                    waiting.append(entry)
                    requests.append(_wait(entry, step.owner))
                continue
            made.append(entry)
            requests.append(_add(entry, step.owner))
        return requests + membership.missing(thorough=thorough)

    def undo() -> None:
        netfilter.update(
            lambda: [
                *_leave([*made, *waiting], step.owner, netfilter, is_attached),
                *membership.undone(),
                *conditional.deletions(chains or (), netfilter),
            ]
        )

    chains: list[str] | None = None
    netfilter.update(missing)
    try:
        chains = conditional.apply(step, kernel)
    except BaseException:
        give_up([undo], kernel)
        raise
    membership.collect_earlier()
    changed = has_written or chains is not None or made or waiting or membership.has_changed
    replaced = has_replaced or bool(membership.replaced)
    return Applied(undo if changed else None, has_written, replaced)


def check(step: PortMap, kernel: HostAndSandbox) -> list[str]:
    """What is not as `apply` leaves it, a sentence each."""
    netfilter = kernel.host.netfilter
    differences = constant_rules.differences(netfilter, CHAINS, HARM)
    for entry in entries(step):
        found = _find(netfilter, entry)
        place = f"map inet {TABLE} {entry.map}"
        text = _text(entry)
        if found is None:
            differences.append(f"nftables: {text} is not in {place}")
        elif not _is_owned(found, step.owner):
            if not is_same_container(kernel, found.comment, step.owner):
                differences.append(
                    f"nftables: {text} in {place} belongs to another attachment: {found.comment}"
                )
            elif not _is_waiting(netfilter, entry, step.owner):
                differences.append(
                    f"nftables: {text} in {place} is another attachment's of the container, and "
                    f"would be lost with that: {found.comment}"
                )
        elif found.data != entry.data:
            differences.append(f"nftables: {text} in {place} leads elsewhere")
    membership = Membership(netfilter, SOURCES, sources(step), step.owner, kernel.is_attached)
    differences += membership.differences(
        lambda found: (
            _is_owned(found, step.owner) or is_same_container(kernel, found.comment, step.owner)
        ),
        HARM,
    )
    return differences + conditional.check(step, kernel)


def made(step: PortMap, kernel: HostAndSandbox) -> bool:
    return not check(step, kernel)


def leftovers(
    owners: Owners, kernel: HostAndSandbox, gone: set[MappedFlow], step: PortMap | None
) -> Leftovers:
    """What deletes all that is the owners', and the flows that it leads to containers.

    Whatever the mappings were: those of a DEL need not be those of the ADD.
    """
    netfilter = kernel.host.netfilter
    requests, found = shared_elements.deletions_of_owners(
        netfilter, _sets(netfilter), owners.tag, owners.includes, kernel.is_attached
    )
    gone.update(decoded(item)[0] for item in found if item.data)
    return Leftovers(requests + conditional.leftovers(owners, netfilter))


def delete_unused(netfilter: NetfilterSocket) -> None:
    """Delete the sets that hold nothing and can be made again one by one."""
    shared_elements.delete_unused(netfilter, _sets(netfilter))
    subnet_sets.delete_unused(netfilter, SOURCES)


def mapped(netfilter: NetfilterSocket) -> list[MappedFlow]:
    """The flows that the elements of all owners lead to containers."""
    return [
        decoded(item)[0]
        for name in MAPS
        for item in nfnetlink.elements(netfilter, NFPROTO_INET, TABLE, name)
        if len(item.data) > PORT_SIZE
    ]


def target(netfilter: NetfilterSocket, flow: MappedFlow) -> tuple[IPAddress, int] | None:
    """The container's address and port that a map has for the port of a flow, None for none.

    A flow to one address of the host is looked for in the map of those.
    """
    found = nfnetlink.element(netfilter, NFPROTO_INET, TABLE, *place_of(flow))
    if found is None or len(found.data) <= PORT_SIZE:
        return None
    address, port = found.data[:-PORT_SIZE], found.data[-PORT_SIZE:]
    return IPAddress(address), int.from_bytes(port[:2], "big")


# --- elements ------------------------------------------------------------------------------------


def _find(netfilter: NetfilterSocket, entry: Entry) -> Element | None:
    return nfnetlink.element(netfilter, NFPROTO_INET, TABLE, entry.map, entry.key)


def _sets(netfilter: NetfilterSocket) -> list[str]:
    """The names of all maps and sets, with those beside them."""
    found = nfnetlink.sets(netfilter, NFPROTO_INET, TABLE)
    return [name for name in found if name.startswith((*MAPS, SOURCES.prefix))]


def _leave(
    entries: Iterable[Entry],
    owner: Owner,
    netfilter: NetfilterSocket,
    is_attached: Callable[[str], bool | None],
) -> list[NetlinkRequest]:
    """What deletes elements that are the owner's, or hands them on, and its waiting."""
    found: dict[str, list[Element]] = {}
    for entry in entries:
        element = _find(netfilter, entry)
        own = [element] if element is not None and _is_owned(element, owner) else []
        found.setdefault(entry.map, []).extend(own)
    return [
        request
        for name, elements in found.items()
        for request in shared_elements.deletions(
            netfilter,
            name,
            elements,
            owner.owns,
            is_attached,
        )
    ]


def _is_waiting(netfilter: NetfilterSocket, entry: Entry, owner: Owner) -> bool:
    return shared_elements.is_waiting(netfilter, entry.map, entry.key, owner)


def _wait(entry: Entry, owner: Owner) -> NetlinkRequest:
    key_type, data_type = TYPES[entry.map]
    return shared_elements.wait(entry.map, key_type, entry.key, owner, (data_type, entry.data))


def _add(entry: Entry, owner: Owner) -> NetlinkRequest:
    return nfnetlink.add_element(
        NFPROTO_INET, TABLE, entry.map, entry.key, owner.comment, entry.data
    )


def _delete(name: str, key: bytes) -> NetlinkRequest:
    return nfnetlink.delete_element(NFPROTO_INET, TABLE, name, key)


def _is_owned(found: Element | None, owner: Owner) -> bool:
    return found is not None and owner.owns(found.comment)


def _is_whole(found: Element, entry: Entry, owner: Owner) -> bool:
    return (found.comment, found.data) == (owner.comment, entry.data)


def _gives_way(found: Element, entry: Entry, step: PortMap, kernel: HostAndSandbox) -> bool:
    """Whether an element may be replaced by the step's own.

    False if the same container has the port by another network already, and is not known to be
    detached from that. Raises CNIError if another container has it.
    """
    if _is_owned(found, step.owner) or _is_left(found, step, kernel):
        return True
    if is_same_container(kernel, found.comment, step.owner):
        return kernel.is_attached(tag_of(found.comment)) is False
    raise _taken(entry, found)


def _require_free(entry: Entry, step: PortMap, kernel: HostAndSandbox) -> None:
    """Raise a CNIError if another container has the port on all addresses of the host.

    What is for one address would take that one away from it. The other way round no one loses
    anything: what is for all addresses leaves out those that others have.
    """
    if entry.map in ANY.values():
        return
    family = AF_INET if entry.map == ADDRESS[AF_INET] else AF_INET6
    found = _find(
        kernel.host.netfilter, entry.replace(map=ANY[family], key=entry.key[-2 * PORT_SIZE :])
    )
    if found is None or is_same_container(kernel, found.comment, step.owner):
        return
    if not _is_left(found, step, kernel):
        raise _taken(entry, found)


def _is_left(found: Element, step: PortMap, kernel: HostAndSandbox) -> bool:
    """Whether an element was left by an earlier holder of one of the step's addresses."""
    if not any(found.data[:-PORT_SIZE] == network.address.packed for network in step.addresses):
        return False
    return shared_elements.is_stale(found.comment, step.owner, kernel.is_attached)


def _taken(entry: Entry, found: Element) -> CNIError:
    from pycni.steps.port_map.held_port import taken
    from pycni.steps.port_map.held_ports_maps import held_by

    return taken(_text(entry), held_by(found))


def _text(entry: Entry) -> str:
    """The port that an element stands for, for people."""
    flow, _ = decoded(Element(entry.key, "", entry.data))
    return port_text(flow.protocol, flow.port, flow.address, flow.target.family)
