"""bridge: plugs the sandbox into a bridge on the host through a veth pair.

What it makes for an attachment stands in `BridgePlugin.plan`, in order. The bridge, its gateway
address and the host's forwarding are shared by attachments and stay; DEL removes the rest.
"""

from __future__ import annotations

from pycni.kernel.netlink.constants import RT_TABLE_MAIN
from pycni.plan.plan import Plan, Reported
from pycni.plan.steps import (
    HOST,
    SANDBOX,
    Bridge,
    BridgePort,
    GatewayAddress,
    GratuitousARP,
    LinkUp,
    Masquerade,
    PortRunning,
    SpoofGuard,
    Sysctl,
    VethPair,
    VLANGateway,
    VLANs,
)
from pycni.plugins.shared import masquerading
from pycni.sdk.addressing import announce, configure, own_addresses, wait_for_dad, with_gateway
from pycni.sdk.interface import InterfacePlugin
from pycni.sdk.mac import MACConf, mac_from_ip, mac_of_owner, requested_mac
from pycni.sdk.veth_name import host_end
from pycni.spec.errors import UNAVAILABLE, CNIError, invalid_config
from pycni.spec.ip import IPNetwork, default_network
from pycni.spec.names import MAX_INTERFACE_NAME, check_interface_name
from pycni.spec.result import Route
from pycni.spec.schema import Config, Flag, Integer, ListOf, Object, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import ClassVar

    from pycni.plan.steps import Step
    from pycni.sdk.request import Request
    from pycni.spec.result import IPConfig, Result
    from pycni.steps.namespaces import HostAndSandbox

MAX_VLAN = 4094


class TrunkItem(Config):
    """One item of vlanTrunk: a range of VLANs, a single one, or both."""

    min_id: int | None = field("minID", Integer(), None, doc="first VLAN of a range, 1 to 4094")
    max_id: int | None = field("maxID", Integer(), None, doc="last VLAN of the range, 1 to 4094")
    id: int | None = field("id", Integer(), None, doc="a single VLAN, 1 to 4094")

    def validate(self) -> None:
        if self.min_id is not None and self.max_id is not None:
            if not 0 < self.min_id <= MAX_VLAN:
                raise _bad_trunk("incorrect trunk minID parameter", self.min_id)
            if not 0 < self.max_id <= MAX_VLAN:
                raise _bad_trunk("incorrect trunk maxID parameter", self.max_id)
            if self.max_id < self.min_id:
                raise _bad_trunk("minID is greater than maxID in trunk parameter", self.min_id)
        elif self.min_id is not None or self.max_id is not None:
            missing = "minID" if self.min_id is None else "maxID"
            raise invalid_config(
                f"minID and maxID should be configured simultaneously, {missing} is missing",
                'a range in "vlanTrunk" has both ends; a single VLAN is "id"',
            )
        if self.id is not None and not 0 < self.id <= MAX_VLAN:
            raise _bad_trunk("incorrect trunk id parameter", self.id)


