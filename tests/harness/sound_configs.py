"""Forty sound configurations, written after the public documentation of plugins and runtimes.

By the name of the file that each stands in. They are what people really use: other projects'
plugins, keys in older spellings, versions that are long superseded.
"""

from __future__ import annotations

from typing import Any

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
BANDWIDTH = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
DEFAULT_ROUTE = {"dst": "0.0.0.0/0"}


def a_list(name: str, version: str, *plugins: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"cniVersion": version, "name": name, **keys, "plugins": list(plugins)}


def one(name: str, version: str, plugin: str, **keys: Any) -> dict[str, Any]:
    return {"cniVersion": version, "name": name, "type": plugin, **keys}


def host_local(subnet: str, **keys: Any) -> dict[str, Any]:
    return {"type": "host-local", "subnet": subnet, **keys}


SOUND: dict[str, dict[str, Any]] = {
    # --- the specification and its repository
    "spec-dbnet.conflist": a_list(
        "dbnet",
        "1.1.0",
        {
            "type": "bridge",
            "bridge": "cni0",
            "ipam": host_local("10.1.0.0/16", gateway="10.1.0.1", routes=[DEFAULT_ROUTE]),
            "dns": {"nameservers": ["10.1.0.1"]},
        },
        {"type": "tuning", "capabilities": {"mac": True}, "sysctl": {"net.core.somaxconn": "500"}},
        PORTMAP,
        cniVersions=["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    ),
    "readme-mynet.conf": one(
        "mynet",
        "0.2.0",
        "bridge",
        bridge="cni0",
        isGateway=True,
        ipMasq=True,
        ipam=host_local("10.22.0.0/16", routes=[DEFAULT_ROUTE]),
    ),
    "readme-lo.conf": {"cniVersion": "0.2.0", "name": "lo", "type": "loopback"},
    # --- runtimes
    "podman.conflist": a_list(
        "podman",
        "0.4.0",
        {
            "type": "bridge",
            "bridge": "cni-podman0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "routes": [DEFAULT_ROUTE],
                "ranges": [[{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]],
            },
        },
        PORTMAP,
        {"type": "firewall"},
        {"type": "tuning"},
    ),
    "podman-dnsname.conflist": a_list(
        "web",
        "0.4.0",
        {
            "type": "bridge",
            "bridge": "cni-podman1",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.89.0.0/24"}]]},
        },
        PORTMAP,
        {"type": "firewall", "backend": ""},
        {"type": "tuning"},
        {
            "type": "dnsname",
            "domainName": "dns.podman",
            "capabilities": {"aliases": True},
        },
    ),
    "crio-bridge.conflist": a_list(
        "crio",
        "1.0.0",
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "routes": [DEFAULT_ROUTE, {"dst": "::/0"}],
                "ranges": [[{"subnet": "10.85.0.0/16"}], [{"subnet": "1100:200::/24"}]],
            },
        },
    ),
    "crio-loopback.conflist": a_list("loopback", "1.0.0", {"type": "loopback"}),
    "containerd.conflist": a_list(
        "containerd-net",
        "1.0.0",
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "promiscMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "2001:4860:4860::/64"}]],
                "routes": [DEFAULT_ROUTE, {"dst": "::/0"}],
            },
        },
        PORTMAP,
    ),
    "nerdctl-bridge.conflist": {
        "nerdctlID": "0123",
        "nerdctlLabels": {},
        **a_list(
            "bridge",
            "1.0.0",
            {
                "type": "bridge",
                "bridge": "nerdctl0",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "routes": [DEFAULT_ROUTE],
                    "ranges": [[{"gateway": "10.4.0.1", "subnet": "10.4.0.0/24"}]],
                },
            },
            PORTMAP,
            {"type": "firewall", "ingressPolicy": "same-bridge"},
            {"type": "tuning"},
        ),
    },
    "kubenet.conf": one(
        "kubenet",
        "0.1.0",
        "bridge",
        bridge="cbr0",
        mtu=1460,
        isGateway=True,
        ipMasq=False,
        hairpinMode=False,
        ipam=host_local("10.100.0.0/24", routes=[DEFAULT_ROUTE]),
    ),
    "kindnet.conflist": a_list(
        "kindnet",
        "0.3.1",
        {
            "type": "ptp",
            "ipMasq": False,
            "mtu": 1500,
            "ipam": {
                "type": "host-local",
                "dataDir": "/run/cni-ipam-state",
                "routes": [DEFAULT_ROUTE],
                "ranges": [[{"subnet": "10.244.0.0/24"}]],
            },
        },
        PORTMAP,
    ),
    "minikube.conflist": a_list(
        "bridge",
        "0.4.0",
        {
            "type": "bridge",
            "bridge": "bridge",
            "isDefaultGateway": True,
            "forceAddress": False,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": host_local("10.244.0.0/16"),
        },
        PORTMAP,
        {"type": "firewall"},
    ),
    "nomad.conflist": a_list(
        "nomad",
        "0.4.0",
        {"type": "loopback"},
        {
            "type": "bridge",
            "bridge": "nomad",
            "ipMasq": True,
            "isGateway": True,
            "forceAddress": True,
            "hairpinMode": False,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "172.26.64.0/20"}]],
                "routes": [DEFAULT_ROUTE],
            },
        },
        {"type": "firewall", "backend": "iptables", "iptablesAdminChainName": "NOMAD-ADMIN"},
        {**PORTMAP, "snat": True},
    ),
    "cnitool.conf": one("ptp-test", "0.4.0", "ptp", ipam=host_local("172.16.29.0/24")),
    # --- cluster networks
    "kube-flannel.conflist": a_list(
        "cbr0",
        "0.3.1",
        {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}},
        PORTMAP,
    ),
    "k3s.conflist": a_list(
        "cbr0",
        "1.0.0",
        {
            "type": "flannel",
            "delegate": {"hairpinMode": True, "forceAddress": True, "isDefaultGateway": True},
        },
        PORTMAP,
        BANDWIDTH,
    ),
    "calico.conflist": a_list(
        "k8s-pod-network",
        "0.3.1",
        {
            "type": "calico",
            "log_level": "info",
            "datastore_type": "kubernetes",
            "nodename": "node-1",
            "mtu": 0,
            "ipam": {"type": "calico-ipam"},
            "policy": {"type": "k8s"},
            "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"},
        },
        {**PORTMAP, "snat": True},
        BANDWIDTH,
    ),
    "cilium.conflist": a_list(
        "cilium",
        "0.3.1",
        {"type": "cilium-cni", "enable-debug": False, "log-file": "/var/run/cilium/cni.log"},
    ),
    "weave.conflist": a_list(
        "weave",
        "0.3.0",
        {"name": "weave", "type": "weave-net", "hairpinMode": True},
        {**PORTMAP, "snat": True},
    ),
    "multus.conf": one(
        "multus-cni-network",
        "0.3.1",
        "multus",
        capabilities={"portMappings": True},
        kubeconfig="/etc/cni/net.d/multus.d/multus.kubeconfig",
        delegates=[{"cniVersion": "0.3.1", "name": "default", "plugins": [{"type": "flannel"}]}],
    ),
    "whereabouts.conf": one(
        "whereaboutsexample",
        "0.3.0",
        "macvlan",
        master="eth0",
        mode="bridge",
        ipam={"type": "whereabouts", "range": "192.168.2.225/28", "gateway": "192.168.2.1"},
    ),
    "aws.conflist": a_list(
        "aws-cni",
        "0.4.0",
        {"name": "aws-cni", "type": "aws-cni", "vethPrefix": "eni", "mtu": "9001"},
        {"name": "egress-cni", "type": "egress-cni", "enabled": "false", "mtu": "9001"},
        {**PORTMAP, "snat": True},
        disableCheck=True,
    ),
    "antrea.conflist": a_list(
        "antrea",
        "0.3.0",
        {"type": "antrea", "ipam": {"type": "host-local"}},
        PORTMAP,
        BANDWIDTH,
    ),
    "kube-router.conflist": a_list(
        "kubernetes",
        "0.3.0",
        {
            "name": "kubernetes",
            "type": "bridge",
            "bridge": "kube-bridge",
            "isDefaultGateway": True,
            "hairpinMode": True,
            "ipam": host_local("10.244.1.0/24"),
        },
        PORTMAP,
    ),
    # --- the plugins' own pages
    "bridge-vlan.conf": one(
        "tenants",
        "1.0.0",
        "bridge",
        bridge="mynet0",
        vlan=100,
        vlanTrunk=[{"id": 101}, {"minID": 200, "maxID": 299}],
        preserveDefaultVlan=False,
    ),
    "bridge-l2.conf": one("mynet", "0.3.1", "bridge", bridge="mynet0", ipam={}),
    "bridge-strict.conf": one(
        "strict",
        "1.1.0",
        "bridge",
        bridge="br0",
        macspoofchk=True,
        enabledad=True,
        capabilities={"mac": True, "ips": True},
        ipam=host_local("fd00:1::/64", rangeStart="fd00:1::10", rangeEnd="fd00:1::ffff"),
    ),
    "macvlan-dhcp.conf": one(
        "mynet", "0.3.1", "macvlan", master="eth0", linkInContainer=False, ipam={"type": "dhcp"}
    ),
    "macvlan-default.conf": one(
        "lan", "1.0.0", "macvlan", mode="passthru", mtu=1500, ipam={"type": "dhcp"}
    ),
    "ipvlan.conf": one(
        "mynet", "0.3.1", "ipvlan", master="eth0", mode="l3", ipam=host_local("10.1.2.0/24")
    ),
    "vlan.conf": one(
        "mynet",
        "0.3.1",
        "vlan",
        master="eth0",
        mtu=1500,
        vlanId=5,
        linkInContainer=False,
        ipam=host_local("10.1.1.0/24"),
        dns={"nameservers": ["10.1.1.1", "8.8.8.8"]},
    ),
    "host-device.conf": one(
        "mynet",
        "0.3.1",
        "host-device",
        device="enp0s1",
        ipam={
            "type": "static",
            "addresses": [
                {"address": "10.10.0.1/24", "gateway": "10.10.0.254"},
                {"address": "3ffe:ffff:0:01ff::1/64", "gateway": "3ffe:ffff:0::1"},
            ],
            "routes": [DEFAULT_ROUTE, {"dst": "192.168.0.0/16", "gw": "10.10.5.1"}],
            "dns": {"nameservers": ["8.8.8.8"], "domain": "example.com", "search": ["example.com"]},
        },
    ),
    "host-device-pci.conf": one("nic", "0.4.0", "host-device", pciBusID="0000:3d:00.1"),
    "tap.conf": one(
        "mynet",
        "0.4.0",
        "tap",
        mac="00:11:22:33:44:55",
        mtu=1500,
        selinuxContext="system_u:system_r:container_t:s0",
        multiQueue=True,
        owner=0,
        group=0,
    ),
    "dummy.conf": one(
        "mynet",
        "1.0.0",
        "dummy",
        ipam=host_local("10.1.2.0/24", dataDir="/run/leases", resolvConf="/etc/resolv.conf"),
    ),
    "host-local-ranges.conf": one(
        "ranges",
        "0.3.1",
        "ptp",
        ipam={
            "type": "host-local",
            "ranges": [
                [
                    {
                        "subnet": "10.10.0.0/16",
                        "rangeStart": "10.10.1.20",
                        "rangeEnd": "10.10.3.50",
                        "gateway": "10.10.0.254",
                    },
                    {"subnet": "172.16.5.0/24"},
                ],
                [{"subnet": "3ffe:ffff:0:01ff::/64", "rangeStart": "3ffe:ffff:0:01ff::0010"}],
            ],
            "routes": [
                DEFAULT_ROUTE,
                {"dst": "192.168.0.0/16", "gw": "10.10.5.1"},
                {"dst": "3ffe:ffff:0:01ff::1/64"},
            ],
        },
    ),
    "portmap-conditions.conflist": a_list(
        "mynet",
        "0.3.1",
        {"type": "ptp", "ipMasq": True, "ipam": host_local("172.16.30.0/24")},
        {
            **PORTMAP,
            "externalSetMarkChain": "KUBE-MARK-MASQ",
            "conditionsV4": ["!", "-d", "192.0.2.0/24"],
            "conditionsV6": ["!", "-d", "fc00::/7"],
        },
    ),
    "bandwidth.conflist": a_list(
        "slow",
        "1.0.0",
        {"type": "ptp", "ipam": host_local("10.10.0.0/24")},
        {
            "type": "bandwidth",
            "ingressRate": 123456,
            "ingressBurst": 23456,
            "egressRate": 123456,
            "egressBurst": 23456,
            "shapedSubnets": ["10.0.0.0/8"],
        },
    ),
    "sbr.conflist": a_list(
        "two-ways",
        "0.4.0",
        {"type": "macvlan", "master": "eth0", "ipam": {"type": "dhcp", "daemonSocketPath": "/d"}},
        {"type": "sbr"},
        {"type": "vrf", "vrfname": "blue"},
    ),
    "tuning-all.conflist": a_list(
        "tuned",
        "1.0.0",
        {"type": "ptp", "ipam": host_local("10.12.0.0/24")},
        {
            "type": "tuning",
            "mac": "c2:b0:57:49:47:f1",
            "mtu": 1454,
            "promisc": True,
            "allmulti": True,
            "sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.log_martians": "1"},
        },
        disableCheck="true",
        disableGC=False,
        loadOnlyInlinedPlugins=True,
    ),
}
