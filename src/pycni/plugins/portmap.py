"""portmap: ports of the host lead to the container.

The ports come from the runtime (capability portMappings). What they become on the host stands in
`pycni.steps.port_map`; DEL removes all but what containers share.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.plan.plan import Plan
from pycni.plan.steps import PortMap, PortMapping, RouteLocalnet
from pycni.plugins.shared.chain_name import check_chain_name
from pycni.sdk.chained import ChainedPlugin
from pycni.spec.config import NetConf
from pycni.spec.errors import invalid_config
from pycni.spec.schema import Address, Config, Flag, Integer, ListOf, Object, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.sdk.request import Request
    from pycni.spec.ip import IPAddress, IPNetwork
    from pycni.spec.result import Result
    from pycni.steps.namespaces import HostAndSandbox

PROTOCOLS = ("tcp", "udp", "sctp")
BACKENDS = ("nftables", "iptables")
MAX_PORT = 65535
DEFAULT_MARK_BIT = 13


class PortMappingConfig(Config):
    """One of the runtime's port mappings."""

    host_port: int = field(
        "hostPort", Integer(), 0, doc="the host's port, 1 to 65535", default_doc="required"
    )
    container_port: int = field(
        "containerPort",
        Integer(),
        0,
        doc="the container's port, 1 to 65535",
        default_doc="required",
    )
    protocol: str = field(
        "protocol", Text(), "tcp", doc="`tcp`, `udp` or `sctp`, in any letter case"
    )
    host_ip: IPAddress | None = field(
        "hostIP",
        Address(),
        None,
        doc="the one address of the host it is for; `0.0.0.0` or `::` for all of that family",
        default_doc="all",
    )

    @property
    def known_protocol(self) -> str:
        """The protocol in lower case, "" if it is none of ours."""
        name = self.protocol.lower() or PROTOCOLS[0]
        return name if name in PROTOCOLS else ""

    @property
    def is_valid(self) -> bool:
        ports = self.host_port, self.container_port
        return bool(self.known_protocol) and all(0 < port <= MAX_PORT for port in ports)

    @property
    def key(self) -> tuple[str, int, IPAddress | None]:
        """What may be mapped once only."""
        return self.known_protocol, self.host_port, self.host_ip

    def validate(self) -> None:
        for name, key, port in (
            ("host", "hostPort", self.host_port),
            ("container", "containerPort", self.container_port),
        ):
            if not 0 < port <= MAX_PORT:
                raise invalid_config(
                    f"Invalid {name} port number: {port}",
                    f'"{key}" in runtimeConfig.portMappings is 1 to {MAX_PORT}',
                )
        if not self.known_protocol:
            raise invalid_config(
                f'unknown protocol "{self.protocol}" of host port {self.host_port}',
                'expected tcp, udp or sctp as "protocol" in runtimeConfig.portMappings',
            )
        if self.host_ip is not None and self.host_ip.is_loopback and not self.host_ip.is_ipv4:
            raise invalid_config(
                f"host port {self.host_port}/{self.known_protocol} cannot be mapped on ::1",
                "the kernel takes no answer for ::1 from another link; "
                'name 127.0.0.1 or another address as "hostIP", or none for all of the host',
            )


class PortmapRuntimeConfig(Config):
    """What the runtime gives for capability portMappings."""

    port_mappings: tuple[PortMappingConfig, ...] = field(
        "portMappings",
        ListOf(Object(PortMappingConfig)),
        (),
        doc="ports of the host that lead to the container; capability `portMappings`",
    )


