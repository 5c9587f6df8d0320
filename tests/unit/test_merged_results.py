"""Results of a plugin that makes an interface behind another one (SPEC 1.1.0, section 2, "ADD")."""

from __future__ import annotations

from pycni.spec.config import DNS
from pycni.spec.ip import parse_address, parse_network
from pycni.spec.result import Interface, IPConfig, Result, Route, merge

SANDBOX = "/run/netns/one"
PREVIOUS = Result(
    interfaces=(Interface(name="veth1"), Interface(name="eth0", sandbox=SANDBOX)),
    ips=(
        IPConfig(parse_network("10.1.0.2/24"), parse_address("10.1.0.1"), 1),
        IPConfig(parse_network("10.1.0.3/24")),
    ),
    routes=(Route(dst=parse_network("0.0.0.0/0")),),
    dns=DNS(nameservers=("10.1.0.1",), domain="one.example", search=("example",)),
    cni_version="1.1.0",
)
OWN = Result(
    interfaces=(Interface(name="veth2"), Interface(name="net1", sandbox=SANDBOX)),
    ips=(
        IPConfig(parse_network("10.2.0.2/24"), parse_address("10.2.0.1"), 1),
        IPConfig(parse_network("2001:db8::2/64"), None, 1),
    ),
    routes=(
        Route(dst=parse_network("10.9.0.0/16")),
        Route(dst=parse_network("10.8.0.0/16"), gw=parse_address("10.2.0.7")),
        Route(dst=parse_network("2001:db8:9::/48")),
    ),
    dns=DNS(nameservers=("10.2.0.1", "10.1.0.1"), domain="two.example", options=("ndots:1",)),
)


def test_what_was_there_comes_first_and_keeps_its_indices() -> None:
    merged = merge(PREVIOUS, OWN)
    assert [item.name for item in merged.interfaces] == ["veth1", "eth0", "veth2", "net1"]
    assert merged.ips[:2] == PREVIOUS.ips
    assert [(str(item.address), item.interface) for item in merged.ips[2:]] == [
        ("10.2.0.2/24", 3),
        ("2001:db8::2/64", 3),
    ]
    assert merged.routes[:1] == PREVIOUS.routes


def test_routes_of_its_own_name_their_gateways() -> None:
    """Left open it would be the first one listed, which is another's now."""
    merged = merge(PREVIOUS, OWN)
    assert [(str(item.dst), item.gw and str(item.gw)) for item in merged.routes[1:]] == [
        ("10.9.0.0/16", "10.2.0.1"),
        ("10.8.0.0/16", "10.2.0.7"),
        ("2001:db8:9::/48", None),
    ]


def test_routes_stay_open_where_no_other_gateway_is_listed() -> None:
    bare = PREVIOUS.replace(ips=())
    assert merge(bare, OWN).routes == (*PREVIOUS.routes, *OWN.routes)


def test_dns_of_both() -> None:
    assert merge(PREVIOUS, OWN).dns == DNS(
        nameservers=("10.1.0.1", "10.2.0.1"),
        domain="one.example",
        search=("example",),
        options=("ndots:1",),
    )


def test_nothing_before_and_nothing_of_its_own() -> None:
    assert merge(Result(), Result(ips=OWN.ips)) == Result(ips=OWN.ips)
    assert merge(PREVIOUS, Result()) == PREVIOUS.replace(cni_version="")
