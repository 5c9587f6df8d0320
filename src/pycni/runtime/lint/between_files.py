"""What is wrong between files that are sound each by itself.

Each is a configuration that attaches containers without an error, and then two containers have one
address, or one of two networks attaches none.
"""

from __future__ import annotations

import os

from pycni.plugins.host_local import HostLocalConf
from pycni.runtime.config import content, read_network, read_plugin
from pycni.runtime.errors import ConfigError, FaultInFile
from pycni.runtime.json_positions import positions
from pycni.spec.config import ipam_type
from pycni.spec.errors import CNIError
from pycni.spec.jsontext import lookup
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pycni.plugins.shared.ranges import Range
    from pycni.runtime.config import NetworkConfig

_ROUTED = ("bridge", "ptp")  # the host has a route to all of their subnet


class Pool(Record):
    """Addresses that a plugin hands out: a range of host-local, in which network, by what.

    path: of the key; bridge: its name, "" for another plugin.
    """

    config: NetworkConfig
    path: str
    kind: str
    bridge: str
    range: Range


def faults_between_files(paths: Iterable[str]) -> list[FaultInFile]:
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
        return False  # reported by the name, or meant so within one network
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
            continue  # reported where it is
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
