"""Forgetting flows: what `conntrack -L` still shows, with the kernel's filter and without."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from harness import Host, run_in
from pycni.kernel.netfilter import conntrack
from pycni.kernel.netfilter.conntrack import Query
from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
from pycni.kernel.netlink import socket as netlink_socket
from pycni.kernel.netlink.codec import NetlinkRequest
from pycni.kernel.netlink.errors import NetlinkError
from pycni.spec.ip import parse_address

LOCAL = {4: "127.0.0.1", 6: "::1"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


@pytest.fixture(params=["filter", "no filter"])
def netfilter(
    host: Host, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[NetfilterSocket]:
    """The socket; "no filter" refuses what a kernel before 6.8 refuses."""

    def refuse(asked: NetlinkRequest) -> None:
        if asked.kind == 0x102 and b"\x19\x80" in asked.body:  # CTA_FILTER, nested
            raise NetlinkError(errno.EINVAL, "no filter", asked.what)

    if request.param == "no filter":
        monkeypatch.setattr(netlink_socket, "before_send", refuse)
    # Something must ask for tracking, or the kernel does without.
    chain = "add chain inet t c { type filter hook input priority 0; }"
    run_in(None, ["nft", f"add table inet t; {chain}; add rule inet t c ct state new accept"])
    with NetfilterSocket() as netfilter:
        yield netfilter


def send(version: int, port: int, kind: int = socket.SOCK_DGRAM, to: str = "") -> None:
    with socket.socket(FAMILY[version], kind) as sock:
        if kind == socket.SOCK_STREAM:
            assert sock.connect_ex((LOCAL[version], port)) == errno.ECONNREFUSED
        else:
            sock.sendto(b"hello", (to or LOCAL[version], port))


def flows(version: int) -> set[str]:
    """The flows as `protocol destination:port`, of the original direction."""
    found = set()
    listed = run_in(None, ["conntrack", "-f", f"ipv{version}", "-L"], check=False).stdout
    for line in listed.splitlines():
        words = line.split()
        parts: dict[str, str] = {}
        for word in words:
            name, equals, value = word.partition("=")
            if equals:
                parts.setdefault(name, value)
        if "dport" in parts:
            found.add(f"{words[0]} {parts['dst']} {parts['dport']}")
    return found


def query(version: int, **wanted: Any) -> Query:
    return Query(FAMILY[version], **wanted)


def udp(version: int, port: int, **wanted: Any) -> Query:
    return query(version, protocol=socket.IPPROTO_UDP, port=port, **wanted)


@pytest.mark.parametrize("version", [4, 6])
def test_flows_to_a_port(netfilter: NetfilterSocket, version: int) -> None:
    other = 10 - version
    for port in (5300, 5301):
        send(4, port)
        send(6, port)
    local = LOCAL[version]
    assert flows(version) == {f"udp {local} 5300", f"udp {local} 5301"}
    conntrack.forget(netfilter, [udp(version, 5300)])
    assert flows(version) == {f"udp {local} 5301"}
    assert len(flows(other)) == 2
    conntrack.forget(netfilter, [udp(version, 5300)])
    conntrack.forget(netfilter, [])
    assert len(flows(version)) == 1


@pytest.mark.parametrize(("version", "second"), [(4, "127.0.0.2"), (6, "fd00::2")])
def test_flows_to_a_port_of_one_address(
    netfilter: NetfilterSocket, version: int, second: str
) -> None:
    run_in(None, ["ip", "address", "replace", second, "dev", "lo"])
    send(version, 5300)
    send(version, 5300, to=second)
    conntrack.forget(netfilter, [udp(version, 5300, destination=parse_address(second))])
    assert flows(version) == {f"udp {LOCAL[version]} 5300"}


def test_flows_of_a_protocol(netfilter: NetfilterSocket) -> None:
    with socket.create_server((LOCAL[4], 5300)), socket.create_connection((LOCAL[4], 5300)):
        send(4, 5300)
        assert flows(4) == {"udp 127.0.0.1 5300", "tcp 127.0.0.1 5300"}
        conntrack.forget(netfilter, [udp(4, 5300)])
        assert flows(4) == {"tcp 127.0.0.1 5300"}
        conntrack.forget(netfilter, [query(4, protocol=socket.IPPROTO_TCP)])
        assert flows(4) == set()


@pytest.mark.parametrize(
    ("version", "second", "third"), [(4, "127.0.0.2", "127.0.0.3"), (6, "fd00::2", "fd00::3")]
)
def test_flows_that_are_translated(
    netfilter: NetfilterSocket, version: int, second: str, third: str
) -> None:
    """By where they come from and where they are led, which rules of NAT say."""
    family = {4: "ip", 6: "ip6"}[version]
    no_dad = ["nodad"] if version == 6 else []
    for address in (second, third):
        run_in(None, ["ip", "address", "replace", address, "dev", "lo", *no_dad])
    for line in (
        "add chain inet t out { type nat hook output priority -100; }",
        "add chain inet t post { type nat hook postrouting priority 100; }",
        f"add rule inet t out {family} daddr {second} udp dport 5300 dnat to {third}",
        f"add rule inet t post {family} daddr {LOCAL[version]} udp dport 53 snat to {third}",
    ):
        run_in(None, ["nft", line])

    def fill() -> None:
        for port in (53, 5300, 5301):
            send(version, port)
            send(version, port, to=second)

    fill()
    one, other = f"udp {LOCAL[version]}", f"udp {second}"
    everything = {f"{where} {port}" for where in (one, other) for port in (53, 5300, 5301)}
    assert flows(version) == everything
    for wanted, gone in (
        (udp(version, 5300, target=parse_address(third)), {f"{other} 5300"}),
        (query(version, target=parse_address(third)), {f"{other} 5300"}),
        (query(version, status=conntrack.TARGET_TRANSLATED), {f"{other} 5300"}),
        (query(version, status=conntrack.SOURCE_TRANSLATED), {f"{one} 53"}),
        (
            query(
                version,
                source=parse_address(LOCAL[version]),
                status=conntrack.SOURCE_TRANSLATED,
            ),
            {f"{one} 53"},
        ),
        (query(version, source=parse_address(third)), set()),
        (udp(version, 5300, target=parse_address(second)), set()),
        (query(version, protocol=socket.IPPROTO_SCTP), set()),
    ):
        conntrack.forget(netfilter, [wanted])
        assert flows(version) == everything - gone, wanted
        fill()
    conntrack.forget(netfilter, [udp(version, port) for port in range(5290, 5390)])
    assert flows(version) == {f"{one} 53", f"{other} 53"}
    fill()
    many = [f"127.0.1.{number}" if version == 4 else f"fd00:1::{number}" for number in range(99)]
    by_target = [udp(version, 5300, target=parse_address(address)) for address in (*many, third)]
    conntrack.forget(netfilter, by_target)
    assert flows(version) == everything - {f"{other} 5300"}


@pytest.mark.parametrize("few", [2000, 0])
def test_what_is_known_of_a_flow(
    netfilter: NetfilterSocket, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    """Of both families, listed at once where there are few entries, or each by itself."""
    monkeypatch.setattr(conntrack, "_FEW", few)
    run_in(None, ["nft", "add chain inet t out { type nat hook output priority -100; }"])
    run_in(
        None, ["nft", "add rule inet t out ip daddr 127.0.0.9 udp dport 5300 dnat to 127.0.0.5:54"]
    )
    send(4, 5300, to="127.0.0.9")
    send(6, 5300)
    send(6, 5301)
    four, six = sorted(
        conntrack.find(netfilter, [udp(4, 5300), udp(6, 5300)]), key=lambda flow: flow.family
    )
    assert (four.family, six.family) == (socket.AF_INET, socket.AF_INET6)
    assert {four.protocol, six.protocol} == {socket.IPPROTO_UDP}
    assert (str(four.source), str(four.destination), four.port) == ("127.0.0.1", "127.0.0.9", 5300)
    assert (str(four.target), four.target_port) == ("127.0.0.5", 54)
    assert (str(six.source), str(six.target), six.target_port) == ("::1", "::1", 5300)
    assert four.status & conntrack.TARGET_TRANSLATED
    assert not six.status & conntrack.TARGET_TRANSLATED
    conntrack.discard(netfilter, [four, six])
    conntrack.discard(netfilter, [four, six])
    assert flows(4) == set()
    assert flows(6) == {"udp ::1 5301"}


def test_nothing_is_listed_where_nothing_is_tracked(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NetfilterSocket, "dump", lambda *_: pytest.fail("the table was listed"))
    with NetfilterSocket() as netfilter:
        assert conntrack.find(netfilter, [udp(6, 5300)]) == []
        conntrack.forget(netfilter, [udp(6, 5300, target=parse_address("::1"))])
