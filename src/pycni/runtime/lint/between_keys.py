"""What is wrong between the keys of one plugin that are sound each by itself.

Each is a configuration that attaches containers without an error, and then no packet passes.
"""

from __future__ import annotations

from difflib import get_close_matches

from pycni.spec.ip import parse_address, parse_network
from pycni.spec.jsontext import lookup
from pycni.spec.schema import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from pycni.spec.ip import IPAddress, IPNetwork

_FRAME = 1514  # bytes: an Ethernet frame of the usual MTU


def faults_between_keys(own: Mapping[str, Any], path: str) -> Iterator[Fault]:
    """What is wrong between the keys of one plugin. path: its place in the file, "" for the top."""
    kind = lookup(own, "type")
    capabilities = lookup(own, "capabilities")
    declared = capabilities if isinstance(capabilities, dict) else {}
    # What is misspelt is a fault by itself.
    wanted, keys = ("portMappings", declared) if declared else ("capabilities", own)
    misspelt = [key for key in keys if key.lower() != wanted.lower()]
    is_lost = not declared.get("portMappings") and not get_close_matches(wanted, misspelt)
    if kind == "portmap" and is_lost and "runtimeConfig" not in own:
        yield Fault(
            join(path, "capabilities"),
            "no port would be published: the runtime hands none to the plugin",
            'expected "capabilities": {"portMappings": true}',
        )
    if kind == "bandwidth":
        yield from _bursts(own, path)
    if kind == "macvlan" and lookup(own, "mode") == "passthru" and _asks_for_mac(own, declared):
        yield Fault(
            join(path, "mode"),
            "passthru with a MAC address of choice changes that of the master itself",
            "in passthru a container has the master's MAC address: drop the capability mac, or "
            'choose the mode "bridge"',
        )
    if kind != "ptp":  # whose gateway is a host's address by itself
        yield from _gateways(lookup(own, "ipam"), join(path, "ipam"))


def _bursts(own: Mapping[str, Any], path: str) -> Iterator[Fault]:
    for key in ("ingressBurst", "egressBurst"):
        bits = lookup(own, key)
        if isinstance(bits, int) and 0 < bits < 8 * _FRAME:
            yield Fault(
                join(path, key),
                f"{bits} bits are less than one frame of {_FRAME} bytes, so none would pass",
                f"expected {8 * _FRAME} bits or more",
            )


def _asks_for_mac(own: Mapping[str, Any], declared: Mapping[str, Any]) -> bool:
    args = lookup(own, "args")
    cni = lookup(args, "cni") if isinstance(args, dict) else None
    given = isinstance(cni, dict) and lookup(cni, "mac")
    return bool(declared.get("mac") or given or isinstance(lookup(own, "mac"), str))


def _gateways(ipam: Any, path: str) -> Iterator[Fault]:
    """Gateways that are in no network with the addresses that they are for."""
    if not isinstance(ipam, dict):
        return
    places: list[tuple[str, Any, str]] = []
    if lookup(ipam, "type") == "host-local":
        places.append((path, ipam, "subnet"))
        sets = lookup(ipam, "ranges")
        for number, ranges in enumerate(sets if isinstance(sets, list) else ()):
            for index, item in enumerate(ranges if isinstance(ranges, list) else ()):
                places.append((f"{path}.ranges[{number}][{index}]", item, "subnet"))
    elif lookup(ipam, "type") == "static":
        addresses = lookup(ipam, "addresses")
        for index, item in enumerate(addresses if isinstance(addresses, list) else ()):
            places.append((f"{path}.addresses[{index}]", item, "address"))
    for place, item, key in places:
        subnet, gateway = _parsed(item, key)
        if subnet is None or gateway is None or subnet.contains(gateway):
            continue
        if gateway.is_ipv4 or (key == "subnet" and not gateway.is_link_local):
            yield Fault(
                f"{place}.gateway",
                f"{gateway} is not in {subnet}",
                "no container would reach its gateway: expected an address of that network",
            )


def _parsed(item: Any, key: str) -> tuple[IPNetwork | None, IPAddress | None]:
    if not isinstance(item, dict):
        return None, None
    network, gateway = lookup(item, key), lookup(item, "gateway")
    if not (isinstance(network, str) and isinstance(gateway, str)):
        return None, None
    try:
        found, address = parse_network(network), parse_address(gateway)
    except ValueError:
        return None, None
    return (found, address) if found.address.family == address.family else (None, None)


def join(path: str, key: str) -> str:
    """The path of a key below another one; "" is the top."""
    if not path or not key or key.startswith("["):
        return path + key
    return f"{path}.{key}"
