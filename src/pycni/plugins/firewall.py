"""firewall: the host forwards what the container sends, and the answers to it.

With an ingressPolicy it also keeps the containers of other bridges, or of the same one, away. What
it makes stands in `FirewallPlugin.plan`; what bridges share stays, DEL removes the rest.
"""

from __future__ import annotations

from pycni.plan.plan import Plan
from pycni.plan.steps import Firewall, IngressPolicy, PortIsolation
from pycni.plugins.shared.chain_name import check_chain_name
from pycni.sdk.chained import ChainedPlugin
from pycni.spec import versions
from pycni.spec.config import NetConf
from pycni.spec.errors import CNIError, invalid_config
from pycni.spec.names import check_interface_name
from pycni.spec.schema import Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.plan.steps import Step
    from pycni.sdk.request import Request
    from pycni.spec.result import Result

BACKENDS = ("iptables", "firewalld", "nftables")
SAME_BRIDGE, ISOLATED = "same-bridge", "isolated"
POLICIES = ("", "open", SAME_BRIDGE, ISOLATED)


class FirewallConfig(NetConf):
    """The keys of firewall."""

    backend: str = field(
        "backend",
        Text(),
        "",
        doc="`iptables`, `firewalld` or `nftables`",
        default_doc="the one that decides on this host",
    )
    iptables_admin_chain_name: str = field(
        "iptablesAdminChainName",
        Text(),
        "CNI-ADMIN",
        doc="iptables: your chain, whose rules come first",
    )
    firewalld_zone: str = field(
        "firewalldZone", Text(), "trusted", doc="firewalld: the zone for the container's addresses"
    )
    ingress_policy: str = field(
        "ingressPolicy",
        Text(),
        "open",
        doc="who reaches the container: `open`, `same-bridge` or `isolated`",
    )

    @property
    def admin_chain(self) -> str:
        return self.iptables_admin_chain_name or "CNI-ADMIN"

    @property
    def zone(self) -> str:
        return self.firewalld_zone or "trusted"

    def validate(self) -> None:
        if self.backend and self.backend not in BACKENDS:
            raise invalid_config(
                f'unrecognized backend "{self.backend}"',
                'expected "iptables", "firewalld" or "nftables"',
            )
        if self.ingress_policy not in POLICIES:
            raise invalid_config(
                f'unknown ingress policy: "{self.ingress_policy}"',
                'expected "open", "same-bridge" or "isolated"',
            )
        check_chain_name("iptablesAdminChainName", self.admin_chain)


class FirewallPlugin(ChainedPlugin):
    """The firewall's part for the addresses that the plugins before gave the container."""

    type: ClassVar[str] = "firewall"
    versions: ClassVar[tuple[str, ...]] = versions.since("0.4.0")
    config = FirewallConfig
    kinds: ClassVar[tuple[str, ...]] = ("firewall", "ingress_policy")
    unchained = "missing prevResult from earlier plugin"

    def plan(self, request: Request, config: FirewallConfig, network: Result) -> Plan:
        addresses = tuple(dict.fromkeys(entry.address.address for entry in network.ips))
        steps: list[Step] = [
            Firewall(request.owner, addresses, config.backend, config.admin_chain, config.zone)
        ]
        if config.ingress_policy in (SAME_BRIDGE, ISOLATED) and request.command != "DEL":
            bridge = bridge_of(network, config.ingress_policy)
            isolated = config.ingress_policy == ISOLATED
            if isolated:
                outside = tuple(found.name for found in network.interfaces if not found.sandbox)
                steps.append(PortIsolation(request.owner, bridge, outside))
            families = tuple(sorted({address.family for address in addresses}))
            steps.append(IngressPolicy(bridge, isolated, families, config.backend))
        return Plan(tuple(steps))


def bridge_of(network: Result, policy: str) -> str:
    """The bridge, which plugins that make one report first. Raises CNIError (code 7).

    Whether the host has a bridge of that name the step finds out.
    """
    if not network.interfaces:
        raise invalid_config(
            f'interface needs to be set for ingress policy "{policy}"',
            "prevResult lists no interfaces: ingressPolicy works after the plugin bridge",
        )
    first = network.interfaces[0]
    reason = "it is an interface of the container" if first.sandbox else ""
    try:
        check_interface_name(first.name)
    except CNIError as error:
        reason = error.message
    if reason:
        from pycni.steps.ingress_policy import no_bridge

        raise no_bridge(first.name, policy, reason)
    return first.name


plugin = FirewallPlugin()
