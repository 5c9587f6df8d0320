"""What port mappings are in nftables: maps, chains and elements, as data. No I/O.

Used by `port_map`, `port_map_nftables` and `port_map_conditional`, which say what they are for.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel.constant_rules import Chain
from pycni.kernel.subnet_sets import Feature, Member
from pycni.spec.ip import IPNetwork
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import PortMap, PortMapping
    from pycni.spec.ip import IPAddress

ANY = {AF_INET: "port-map4", AF_INET6: "port-map6"}
ADDRESS = {AF_INET: "port-map-address4", AF_INET6: "port-map-address6"}
MAPS = (*ANY.values(), *ADDRESS.values())

MAIN = "port-map"
CONDITIONAL = "port-map-conditional"
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
    f"chain {CONDITIONAL}",
)

_PORT = "meta l4proto . th dport"
CHAINS = (
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
)

# By where a packet comes from that is masqueraded; the subnet of all is for `masquerade_all`.
SOURCES = Feature(
    "port-map-from-",
    "port-map-postrouting",
    {
        AF_INET: "inet_proto . ipv4_addr . inet_service",
        AF_INET6: "inet_proto . ipv6_addr . inet_service",
    },
    {
        AF_INET: "ct status dnat meta l4proto . ip daddr . th dport @{set}"
        " ip saddr {{ 127.0.0.0/8, {subnet} }} masquerade",
        AF_INET6: "ct status dnat meta l4proto . ip6 daddr . th dport @{set}"
        " ip6 saddr {subnet} masquerade",
    },
)


class Flow(Record):
    """The UDP flows to a port of the host: to one address of it, or (None) to any."""

    family: int
    port: int
    address: IPAddress | None = None


class Entry(Record):
    """An element of a map that is to be."""

    map: str
    key: bytes
    data: bytes


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


def entries(step: PortMap) -> list[Entry]:
    """The elements that lead from ports of the host; those with conditions are rules instead."""
    found: dict[tuple[str, bytes], Entry] = {}
    for network in step.addresses:
        family = network.family
        if conditions(step, family):
            continue
        for mapping in applicable(step, family):
            target = network.address.packed + _port(mapping.container_port)
            host, key = host_address(mapping), _protocol(mapping) + _port(mapping.host_port)
            if host is None:
                entry = Entry(ANY[family], key, target)
            else:
                entry = Entry(ADDRESS[family], host.packed + key, target)
            found.setdefault((entry.map, entry.key), entry)
    return list(found.values())


def sources(step: PortMap) -> list[Member]:
    """The ports of the container, for the sets of who is masqueraded on the way there."""
    found: dict[bytes, Member] = {}
    for network in step.addresses if step.snat else ():
        subnet = IPNetwork(network.address, 0 if step.masquerade_all else network.prefix).network
        for mapping in applicable(step, network.family):
            # Several ports of the host may lead to one of the container.
            port = mapping.container_port
            key = _protocol(mapping) + network.address.packed + _port(port)
            text = f"{network.address} port {port}/{mapping.protocol}"
            found.setdefault(key, Member(subnet, key, text))
    return list(found.values())


def _protocol(mapping: PortMapping) -> bytes:
    """A protocol as part of a concatenation, whose parts are of four bytes each."""
    return bytes((PROTOCOLS[mapping.protocol], 0, 0, 0))


def _port(number: int) -> bytes:
    """A port as part of a concatenation."""
    return number.to_bytes(2, "big") + b"\0\0"
