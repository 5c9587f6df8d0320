"""The steps that give an interface its addresses and routes, whatever its kind."""

from __future__ import annotations

from _socket import AF_INET6

from pycni.kernel.netlink.constants import RT_SCOPE_LINK
from pycni.plan.steps import SANDBOX, Address, LinkUp, Route, Settled, Sysctl
from pycni.spec.ip import IPAddress, host_network
from pycni.spec.result import gateway_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import Step
    from pycni.spec.result import IPConfig, Result
    from pycni.spec.result import Route as ResultRoute


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
    (arp_notify, ndisc_notify). dad: have the kernel look for duplicates of IPv6 addresses first,
    which delays them by a second or two; `settle` waits for it. by_gateway: the gateways alone are
    on the link, even the rest of an address's own network is reached through them. link_local:
    whether the interface gets an IPv6 link-local address as well.
    """
    steps: list[Step] = []
    if any(entry.address.family == AF_INET6 for entry in network.ips):
        steps += [
            Sysctl(SANDBOX, "net/ipv6/conf/lo/disable_ipv6", "0"),
            Sysctl(SANDBOX, f"net/ipv6/conf/{link}/disable_ipv6", "0"),
            Sysctl(SANDBOX, f"net/ipv6/conf/{link}/keep_addr_on_down", "1"),
        ]
    steps += [Address(SANDBOX, link, entry.address, dad, not by_gateway) for entry in network.ips]
    steps.append(LinkUp(SANDBOX, link, link_local))
    if by_gateway:
        for entry in network.ips:
            steps += _to_gateway(link, entry)
    steps += [
        Route(
            SANDBOX,
            link,
            route.dst,
            gw=_gateway(route, network),
            priority=route.priority,
            table=route.table,
            scope=route.scope,
            mtu=route.mtu,
            advmss=route.advmss,
        )
        for route in network.routes
    ]
    return steps


def _gateway(route: ResultRoute, network: Result) -> IPAddress | None:
    """0.0.0.0, as dhcp gives it, and :: say that the destination itself is on the link."""
    gateway = route.gw or gateway_of(network, route.dst)
    return None if gateway is None or gateway.is_unspecified else gateway


def own_addresses(network: Result) -> tuple[IPConfig, ...]:
    """The addresses of a plugin that gives each of its own a gateway.

    What a plugin later in the chain added to the interface, as prevResult tells, has none.
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
    """Have neighbours told of the interface's addresses when it comes up.

    The kernel does so at once, when a bridge does not forward for it yet: see `Announced`.
    """
    return [
        Sysctl(SANDBOX, f"net/ipv4/conf/{link}/arp_notify", "1"),
        Sysctl(SANDBOX, f"net/ipv6/conf/{link}/ndisc_notify", "1"),
    ]


def settle(link: str, network: Result) -> list[Step]:
    """Wait until the IPv6 addresses can be used, the link-local one too.

    Without `dad` (above) that is a matter of microseconds.
    """
    if any(entry.address.family == AF_INET6 for entry in network.ips):
        return [Settled(SANDBOX, link)]
    return []
