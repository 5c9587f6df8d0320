"""`pycni init`: writes a sound network configuration, and asks nothing that has a good default."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pycni.cli.crio import warn_of_crio
from pycni.cli.output import info, warn
from pycni.plugins import NAMES
from pycni.runtime.find import DEFAULT_DIRECTORY, EXTENSIONS, all_networks
from pycni.spec import versions
from pycni.spec.errors import INVALID_CONFIG, CNIError
from pycni.spec.ip import IPNetwork, parse_network
from pycni.spec.names import MAX_INTERFACE_NAME, check_network_name
from pycni.spec.owner import hashed_name
from pycni.state.files import make_directories, write_file

if TYPE_CHECKING:
    from pycni.runtime.config import NetworkConfig

# The types that have a configuration of their own, and what they need to be told, if anything.
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
HELP = "Write a network configuration of TYPE, which is one of\n\n\b\n" + "\n".join(
    f"{kind:<13}{line}" for kind, line in KINDS.items()
)
USED_BY = {
    "--subnet": tuple(kind for kind in KINDS if kind != "loopback"),
    "--master": ("macvlan", "ipvlan", "vlan"),
    "--vlan": ("vlan",),
    "--device": ("host-device",),
}
# Where subnets are chosen: apart from what others choose by themselves. podman takes from 10.88 on,
# k3s 10.42 and 10.43, Weave 10.32 to 10.47, kubeadm and Flannel 10.96 and 10.244, Docker 172.17.
CANDIDATES = tuple(f"10.{number}.0.0/16" for number in range(48, 88))
_ROUTED = ("bridge", "ptp")
_ON_MASTER = ("macvlan", "ipvlan", "vlan")


@click.command(help=HELP)
@click.argument("kind", metavar="TYPE", type=click.Choice([*KINDS]))
@click.option("--name", help="The network's name.  [default: TYPE]")
@click.option(
    "--subnet",
    "subnets",
    multiple=True,
    metavar="CIDR",
    help="Where addresses are taken from; may be repeated for IPv4 and IPv6.  [default: one that "
    "nothing uses here]",
)
@click.option(
    "--master",
    metavar="INTERFACE",
    help="Host interface of a macvlan, ipvlan or vlan.  [default: the default route's]",
)
@click.option("--vlan", type=click.IntRange(1, 4094), help="The VLAN's number.")
@click.option("--device", metavar="INTERFACE", help="The host interface to move.")
@click.option(
    "--conf-dir",
    envvar="NETCONFPATH",
    type=click.Path(path_type=Path),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    show_envvar=True,
    help="Where to write it.",
)
@click.option("--stdout", is_flag=True, help="Print it and write nothing.")
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
def init(
    kind: str,
    name: str | None,
    subnets: tuple[str, ...],
    master: str | None,
    vlan: int | None,
    device: str | None,
    conf_dir: Path,
    stdout: bool,
    force: bool,
) -> None:
    """Write a network configuration; HELP is what users read."""
    name = name or kind
    check_network_name(name)
    _refuse_unused(kind, {"--subnet": subnets, "--master": master, "--vlan": vlan,
                          "--device": device})  # fmt: skip
    others = all_networks([str(conf_dir)])[0]
    same = next((other.file for other in others if other.name == name), "")
    if same and not force and not stdout:
        raise CNIError(
            INVALID_CONFIG,
            f"there is a network {name} already, in {same}",
            "take another --name, or --force to replace the file",
        )
    others = [other for other in others if other.name != name]
    document = network(kind, name, subnets, master, vlan, device, others, force)
    text = json.dumps(document, indent=2) + "\n"
    if stdout:
        click.echo(text, nl=False)
        return
    path = Path(same) if same.endswith(".conflist") else conf_dir / _file_name(name, conf_dir)
    make_directories(str(conf_dir))
    write_file(str(path), text.encode(), 0o644)
    if same and Path(same) != path:
        os.unlink(same)  # a single plugin's file, whose name the list takes over
    info(f"wrote {path}; try: pycni add {name} sandbox --create-netns")
    _tell_of_order(path)
    warn_of_crio(str(conf_dir))


def _refuse_unused(kind: str, given: Mapping[str, Any]) -> None:
    """Raise CNIError for an option that says nothing to this type: it would be lost silently."""
    for option, value in given.items():
        if value and kind not in USED_BY[option]:
            raise CNIError(
                INVALID_CONFIG,
                f"{option} is of no use to a network of type {kind}",
                f"it is for {', '.join(USED_BY[option])}",
            )


def _file_name(name: str, conf_dir: Path) -> str:
    """A name behind those that are there: runtimes take the first file for all their containers."""
    last = max(_config_files(conf_dir), default="")
    for number in range(10, 100):
        file = f"{number}-{name}.conflist"
        if file > last:
            return file
    return f"99-{name}.conflist"


def _config_files(conf_dir: Path) -> list[str]:
    try:
        return [file for file in os.listdir(conf_dir) if file.endswith(EXTENSIONS)]
    except FileNotFoundError:
        return []


def _tell_of_order(path: Path) -> None:
    first, *others = sorted(_config_files(path.parent))
    if others and first == path.name:
        warn(
            f"{path.name} comes before {others[0]}: runtimes that take the first file, as those of "
            "Kubernetes do, attach their pods to it"
        )


def network(
    kind: str,
    name: str,
    subnets: tuple[str, ...],
    master: str | None,
    vlan: int | None,
    device: str | None,
    others: Sequence[NetworkConfig],
    force: bool,
) -> dict[str, Any]:
    """The configuration. Raises CNIError for what it cannot do without, or that others use."""
    plugin: dict[str, Any] = {"type": kind}
    if kind == "bridge":
        plugin |= {"bridge": _bridge(name, others), "isDefaultGateway": True, "ipMasq": True}
    elif kind == "ptp":
        plugin |= {"ipMasq": True}
    elif kind in _ON_MASTER:
        plugin |= {"master": master or _default_interface()}
        if kind == "macvlan":
            plugin |= {"mode": "bridge"}
    if kind == "vlan":
        if vlan is None:
            raise _needed("--vlan", "the VLAN's number, 1 to 4094")
        plugin |= {"vlanId": vlan}
    if kind == "host-device":
        if device is None:
            raise _needed("--device", "the host interface to move into the container")
        plugin |= {"device": device}
    if kind != "loopback":
        ipam = _ipam(kind, subnets, others, force)
        if ipam:
            plugin |= {"ipam": ipam}
    plugins = [plugin]
    if kind in _ROUTED and "portmap" in NAMES:
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
    return {"cniVersion": versions.CURRENT, "name": name, "plugins": plugins}


def _ipam(
    kind: str, subnets: tuple[str, ...], others: Sequence[NetworkConfig], force: bool
) -> dict[str, Any]:
    if kind in ("host-device", "tap") and not subnets:
        return {}
    if kind in _ON_MASTER and not subnets:
        # Only the network beside the host knows which of its addresses are free.
        info('addresses come by DHCP: its daemon must run, or give "--subnet"')
        return {"type": "dhcp"}
    networks = [_subnet(text) for text in subnets]
    _refuse_overlap(networks, [] if force else _configured(others))
    if kind in _ROUTED and not force:
        _refuse_connected(networks)
    networks = networks or [_free([one for _, one in _configured(others)] + _routed())]
    ipam: dict[str, Any] = {
        "type": "host-local",
        "ranges": [[{"subnet": str(network)}] for network in networks],
    }
    if kind == "ptp":
        ipam["routes"] = [
            {"dst": "0.0.0.0/0" if network.is_ipv4 else "::/0"} for network in networks
        ]
    return ipam


def _subnet(text: str) -> IPNetwork:
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


def _refuse_overlap(
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


def _refuse_connected(networks: Sequence[IPNetwork]) -> None:
    """Raise CNIError if the host is in a subnet by an interface of its own."""
    for network in networks:
        for interface, connected, gateway in _routes():
            if connected.prefix and not gateway and network.overlaps(connected):
                raise CNIError(
                    INVALID_CONFIG,
                    f"--subnet {network} overlaps with {connected} of the host's {interface}",
                    "it would be reached by the new network only: take another one, or --force",
                )


def _free(used: list[IPNetwork]) -> IPNetwork:
    """The first of CANDIDATES that overlaps with nothing that is used."""
    for text in CANDIDATES:
        candidate = parse_network(text)
        if not any(candidate.overlaps(other) for other in used):
            return candidate
    raise _needed("--subnet", f"no network from {CANDIDATES[0]} on is free here")


def _configured(others: Sequence[NetworkConfig]) -> list[tuple[NetworkConfig, IPNetwork]]:
    """The subnets in other configurations."""
    found = []
    for other in others:
        for text in _subnets(json.loads(other.source)):
            try:
                found.append((other, parse_network(text)))
            except ValueError:
                continue
    return found


def _routed() -> list[IPNetwork]:
    """The networks that the host has routes to."""
    return [network for _, network, _ in _routes() if network.prefix]


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


def _default_interface() -> str:
    for interface, destination, _ in _routes():
        if destination.prefix == 0:
            return interface
    raise _needed("--master", "there is no default route to take the interface from")


def _bridge(name: str, others: Sequence[NetworkConfig]) -> str:
    """The bridge's name: cni0 for the default name, else one that tells the network; never one
    that another network has."""
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
    # Long names that begin alike are still told apart.
    return hashed_name(f"cni-{name[:5]}-", name, MAX_INTERFACE_NAME)


def _needed(option: str, why: str) -> CNIError:
    return CNIError(INVALID_CONFIG, f"{option} is needed", why)
