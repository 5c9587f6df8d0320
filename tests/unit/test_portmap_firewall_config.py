"""What portmap and firewall refuse, in the reference's words if it has any, and what they plan."""

from __future__ import annotations

from typing import Any

import pytest

from pycni.plan.steps import Firewall, IngressPolicy, PortIsolation, PortMap, RouteLocalnet
from pycni.plugins.firewall import FirewallConfig
from pycni.plugins.firewall import plugin as firewall
from pycni.plugins.portmap import PortmapConfig
from pycni.plugins.portmap import plugin as portmap
from pycni.sdk.dispatch import perform
from pycni.sdk.request import Request
from pycni.spec.errors import CNIError
from pycni.spec.result import decode_result

REQUESTED = "backend was requested but configuration contains"


def ports(*mappings: dict[str, Any]) -> dict[str, Any]:
    return {"runtimeConfig": {"portMappings": list(mappings)}}


def port(host: Any = 8080, container: Any = 80, **more: Any) -> dict[str, Any]:
    return {"hostPort": host, "containerPort": container, "protocol": "tcp", **more}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"backend": "abacus"}, 'unrecognized backend "abacus"'),
        ({"markMasqBit": 32}, "MasqMarkBit must be between 0 and 31"),
        ({"markMasqBit": -1}, "MasqMarkBit must be between 0 and 31"),
        (
            {"markMasqBit": 5, "externalSetMarkChain": "MARKS"},
            "Cannot specify externalSetMarkChain and markMasqBit",
        ),
        ({"externalSetMarkChain": "MARKS -j DROP"}, '"MARKS -j DROP" in "externalSetMarkChain"'),
        ({"externalSetMarkChain": "A\n-F"}, "is not the name of a chain"),
        (
            {
                "backend": "nftables",
                "conditionsV4": ["-s", "10.0.0.0/8"],
                "conditionsV6": ["!", "x"],
            },
            f"nftables {REQUESTED} iptables-specific options [conditionsV4 conditionsV6]",
        ),
        (
            {"backend": "nftables", "externalSetMarkChain": "MARKS"},
            "configuration contains iptables-specific options [externalSetMarkChain]",
        ),
        (
            {"backend": "iptables", "conditionsV6": ["ip6", "saddr", "fd00::/8"]},
            f"iptables {REQUESTED} nftables-specific options [conditionsV6]",
        ),
        (
            {"conditionsV4": ["-s", "10.0.0.0/8"], "conditionsV6": ["ip6", "saddr", "fd00::/8"]},
            "nftables-specific options [conditionsV6]",
        ),
        ({"conditionsV4": ["ip", "saddr", "10.0.0.1;", "flush"]}, '"10.0.0.1;" is no part'),
        ({"conditionsV4": ["-s\n-F"]}, "is no part of a match"),
        (ports(port(0)), "Invalid host port number: 0"),
        (ports(port(-5)), "Invalid host port number: -5"),
        (ports(port(65536)), "Invalid host port number: 65536"),
        (ports(port(80, 0)), "Invalid container port number: 0"),
        (ports(port(80, 65536)), "Invalid container port number: 65536"),
        (ports(port("80")), 'runtimeConfig.portMappings[0].hostPort: "80" is not valid'),
        (ports(port(protocol="icmp")), 'unknown protocol "icmp" of host port 8080'),
        (ports(port(hostIP="no")), "runtimeConfig.portMappings[0].hostIP: invalid IP address: no"),
        (ports(port(hostIP="::1")), "host port 8080/tcp cannot be mapped on ::1"),
        (ports(port(), port(8080, 81)), "host port 8080/tcp is mapped to both container ports 80"),
    ],
)
def test_portmap_refuses(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(CNIError) as caught:
        PortmapConfig.decode({"name": "net", **keys})
    assert words in caught.value.message
    assert caught.value.code == 7
    assert caught.value.details


@pytest.mark.parametrize(
    ("keys", "backend"),
    [
        ({}, ""),
        ({"markMasqBit": 0}, ""),
        ({"conditionsV4": []}, ""),
        ({"conditionsV4": ["!", "-s", "10.0.0.0/8"]}, "iptables"),
        ({"conditionsV6": ["ip6", "saddr", "fd00::/8"]}, "nftables"),
        ({"externalSetMarkChain": "KUBE-MARK-MASQ"}, "iptables"),
        ({"backend": "iptables"}, "iptables"),
    ],
)
def test_backend_follows_from_what_it_must_understand(keys: dict[str, Any], backend: str) -> None:
    assert PortmapConfig.decode({"name": "net", **keys}).chosen_backend == backend


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"backend": "abacus"}, 'unrecognized backend "abacus"'),
        ({"ingressPolicy": "closed"}, 'unknown ingress policy: "closed"'),
        ({"iptablesAdminChainName": "A B"}, '"A B" in "iptablesAdminChainName"'),
        ({"iptablesAdminChainName": "A" * 29}, "is not the name of a chain"),
        ({"iptablesAdminChainName": "-F"}, "is not the name of a chain"),
    ],
)
def test_firewall_refuses(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(CNIError) as caught:
        FirewallConfig.decode({"name": "net", **keys})
    assert words in caught.value.message
    assert caught.value.code == 7
    assert caught.value.details


PREVIOUS = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "cni0"},
        {"name": "veth1"},
        {"name": "eth0", "sandbox": "/run/netns/one"},
        {"name": "eth1", "sandbox": "/run/netns/one"},
    ],
    "ips": [
        {"address": "10.9.0.1/16", "interface": 0},
        {"address": "10.8.0.2/16", "interface": 3},
        {"address": "10.1.0.2/16", "interface": 2},
        {"address": "10.1.0.3/16", "interface": 2},
        {"address": "fd00::2/64", "interface": 9},
    ],
}


