"""ptp: a veth pair between sandbox and host, and nothing between containers but the host's routes.

What it makes for an attachment stands in `PtpPlugin.plan`, in order. The host's forwarding stays;
DEL removes the rest.
"""

from __future__ import annotations

from _socket import AF_INET6

from pycni.kernel.netlink.constants import RT_SCOPE_HOST
from pycni.plan.plan import Plan, Reported
from pycni.plan.steps import (
    HOST,
    SANDBOX,
    Address,
    Masquerade,
    Route,
    Sysctl,
    VethPair,
)
from pycni.plugins.shared import masquerading
from pycni.sdk.addressing import configure, own_addresses, with_gateway
from pycni.sdk.interface import InterfacePlugin
from pycni.sdk.veth_name import host_end
from pycni.spec.config import NetConf
from pycni.spec.errors import invalid_config
from pycni.spec.ip import host_network
from pycni.spec.schema import Integer, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.plan.steps import Step
    from pycni.sdk.request import Request
    from pycni.spec.result import IPConfig, Result


class PtpConfig(NetConf):
    """The keys of ptp."""

    ip_masq: bool = masquerading.IP_MASQ
    ip_masq_backend: str = masquerading.IP_MASQ_BACKEND
    mtu: int = field(
        "mtu", Integer(0, 65535), 0, doc="bytes, of both ends", default_doc="the kernel's choice"
    )

    def validate(self) -> None:
        masquerading.check_backend(self.ip_masq_backend)


class PtpPlugin(InterfacePlugin):
    """A veth pair that the host routes to."""

    type: ClassVar[str] = "ptp"
    config = PtpConfig
    needs_ipam: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("veth", "masquerade")

    def fill_in_gateways(self, config: PtpConfig, network: Result) -> Result:
        """Fill in gateways that the address plugin left open, where the subnet has one to give."""
        return network.replace(ips=tuple(map(_with_gateway, own_addresses(network))))

    def plan(self, request: Request, config: PtpConfig, network: Result) -> Plan:
        owner, ifname = request.owner, request.ifname
        outer = host_end(request, network)
        steps: list[Step] = [VethPair(owner, ifname, outer, config.mtu)]
        if any(entry.address.family == AF_INET6 for entry in network.ips):
            # No one else is on the link whose address it could be.
            steps.append(Sysctl(HOST, f"net/ipv6/conf/{outer}/accept_dad", "0"))
            steps.append(Sysctl(SANDBOX, f"net/ipv6/conf/{ifname}/accept_dad", "0"))
        host_side = [step for entry in network.ips for step in _host_side(request, outer, entry)]
        # Addresses may share a gateway.
        steps += [step for at, step in enumerate(host_side) if step not in host_side[:at]]
        steps += configure(ifname, network, by_gateway=True)
        addresses = tuple(entry.address for entry in network.ips)
        if config.ip_masq:
            steps.append(Masquerade(owner, addresses, config.ip_masq_backend))
        steps += masquerading.forwarding({address.family for address in addresses})
        return Plan(tuple(steps), (Reported(HOST, outer), Reported(SANDBOX, ifname)))


def _host_side(request: Request, outer: str, entry: IPConfig) -> list[Step]:
    """The gateway's address on the host's end, and the route to the container's."""
    address, gateway = entry.address.address, entry.gateway
    if gateway is None or gateway == address:
        if request.command != "ADD":
            return []
        raise invalid_config(
            f"ptp needs a gateway for {entry.address}",
            'it is the host\'s address on the link; give it in "ipam"',
        )
    return [
        Address(HOST, outer, host_network(gateway)),
        Route(HOST, outer, host_network(address), scope=RT_SCOPE_HOST),
    ]


def _with_gateway(entry: IPConfig) -> IPConfig:
    alone = entry.address.prefix >= entry.address.address.bits - 1
    return entry if alone else with_gateway(entry)


plugin = PtpPlugin()
