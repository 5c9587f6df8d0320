"""Networks with published ports on the machines of `machines`, UDP sockets, and tracked flows."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.configs import host_local
from harness.host import run_in
from harness.machines import Machines
from harness.namespaces import Namespace, inside
from pycni.runtime import Network


def port(host: int, container: int, protocol: str = "tcp", **more: Any) -> dict[str, Any]:
    """One of the runtime's port mappings."""
    return {"hostPort": host, "containerPort": container, "protocol": protocol, **more}


@dataclass
class Lan:
    """Networks of a bridge, portmap and masquerading each, and the containers in them."""

    machines: Machines
    folder: Path
    networks: dict[str, Network] = field(default_factory=dict)
    sandboxes: dict[str, Namespace] = field(default_factory=dict)

    def network(
        self,
        name: str = "n",
        *,
        bridge: str = "br0",
        subnets: tuple[str, ...] = ("10.30.0.0/24", "fd00:30::/64"),
        portmap: dict[str, Any] | None = None,
        firewall: dict[str, Any] | None = None,
        **keys: Any,
    ) -> Network:
        """The network of a name, made at first.

        portmap: further keys of that plugin; firewall: of that one, which is left out without.
        """
        if name not in self.networks:
            plugins = [
                {
                    "type": "bridge",
                    "bridge": bridge,
                    "isDefaultGateway": True,
                    "ipMasq": True,
                    "hairpinMode": True,
                    "ipam": host_local(self.folder / "leases", *subnets),
                    **keys,
                },
                {
                    "type": "portmap",
                    "capabilities": {"portMappings": True},
                    **(portmap or {}),
                },
            ]
            if firewall is not None:
                plugins.append({"type": "firewall", **firewall})
            self.networks[name] = Network.from_dict(
                {"cniVersion": "1.1.0", "name": name, "plugins": plugins},
                plugin_dirs=self.machines.plugins,
                cache_dir=self.folder / "cache",
            )
        return self.networks[name]

    def alone(self, **keys: Any) -> Network:
        """Network `n` with one address of each family for all its containers."""
        single = [
            {"subnet": "10.30.0.0/24", "rangeStart": "10.30.0.2", "rangeEnd": "10.30.0.2"},
            {"subnet": "fd00:30::/64", "rangeStart": "fd00:30::2", "rangeEnd": "fd00:30::2"},
        ]
        ipam = host_local(self.folder / "leases", ranges=[[item] for item in single])
        return self.network(ipam=ipam, **keys)

    def sandbox(self, container: str) -> Namespace:
        """A container's namespace, made at first."""
        if container not in self.sandboxes:
            self.sandboxes[container] = self.machines.sandbox()
        return self.sandboxes[container]

    def add(
        self, container: str, *ports: dict[str, Any], network: str = "n", ifname: str = "eth0"
    ) -> dict[int, str]:
        """Attach a container; returns its addresses by version."""
        capabilities = {"portMappings": list(ports)} if ports else {}
        result = self.network(network).add(
            container, self.sandbox(container).path, ifname, capabilities=capabilities
        )
        return {6 if ":" in str(ip.address) else 4: str(ip.address.address) for ip in result.ips}


def udp(
    where: Namespace | None, version: int, port: int = 0, address: str = "", timeout: float = 1.0
) -> socket.socket:
    """A UDP socket in a namespace (None: the thread's), bound to a port."""
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[version]
    with inside(where):
        found = socket.socket(family, socket.SOCK_DGRAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.settimeout(timeout)
    found.bind((address, port))
    return found


def connection(
    server: Namespace | None, client: Namespace | None, address: str, number: int, own: int
) -> tuple[socket.socket, socket.socket]:
    """A TCP connection: the client's end, made to a port of an address, and the server's end.

    own: the port that the server listens on meanwhile.
    """
    with inside(server):
        listening = socket.create_server(("::", own), family=socket.AF_INET6, dualstack_ipv6=True)
    with listening:
        with inside(client):
            near = socket.create_connection((address, number), timeout=2)
        far = listening.accept()[0]
    far.settimeout(2)
    return near, far


def received(where: socket.socket, timeout: float | None = None) -> tuple[str, str, int] | None:
    """The next datagram, its sender's address and port; None if none comes in time."""
    before = where.gettimeout()
    try:
        if timeout is not None:
            where.settimeout(timeout)
        data, sender = where.recvfrom(200)
    except (TimeoutError, ConnectionRefusedError):
        return None
    finally:
        where.settimeout(before)
    return data.decode(), sender[0], sender[1]


def tracked(version: int, *words: str) -> set[str]:
    """The flows of a family that have these words: each a line of conntrack without its timers."""
    listed = run_in(None, ["conntrack", "-f", f"ipv{version}", "-L", "-o", "id"], check=False)
    lines = set()
    for line in listed.stdout.splitlines():
        fields = line.split()
        if set(words) <= set(fields):
            # Protocol and number, then the time that is left.
            kept = [word for word in fields[3:] if "=" in word and not word.startswith("use=")]
            lines.add(" ".join([fields[0], *kept]))
    return lines
