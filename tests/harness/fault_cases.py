"""Every plugin with a configuration that makes it do most of what it can, for fault injection."""

from __future__ import annotations

from typing import Any
from unittest import mock

from harness import dhcp, firewalld
from harness.host import run_in
from harness.worlds import Case, World

_DEFAULT = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
_HOST_LOCAL = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.8.0.0/24"}], [{"subnet": "fd00:8::/64"}]],
    "dataDir": "FOLDER/leases",
}
_STATIC = {
    "type": "static",
    "addresses": [
        {"address": "10.8.0.5/24", "gateway": "10.8.0.1"},
        {"address": "fd00:8::5/64", "gateway": "fd00:8::1"},
    ],
    "routes": _DEFAULT,
}
_BRIDGE: dict[str, Any] = {
    "bridge": "br0",
    "isDefaultGateway": True,
    "ipMasq": True,
    "hairpinMode": True,
    "ipam": _HOST_LOCAL,
}


def _ports(first: int) -> dict[str, Any]:
    return {
        "runtimeConfig": {
            "portMappings": [
                {"hostPort": first, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": first + 1, "containerPort": 81, "protocol": "udp"},
            ]
        }
    }


_RATES = {"ingressRate": 8_000_000, "ingressBurst": 800_000,
          "egressRate": 16_000_000, "egressBurst": 800_000}  # fmt: skip


def _lan(world: World) -> None:
    """A network on the host's interface lan0."""
    peer = world.sandbox()
    run_in(None, ["ip", "link", "add", "lan0", "address", "02:00:00:00:00:10", "type", "veth",
                  "peer", "eth0", "netns", peer.name])  # fmt: skip
    run_in(None, ["ip", "link", "set", "lan0", "up"])
    run_in(peer, ["ip", "link", "set", "eth0", "up"])


def _flanneld(world: World) -> None:
    (world.folder / "subnet.env").write_text(
        "FLANNEL_NETWORK=10.240.0.0/16\nFLANNEL_SUBNET=10.240.5.1/24\n"
        "FLANNEL_IPV6_NETWORK=fd00:240::/56\nFLANNEL_IPV6_SUBNET=fd00:240:0:5::1/64\n"
        "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    )


def _firewalld(world: World) -> None:
    found = world.stack.enter_context(firewalld.running(world.folder / "firewalld", "nftables"))
    world.stack.enter_context(mock.patch.dict("os.environ", DBUS_SYSTEM_BUS_ADDRESS=found.address))


CASES = (
    Case("bridge", "bridge", {**_BRIDGE, "macspoofchk": True}),
    Case("bridge, iptables", "bridge", {**_BRIDGE, "ipMasqBackend": "iptables"}, variant=True),
    Case("ptp", "ptp", {"ipMasq": True, "ipam": {**_HOST_LOCAL, "routes": _DEFAULT}}),
    Case("macvlan", "macvlan", {"master": "lan0", "ipam": _HOST_LOCAL}, _lan),
    Case("tap", "tap", {"mtu": 1400, "ipam": _HOST_LOCAL}),
    Case("host-device", "host-device", {"device": "lan0", "ipam": _STATIC}, _lan, alone=True),
    Case("loopback", "loopback"),
    Case("flannel", "flannel",
         {"subnetFile": "FOLDER/subnet.env", "dataDir": "FOLDER/flannel",
          "ipam": {"dataDir": "FOLDER/leases"}},
         _flanneld, variant=True),
    Case("host-local", "host-local", {"ipam": _HOST_LOCAL}),
    Case("portmap", "portmap", _ports(8080), chained=True, neighbour=_ports(9080)),
    Case("portmap, iptables", "portmap", {**_ports(8080), "backend": "iptables"},
         chained=True, neighbour=_ports(9080), variant=True),
    Case("firewall", "firewall", {"backend": "nftables", "ingressPolicy": "same-bridge"},
         chained=True),
    Case("firewall, iptables", "firewall", {"backend": "iptables"}, chained=True),
    Case("firewall, chosen", "firewall", {}, chained=True, variant=True),
    Case("bandwidth", "bandwidth", _RATES, chained=True, spends=True),
    Case("tuning", "tuning",
         {"dataDir": "FOLDER/tuning", "mac": "02:00:00:00:00:77", "mtu": 1400, "promisc": True,
          "allmulti": True, "txQLen": 77,
          "sysctl": {"net.ipv4.conf.all.arp_filter": "1",
                     "net.ipv4.conf.IFNAME.log_martians": "1"}},
         chained=True),
    Case("sbr", "sbr", {}, chained=True, spends=True),
)  # fmt: skip


def _dhcp(world: World) -> None:
    """A server on a network that br-lan is plugged into, and our daemon."""
    network = dhcp.Network(world.sandbox(), "br-lan")
    world.stack.enter_context(dhcp.Dnsmasq(network, world.folder / "server"))
    quick = ("-timeout", "3s", "-resendmax", "2s", "-resendtimeout", "30s")
    world.stack.enter_context(dhcp.Daemon(world.folder / "daemon", *quick))


# These take seconds to start.
DHCP = Case("bridge, dhcp", "bridge",
            {"bridge": "br-lan",
             "ipam": {"type": "dhcp", "daemonSocketPath": "FOLDER/daemon/dhcp.sock"}},
            _dhcp, alone=True)  # fmt: skip
FIREWALLD = Case("firewall, firewalld", "firewall", {"backend": "firewalld"}, _firewalld,
                 chained=True)  # fmt: skip
# These need a fuller kernel, and are for a slow one: no leases, no neighbour.
LAB_CASES = (
    Case("vlan", "vlan", {"master": "lan0", "vlanId": 5, "ipam": _STATIC}, _lan, alone=True),
    Case("ipvlan", "ipvlan", {"master": "lan0", "ipam": _STATIC}, _lan, alone=True),
    Case("dummy", "dummy", {"ipam": _STATIC}, alone=True),
    Case("vrf", "vrf", {"vrfname": "blue"}, chained=True),
)
