"""What port mappings are in nftables: maps, chains and elements, as data. No I/O.

Used by `port_map`, `port_map_nftables` and `port_map_conditional`, which say what they are for.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel.constant_rules import Chain
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import PortMap, PortMapping
    from pycni.spec.ip import IPAddress, IPNetwork

ANY = {AF_INET: "port-map4", AF_INET6: "port-map6"}
ADDRESS = {AF_INET: "port-map-address4", AF_INET6: "port-map-address6"}
SOURCE = {AF_INET: "port-map-source4", AF_INET6: "port-map-source6"}
MAPS = (*ANY.values(), *ADDRESS.values(), *SOURCE.values())

MAIN = "port-map"
CONDITIONAL = "port-map-conditional"
FROM = "port-map-from-"  # chains that masquerade what comes from a subnet
OWN = {AF_INET: "port-map-if4-", AF_INET6: "port-map-if6-"}  # chains of containers with conditions

TAG_LENGTH = 33  # of an owner's tag

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}

# Behind other NAT of the host at the same hooks, so that a service's address stays the service's.
_DESTINATION_PRIORITY = -99

_TYPE = "inet_proto . inet_service"
DECLARATIONS = (
    f"map {ANY[AF_INET]} {{ type {_TYPE} : ipv4_addr . inet_service; }}",
    f"map {ANY[AF_INET6]} {{ type {_TYPE} : ipv6_addr . inet_service; }}",
    f"map {ADDRESS[AF_INET]} {{ type ipv4_addr . {_TYPE} : ipv4_addr . inet_service; }}",
    f"map {ADDRESS[AF_INET6]} {{ type ipv6_addr . {_TYPE} : ipv6_addr . inet_service; }}",
    f"map {SOURCE[AF_INET]} {{ type inet_proto . ipv4_addr . inet_service : verdict; }}",
    f"map {SOURCE[AF_INET6]} {{ type inet_proto . ipv6_addr . inet_service : verdict; }}",
    f"chain {CONDITIONAL}",
)

_PORT = "meta l4proto . th dport"
_CHAINS = (
    Chain(
        "port-map-localnet",
        # A VRF's own localhost comes in by the VRF's link.
        {"martians": 'ip daddr 127.0.0.0/8 iif != "lo" meta iifkind != "vrf" drop'},
        "type filter hook prerouting priority raw",
    ),
    Chain(
        MAIN,
        {
            "conditional": f"jump {CONDITIONAL}",
            "address IPv4": f"dnat ip to ip daddr . {_PORT} map @{ADDRESS[AF_INET]}",
            "any IPv4": f"meta nfproto ipv4 dnat ip to {_PORT} map @{ANY[AF_INET]}",
            "address IPv6": f"dnat ip6 to ip6 daddr . {_PORT} map @{ADDRESS[AF_INET6]}",
            "any IPv6": f"meta nfproto ipv6 dnat ip6 to {_PORT} map @{ANY[AF_INET6]}",
        },
    ),
    *(
        Chain(
            f"port-map-{hook}",
            {"to the host": f"fib daddr type local goto {MAIN}"},
            f"type nat hook {hook} priority {_DESTINATION_PRIORITY}",
        )
        for hook in ("prerouting", "output")
    ),
    Chain(
        "port-map-postrouting",
        {
            "sources IPv4": "ct status dnat meta l4proto . ip daddr . th dport"
            f" vmap @{SOURCE[AF_INET]}",
            "sources IPv6": "ct status dnat meta l4proto . ip6 daddr . th dport"
            f" vmap @{SOURCE[AF_INET6]}",
        },
        "type nat hook postrouting priority srcnat",
    ),
)


class Flow(Record):
    """The UDP flows to a port of the host: to one address of it, or (None) to any."""

    family: int
    port: int
    address: IPAddress | None = None


class Entry(Record):
    """An element to be: with data, or (chain) of the map of sources."""

    map: str
    key: bytes
    data: bytes = b""
    chain: str = ""


def applicable(step: PortMap, family: int) -> list[PortMapping]:
    """The mappings that are for a family."""
    return [
        mapping
        for mapping in step.mappings
        if mapping.host_ip is None or mapping.host_ip.family == family
    ]


def flows(step: PortMap) -> list[Flow]:
    """The UDP flows that the step's mappings concern."""
    return [
        Flow(network.family, mapping.host_port, host_address(mapping))
        for network in step.addresses
        for mapping in applicable(step, network.family)
        if mapping.protocol == "udp"
    ]


def host_address(mapping: PortMapping) -> IPAddress | None:
    """The one address of the host that a mapping is for, None for all."""
    address = mapping.host_ip
    return None if address is None or address.is_unspecified else address


def conditions(step: PortMap, family: int) -> tuple[str, ...]:
    return step.conditions4 if family == AF_INET else step.conditions6


def conditional(step: PortMap) -> list[IPNetwork]:
    return [network for network in step.addresses if conditions(step, network.family)]


def _source_chain(step: PortMap, network: IPNetwork) -> Chain:
    """The chain that masquerades what comes to a container's address from where it should."""
    if step.masquerade_all:
        return Chain(f"{FROM}anywhere", {"anywhere": "masquerade"})
    subnet = network.network
    name = f"{FROM}{str(subnet).replace(':', '_')}"  # names of chains may hold no colon
    if network.is_ipv4:
        return Chain(
            name,
            {
                "localhost": "ip saddr 127.0.0.0/8 masquerade",
                "own subnet": f"ip saddr {subnet} masquerade",
            },
        )
    return Chain(name, {"own subnet": f"ip6 saddr {subnet} masquerade"})


def chains(step: PortMap) -> list[Chain]:
    sources = [
        _source_chain(step, network)
        for network in step.addresses
        if step.snat and applicable(step, network.family)
    ]
    return [*_CHAINS, *(chain for n, chain in enumerate(sources) if chain not in sources[:n])]


def entries(step: PortMap) -> list[Entry]:
    found: dict[tuple[str, bytes], Entry] = {}
    for network in step.addresses:
        family, address = network.family, network.address.packed
        for mapping in applicable(step, family):
            protocol = bytes((PROTOCOLS[mapping.protocol], 0, 0, 0))
            target = address + _port(mapping.container_port)
            mine = []
            if not conditions(step, family):
                host, key = host_address(mapping), protocol + _port(mapping.host_port)
                if host is None:
                    mine.append(Entry(ANY[family], key, target))
                else:
                    mine.append(Entry(ADDRESS[family], host.packed + key, target))
            if step.snat:
                chain = _source_chain(step, network).name
                mine.append(Entry(SOURCE[family], protocol + target, chain=chain))
            for entry in mine:
                # Several ports of the host may lead to one of the container.
                found.setdefault((entry.map, entry.key), entry)
    return list(found.values())


def _port(number: int) -> bytes:
    """A port as part of a concatenation, whose parts are of four bytes each."""
    return number.to_bytes(2, "big") + b"\0\0"
