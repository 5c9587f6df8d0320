"""What is wrong with keys, plugins or files that are sound each by itself, for `pycni lint`.

Each is a configuration that attaches containers without an error, and then no packet passes, or two
containers have one address.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from pycni.plugins.host_local import HostLocalConf
from pycni.plugins.shared.ranges import Range
from pycni.runtime.config import NetworkConfig, content, read_network, read_plugin
from pycni.runtime.errors import ConfigError, FaultInFile
from pycni.runtime.json_positions import positions
from pycni.spec.config import ipam_type
from pycni.spec.errors import CNIError
from pycni.spec.ip import IPAddress, IPNetwork, parse_address, parse_network
from pycni.spec.jsontext import lookup
from pycni.spec.schema import Fault

_FRAME = 1514  # bytes: an Ethernet frame of the usual MTU
_ROUTED = ("bridge", "ptp")  # the host has a route to all of their subnet


class Pool(NamedTuple):
    """Addresses that a plugin hands out: a range of host-local, in which network, by what.

    path: of the key; bridge: its name, "" for another plugin.
    """

    config: NetworkConfig
    path: str
    kind: str
    bridge: str
    range: Range


def plugin_faults(own: Mapping[str, Any], path: str) -> Iterator[Fault]:
    """What is wrong between the keys of one plugin. path: its place in the file, "" for the top."""
    kind = lookup(own, "type")
    capabilities = lookup(own, "capabilities")
    declared = capabilities if isinstance(capabilities, dict) else {}
    # What is misspelt is told by itself.
    wanted, keys = ("portMappings", declared) if declared else ("capabilities", own)
    misspelt = [key for key in keys if key.lower() != wanted.lower()]
    is_lost = not declared.get("portMappings") and not get_close_matches(wanted, misspelt)
    if kind == "portmap" and is_lost and "runtimeConfig" not in own:
        yield Fault(
            _at(path, "capabilities"),
            "no port would be published: the runtime hands none to the plugin",
            'expected "capabilities": {"portMappings": true}',
        )
    if kind == "bandwidth":
        yield from _bursts(own, path)
    if kind == "macvlan" and lookup(own, "mode") == "passthru" and _asks_for_mac(own, declared):
        yield Fault(
            _at(path, "mode"),
            "passthru with a MAC address of choice changes that of the master itself",
            "in passthru a container has the master's MAC address: drop the capability mac, or "
            'choose the mode "bridge"',
        )
    if kind != "ptp":  # whose gateway is a host's address by itself
        yield from _gateways(lookup(own, "ipam"), _at(path, "ipam"))


def faults_between(paths: Iterable[str]) -> list[FaultInFile]:
    """What is wrong between files, for those that are in one directory and can be used."""
    folders: dict[str, list[NetworkConfig]] = {}
    for path in dict.fromkeys(map(os.path.abspath, paths)):
        try:
            found = (read_network if path.endswith(".conflist") else read_plugin)(path)
        except ConfigError:
            continue
        folders.setdefault(os.path.dirname(path), []).append(found.replace(file=path))
    faults: list[FaultInFile] = []
    for networks in folders.values():
        # As runtimes read them.
        networks.sort(key=lambda one: (not one.file.endswith(".conflist"), one.file))
        faults += _names_taken(networks)
        faults += _pools_shared(networks)
        faults += _modes_differ(networks)
    return faults


def _names_taken(networks: Sequence[NetworkConfig]) -> Iterator[FaultInFile]:
    first: dict[str, str] = {}
    for network in networks:
        known = first.setdefault(network.name, network.file)
        if known != network.file:
            yield _placed(
                network,
                "name",
                f'"{network.name}" is the name of the network in {known} as well',
                "runtimes take the first file and pass over this one: give it another name",
            )


def _pools_shared(networks: Sequence[NetworkConfig]) -> Iterator[FaultInFile]:
    pools: list[Pool] = []
    for network in networks:
        for pool in list(_pools(network)):
            other = next((one for one in pools if _collide(pool, one)), None)
            if other is not None:
                yield _placed(
                    network,
                    pool.path,
                    f"{pool.range.subnet} overlaps with {other.range.subnet} of the network "
                    f"{other.config.name} in {other.config.file}",
                    "each network has its own list of addresses in use, so both would give out the "
                    "same ones: take another subnet, or parts of it by rangeStart and rangeEnd",
                )
            pools.append(pool)


def _modes_differ(networks: Sequence[NetworkConfig]) -> Iterator[FaultInFile]:
    """Networks of ipvlans on one master in different modes."""
    known: dict[str, tuple[str, NetworkConfig]] = {}
    for network in networks:
        for index, plugin in enumerate(network.plugins):
            own = plugin.document
            master = str(lookup(own, "master") or "")
            is_chained = index > 0 and not master  # on what a plugin before it has made
            if plugin.type != "ipvlan" or lookup(own, "linkInContainer") or is_chained:
                continue
            mode = str(lookup(own, "mode") or "l2")
            first, other = known.setdefault(master, (mode, network))
            if mode == first or network.name == other.name:
                continue
            key = next((key for key in ("mode", "master") if key in own), "type")
            yield _placed(
                network,
                f"plugins[{index}].{key}" if network.file.endswith(".conflist") else key,
                f"ipvlan in mode {mode} on {master or 'the interface of the default route'}, which "
                f"the network {other.name} in {other.file} uses in mode {first}",
                "Linux keeps one mode for each master, so as long as containers are attached to "
                "one of them, none is to the other: take one mode for both, or another master",
            )


def _collide(one: Pool, other: Pool) -> bool:
    if one.config.name == other.config.name:
        return False  # told by the name, or meant so within one network
    if one.range.overlaps(other.range):
        return True
    if one.kind not in _ROUTED or other.kind not in _ROUTED:
        return False
    # Parts of one subnet are well on one bridge; on two the host has a route to one of them.
    return one.range.subnet.overlaps(other.range.subnet) and (
        not one.bridge or one.bridge != other.bridge
    )


def _pools(network: NetworkConfig) -> Iterator[Pool]:
    # A file with one plugin has it at its top.
    is_list = network.file.endswith(".conflist")
    for index, plugin in enumerate(network.plugins):
        if ipam_type(plugin.document.get("ipam")) != "host-local":
            continue
        document = {**plugin.document, "name": network.name, "cniVersion": network.version}
        try:
            sets = HostLocalConf.decode(document).range_sets()
        except CNIError:
            continue  # told where it is
        name = plugin.document.get("bridge") if plugin.type == "bridge" else ""
        bridge = "cni0" if name is None else str(name)
        path = f"plugins[{index}].ipam" if is_list else "ipam"
        for item in (item for one in sets for item in one.ranges):
            yield Pool(network, path, plugin.type, bridge, item)


def _placed(network: NetworkConfig, key: str, problem: str, expected: str) -> FaultInFile:
    try:
        line = positions(content(network.file).decode("utf-8", "replace")).line(key)
    except OSError:
        line = 0
    return FaultInFile(key, problem, expected, network.file, line)


def _bursts(own: Mapping[str, Any], path: str) -> Iterator[Fault]:
    for key in ("ingressBurst", "egressBurst"):
        bits = lookup(own, key)
        if isinstance(bits, int) and 0 < bits < 8 * _FRAME:
            yield Fault(
                _at(path, key),
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


def _at(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
