"""static: gives the addresses that the configuration or the runtime names. It keeps no state.

Addresses come from four places: `ipam.addresses` with those of CNI_ARGS behind them; args.cni.ips
in the place of both; runtimeConfig.ips in the place of all.
"""

from __future__ import annotations

from pycni.plugins.shared.address_plugin import AddressConf, RequestedIPs
from pycni.sdk.plugin import Plugin
from pycni.sdk.request import require_prev_result
from pycni.spec.args import known_args, valid_args
from pycni.spec.config import DNS
from pycni.spec.errors import CHECK_FAILED, INVALID_ENVIRONMENT, CNIError, invalid_config
from pycni.spec.ip import parse_address, parse_network
from pycni.spec.result import IPConfig, Result, Route
from pycni.spec.schema import Address, Config, ListOf, Object, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.sdk.request import Request
    from pycni.spec.ip import IPAddress


class AddressConfig(Config):
    """One item of addresses."""

    address: str = field(
        "address",
        Text(),
        "",
        doc="with its prefix length, such as 10.1.0.5/16",
        default_doc="required",
    )
    gateway: IPAddress | None = field("gateway", Address(), None, doc="its gateway")


class IPAM(Config):
    """The `ipam` section."""

    type: str = field("type", Text(), "", doc="`static`", default_doc="required")
    addresses: tuple[AddressConfig, ...] = field(
        "addresses",
        ListOf(Object(AddressConfig)),
        (),
        doc="addresses to give",
    )
    routes: tuple[Route, ...] = field(
        "routes", ListOf(Object(Route)), (), doc="routes for the result, in this order"
    )
    dns: DNS = field("dns", Object(DNS), DNS(), doc="name resolution for the result")


class StaticConf(AddressConf):
    """The configuration of a plugin that delegates to static, as far as it reads it."""

    ipam: IPAM | None = field("ipam", Object(IPAM), None, doc="addresses, routes, DNS")
    runtime_config: RequestedIPs = field(
        "runtimeConfig",
        Object(RequestedIPs),
        RequestedIPs(),
        doc="what the runtime gives for capability `ips`",
    )

    def validate(self) -> None:
        if self.ipam is None:
            raise invalid_config(
                "IPAM config missing 'ipam' key",
                '"ipam" is an object with "type": "static" and "addresses"',
            )


class Static(Plugin):
    """The static plugin."""

    type: ClassVar[str] = "static"
    config = StaticConf

    def add(self, request: Request) -> Result:
        config = StaticConf.decode(request.document)
        assert config.ipam is not None
        ips = _addresses(config, request.args)
        config.require_room(entry.address.family for entry in ips)
        return Result(ips=ips, routes=config.ipam.routes, dns=config.ipam.dns)

    def check(self, request: Request) -> None:
        config = StaticConf.decode(request.document)
        given = {entry.address: entry for entry in require_prev_result(request).ips}
        for wanted in _addresses(config, valid_args(request.args)):
            found = given.get(wanted.address)
            gateway_differs = (
                found is not None and wanted.gateway is not None and found.gateway != wanted.gateway
            )
            if found is None or gateway_differs:
                raise CNIError(
                    CHECK_FAILED,
                    f"static: Failed to match addr {_text(wanted)} on interface {request.ifname}",
                    f"prevResult has {', '.join(map(_text, given.values())) or 'no address'}",
                )

    def status(self, request: Request) -> None:
        _addresses(StaticConf.decode(request.document), "")


def _addresses(config: StaticConf, cni_args: str) -> tuple[IPConfig, ...]:
    assert config.ipam is not None
    replaced = config.runtime_config.ips or config.args.cni.ips
    if replaced:
        return tuple(
            _parse(text, "an entry in the 'ips' field is NOT in CIDR notation") for text in replaced
        )
    ips = [
        _parse(item.address, "the 'address' field is expected to be in CIDR notation").replace(
            gateway=item.gateway
        )
        for item in config.ipam.addresses
    ]
    arguments = known_args(cni_args, "IP", "GATEWAY")
    ips += (
        _parse(text.strip(), "the 'ip' field is expected to be in CIDR notation")
        for text in _items(arguments.get("IP", ""))
    )
    gateways = [_gateway(text.strip()) for text in _items(arguments.get("GATEWAY", ""))]
    return tuple(
        entry if entry.gateway is not None else entry.replace(gateway=_in(entry, gateways))
        for entry in ips
    )


def _items(text: str) -> list[str]:
    return text.split(",") if text else []


def _in(entry: IPConfig, gateways: list[IPAddress]) -> IPAddress | None:
    """The last of the gateways that the address's network has."""
    return next((item for item in reversed(gateways) if entry.address.contains(item)), None)


def _parse(text: str, problem: str) -> IPConfig:
    try:
        return IPConfig(address=parse_network(text))
    except ValueError:
        raise invalid_config(
            f"{problem}, got: '{text}'", "expected an address such as 10.1.2.3/24"
        ) from None


def _gateway(text: str) -> IPAddress:
    try:
        return parse_address(text)
    except ValueError:
        raise CNIError(
            INVALID_ENVIRONMENT,
            f"invalid gateway address: {text}",
            "GATEWAY in CNI_ARGS is one address, or several with ',' between them",
        ) from None


def _text(entry: IPConfig) -> str:
    via = f" with gateway {entry.gateway}" if entry.gateway is not None else ""
    return f"{entry.address}{via}"


plugin = Static()
