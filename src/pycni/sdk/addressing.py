"""The steps that give an interface its addresses and routes, whatever its kind."""

from __future__ import annotations

from _socket import AF_INET6

from pycni.kernel.netlink.constants import RT_SCOPE_LINK
from pycni.plan.steps import SANDBOX, Address, DADFinished, LinkSettings, LinkUp, Route, Sysctl
from pycni.spec.ip import IPAddress, host_network
from pycni.spec.result import gateway_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import Step
    from pycni.spec.result import IPConfig, Result
    from pycni.spec.result import Route as ResultRoute

    Hop = tuple[ResultRoute, IPAddress | None]


def configure(
    link: str,
    network: Result,
    *,
    dad: bool = False,
    by_gateway: bool = False,
    link_local: bool = True,
) -> list[Step]:
    """Addresses, then up, then routes, for the interface `link` in the sandbox.

    The addresses come first so that the kernel announces them when the interface comes up
    (arp_notify, ndisc_notify); before them an MTU that the address plugin gave it. dad: have the
    kernel look for duplicates of IPv6 addresses first, which delays them by a second or two;
    `wait_for_dad` waits for it. by_gateway: the gateways alone are on the link, even the rest of an
    address's own network is reached through them. link_local: whether the interface gets an IPv6
    link-local address as well.
    """
    steps: list[Step] = []
    if any(entry.address.family == AF_INET6 for entry in network.ips):
        steps += [
            Sysctl(SANDBOX, "net/ipv6/conf/lo/disable_ipv6", "0"),
            Sysctl(SANDBOX, f"net/ipv6/conf/{link}/disable_ipv6", "0"),
            Sysctl(SANDBOX, f"net/ipv6/conf/{link}/keep_addr_on_down", "1"),
        ]
    if mtu := listed_mtu(network, link):
        steps.append(LinkSettings(SANDBOX, link, mtu=mtu))
    steps += [Address(SANDBOX, link, entry.address, dad, not by_gateway) for entry in network.ips]
    steps.append(LinkUp(SANDBOX, link, link_local))
    if by_gateway:
        for entry in network.ips:
            steps += _to_gateway(link, entry)
    hops = [(route, gateway_of(network, route)) for route in network.routes]
    # Those on the link first: others lead through what they make reachable.
    hops.sort(key=lambda item: item[1] is not None)
    if not by_gateway:
        steps += _off_link_gateways(link, network, hops)
    steps += [
        Route(
            SANDBOX,
            link,
            route.dst,
            gw=gateway,
            priority=route.priority,
            table=route.table,
            scope=_scope(route, gateway),
            mtu=route.mtu,
            advmss=route.advmss,
        )
        for route, gateway in hops
    ]
    return steps


def configure_announced(link: str, network: Result, *, announced: bool = True) -> list[Step]:
    """`configure` on a network of other machines: announced, free of duplicates, and waited for."""
    return [
        *(announce(link) if announced else ()),
        *configure(link, network, dad=True),
        *wait_for_dad(link, network),
    ]


def listed_mtu(network: Result, link: str) -> int:
    """The MTU that an address plugin gave the interface `link` in the sandbox, 0 for none."""
    return next((item.mtu for item in network.interfaces if item.sandbox and item.name == link), 0)


def _scope(route: ResultRoute, gateway: IPAddress | None) -> int | None:
    """The scope of a route: of one to neighbours that others may lead through, as `ip` has it."""
    if route.scope is None and gateway is None and route.dst.is_ipv4:
        return RT_SCOPE_LINK
    return route.scope


def _off_link_gateways(link: str, network: Result, hops: list[Hop]) -> list[Step]:
    """Routes to gateways that no address and no route makes neighbours, as DHCP clients do it.

    They are those of addresses, and where the addresses of a family have no subnet, as clouds give
    them out, those of routes. Others are slips, which the kernel refuses.
    """
    listed = [entry.gateway for entry in network.ips]
    used = [gateway for _, gateway in hops]
    listed += [one for one in used if one is not None and _is_alone(network, one.family)]
    on_link = [entry.address for entry in network.ips]
    on_link += [route.dst for route, gateway in hops if gateway is None and not route.table]
    return [
        Route(
            SANDBOX, link, host_network(gateway), scope=RT_SCOPE_LINK if gateway.is_ipv4 else None
        )
        for gateway in dict.fromkeys(listed)
        if gateway is not None
        and gateway in used
        and not gateway.is_link_local
        and not any(item.contains(gateway) for item in on_link)
    ]


def _is_alone(network: Result, family: int) -> bool:
    """Whether all addresses of a family are without a subnet: /32, /128."""
    return all(
        entry.address.prefix == entry.address.address.bits
        for entry in network.ips
        if entry.address.family == family
    )


def own_addresses(network: Result) -> tuple[IPConfig, ...]:
    """The addresses of a plugin that gives each of its own a gateway.

    What a plugin later in the chain added to the interface, as prevResult shows, has none.
    """
    if not network.interfaces:
        return network.ips
    return tuple(entry for entry in network.ips if entry.gateway is not None)


def with_gateway(entry: IPConfig) -> IPConfig:
    """An address with its gateway, by default the first address of its network."""
    if entry.gateway is not None:
        return entry
    first = IPAddress.from_int(entry.address.first + 1, entry.address.family)
    return entry.replace(gateway=first)


def _to_gateway(link: str, entry: IPConfig) -> list[Step]:
    address, gateway = entry.address, entry.gateway
    if gateway is None:
        return []
    source = address.address
    steps: list[Step] = [
        Route(SANDBOX, link, host_network(gateway), src=source, scope=RT_SCOPE_LINK)
    ]
    if address.prefix < source.bits:
        steps.append(Route(SANDBOX, link, address.network, gw=gateway, src=source))
    return steps


def announce(link: str) -> list[Step]:
    """Have the interface's addresses announced to neighbours when it comes up.

    The kernel does so at once, when a bridge does not forward for it yet: see `GratuitousARP`.
    """
    return [
        Sysctl(SANDBOX, f"net/ipv4/conf/{link}/arp_notify", "1", lasting=False),
        Sysctl(SANDBOX, f"net/ipv6/conf/{link}/ndisc_notify", "1", lasting=False),
    ]


def wait_for_dad(link: str, network: Result) -> list[Step]:
    """Wait until the IPv6 addresses can be used, the link-local one too.

    Without `dad` (above) that is a matter of microseconds.
    """
    if any(entry.address.family == AF_INET6 for entry in network.ips):
        return [DADFinished(SANDBOX, link)]
    return []
