"""What port mappings lead where, and what they are in nftables: maps, chains and elements. No I/O.

Used by the modules beside it: `nftables` and `conditional` say what these are for.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel.netfilter.constant_rules import ConstantChain
from pycni.kernel.netfilter.nfnetlink import PROTOCOL_NAMES, PROTOCOLS
from pycni.kernel.netfilter.subnet_sets import Feature, Member
from pycni.spec.ip import IPAddress, IPNetwork
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netfilter.nfnetlink import Element
    from pycni.plan.steps import PortMap, PortMapping

ANY = {AF_INET: "port-map4", AF_INET6: "port-map6"}
ADDRESS = {AF_INET: "port-map-address4", AF_INET6: "port-map-address6"}
MAPS = (*ANY.values(), *ADDRESS.values())

MAIN = "port-map"
MARKS = "port-map-marks"
CONDITIONAL = "port-map-conditional"
OWN = {AF_INET: "port-map-if4-", AF_INET6: "port-map-if6-"}  # chains of containers with conditions

# What is masqueraded must have been translated here, and not by other software. So a packet that
# may have to be is marked on the way to the maps, which what others have translated never gets to;
# the mark is looked at when it leaves, and means nothing anywhere else. The reference's bit is 13.
MARK = 1 << 12
_OTHERS = 0xFFFFFFFF ^ MARK

# Behind other NAT of the host at the same hooks, so that a service's address stays the service's.
_DESTINATION_PRIORITY = -99

_PORT_TYPE = "inet_proto . inet_service"

# Of the maps: what their keys and their data are.
TYPES = {
    ANY[AF_INET]: (_PORT_TYPE, "ipv4_addr . inet_service"),
    ANY[AF_INET6]: (_PORT_TYPE, "ipv6_addr . inet_service"),
    ADDRESS[AF_INET]: (f"ipv4_addr . {_PORT_TYPE}", "ipv4_addr . inet_service"),
    ADDRESS[AF_INET6]: (f"ipv6_addr . {_PORT_TYPE}", "ipv6_addr . inet_service"),
}
DECLARATIONS = (
    *(f"map {name} {{ type {key} : {data}; }}" for name, (key, data) in TYPES.items()),
    f"chain {CONDITIONAL}",
    f"chain {MARKS}",
)

# What is for all addresses of the host is not for these: by a link-local address neighbours mean
# the host itself, and ::1 can lead nowhere. The kernel takes what is for it from no other link, so
# no answer gets back, masqueraded or not; what route_localnet is for IPv4 there is not.
NOT_FOR_ALL = ("::1/128", "fe80::/10")
NOT_ANY6 = f"ip6 daddr != {{ {', '.join(NOT_FOR_ALL)} }}"

_PORT = "meta l4proto . th dport"
CHAINS = (
    ConstantChain(
        "port-map-localnet",
        # A VRF's own localhost comes in by the VRF's link.
        {"martians": 'ip daddr 127.0.0.0/8 iif != "lo" meta iifkind != "vrf" drop'},
        "type filter hook prerouting priority raw",
    ),
    ConstantChain(
        MAIN,
        {
            "marks": f"jump {MARKS}",
            "conditional": f"jump {CONDITIONAL}",
            "address IPv4": f"dnat ip to ip daddr . {_PORT} map @{ADDRESS[AF_INET]}",
            "any IPv4": f"meta nfproto ipv4 dnat ip to {_PORT} map @{ANY[AF_INET]}",
            "address IPv6": f"dnat ip6 to ip6 daddr . {_PORT} map @{ADDRESS[AF_INET6]}",
            "any IPv6": f"{NOT_ANY6} dnat ip6 to {_PORT} map @{ANY[AF_INET6]}",
            # Only what was not translated gets here.
            "no marks": f"meta mark & {MARK:#x} != 0 meta mark set meta mark & {_OTHERS:#x}",
        },
    ),
    *(
        ConstantChain(
            f"port-map-{hook}",
            {"to the host": f"fib daddr type local goto {MAIN}"},
            f"type nat hook {hook} priority {_DESTINATION_PRIORITY}",
        )
        for hook in ("prerouting", "output")
    ),
)

# By where a packet comes from that is masqueraded; the subnet of all is for `masquerade_all`.
_FROM = {AF_INET: "ip saddr {{ 127.0.0.0/8, {subnet} }}", AF_INET6: "ip6 saddr {subnet}"}
_TO = {
    AF_INET: "meta l4proto . ip daddr . th dport",
    AF_INET6: "meta l4proto . ip6 daddr . th dport",
}
SOURCES = Feature(
    "port-map-from-",
    {
        AF_INET: "inet_proto . ipv4_addr . inet_service",
        AF_INET6: "inet_proto . ipv6_addr . inet_service",
    },
    "port-map-postrouting",
    {
        family: f"ct status dnat meta mark & {MARK:#x} != 0 {_TO[family]} @{{set}}"
        f" {_FROM[family]} masquerade"
        for family in (AF_INET, AF_INET6)
    },
    MARKS,
    {
        family: f"{_FROM[family]} meta mark set meta mark | {MARK:#x}"
        for family in (AF_INET, AF_INET6)
    },
    label="marked",
)


PORT_SIZE = 4  # bytes of a port in a concatenation

# Chains and tables of other backends: of iptables, and of the reference's backend nftables.
DNAT = "CNI-HOSTPORT-DNAT"
REFERENCE_TABLE = "cni_hostport"
REFERENCE_FOR_ALL = "hostports"  # all addresses of the host; there if the other one is
REFERENCE_FOR_ONE = "hostip_hostports"  # one of them, asked first
REFERENCE_MASQUERADING = "masquerading"


class MappedFlow(Record):
    """Flows to a port of the host, by one address of it or (None) any, that lead to a container."""

    protocol: str
    port: int
    address: IPAddress | None
    target: IPAddress


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


def flows(step: PortMap) -> list[MappedFlow]:
    """The flows that the step's mappings lead to the container."""
    return [
        MappedFlow(mapping.protocol, mapping.host_port, host_address(mapping), network.address)
        for network in step.addresses
        for mapping in applicable(step, network.family)
    ]