def request(command: str, plugin: str, **keys: Any) -> Request:
    document = {"cniVersion": "1.0.0", "name": "net", "type": plugin, **keys}
    return Request(command, document, "one", "/run/netns/one", "eth0")


def planned(command: str = "ADD", **keys: Any) -> tuple[Any, ...]:
    config = PortmapConfig.decode({"name": "net", **keys})
    network = decode_result(PREVIOUS, "1.0.0")
    return portmap.plan(request(command, "portmap", **keys), config, network).steps


def test_portmap_plans_for_the_first_address_of_a_family() -> None:
    mapped, route = planned(**ports(port(), port(), port(443, 81, protocol="UDP", hostIP="::2")))
    assert isinstance(route, RouteLocalnet)
    assert str(route.address) == "10.1.0.2"
    assert isinstance(mapped, PortMap)
    assert [str(address) for address in mapped.addresses] == ["10.1.0.2/16", "fd00::2/64"]
    assert [(item.protocol, item.host_port) for item in mapped.mappings] == [
        ("tcp", 8080), ("udp", 443),
    ]  # fmt: skip
    assert mapped.mark_bit == 13
    (mapped,) = planned(**ports(port()), snat=False, markMasqBit=0)
    assert not mapped.snat
    assert mapped.mark_bit == 0


def test_portmap_without_mappings_plans_a_removal_and_a_look() -> None:
    """CHECK looks for others' ports that lead to the container."""
    assert planned("ADD") == ()
    for command in ("CHECK", "DEL"):
        (mapped,) = planned(command)
        assert isinstance(mapped, PortMap)
        assert mapped.mappings == ()


def test_firewall_plans() -> None:
    network = decode_result(PREVIOUS, "1.0.0")

    def steps(policy: str, command: str = "ADD") -> tuple[Any, ...]:
        config = FirewallConfig.decode({"name": "net", "ingressPolicy": policy})
        return firewall.plan(request(command, "firewall"), config, network).steps

    (forwarded,) = steps("open")
    assert isinstance(forwarded, Firewall)
    assert [str(address) for address in forwarded.addresses] == [
        "10.9.0.1", "10.8.0.2", "10.1.0.2", "10.1.0.3", "fd00::2",
    ]  # fmt: skip
    assert (forwarded.admin_chain, forwarded.zone) == ("CNI-ADMIN", "trusted")
    _, policy = steps("same-bridge")
    assert isinstance(policy, IngressPolicy)
    assert (policy.bridge, policy.isolated) == ("cni0", False)
    _, ports_apart, policy = steps("isolated")
    assert isinstance(ports_apart, PortIsolation)
    assert (ports_apart.bridge, ports_apart.links) == ("cni0", ("cni0", "veth1"))
    assert policy.isolated
    assert len(steps("isolated", "DEL")) == 1


@pytest.mark.parametrize(
    ("interfaces", "words"),
    [([], "interface needs to be set for ingress policy"), ([{"name": ""}], '"" is no bridge')],
)
def test_a_policy_needs_a_bridge(interfaces: list[dict[str, str]], words: str) -> None:
    network = decode_result({**PREVIOUS, "interfaces": interfaces, "ips": []}, "1.0.0")
    config = FirewallConfig.decode({"name": "net", "ingressPolicy": "isolated"})
    with pytest.raises(CNIError, match=words):
        firewall.plan(request("ADD", "firewall"), config, network)


def test_both_are_chained() -> None:
    for plugin, words in (
        (portmap, "must be called as chained plugin"),
        (firewall, "missing prevResult from earlier plugin"),
    ):
        with pytest.raises(CNIError, match=words):
            perform(plugin, request("ADD", plugin.type))
    old = request("ADD", "firewall").replace(
        document={"cniVersion": "0.3.1", "name": "net", "type": "firewall"}
    )
    with pytest.raises(CNIError, match="incompatible CNI versions"):
        perform(firewall, old)
