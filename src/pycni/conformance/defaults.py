"""Sound configurations for the well-known plugins, so that they can be tested without a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pycni.conformance.requirement import CHAINED, INTERFACE, IPAM

CONTAINERS = 8  # at most, at once, in one check


@dataclass(frozen=True)
class Known:
    """A well-known plugin; the fields are those of `subject.Subject`.

    exhausted: a configuration that has one address to give.
    """

    kind: str
    config: Mapping[str, Any]
    setup: tuple[str, ...] = ()
    container_setup: tuple[str, ...] = ()
    ifname: str = "eth0"
    makes_link: bool = True
    exhausted: Mapping[str, Any] | None = None


_POOL = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.200.0.0/16"}]],
    "routes": [{"dst": "0.0.0.0/0"}],
}
_STATIC = {
    "type": "static",
    "addresses": [{"address": "10.200.0.{n}/16", "gateway": "10.200.200.1"}],
    "routes": [{"dst": "0.0.0.0/0"}],
}
_UP = "ip link add {0}$n type veth peer name {1}$n && ip link set {0}$n up && ip link set {1}$n up"
_EACH = f"for n in $(seq 1 {CONTAINERS}); do {{0}}; done"
_MASTER = _UP.replace("$n", "").format("master0", "trunk0")
_MASTERS = _EACH.format(_UP.format("master", "trunk"))
_DEVICES = _EACH.format("ip link add dev$n type veth peer name wire$n && ip link set wire$n up")
_FLANNEL = (
    "mkdir -p /run/flannel && printf 'FLANNEL_NETWORK=10.200.0.0/16\nFLANNEL_SUBNET=10.200.3.1/24\n"
    "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n' > /run/flannel/subnet.env"
)

# A network with a server, and the daemon of the plugin under test.
_DHCP = (
    "ip link add lan type bridge && ip address add 10.210.0.1/16 dev lan && ip link set lan up",
    """
    dnsmasq -k -C /dev/null -u root --port=0 --interface=lan --bind-interfaces --no-ping \\
        --pid-file= --log-facility=- --dhcp-leasefile=/run/conformance/dnsmasq \\
        --dhcp-range=10.210.1.1,10.210.1.200,255.255.0.0,1h > /dev/null 2>&1 &
    mkdir -p /run/cni
    "$PLUGIN" daemon > /dev/null 2>&1 &
    for wait in $(seq 200); do
        [ -S /run/cni/dhcp.sock ] && exit
        sleep 0.05
    done
    echo "$PLUGIN daemon does not listen" >&2
    exit 1
    """,
)
_DHCP_CONTAINER = (
    """
    ip link add port$N type veth peer name $IFNAME netns $NETNS
    ip link set port$N master lan up
    ip -n $NETNS link set $IFNAME up
    """,
)

KNOWN: dict[str, Known] = {
    "bridge": Known(
        INTERFACE, {"bridge": "cni0", "isGateway": True, "ipMasq": True, "ipam": _POOL}
    ),
    "ptp": Known(INTERFACE, {"ipMasq": True, "ipam": _POOL}),
    "macvlan": Known(INTERFACE, {"master": "master0", "ipam": _POOL}, (_MASTER,)),
    "ipvlan": Known(INTERFACE, {"master": "master0", "ipam": _POOL}, (_MASTER,)),
    "vlan": Known(INTERFACE, {"master": "master{n}", "vlanId": 5, "ipam": _POOL}, (_MASTERS,)),
    "dummy": Known(INTERFACE, {"ipam": _POOL}),
    "tap": Known(INTERFACE, {"ipam": _POOL}),
    "host-device": Known(INTERFACE, {"device": "dev{n}", "ipam": _POOL}, (_DEVICES,)),
    "loopback": Known(INTERFACE, {}, ifname="lo", makes_link=False),
    "host-local": Known(
        IPAM,
        {"ipam": _POOL},
        exhausted={
            "ipam": {
                "type": "host-local",
                "ranges": [
                    [
                        {
                            "subnet": "10.200.0.0/24",
                            "rangeStart": "10.200.0.9",
                            "rangeEnd": "10.200.0.9",
                        }
                    ]
                ],
            }
        },
    ),
    "static": Known(IPAM, {"ipam": _STATIC}),
    "dhcp": Known(IPAM, {"ipam": {"type": "dhcp"}}, _DHCP, _DHCP_CONTAINER),
    "tuning": Known(
        CHAINED, {"sysctl": {"net.core.somaxconn": "500"}, "mtu": 1400, "promisc": True}
    ),
    "bandwidth": Known(
        CHAINED,
        {
            "ingressRate": 8_000_000,
            "ingressBurst": 8_000_000,
            "egressRate": 8_000_000,
            "egressBurst": 8_000_000,
        },
    ),
    "portmap": Known(
        CHAINED,
        {
            "runtimeConfig": {
                "portMappings": [
                    {"hostPort": "{8000+n}", "containerPort": 80, "protocol": "tcp"},
                    {"hostPort": "{8000+n}", "containerPort": 53, "protocol": "udp"},
                ]
            }
        },
    ),
    "firewall": Known(CHAINED, {"backend": "iptables"}),
    "sbr": Known(CHAINED, {}),
    "vrf": Known(CHAINED, {"vrfname": "blue"}),
    "debug": Known(CHAINED, {}),
    "flannel": Known(INTERFACE, {"delegate": {"isDefaultGateway": True}}, (_FLANNEL,)),
}