def host_address(mapping: PortMapping) -> IPAddress | None:
    """The one address of the host that a mapping is for, None for all."""
    address = mapping.host_ip
    return None if address is None or address.is_unspecified else address


def is_for_all(address: IPAddress) -> bool:
    """Whether an address of the host is one of those that a mapping for all is for."""
    return address.is_ipv4 or not (address.is_loopback or address.is_link_local)


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
            flow = MappedFlow(
                mapping.protocol, mapping.host_port, host_address(mapping), network.address
            )
            place, key = place_of(flow)
            target = network.address.packed + _port(mapping.container_port)
            found.setdefault((place, key), Entry(place, key, target))
    return list(found.values())


def place_of(flow: MappedFlow) -> tuple[str, bytes]:
    """The map that may lead flows to a container, and the key of their element there."""
    family, key = flow.target.family, key_of(flow.protocol, flow.port)
    if flow.address is None:
        return ANY[family], key
    return ADDRESS[family], flow.address.packed + key


def decoded(element: Element) -> tuple[MappedFlow, int]:
    """The flows that an element of a map leads to a container, and the container's port."""
    key, data = element.key, element.data
    flow = MappedFlow(
        PROTOCOL_NAMES.get(key[-2 * PORT_SIZE], ""),
        int.from_bytes(key[-PORT_SIZE:][:2], "big"),
        IPAddress(key[: -2 * PORT_SIZE]) if len(key) > 2 * PORT_SIZE else None,
        IPAddress(data[:-PORT_SIZE]),
    )
    return flow, int.from_bytes(data[-PORT_SIZE:][:2], "big")


def key_of(protocol: str, port: int) -> bytes:
    """How the keys of maps end."""
    return _protocol(protocol) + _port(port)


def port_text(protocol: str, port: int, host: IPAddress | None, family: int) -> str:
    """A port of the host for people: `host port 8080/tcp of 192.0.2.1`."""
    version = "IPv4" if family == AF_INET else "IPv6"
    where = f" of {host}" if host is not None else f" ({version})"
    return f"host port {port}/{protocol}{where}"


def sources(step: PortMap) -> list[Member]:
    """The ports of the container, for the sets of who is masqueraded on the way there."""
    found: dict[bytes, Member] = {}
    for network in step.addresses if step.snat else ():
        subnet = IPNetwork(network.address, 0 if step.masquerade_all else network.prefix).network
        for mapping in applicable(step, network.family):
            # Several ports of the host may lead to one of the container.
            port = mapping.container_port
            key = _protocol(mapping.protocol) + network.address.packed + _port(port)
            text = f"{network.address} port {port}/{mapping.protocol}"
            found.setdefault(key, Member(subnet, key, text))
    return list(found.values())


def _protocol(name: str) -> bytes:
    """A protocol as part of a concatenation, whose parts are of four bytes each."""
    return bytes((PROTOCOLS[name], 0, 0, 0))


def _port(number: int) -> bytes:
    """A port as part of a concatenation."""
    return number.to_bytes(2, "big") + b"\0\0"