class BridgeConfig(MACConf):
    """The keys of bridge."""

    bridge: str = field("bridge", Text(), "cni0", doc="name of the bridge on the host")
    is_gateway: bool = field(
        "isGateway",
        Flag(),
        False,
        doc="the bridge has the gateway's address, and the host forwards",
    )
    is_default_gateway: bool = field(
        "isDefaultGateway", Flag(), False, doc="the same, and a default route through it"
    )
    force_address: bool = field(
        "forceAddress",
        Flag(),
        False,
        doc="replace a conflicting address of the bridge instead of failing",
    )
    ip_masq: bool = masquerading.IP_MASQ
    ip_masq_backend: str = masquerading.IP_MASQ_BACKEND
    mtu: int = field(
        "mtu",
        Integer(0, 65535),
        0,
        doc="bytes, of the pair, and of a bridge that is made",
        default_doc="the kernel's choice",
    )
    hairpin_mode: bool = field(
        "hairpinMode", Flag(), False, doc="the container can reach itself through the bridge"
    )
    promisc_mode: bool = field(
        "promiscMode",
        Flag(),
        False,
        doc="the bridge is promiscuous; not together with `hairpinMode`",
    )
    vlan: int = field(
        "vlan", Integer(), 0, doc="the container's VLAN, untagged, 0 to 4094; 0 for none"
    )
    vlan_trunk: tuple[TrunkItem, ...] | None = field(
        "vlanTrunk",
        ListOf(Object(TrunkItem)),
        None,
        doc="VLANs that reach the container tagged: ranges, and single ones",
    )
    preserve_default_vlan: bool = field(
        "preserveDefaultVlan", Flag(), False, doc="the port keeps the bridge's default VLAN too"
    )
    macspoofchk: bool = field(
        "macspoofchk", Flag(), False, doc="frames with a forged source MAC address are dropped"
    )
    enable_dad: bool = field(
        "enabledad",
        Flag(),
        False,
        doc="IPv6 addresses are probed for duplicates first; ADD waits for it",
    )
    disable_container_interface: bool = field(
        "disableContainerInterface",
        Flag(),
        False,
        doc="the container's end stays down; not together with `ipam`",
    )
    port_isolation: bool = field(
        "portIsolation", Flag(), False, doc="isolated ports do not reach each other"
    )

    @property
    def gateway(self) -> bool:
        return self.is_gateway or self.is_default_gateway

    @property
    def filters_vlans(self) -> bool:
        return self.vlan != 0 or self.vlan_trunk is not None

    @property
    def vlans(self) -> VLANs:
        return VLANs(self.vlan, trunk_ranges(self.vlan_trunk or ()), self.preserve_default_vlan)

    @property
    def gateway_link(self) -> str:
        """The host interface that carries the gateway's address."""
        return f"{self.bridge}.{self.vlan}" if self.vlan else self.bridge

    def validate(self) -> None:
        try:
            check_interface_name(self.bridge)
        except CNIError as error:
            raise invalid_config(
                f'"{self.bridge}" in "bridge" is not a name for an interface: {error.message}',
                error.details or f"a name is 1 to {MAX_INTERFACE_NAME} bytes, such as cni0",
            ) from None
        if not 0 <= self.vlan <= MAX_VLAN:
            raise invalid_config(
                f"invalid VLAN ID {self.vlan} (must be between 0 and {MAX_VLAN})",
                'see "vlan"; 0 means none',
            )
        for item in self.vlan_trunk or ():
            item.validate()
        if self.ipam_type and self.disable_container_interface:
            raise invalid_config(
                "cannot use IPAM when DisableContainerInterface flag is set",
                'an interface that stays down has no use for addresses: drop "ipam" or '
                '"disableContainerInterface"',
            )
        if self.hairpin_mode and self.promisc_mode:
            raise invalid_config(
                "cannot set hairpin mode and promiscuous mode at the same time",
                'drop "hairpinMode" or "promiscMode": together they return every frame twice',
            )
        masquerading.check_backend(self.ip_masq_backend)
        if self.gateway and len(self.gateway_link.encode()) > MAX_INTERFACE_NAME:
            raise invalid_config(
                f'interface name "{self.gateway_link}" is too long',
                f"the VLAN's gateway interface is named BRIDGE.VLAN, {MAX_INTERFACE_NAME} bytes "
                'at most: give "bridge" a shorter name',
            )


