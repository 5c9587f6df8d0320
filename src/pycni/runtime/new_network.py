"""New network configurations, sound as they are: for `pycni init`.

What has a good default is chosen: subnets that nothing uses here, a bridge of the network's own,
the interface of the default route, a file behind those that are there. Errors name the command's
options, which are called as the parameters are.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pycni.runtime import subnets as ranges
from pycni.runtime.config import files
from pycni.runtime.find import DEFAULT_DIRECTORY, EXTENSIONS, all_networks
from pycni.spec import versions
from pycni.spec.errors import INVALID_CONFIG, CNIError
from pycni.spec.names import MAX_INTERFACE_NAME, check_network_name
from pycni.spec.owner import hashed_name
from pycni.state.files import make_directories, write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from pycni.runtime.config import NetworkConfig

    PathLike = str | os.PathLike[str]

# The types that have a configuration of their own, with the options that they cannot do without.
KINDS = {
    "bridge": "a bridge on the host, with addresses and a way out",
    "ptp": "a pair of interfaces per container, routed",
    "macvlan": "interfaces beside the host's on its network",
    "ipvlan": "the same with the host's MAC address",
    "vlan": "a VLAN of a host interface (--vlan)",
    "host-device": "a host interface, moved into the container (--device)",
    "tap": "a tap interface, for virtual machines",
    "dummy": "an interface that leads nowhere",
    "loopback": "the loopback, up",
}
USED_BY = {
    "--subnet": tuple(kind for kind in KINDS if kind != "loopback"),
    "--master": ("macvlan", "ipvlan", "vlan"),
    "--vlan": ("vlan",),
    "--device": ("host-device",),
}
_ROUTED = ("bridge", "ptp")
_ON_MASTER = ("macvlan", "ipvlan", "vlan")


def new_network(
    kind: str,
    name: str = "",
    *,
    subnets: Sequence[str] = (),
    master: str = "",
    vlan: int | None = None,
    device: str = "",
    conf_dir: PathLike = DEFAULT_DIRECTORY,
    force: bool = False,
) -> dict[str, Any]:
    """The configuration of a network, by default one called as its kind, which is one of KINDS.

    subnets: where addresses are taken from, by default one that nothing uses here; master: the
    host's interface of a macvlan, ipvlan or vlan, by default that of the default route; vlan: the
    number of one; device: of the host, to move. conf_dir: where the other networks are that it is
    to be apart from; force: even if it is not. Raises CNIError for what it cannot do without, what
    is of no use, and subnets that others use.
    """
    if kind not in KINDS:
        raise CNIError(
            INVALID_CONFIG, f'no network of type "{kind}"', f"expected {', '.join(KINDS)}"
        )
    name = name or kind
    check_network_name(name)
    given = {"--subnet": subnets, "--master": master, "--vlan": vlan, "--device": device}
    _refuse_unused(kind, given)
    others = [other for other in all_networks([os.fspath(conf_dir)])[0] if other.name != name]
    plugin: dict[str, Any] = {"type": kind}
    if kind == "bridge":
        plugin |= {"bridge": _bridge(name, others), "isDefaultGateway": True, "ipMasq": True}
    elif kind == "ptp":
        plugin |= {"ipMasq": True}
    elif kind in _ON_MASTER:
        plugin |= {"master": master or ranges.default_interface()}
        if kind == "macvlan":
            plugin |= {"mode": "bridge"}
    if kind == "vlan":
        if vlan is None:
            raise ranges.needed("--vlan", "the VLAN's number, 1 to 4094")
        plugin |= {"vlanId": vlan}
    if kind == "host-device":
        if not device:
            raise ranges.needed("--device", "the host interface to move into the container")
        plugin |= {"device": device}
    if kind != "loopback":
        ipam = _ipam(kind, subnets, others, force)
        if ipam:
            plugin |= {"ipam": ipam}
    plugins = [plugin]
    if kind in _ROUTED:
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
    return {"cniVersion": versions.CURRENT, "name": name, "plugins": plugins}


def write_network(
    document: Mapping[str, Any], conf_dir: PathLike = DEFAULT_DIRECTORY, *, force: bool = False
) -> Path:
    """Write a configuration list into a directory, behind what is there, and return its path.

    force: in the place of a file with a network of this name. Raises CNIError if there is one,
    OSError.
    """
    folder, name = Path(conf_dir), str(document["name"])
    others = all_networks([str(folder)])[0]
    same = next((other.file for other in others if other.name == name), "")
    if same and not force:
        raise CNIError(
            INVALID_CONFIG,
            f"there is a network {name} already, in {same}",
            "take another --name, or --force to replace the file",
        )
    path = Path(same) if same.endswith(".conflist") else folder / _file_name(name, folder)
    make_directories(str(folder))
    write_file(str(path), as_text(document).encode(), 0o644)
    if same and Path(same) != path:
        os.unlink(same)  # a single plugin's file, whose name the list takes over
    return path


def as_text(document: Mapping[str, Any]) -> str:
    """A configuration as it stands in a file."""
    return json.dumps(document, indent=2) + "\n"


def second_file(path: Path) -> str:
    """The name of the file that comes next, if this one is the first in its directory, else "".

    Runtimes such as those of Kubernetes attach their pods to the first file's network.
    """
    first, *others = _config_files(path.parent)
    return others[0] if others and first == path.name else ""


def _refuse_unused(kind: str, given: Mapping[str, Any]) -> None:
    """Raise CNIError for an option that says nothing to this type: it would be lost silently."""
    for option, value in given.items():
        if value and kind not in USED_BY[option]:
            raise CNIError(
                INVALID_CONFIG,
                f"{option} is of no use to a network of type {kind}",
                f"it is for {', '.join(USED_BY[option])}",
            )


def _ipam(
    kind: str, subnets: Sequence[str], others: Sequence[NetworkConfig], force: bool
) -> dict[str, Any]:
    if kind in ("host-device", "tap") and not subnets:
        return {}
    if kind in _ON_MASTER and not subnets:
        # Only the network beside the host knows which of its addresses are free.
        return {"type": "dhcp"}
    networks = [ranges.parse_subnet(text) for text in subnets]
    ranges.refuse_overlap(networks, [] if force else ranges.configured(others))
    if kind in _ROUTED and not force:
        ranges.refuse_connected(networks)
    if not networks:
        used = [subnet for _, subnet in ranges.configured(others)] + ranges.routed()
        networks = [ranges.free(used)]
    ipam: dict[str, Any] = {
        "type": "host-local",
        "ranges": [[{"subnet": str(network)}] for network in networks],
    }
    if kind == "ptp":
        ipam["routes"] = [
            {"dst": "0.0.0.0/0" if network.is_ipv4 else "::/0"} for network in networks
        ]
    return ipam


def _bridge(name: str, others: Sequence[NetworkConfig]) -> str:
    """The bridge's name: cni0 for the default name, else by the network's; never one that
    another network has."""
    taken = {
        plugin.document.get("bridge", "cni0")
        for other in others
        for plugin in other.plugins
        if plugin.type == "bridge"
    }
    plain = "cni0" if name == "bridge" else f"cni-{name}"
    if len(plain) <= MAX_INTERFACE_NAME and plain not in taken:
        return plain
    if f"cni-{name}" not in taken and len(f"cni-{name}") <= MAX_INTERFACE_NAME:
        return f"cni-{name}"
    # Long names that begin alike stay different.
    return hashed_name(f"cni-{name[:5]}-", name, MAX_INTERFACE_NAME)


def _file_name(name: str, conf_dir: Path) -> str:
    """A name behind those that are there: runtimes take the first file for all their containers."""
    last = max(_config_files(conf_dir), default="")
    for number in range(10, 100):
        file = f"{number}-{name}.conflist"
        if file > last:
            return file
    return f"99-{name}.conflist"


def _config_files(conf_dir: Path) -> list[str]:
    """The names of configurations in a directory, in order."""
    return sorted(os.path.basename(path) for path in files(str(conf_dir), EXTENSIONS))
