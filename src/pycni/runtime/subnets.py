"""Subnets for a new network: apart from those of other networks, and of the host itself."""

from __future__ import annotations

import json
from pathlib import Path

from pycni.spec.errors import INVALID_CONFIG, CNIError
from pycni.spec.ip import IPNetwork, parse_network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pycni.runtime.config import NetworkConfig

# Where subnets are chosen: apart from what others choose by themselves. podman takes from 10.88 on,
# k3s 10.42 and 10.43, Weave 10.32 to 10.47, kubeadm and Flannel 10.96 and 10.244, Docker 172.17.
CANDIDATES = tuple(f"10.{number}.0.0/16" for number in range(48, 88))


def parse_subnet(text: str) -> IPNetwork:
    """A subnet as a caller gives it. Raises CNIError."""
    try:
        found = parse_network(text)
    except ValueError as error:
        raise CNIError(
            INVALID_CONFIG, f"--subnet {text}: {error}", "expected one such as 10.1.0.0/16"
        ) from None
    if found.address != found.network.address:
        raise CNIError(
            INVALID_CONFIG,
            f"--subnet {text} is an address in a network",
            f"expected the network itself: {found.network}",
        )
    return found


def refuse_overlap(
    networks: Sequence[IPNetwork], used: Sequence[tuple[NetworkConfig, IPNetwork]]
) -> None:
    """Raise CNIError if a subnet has addresses in common with one of another network."""
    for index, network in enumerate(networks):
        if any(network.overlaps(other) for other in networks[:index]):
            raise CNIError(
                INVALID_CONFIG,
                f"--subnet {network} overlaps with another one that is given",
                "one for IPv4 and one for IPv6 are most often meant",
            )
        for other, subnet in used:
            if network.overlaps(subnet):
                raise CNIError(
                    INVALID_CONFIG,
                    f"--subnet {network} overlaps with {subnet} of the network {other.name} in "
                    f"{other.file}",
                    "both would give out the same addresses: take another one, or --force",
                )


def refuse_connected(networks: Sequence[IPNetwork]) -> None:
    """Raise CNIError if the host is in a subnet by an interface of its own."""
    for network in networks:
        for interface, connected, gateway in _routes():
            if connected.prefix and not gateway and network.overlaps(connected):
                raise CNIError(
                    INVALID_CONFIG,
                    f"--subnet {network} overlaps with {connected} of the host's {interface}",
                    "it would be reached by the new network only: take another one, or --force",
                )


def free(used: list[IPNetwork]) -> IPNetwork:
    """The first of CANDIDATES that overlaps with nothing that is used. Raises CNIError."""
    for text in CANDIDATES:
        candidate = parse_network(text)
        if not any(candidate.overlaps(other) for other in used):
            return candidate
    raise needed("--subnet", f"no network from {CANDIDATES[0]} on is free here")


def configured(others: Sequence[NetworkConfig]) -> list[tuple[NetworkConfig, IPNetwork]]:
    """The subnets in other configurations."""
    found = []
    for other in others:
        for text in _subnets(json.loads(other.source)):
            try:
                found.append((other, parse_network(text)))
            except ValueError:
                continue
    return found


def routed() -> list[IPNetwork]:
    """The networks that the host has routes to."""
    return [network for _, network, _ in _routes() if network.prefix]


def default_interface() -> str:
    """The interface of the host's default route. Raises CNIError if there is none."""
    for interface, destination, _ in _routes():
        if destination.prefix == 0:
            return interface
    raise needed("--master", "there is no default route to take the interface from")


def needed(option: str, why: str) -> CNIError:
    """The error that a network cannot be made without an option."""
    return CNIError(INVALID_CONFIG, f"{option} is needed", why)


def _subnets(value: Any) -> list[str]:
    """Every "subnet" in a configuration, wherever it stands."""
    if isinstance(value, list):
        return [text for item in value for text in _subnets(item)]
    if not isinstance(value, dict):
        return []
    own = value.get("subnet")
    found = [own] if isinstance(own, str) else []
    return found + [text for item in value.values() for text in _subnets(item)]


def _routes() -> list[tuple[str, IPNetwork, bool]]:
    """The host's IPv4 routes (proc_net_route(5)): interface, destination, if it is by a gateway."""
    routes = []
    for line in Path("/proc/thread-self/net/route").read_text().splitlines()[1:]:
        interface, destination, gateway, *_, mask, _mtu, _window, _rtt = line.split()
        address = ".".join(str(byte) for byte in reversed(bytes.fromhex(destination)))
        prefix = int(mask, 16).bit_count()
        routes.append((interface, parse_network(f"{address}/{prefix}"), gateway.strip("0") != ""))
    return routes