class BridgePlugin(InterfacePlugin):
    """A veth pair into a bridge."""

    type: ClassVar[str] = "bridge"
    config = BridgeConfig
    kinds: ClassVar[tuple[str, ...]] = ("veth", "spoof_guard", "masquerade")

    def fill_in_gateways(self, config: BridgeConfig, network: Result) -> Result:
        """Fill in gateways that the address plugin left open, and default routes if asked for."""
        if not config.gateway:
            return network
        ips = tuple(map(with_gateway, own_addresses(network)))
        routes = network.routes
        if config.is_default_gateway:
            for entry in ips:
                routes = _with_default(routes, entry)
        return network.replace(ips=ips, routes=routes)

    def check_status(self, config: BridgeConfig, kernel: HostAndSandbox) -> None:
        found = kernel.host.find(config.bridge, altnames=True)
        if found is not None and found.kind != "bridge":
            raise CNIError(
                UNAVAILABLE,
                f'"{config.bridge}" already exists but is not a bridge',
                f"it is {found.kind or 'a hardware interface'}; "
                'name another bridge in "bridge", or remove that interface',
            )

    def plan(self, request: Request, config: BridgeConfig, network: Result) -> Plan:
        outer = host_end(request, network, config.bridge, config.gateway_link)
        mac = _mac(request, config, network)
        gateways = _gateways(config, network)
        steps = [
            *_bridge(config, gateways),
            *_port(request, config, outer, mac),
            *_container(request.ifname, config, network, mac),
            *_running(request.ifname, config, network, outer, mac),
            *_masquerade(request, config, network),
            *masquerading.forwarding({gateway.family for gateway in gateways}),
        ]
        interfaces = [
            Reported(HOST, config.bridge),
            Reported(HOST, outer),
            Reported(SANDBOX, request.ifname),
        ]
        if gateways and config.vlan:
            interfaces.append(Reported(HOST, config.gateway_link))
        return Plan(tuple(steps), tuple(interfaces))


def _gateways(config: BridgeConfig, network: Result) -> tuple[IPNetwork, ...]:
    """The host's own addresses: the container's gateways, if the host is to be that."""
    return tuple(
        IPNetwork(entry.gateway, entry.address.prefix)
        for entry in network.ips
        if config.gateway and entry.gateway is not None
    )


def _bridge(config: BridgeConfig, gateways: tuple[IPNetwork, ...]) -> Iterator[Step]:
    """What attachments share: the bridge, and the host's addresses on it or on a VLAN of it."""
    yield Bridge(
        config.bridge,
        config.mtu,
        config.filters_vlans,
        config.promisc_mode,
        mcast_snooping=not gateways,
    )
    if gateways and config.vlan:
        vlans = VLANs(config.vlan, keep_default=config.preserve_default_vlan)
        yield VLANGateway(config.gateway_link, config.bridge, vlans)
    if gateways:
        yield GatewayAddress(config.gateway_link, gateways, config.force_address)


def _port(request: Request, config: BridgeConfig, outer: str, mac: str) -> Iterator[Step]:
    """The pair, whose outer end is a port of the bridge, and what guards that."""
    port = BridgePort(config.bridge, config.hairpin_mode, config.port_isolation, config.vlans)
    yield VethPair(request.owner, request.ifname, outer, config.mtu, mac, port)
    if config.macspoofchk:
        yield SpoofGuard(request.owner, outer, mac)


def _container(ifname: str, config: BridgeConfig, network: Result, mac: str) -> list[Step]:
    """The settings, addresses and routes of the container's interface, which comes up with them."""
    if not config.ipam_type:
        return [] if config.disable_container_interface else [LinkUp(SANDBOX, ifname)]
    steps: list[Step] = []
    # In a network without IPv6 whose router this host is, no container has a use for link-local
    # addresses, and each would be announced to every port of the bridge.
    link_local = config.enable_dad or not config.gateway or _has_ipv6(network)
    if link_local:
        steps += _probing(ifname, config.enable_dad)
    if config.gateway:
        # Any other that says it is the router is another container (CVE-2020-10749).
        steps.append(Sysctl(SANDBOX, f"net/ipv6/conf/{ifname}/accept_ra", "0"))
    if not is_mac_from_ip(mac, network):
        steps += announce(ifname)
    return steps + configure(ifname, network, dad=config.enable_dad, link_local=link_local)


