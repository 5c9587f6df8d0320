"""Section 5, "ADD Success": the result, compared with what is there."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

from pycni.conformance import host
from pycni.conformance.case import Attachment, Case, expect, listed, require
from pycni.conformance.requirement import INTERFACE, IPAM, Broken, requirement

SUCCESS = "5 ADD Success"
ABBREVIATED = "5 Delegated plugins (IPAM)"


@requirement(
    "result.version", SUCCESS, "MUST",
    "the result's cniVersion is the configuration's, for every version that the plugin claims",
    "cniVersion: The same version supplied on input",
)  # fmt: skip
def version(case: Case) -> None:
    def judge(attachment: Attachment, result: dict[str, Any]) -> None:
        found = result.get("cniVersion")
        if found is None and case.kind == IPAM:
            return  # "Delegated plugins may omit irrelevant sections."
        expect(found == attachment.version, f"for {attachment.version} it is {found!r}")

    _each_version(case, judge)


@requirement(
    "result.shape", SUCCESS, "MUST",
    "the result has the keys and types of the configuration's version, for every claimed version",
    "Plugins must output a JSON object with the following keys upon a successful ADD operation",
)  # fmt: skip
def shape(case: Case) -> None:
    def judge(attachment: Attachment, result: dict[str, Any]) -> None:
        faults = shape_faults(attachment.version, result)
        expect(not faults, f"a result of {attachment.version}: {'; '.join(faults)}")

    _each_version(case, judge)


def _each_version(case: Case, judge: Callable[[Attachment, dict[str, Any]], None]) -> None:
    """Attach and detach once with each version that plugin and kit know."""
    from pycni.spec.versions import ALL

    known = [version for version in ALL if version in case.subject.versions]
    require(known, "the plugin claims none of the released versions")
    refused = []
    for number, spoken in enumerate(known, 1):
        attachment = case.attachment(number, version=spoken)
        answer = attachment.try_add()
        if attachment.result is None:
            refused.append(f"{spoken}: {answer}")
            continue
        judge(attachment, attachment.result)
        attachment.delete()
    require(len(refused) < len(known), f"no ADD succeeded: {refused[0] if refused else ''}")
    # A result without addresses cannot be said in the oldest versions.
    old = [text for text in refused if text.startswith(("0.1.0", "0.2.0"))]
    if refused != old or (old and case.subject.ipam_type):
        raise Broken(f"a version that VERSION claims is refused: {'; '.join(refused)}")


@requirement(
    "result.interfaces", SUCCESS, "MUST",
    "every interface that ADD made is in the result, on the host as in the container",
    "interfaces: An array of all interfaces created by the attachment, including any host-level "
    "interfaces",
    kinds=(INTERFACE,), since="0.3.0",
)  # fmt: skip
def interfaces(case: Case) -> None:
    attachment = case.attachment()
    # What ADD finds is not what it makes, unless it makes something of it.
    before = set(host.links()), set(host.links(attachment.netns))
    attachment.add()
    reported = {(item.get("name"), bool(item.get("sandbox"))) for item in attachment.interfaces()}
    made = [(name, False) for name in host.links() if name not in before[0]]
    made += [(name, True) for name in host.links(attachment.netns) if name not in before[1]]
    missing = [
        f"{name} in the {'container' if inside else 'host'}"
        for name, inside in made
        if (name, inside) not in reported
    ]
    expect(not missing, f"not in the result: {', '.join(missing)}")


@requirement(
    "result.interface-exists", SUCCESS, "MUST",
    "every interface in the result is there, with that hardware address and MTU",
    "name (string): The name of the interface. mac (string): The hardware address",
    kinds=(INTERFACE, "chained"), since="0.3.0",
)  # fmt: skip
def interface_exists(case: Case) -> None:
    attachment = case.attachment()
    attachment.add()
    require(attachment.interfaces(), "the result lists no interfaces")
    for item in attachment.interfaces():
        inside = bool(item.get("sandbox"))
        where = "container" if inside else "host"
        link = host.links(attachment.netns if inside else "").get(item.get("name", ""))
        expect(link is not None, f"there is no {item.get('name')!r} in the {where}")
        assert link is not None
        for key, own in (("mac", "address"), ("mtu", "mtu")):
            if item.get(key):
                expect(
                    item[key] == link.get(own),
                    f"{key} of {item['name']} is {item[key]!r} in the result, {link.get(own)!r} "
                    f"in the {where}",
                )


@requirement(
    "result.sandbox", SUCCESS, "SHOULD",
    "the sandbox of the container's interface is CNI_NETNS as it was given",
    "this should be the value passed via CNI_NETNS",
    kinds=(INTERFACE,), since="0.3.0",
)  # fmt: skip
def sandbox(case: Case) -> None:
    attachment = case.attachment()
    attachment.add()
    found = [
        item.get("sandbox") for item in attachment.interfaces()
        if item.get("name") == attachment.ifname
    ]  # fmt: skip
    expect(
        attachment.netns_path in found,
        f"of {attachment.ifname} it is {found or 'not given'}, not {attachment.netns_path}",
    )


@requirement(
    "result.ips", SUCCESS, "MUST",
    "every address in the result is on the interface that its index names",
    "ips: IPs assigned by this attachment.",
    kinds=(INTERFACE,), since="0.3.0",
)  # fmt: skip
def ips(case: Case) -> None:
    attachment = case.attachment()
    attachment.add()
    require(attachment.own_ips(), "the result lists no addresses")
    present = host.addresses(attachment.netns)
    on_host = host.addresses()
    for item in attachment.own_ips():
        index, address = item.get("interface"), str(item.get("address"))
        if index is None:
            expect(address in {own for _, own in present}, f"{address} is not in the container")
            continue
        interfaces = attachment.interfaces()
        expect(
            isinstance(index, int) and 0 <= index < len(interfaces),
            f"{address} is on interface {index!r} of {len(interfaces)}",
        )
        name = interfaces[index].get("name", "")
        where = present if interfaces[index].get("sandbox") else on_host
        expect((name, address) in where, f"{address} is not on {name}, but there is {where}")


@requirement(
    "result.routes", SUCCESS, "MUST",
    "every route in the result is in the container",
    "routes: Routes created by this attachment",
    kinds=(INTERFACE,), since="0.3.0",
)  # fmt: skip
def routes(case: Case) -> None:
    attachment = case.attachment()
    attachment.add()
    routes = listed(attachment.result, "routes")
    require(routes, "the result lists no routes")
    present = host.routes(attachment.netns)
    for route in routes:
        expect(
            any(is_route(route, other) for other in present),
            f"there is no route to {route.get('dst')}"
            f"{' via ' + route['gw'] if route.get('gw') else ''}, but "
            f"{', '.join(map(host.describe_route, present)) or 'none at all'}",
        )


@requirement(
    "result.abbreviated", ABBREVIATED, "MUST",
    "the result of an address plugin has no interfaces, and its addresses no interface",
    "it is missing the interfaces array, as well as the interface entry in ips",
    kinds=(IPAM,), since="0.3.0",
)  # fmt: skip
def abbreviated(case: Case) -> None:
    result = case.attachment().add()
    expect(not result.get("interfaces"), f"interfaces is {result.get('interfaces')}")
    indexed = [item for item in listed(result, "ips") if "interface" in item]
    expect(not indexed, f"there is an interface in {indexed}")


@requirement(
    "result.ipam", "4 Plugin Delegation", "MUST",
    "an address plugin answers with an address",
    "The IPAM plugin must determine the interface IP/subnet, Gateway and Routes and return this "
    "information",
    kinds=(IPAM,), since="0.3.0",
)  # fmt: skip
def ipam(case: Case) -> None:
    result = case.attachment().add()
    expect(listed(result, "ips"), f"the result has no address: {result}")


def is_route(wanted: dict[str, Any], present: dict[str, Any]) -> bool:
    """Whether a route of a result is one that `ip -j route` shows."""
    dst = present["dst"]
    if dst == "default":
        dst = "::/0" if ":" in str(wanted.get("dst")) else "0.0.0.0/0"
    try:
        network = ipaddress.ip_network(str(wanted.get("dst")), strict=False)
    except ValueError:
        return False
    is_same = ipaddress.ip_network(dst) == network
    return is_same and (not wanted.get("gw") or wanted["gw"] == present.get("gateway"))


# --- the shapes ----------------------------------------------------------------------------------

_TEXT, _COUNT, _LIST = (str,), (int,), (list,)
_IP = {"address": _TEXT, "gateway": _TEXT, "interface": _COUNT}
_ROUTE = {
    "dst": _TEXT, "gw": _TEXT, "mtu": _COUNT, "advmss": _COUNT, "priority": _COUNT,
    "table": _COUNT, "scope": _COUNT,
}  # fmt: skip
_INTERFACE = {"name": _TEXT, "mac": _TEXT, "sandbox": _TEXT}
_NEWER = {"mtu": _COUNT, "socketPath": _TEXT, "pciID": _TEXT}
_DNS = {"nameservers": _LIST, "domain": _TEXT, "search": _LIST, "options": _LIST}


def shape_faults(version: str, result: dict[str, Any]) -> list[str]:
    """What of a result does not have the form of its version. Keys of the plugin's own pass."""
    faults: list[str] = []
    old = version in ("0.1.0", "0.2.0")
    has_family = version in ("0.3.0", "0.3.1", "0.4.0")
    if old:
        newer = [key for key in ("interfaces", "ips") if key in result]
        faults += [f"{key} is a key of newer versions" for key in newer]
        for key in ("ip4", "ip6"):
            if key in result:
                _object(result[key], key, {"ip": _TEXT, "gateway": _TEXT, "routes": _LIST}, faults)
        if "ip4" not in result and "ip6" not in result:
            faults.append("there is neither ip4 nor ip6")
    else:
        older = [key for key in ("ip4", "ip6") if key in result]
        faults += [f"{key} is a key of versions before 0.3.0" for key in older]
        _objects(result, "interfaces", {**_INTERFACE, **_NEWER}, ("name",), faults)
        _objects(result, "ips", {**_IP, "version": _TEXT}, ("address",), faults)
        _objects(result, "routes", _ROUTE, ("dst",), faults)
        for item in listed(result, "ips"):
            _cidr(item.get("address"), "address", faults)
            if has_family and item.get("version") not in ("4", "6"):
                faults.append(f"version of {item.get('address')} is {item.get('version')!r}")
            if not has_family and "version" in item:
                faults.append("version in ips is a key of versions before 1.0.0")
        for item in listed(result, "routes"):
            _cidr(item.get("dst"), "dst", faults)
    if result.get("dns"):
        _object(result["dns"], "dns", _DNS, faults)
    return faults


def _objects(
    result: dict[str, Any],
    key: str,
    keys: Mapping[str, tuple[type, ...]],
    needed: tuple[str, ...],
    faults: list[str],
) -> None:
    items = result.get(key, [])
    if not isinstance(items, list):
        faults.append(f"{key} is no list")
        return
    for index, item in enumerate(items):
        where = f"{key}[{index}]"
        _object(item, where, keys, faults)
        if isinstance(item, dict):
            faults += [f"{where} lacks {name}" for name in needed if not item.get(name)]


def _object(
    value: Any, where: str, keys: Mapping[str, tuple[type, ...]], faults: list[str]
) -> None:
    if not isinstance(value, dict):
        faults.append(f"{where} is no object")
        return
    for name, item in value.items():
        kinds = keys.get(name)
        if kinds and (not isinstance(item, kinds) or isinstance(item, bool)):
            faults.append(f"{where}.{name} is {item!r}")


def _cidr(value: Any, key: str, faults: list[str]) -> None:
    try:
        ipaddress.ip_interface(str(value))
        sound = "/" in str(value)
    except ValueError:
        sound = False
    if not sound:
        faults.append(f"{key} is {value!r}, not in CIDR notation")
