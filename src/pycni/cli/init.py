"""`pycni init`: writes a sound network configuration, and asks nothing that has a good default."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from pycni.cli.output import tell
from pycni.plugins import NAMES
from pycni.runtime.find import DEFAULT_DIRECTORY, all_networks
from pycni.spec import versions
from pycni.spec.errors import INVALID_CONFIG, CNIError
from pycni.spec.ip import IPNetwork, parse_network
from pycni.spec.names import MAX_INTERFACE_NAME, check_network_name

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
    document = network(kind, name, subnets, master, vlan, device, conf_dir)
    text = json.dumps(document, indent=2) + "\n"
    if stdout:
        click.echo(text, nl=False)
        return
    path = conf_dir / f"10-{name}.conflist"
    others = [other for other in all_networks([str(conf_dir)])[0] if other.name == name]
    if not force and (path.exists() or others):
        where = path if path.exists() else others[0].file
        raise CNIError(
            INVALID_CONFIG,
            f"there is a network {name} already, in {where}",
            "take another --name, or --force to replace the file",
        )
    conf_dir.mkdir(parents=True, exist_ok=True)
    partial = conf_dir / f".{path.name}.{os.getpid()}"
    partial.write_text(text)
    partial.rename(path)
    tell(f"wrote {path}; try: pycni add {name} sandbox --create-netns")


def network(
    kind: str,
    name: str,
    subnets: tuple[str, ...],
    master: str | None,
    vlan: int | None,
    device: str | None,
    conf_dir: Path,
) -> dict[str, Any]:
    """The configuration. Raises CNIError for what it cannot do without."""
    plugin: dict[str, Any] = {"type": kind}
    if kind == "bridge":
        plugin |= {"bridge": _bridge(name), "isDefaultGateway": True, "ipMasq": True}
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
        ipam = _ipam(kind, subnets, conf_dir)
        if ipam:
            plugin |= {"ipam": ipam}
    plugins = [plugin]
    if kind in _ROUTED and "portmap" in NAMES:
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
    return {"cniVersion": versions.CURRENT, "name": name, "plugins": plugins}


def _ipam(kind: str, subnets: tuple[str, ...], conf_dir: Path) -> dict[str, Any]:
    if kind in ("host-device", "tap") and not subnets:
        return {}
    if kind in _ON_MASTER and not subnets:
        # Only the network beside the host knows which of its addresses are free.
        tell('addresses come by DHCP: its daemon must run, or give "--subnet"')
        return {"type": "dhcp"}
    used = _used(conf_dir)
    networks = [_subnet(text) for text in subnets] or [_free(used)]
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
        return parse_network(text)
    except ValueError as error:
        raise CNIError(
            INVALID_CONFIG, f"--subnet {text}: {error}", "expected one such as 10.1.0.0/16"
        ) from None


def _free(used: list[IPNetwork]) -> IPNetwork:
    """The first network of 10.88.0.0/16 to 10.255.0.0/16 that overlaps with none that is used."""
    for number in range(88, 256):
        candidate = parse_network(f"10.{number}.0.0/16")
        if not any(_overlap(candidate, other) for other in used):
            return candidate
    raise _needed("--subnet", "no network from 10.88.0.0/16 on is free here")


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    if one.address.family != other.address.family:
        return False
    return one.first <= other.last and other.first <= one.last


def _used(conf_dir: Path) -> list[IPNetwork]:
    """The networks that other configurations or the host's routes use."""
    used = []
    for other in all_networks([str(conf_dir)])[0]:
        for text in _subnets(json.loads(other.source)):
            try:
                used.append(parse_network(text))
            except ValueError:
                continue
    used += [network for _, network in _routes() if network.prefix]
    return used


def _subnets(value: Any) -> list[str]:
    """Every "subnet" in a configuration, wherever it stands."""
    if isinstance(value, list):
        return [text for item in value for text in _subnets(item)]
    if not isinstance(value, dict):
        return []
    own = value.get("subnet")
    found = [own] if isinstance(own, str) else []
    return found + [text for item in value.values() for text in _subnets(item)]


def _routes() -> list[tuple[str, IPNetwork]]:
    """The host's IPv4 routes: interface and destination (proc_net_route(5))."""
    routes = []
    for line in Path("/proc/thread-self/net/route").read_text().splitlines()[1:]:
        interface, destination, *_, mask, _mtu, _window, _rtt = line.split()
        address = ".".join(str(byte) for byte in reversed(bytes.fromhex(destination)))
        prefix = int(mask, 16).bit_count()
        routes.append((interface, parse_network(f"{address}/{prefix}")))
    return routes


def _default_interface() -> str:
    for interface, destination in _routes():
        if destination.prefix == 0:
            return interface
    raise _needed("--master", "there is no default route to take the interface from")


def _bridge(name: str) -> str:
    """The bridge's name: cni0 for the default name, else one that tells the network."""
    return "cni0" if name == "bridge" else f"cni-{name}"[:MAX_INTERFACE_NAME]


def _needed(option: str, why: str) -> CNIError:
    return CNIError(INVALID_CONFIG, f"{option} is needed", why)
