"""Results: what ADD answers, in every version of the specification.

One model serves all: the 1.1.0 result. `decode_result` reads any version into it, `encode_result`
writes it in any version, losing what that version cannot say. Three families share a shape:
0.1.0 and 0.2.0 (`ip4`, `ip6`), 0.3.0 to 0.4.0 (`ips` with a `version`), 1.0.0 and 1.1.0.
"""

from __future__ import annotations

from pycni.spec import versions
from pycni.spec.config import DNS
from pycni.spec.errors import DECODING_FAILURE, INCOMPATIBLE_VERSION, CNIError
from pycni.spec.ip import IPAddress, IPNetwork, host_network
from pycni.spec.jsontext import dumps, lookup
from pycni.spec.record import Record
from pycni.spec.schema import (
    CIDR,
    Address,
    Config,
    Fault,
    Integer,
    ListOf,
    Object,
    Text,
    describe,
    faults_error,
    field,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

LINK_SCOPE = 253  # RT_SCOPE_LINK of linux/rtnetlink.h
FAMILIES = (("0.1.0", "0.2.0"), ("0.3.0", "0.3.1", "0.4.0"), ("1.0.0", "1.1.0"))


class Interface(Config):
    """An interface the plugin made or uses; `sandbox` is the namespace's path, "" for the host."""

    name: str = field("name", Text(), "", doc="the interface's name")
    mac: str = field("mac", Text(), "", doc="its hardware address")
    mtu: int = field("mtu", Integer(), 0, doc="bytes; 0 if not said")
    sandbox: str = field("sandbox", Text(), "", doc="path of its network namespace")
    socket_path: str = field("socketPath", Text(), "", doc="socket of a user-space interface")
    pci_id: str = field("pciID", Text(), "", doc="address of a PCI device")


class Route(Config):
    """A route of the container."""

    dst: IPNetwork = field("dst", CIDR(), None, required=True, doc="destination network")
    gw: IPAddress | None = field("gw", Address(), None, doc="next hop")
    mtu: int = field("mtu", Integer(0), 0, doc="path MTU, bytes")
    advmss: int = field("advmss", Integer(0), 0, doc="largest TCP segment to advertise, bytes")
    priority: int = field("priority", Integer(0), 0, doc="metric; the lowest wins")
    table: int | None = field("table", Integer(0), None, doc="routing table")
    scope: int | None = field("scope", Integer(0, 255), None, doc="0 global, 253 link, 254 host")


class IPConfig(Config):
    """An address of the container; `interface` is an index into the result's interfaces."""

    address: IPNetwork = field("address", CIDR(), None, required=True, doc="address/prefix")
    gateway: IPAddress | None = field("gateway", Address(), None, doc="default gateway")
    interface: int | None = field("interface", Integer(), None, doc="index of its interface")


class Result(Record):
    """What an ADD made. `cni_version` is the version it was written in, "" until it is."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = DNS()
    cni_version: str = ""


def merge(previous: Result, own: Result) -> Result:
    """The result of a chain so far: what the plugins before made, and after it what this one did.

    Indices of `previous` stay as they are, those of `own` are shifted. A route of `own` that leaves
    its gateway open is given it where the first one listed is now another's.
    """
    shift = len(previous.interfaces)
    ips = tuple(
        entry if entry.interface is None else entry.replace(interface=entry.interface + shift)
        for entry in own.ips
    )
    routes = (
        route.replace(gw=gateway_of(own, route))
        if route.gw is None and gateway_of(previous, route) is not None
        else route
        for route in own.routes
    )
    return Result(
        interfaces=(*previous.interfaces, *own.interfaces),
        ips=(*previous.ips, *ips),
        routes=(*previous.routes, *routes),
        dns=DNS(
            nameservers=_united(previous.dns.nameservers, own.dns.nameservers),
            domain=previous.dns.domain or own.dns.domain,
            search=_united(previous.dns.search, own.dns.search),
            options=_united(previous.dns.options, own.dns.options),
        ),
    )


def gateway_of(result: Result, route: Route) -> IPAddress | None:
    """The next hop of a route, None where its destination is itself on the link.

    A route that names none goes by the first gateway of its family, but for one whose scope says
    that it needs none, and that of the gateway itself. 0.0.0.0 and :: stand for none.
    """
    if route.gw is not None:
        return None if route.gw.is_unspecified else route.gw
    if route.scope is not None and route.scope >= LINK_SCOPE:
        return None
    for entry in result.ips:
        gateway = entry.gateway
        if gateway is not None and gateway.family == route.dst.family:
            if gateway.is_unspecified or route.dst == host_network(gateway):
                return None
            return gateway
    return None


def _united(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return (*first, *(item for item in second if item not in first))


class _ModernResult(Config):
    interfaces: tuple[Interface, ...] = field(
        "interfaces", ListOf(Object(Interface)), (), doc="interfaces"
    )
    ips: tuple[IPConfig, ...] = field("ips", ListOf(Object(IPConfig)), (), doc="addresses")
    routes: tuple[Route, ...] = field("routes", ListOf(Object(Route)), (), doc="routes")
    dns: DNS = field("dns", Object(DNS), DNS(), doc="name resolution")


class _OldIP(Config):
    ip: IPNetwork = field("ip", CIDR(), None, required=True, doc="address/prefix")
    gateway: IPAddress | None = field("gateway", Address(), None, doc="default gateway")
    routes: tuple[Route, ...] = field("routes", ListOf(Object(Route)), (), doc="routes")


class _OldResult(Config):
    ip4: _OldIP | None = field("ip4", Object(_OldIP), None, doc="IPv4 settings")
    ip6: _OldIP | None = field("ip6", Object(_OldIP), None, doc="IPv6 settings")
    dns: DNS = field("dns", Object(DNS), DNS(), doc="name resolution")


def family_of(version: str) -> tuple[str, ...]:
    """The versions whose results have the same shape as this one's, "" being 0.1.0.

    Raises CNIError (code 1) for a version that is not known.
    """
    for family in FAMILIES:
        if (version or versions.DEFAULT) in family:
            return family
    raise CNIError(
        INCOMPATIBLE_VERSION,
        f"unsupported CNI result version {versions.quote(version)}",
        f"known are {', '.join(versions.ALL)}",
    )


def result_version(document: Any) -> str:
    """The version a result says it has; 0.1.0 where it says none. Raises CNIError (code 6)."""
    version = lookup(document, "cniVersion") if isinstance(document, dict) else None
    if not isinstance(version, str | None):
        raise CNIError(
            DECODING_FAILURE, "decoding version from network config: cniVersion is not a string"
        )
    return version or versions.DEFAULT


def decode_result(document: Any, version: str) -> Result:
    """Read a result of any version in the family of `version`.

    A result without a version has that one; one of another family is refused, since nothing in the
    protocol converts between plugins. Raises CNIError (code 1 or 6).
    """
    family = family_of(version)
    if not isinstance(document, dict):
        raise CNIError(DECODING_FAILURE, "the result is not a JSON object")
    own = lookup(document, "cniVersion")
    if own is None:
        own = version
    if own == "" and family is FAMILIES[0]:
        own = versions.DEFAULT
    if not isinstance(own, str):
        raise CNIError(
            DECODING_FAILURE, f"cniVersion: {describe(own)} is not valid", "expected a string"
        )
    if own not in family:
        raise CNIError(
            INCOMPATIBLE_VERSION,
            f"result type supports [{' '.join(family)}] "
            f"but unmarshalled CNIVersion is {versions.quote(own)}",
            "a result passed on must be of the configuration's own version",
        )
    faults: list[Fault] = []
    if family is FAMILIES[0]:
        old = _OldResult.read_lenient(document, "", faults)
        slots = [slot for slot in (old.ip4, old.ip6) if slot is not None]
        result = Result(
            ips=tuple(IPConfig(address=slot.ip, gateway=slot.gateway) for slot in slots),
            routes=tuple(route for slot in slots for route in slot.routes),
            dns=old.dns,
            cni_version=own,
        )
    else:
        modern = _ModernResult.read_lenient(document, "", faults)
        result = Result(modern.interfaces, modern.ips, modern.routes, modern.dns, own)
    if faults:
        error = faults_error(faults)
        raise CNIError(DECODING_FAILURE, error.message, error.details)
    return result


def parse_prev_result(document: Mapping[str, Any], version: str) -> Result | None:
    """The prevResult in a configuration of this version; None if it has none. Raises CNIError."""
    previous = lookup(document, "prevResult")
    if previous is None:
        return None
    try:
        return decode_result(previous, version)
    except CNIError as error:
        raise error.with_context("could not parse prevResult") from None


def encode_result(result: Result, version: str) -> dict[str, Any]:
    """A result as the JSON object of a version, keys in the order the reference declares them.

    Raises CNIError (code 1) where the version cannot say it: 0.1.0 and 0.2.0 need an address.
    """
    family = family_of(version)
    if family is FAMILIES[0]:
        return _encode_old(result, version or versions.DEFAULT)
    document: dict[str, Any] = {"cniVersion": version}
    modern = family is FAMILIES[2]
    if result.interfaces:
        document["interfaces"] = [_interface(item, modern) for item in result.interfaces]
    if result.ips:
        document["ips"] = [_ip(item, modern) for item in result.ips]
    if result.routes:
        document["routes"] = [item.to_json() for item in result.routes]
    if not modern or result.dns != DNS():
        document["dns"] = result.dns.to_json()
    return document


def print_result(result: Result, version: str) -> str:
    """A result as a plugin prints it: indented by four, no newline at the end.

    Since 1.0.0 the keys are sorted, as the reference does.
    """
    modern = family_of(version) is FAMILIES[2]
    return dumps(encode_result(result, version), indent=4, sort_keys=modern)


def _interface(interface: Interface, modern: bool) -> dict[str, Any]:
    keys = interface.to_json()
    if not modern:
        keys = {key: keys[key] for key in ("name", "mac", "sandbox") if key in keys}
    return {"name": interface.name, **keys}


def _ip(entry: IPConfig, modern: bool) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if not modern:
        document["version"] = "4" if entry.address.is_ipv4 else "6"
    if entry.interface is not None:
        document["interface"] = entry.interface
    document["address"] = str(entry.address)
    if entry.gateway is not None:
        document["gateway"] = str(entry.gateway)
    return document


def _encode_old(result: Result, version: str) -> dict[str, Any]:
    document: dict[str, Any] = {"cniVersion": version}
    for slot, is_ipv4 in (("ip4", True), ("ip6", False)):
        entry = next((item for item in result.ips if item.address.is_ipv4 == is_ipv4), None)
        if entry is None:
            continue
        keys: dict[str, Any] = {"ip": str(entry.address)}
        if entry.gateway is not None:
            keys["gateway"] = str(entry.gateway)
        routes = [
            Route(dst=route.dst, gw=route.gw).to_json()
            for route in result.routes
            if route.dst.is_ipv4 == is_ipv4
        ]
        if routes:
            keys["routes"] = routes
        document[slot] = keys
    if len(document) == 1:
        raise CNIError(
            INCOMPATIBLE_VERSION,
            "cannot convert: no valid IP addresses",
            f"a result of version {version} needs an address; use cniVersion 0.3.0 or newer",
        )
    document["dns"] = result.dns.to_json()
    return document
