"""A host with containers on bridges, a client outside, and a machine beyond that it reaches."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.attachment import Attachment
from harness.configs import host_local
from harness.host import ip_json
from harness.namespaces import Namespace, inside
from harness.services import service

# Addresses by version: two of the host towards the client, the client's, the machine beyond, and
# the host's on the first and the second bridge.
HOST = {4: "192.0.2.1", 6: "2001:db8::1"}
SECOND = {4: "192.0.2.9", 6: "2001:db8::9"}
CLIENT = {4: "192.0.2.2", 6: "2001:db8::2"}
FAR = {4: "198.51.100.2", 6: "2001:db8:f::2"}
BRIDGE = {4: "10.15.20.1", 6: "fd00:15:20::1"}
LOCAL = {4: "127.0.0.1", 6: "::1"}

# The networks by their bridges: name and subnets.
NETWORKS = {
    "br0": ("first", "10.15.20.0/24", "fd00:15:20::/64"),
    "br1": ("second", "10.15.21.0/24", "fd00:15:21::/64"),
}


@dataclass
class Machines:
    """The machines besides the host, whose namespace the thread is in, and what attaches more."""

    client: Namespace
    far: Namespace
    plugins: Path
    folder: Path
    sandbox: Callable[[], Namespace]
    stack: ExitStack

    def container(
        self, name: str, /, bridge: str = "br0", families: tuple[int, ...] = (4, 6), **keys: Any
    ) -> Attachment:
        """A container on a bridge, whose ports 80 and 81 answer, by TCP and UDP."""
        network, subnet4, subnet6 = NETWORKS[bridge]
        subnets = [subnet for family, subnet in ((4, subnet4), (6, subnet6)) if family in families]
        config = {
            "cniVersion": "1.0.0",
            "name": network,
            "type": "bridge",
            "bridge": bridge,
            "isDefaultGateway": True,
            "hairpinMode": True,
            "ipam": host_local(self.folder, *subnets),
            **keys,
        }
        attachment = Attachment(self.plugins / "bridge", config, self.sandbox(), name)
        attachment.add()
        self.stack.enter_context(service(attachment.sandbox, name, 80, 81))
        return attachment

    def chained(self, plugin: str, bridge: Attachment, **keys: Any) -> Attachment:
        """A plugin chained to a container's bridge; ADD is for the caller to call."""
        config = {
            "cniVersion": bridge.config["cniVersion"],
            "name": bridge.config["name"],
            "type": plugin,
            "prevResult": bridge.result,
            **keys,
        }
        return Attachment(
            self.plugins / plugin, config, bridge.sandbox, bridge.container, bridge.ifname
        )


def addresses(bridge: Attachment) -> dict[int, str]:
    """The container's addresses by version."""
    found = [ip["address"].partition("/")[0] for ip in bridge.result["ips"]]
    return {6 if ":" in address else 4: address for address in found}


def fill_bridge(name: str, netns: Namespace | None = None) -> None:
    """Plug veths in, both ends, until a bridge has the 1,023 ports that Linux gives one.

    The first two are a0 and b0; anyone who deletes one of them frees both ports.
    """
    missing = 1023 - len(ip_json("link", "show", "master", name, netns=netns))
    ends = [
        f"link set b{number // 2} master {name}\n"
        if number % 2
        else f"link add a{number // 2} master {name} type veth peer b{number // 2}\n"
        for number in range(missing)
    ]
    commands("".join(ends), netns)
    assert len(ip_json("link", "show", "master", name, netns=netns)) == 1023


def commands(batch: str, netns: Namespace | None = None) -> None:
    """Lines for `ip`, carried out in a namespace (None: the thread's)."""
    where = ["-n", netns.name] if netns else []
    subprocess.run(
        ["ip", *where, "-batch", "-"], input=batch, text=True, check=True, capture_output=True
    )


@contextmanager
def set_up(sandbox: Callable[[], Namespace], plugins: Path, folder: Path) -> Iterator[Machines]:
    """The machines, with forwarding on the host between client and beyond."""
    client, far = sandbox(), sandbox()
    for machine in (None, client, far):
        with inside(machine):  # addresses are good at once
            Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path(f"/proc/sys/net/{path}").write_text("1")
    commands(
        f"link add out type veth peer name eth0 netns {client.name}\n"
        f"link add far type veth peer name eth0 netns {far.name}\n"
        "link set out up\nlink set far up\n"
        f"address add {HOST[4]}/24 dev out\naddress add {SECOND[4]}/24 dev out\n"
        f"address add {HOST[6]}/64 dev out nodad\naddress add {SECOND[6]}/64 dev out nodad\n"
        "address add 198.51.100.1/24 dev far\naddress add 2001:db8:f::1/64 dev far nodad\n"
    )
    for machine, own, gateway4, gateway6 in (
        (client, CLIENT, HOST[4], HOST[6]),
        (far, FAR, "198.51.100.1", "2001:db8:f::1"),
    ):
        commands(
            "link set lo up\nlink set eth0 up\n"
            f"address add {own[4]}/24 dev eth0\naddress add {own[6]}/64 dev eth0 nodad\n"
            f"route add default via {gateway4}\nroute add ::/0 via {gateway6}\n",
            machine,
        )
    with ExitStack() as stack:
        yield Machines(client, far, plugins, folder, sandbox, stack)
