"""The pieces of work that are measured: the configurations of a list's plugins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

V4 = {"subnet": "10.200.0.0/16"}
V6 = {"subnet": "fd00:c0de::/64"}
DEFAULT_ROUTES = {4: {"dst": "0.0.0.0/0"}, 6: {"dst": "::/0"}}
VERSION = "1.0.0"  # the newest that Debian's reference plugins speak

Config = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """A list of plugins, called one by one as a runtime does it.

    plugins: their configurations, for the container of a number; unchecked: types that CHECK leaves
    out.
    """

    name: str
    plugins: Callable[[int], list[Config]]
    unchecked: tuple[str, ...] = ()

    @property
    def network(self) -> str:
        """The name of its network."""
        return "".join(letter if letter.isalnum() else "." for letter in self.name)

    def configured(self, number: int, host: str, version: str = VERSION) -> list[Config]:
        """The configurations for the container of a number on one of the hosts."""
        found = []
        for plugin in self.plugins(number):
            config = {"cniVersion": version, "name": self.network, **plugin}
            if "ipam" in config:
                config["ipam"] = {**config["ipam"], "dataDir": data_dir(host)}
            found.append(config)
        return found


def data_dir(host: str) -> str:
    """Where host-local keeps the leases of a host: where any configuration may have them."""
    return f"/run/cni/pycni-bench/{host}"


def _ipam(families: tuple[int, ...]) -> Config:
    ranges = [[{4: V4, 6: V6}[family]] for family in families]
    routes = [DEFAULT_ROUTES[family] for family in families]
    return {"type": "host-local", "ranges": ranges, "routes": routes}


def bridge(*families: int, **keys: Any) -> Config:
    """A bridge with the gateway's addresses."""
    return {"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": _ipam(families), **keys}


def portmap(*ports: int) -> Config:
    """These ports of the host, by TCP and UDP in turn."""
    inner = {"tcp": 80, "udp": 53}
    mappings = [
        {"hostPort": port, "containerPort": inner[protocol], "protocol": protocol}
        for port, protocol in zip(ports, cycle(inner))
    ]
    return {"type": "portmap", "runtimeConfig": {"portMappings": mappings}}


def _pod(number: int) -> list[Config]:
    first = 10_000 + 2 * number
    limits = {
        "ingressRate": 10**9,
        "ingressBurst": 10**7,
        "egressRate": 10**9,
        "egressBurst": 10**7,
    }
    return [
        bridge(4, ipMasq=True),
        portmap(first, first + 1),
        {"type": "bandwidth", **limits},
        {"type": "firewall"},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "512"}},
    ]


def _single(name: str, config: Config) -> Scenario:
    return Scenario(name, lambda _: [config])


BRIDGE = _single("bridge", bridge(4))
MASQUERADE = _single("bridge + ipMasq", bridge(4, ipMasq=True))
SINGLE = (
    _single("loopback", {"type": "loopback"}),
    BRIDGE,
    MASQUERADE,
    _single("bridge dual stack + ipMasq", bridge(4, 6, ipMasq=True)),
    _single("ptp", {"type": "ptp", "ipam": _ipam((4,))}),
)
# The reference's portmap looks for IPv6 rules, and fails, in CHECK of a container without IPv6.
POD = Scenario("pod", _pod, unchecked=("portmap",))
HOST_LOCAL = _single("host-local", {"type": "host-local", "ipam": _ipam((4,))})