def _running(
    ifname: str, config: BridgeConfig, network: Result, outer: str, mac: str
) -> Iterator[Step]:
    """Wait until the bridge forwards for the port, which carries what the next ones send."""
    if not config.disable_container_interface:
        yield PortRunning(outer)
    if config.ipam_type:
        yield from wait_for_dad(ifname, network)
        if not is_mac_from_ip(mac, network):
            yield GratuitousARP(SANDBOX, ifname)


def _masquerade(request: Request, config: BridgeConfig, network: Result) -> Iterator[Step]:
    if not (config.ip_masq and config.ipam_type):
        return
    ips = network.ips
    if request.command == "CHECK":
        # What a later plugin added is not masqueraded. It comes last, without a gateway.
        ips = own_addresses(network) or ips[:1]
    addresses = tuple(entry.address for entry in ips)
    yield Masquerade(request.owner, addresses, config.ip_masq_backend)


def _with_default(routes: tuple[Route, ...], entry: IPConfig) -> tuple[Route, ...]:
    """Routes with a default one by an address's gateway, unless they have one of their own.

    That one keeps its settings; where it leaves its gateway open, this is the gateway.
    """
    default = default_network(entry.address.family)
    if not any(_is_default(route, default) for route in routes):
        return (*routes, Route(dst=default, gw=entry.gateway))
    return tuple(
        route.replace(gw=entry.gateway)
        if _is_default(route, default) and route.gw is None and route.scope is None
        else route
        for route in routes
    )


def _is_default(route: Route, default: IPNetwork) -> bool:
    """Whether a route is the default one of the main table."""
    return route.dst == default and route.table in (None, 0, RT_TABLE_MAIN)


def trunk_ranges(items: tuple[TrunkItem, ...]) -> tuple[tuple[int, int], ...]:
    """The VLANs of vlanTrunk as ranges (first, last), in order, merged."""
    ranges = [
        (item.min_id, item.max_id)
        for item in items
        if item.min_id is not None and item.max_id is not None
    ]
    ranges += [(item.id, item.id) for item in items if item.id is not None]
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _mac(request: Request, config: BridgeConfig, network: Result) -> str:
    """The container's MAC address: a container, which can change it, is never asked.

    It is the one that the result lists, which a later plugin may have set; at ADD, if none is asked
    for, one made from the IPv4 address. The next container with that address has the same MAC
    address, so neighbours that remember it are not mistaken, and it need not be announced, which
    costs a frame to every port of the bridge. "" if nothing says, which is after ADD only.
    """
    seen = [item.mac for item in network.interfaces if item.sandbox and item.name == request.ifname]
    asked = requested_mac(config, request.args)
    if request.command != "ADD":
        return next(iter(seen), "") or asked
    if asked or seen:
        return asked or mac_of_owner(request.owner)
    from_ip = (mac_from_ip(entry.address) for entry in network.ips if entry.address.is_ipv4)
    return next(from_ip, "") or mac_of_owner(request.owner)


def is_mac_from_ip(mac: str, network: Result) -> bool:
    """Whether all addresses of the container are the one that its MAC address is made from."""
    return all(entry.address.is_ipv4 and mac == mac_from_ip(entry.address) for entry in network.ips)


def _has_ipv6(network: Result) -> bool:
    return not all(entry.address.is_ipv4 for entry in network.ips)


def _bad_trunk(message: str, value: int) -> Exception:
    return invalid_config(message, f'{value} in "vlanTrunk": VLANs are numbered 1 to {MAX_VLAN}')


def _probing(ifname: str, wanted: bool) -> list[Step]:
    """Duplicate address detection for IPv6 in the container: the address plugin rules it out."""
    conf = f"net/ipv6/conf/{ifname}"
    if wanted:
        return [
            Sysctl(SANDBOX, f"{conf}/enhanced_dad", "1"),
            Sysctl(SANDBOX, f"{conf}/accept_dad", "1"),
        ]
    return [Sysctl(SANDBOX, f"{conf}/accept_dad", "0")]


plugin = BridgePlugin()
