"""sbr: source-based routing. Replies leave by the interface that the request came to.

Each address of the interface gets a routing table of its own and a rule that leads there, so a
container with several networks answers in each of them. DEL moves the routes back.
"""

from __future__ import annotations

from pycni.plan.plan import Plan
from pycni.plan.steps import Source, SourceRouting
from pycni.sdk.chained import ChainedPlugin
from pycni.spec.config import NetConf
from pycni.spec.errors import invalid_config
from pycni.spec.ip import parse_address
from pycni.spec.schema import Flag, Integer, ListOf, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.sdk.request import Request
    from pycni.spec.ip import IPAddress
    from pycni.spec.result import Result


class SBRConfig(NetConf):
    """The keys of sbr."""

    table: int | None = field(
        "table",
        Integer(1, (1 << 32) - 1),
        None,
        doc="only add rules, which lead to this table; all routes stay",
    )
    gateways: tuple[str, ...] = field(
        "gateways",
        ListOf(Text()),
        (),
        doc="gateways to use, one of each family at most",
        default_doc="those of the result",
    )
    add_source_hints: bool = field(
        "addSourceHints",
        Flag(),
        False,
        doc="keep the subnets' routes in the main table, with the address as source",
    )

    @property
    def gateway_by_family(self) -> dict[int, IPAddress]:
        """The gateways; none of use with a table. Raises CNIError: no addresses, or too many."""
        if self.table is not None:
            return {}
        if len(self.gateways) > 2:
            raise invalid_config(
                f"gateways list cannot contain more than 2 entries (got {len(self.gateways)})",
                '"gateways" is for one IPv4 and one IPv6 address',
            )
        found: dict[int, IPAddress] = {}
        for text in self.gateways:
            try:
                gateway = parse_address(text)
            except ValueError:
                raise invalid_config(
                    f"invalid static gateway IP address: {text}", 'see "gateways"'
                ) from None
            if gateway.family in found:
                name = "IPv4" if gateway.is_ipv4 else "IPv6"
                raise invalid_config(
                    f"gateways list contains multiple {name} addresses: "
                    f"{found[gateway.family]} and {gateway}",
                    "there is one default route in a table",
                )
            found[gateway.family] = gateway
        return found

    def validate(self) -> None:
        self.gateway_by_family  # noqa: B018 - it checks them


class SBR(ChainedPlugin):
    """Rules and tables by source address."""

    type: ClassVar[str] = "sbr"
    config = SBRConfig
    unchained = "This plugin must be called as chained plugin"

    def own_result(self, request: Request, previous: Result) -> Result:
        """The addresses of the interface; those that name none count as its."""
        count = len(previous.interfaces)
        ips = tuple(
            entry
            for entry in previous.ips
            if entry.interface is None
            or not 0 <= entry.interface < count
            or previous.interfaces[entry.interface].name == request.ifname
        )
        if not ips:
            raise invalid_config(
                f"No IP addresses supplied on interface: {request.ifname}",
                "prevResult must list addresses; sbr comes after the plugin that gives them",
            )
        return previous.replace(ips=ips)

    def plan(self, request: Request, config: SBRConfig, network: Result) -> Plan:
        static = config.gateway_by_family if request.command != "DEL" else {}
        sources = tuple(
            Source(entry.address, static.get(entry.address.family, entry.gateway))
            for entry in network.ips
        )
        defaults = tuple(route.dst.family for route in network.routes if route.dst.is_default)
        return Plan(
            (
                SourceRouting(
                    request.ifname, sources, config.add_source_hints, config.table, defaults
                ),
            )
        )


plugin = SBR()