class PortmapConfig(NetConf):
    """The keys of portmap."""

    backend: str = field(
        "backend",
        Text(),
        "",
        doc="`nftables` or `iptables`",
        default_doc="nftables where it will do",
    )
    snat: bool = field(
        "snat", Flag(), True, doc="masquerade what the container's subnet and localhost send"
    )
    masq_all: bool = field("masqAll", Flag(), False, doc="masquerade what anyone sends")
    mark_masq_bit: int | None = field(
        "markMasqBit",
        Integer(),
        None,
        doc="iptables: the bit, 0 to 31, that marks what is masqueraded",
        default_doc="13",
    )
    external_set_mark_chain: str | None = field(
        "externalSetMarkChain",
        Text(),
        None,
        doc="iptables: a chain of others that sets a mark of theirs",
    )
    conditions_v4: tuple[str, ...] | None = field(
        "conditionsV4",
        ListOf(Text()),
        None,
        doc="further matches for IPv4, a word each, for the backend",
    )
    conditions_v6: tuple[str, ...] | None = field(
        "conditionsV6",
        ListOf(Text()),
        None,
        doc="further matches for IPv6, a word each, for the backend",
    )
    runtime_config: PortmapRuntimeConfig = field(
        "runtimeConfig",
        Object(PortmapRuntimeConfig),
        PortmapRuntimeConfig(),
        doc="what the runtime gives",
    )

    @property
    def specific(self) -> dict[str, str]:
        """The keys given that one backend alone understands, and which."""
        found = {}
        if self.external_set_mark_chain is not None:
            found["externalSetMarkChain"] = "iptables"
        for key, words in (
            ("conditionsV4", self.conditions_v4),
            ("conditionsV6", self.conditions_v6),
        ):
            if words:
                found[key] = "iptables" if words[0][:1] in ("-", "!") else "nftables"
        return found

    @property
    def chosen_backend(self) -> str:
        """The backend named, or the one that other keys need; "" for what the host has."""
        return self.backend or next(iter(self.specific.values()), "")

    def validate(self) -> None:
        if self.backend and self.backend not in BACKENDS:
            raise invalid_config(
                f'unrecognized backend "{self.backend}"', 'expected "nftables" or "iptables"'
            )
        if self.external_set_mark_chain is not None:
            check_chain_name("externalSetMarkChain", self.external_set_mark_chain)
        if self.mark_masq_bit is not None:
            if self.external_set_mark_chain is not None:
                raise invalid_config(
                    "Cannot specify externalSetMarkChain and markMasqBit",
                    "the mark of a chain of others is theirs to choose: drop one of both",
                )
            if not 0 <= self.mark_masq_bit <= 31:
                raise invalid_config(
                    "MasqMarkBit must be between 0 and 31", f'"markMasqBit" is {self.mark_masq_bit}'
                )
        for key, words in (
            ("conditionsV4", self.conditions_v4),
            ("conditionsV6", self.conditions_v6),
        ):
            if words:
                from pycni.plugins.shared.conditions import check_conditions  # few have any

                check_conditions(key, words)
        chosen = self.chosen_backend
        foreign = [key for key, backend in self.specific.items() if backend != chosen]
        if foreign:
            other = next(backend for backend in BACKENDS if backend != chosen)
            raise invalid_config(
                f"{chosen} backend was requested but configuration contains "
                f"{other}-specific options [{' '.join(foreign)}]",
                f'give "backend": "{other}", or say it in the words of {chosen}',
            )
        targets: dict[tuple[str, int, IPAddress | None], int] = {}
        for mapping in self.runtime_config.port_mappings:
            mapping.validate()
            known = targets.setdefault(mapping.key, mapping.container_port)
            if known != mapping.container_port:
                raise invalid_config(
                    f"host port {mapping.host_port}/{mapping.known_protocol} is mapped to both "
                    f"container ports {known} and {mapping.container_port}",
                    "a port leads to one place: see runtimeConfig.portMappings",
                )


class PortmapPlugin(ChainedPlugin):
    """Ports of the host for the addresses that the plugins before gave the container."""

    type: ClassVar[str] = "portmap"
    config = PortmapConfig
    kinds: ClassVar[tuple[str, ...]] = ("port_map",)
    unchained = "must be called as chained plugin"

    def plan(self, request: Request, config: PortmapConfig, network: Result) -> Plan:
        mappings = tuple(
            dict.fromkeys(
                PortMapping(item.known_protocol, item.host_port, item.container_port, item.host_ip)
                for item in config.runtime_config.port_mappings
                if item.is_valid
            )
        )
        if not mappings and request.command == "ADD":
            return Plan()
        addresses = first_addresses(request, network)
        bit = config.mark_masq_bit
        port_map = PortMap(
            request.owner,
            mappings,
            addresses,
            backend=config.chosen_backend,
            snat=config.snat,
            masquerade_all=config.masq_all,
            mark_bit=DEFAULT_MARK_BIT if bit is None else bit,
            mark_chain=config.external_set_mark_chain or "",
            conditions4=config.conditions_v4 or (),
            conditions6=config.conditions_v6 or (),
        )
        # Last, since others may rely on it at once, so that it is not taken back.
        from_localhost = (
            RouteLocalnet(network.address)
            for network in addresses
            if mappings and config.snat and network.is_ipv4
        )
        return Plan((port_map, *from_localhost))

    def result(
        self, request: Request, config: PortmapConfig, previous: Result, kernel: HostAndSandbox
    ) -> Result:
        """The previous result. Reports whose ports of the host lead to the container instead."""
        if any(mapping.is_valid for mapping in config.runtime_config.port_mappings):
            from pycni.sdk.execute import write_or_give_up
            from pycni.steps.port_map import shadowed

            for step in self.plan(request, config, previous).steps:
                for text in shadowed.listeners(step, kernel) if isinstance(step, PortMap) else ():
                    write_or_give_up(request.stderr, f"portmap: {text}\n".encode())
        return previous


def first_addresses(request: Request, network: Result) -> tuple[IPNetwork, ...]:
    """The container's first IPv4 and first IPv6 address.

    An address counts unless it is said to be of an interface on the host, or of another name.
    """
    found: dict[int, IPNetwork] = {}
    for entry in network.ips:
        index = entry.interface
        if index is not None and 0 <= index < len(network.interfaces):
            interface = network.interfaces[index]
            if interface.name != request.ifname or not interface.sandbox:
                continue
        found.setdefault(entry.address.family, entry.address)
    return tuple(found[family] for family in (AF_INET, AF_INET6) if family in found)


plugin = PortmapPlugin()
