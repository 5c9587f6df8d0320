"""Forgetting UDP flows: what `conntrack -L` still shows, with the kernel's filter and without."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from harness import Host, run_in
from pycni.kernel import conntrack
from pycni.kernel.netlink import socket as netlink_socket
from pycni.kernel.netlink.codec import Request
from pycni.kernel.netlink.errors import NetlinkError
from pycni.kernel.nfnetlink import NetfilterSocket
from pycni.spec.ip import parse_address

LOCAL = {4: "127.0.0.1", 6: "::1"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


@pytest.fixture(params=["filter", "no filter"])
def netfilter(
    host: Host, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[NetfilterSocket]:
    """The socket; "no filter" refuses what a kernel before 6.8 refuses."""

    def refuse(asked: Request) -> None:
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


@pytest.mark.parametrize("version", [4, 6])
def test_flows_to_a_port(netfilter: NetfilterSocket, version: int) -> None:
    other = 10 - version
    for port in (5300, 5301):
        send(4, port)
        send(6, port)
    local = LOCAL[version]
    assert flows(version) == {f"udp {local} 5300", f"udp {local} 5301"}
    conntrack.forget(netfilter, FAMILY[version], 5300)
    assert flows(version) == {f"udp {local} 5301"}
    assert len(flows(other)) == 2
    conntrack.forget(netfilter, FAMILY[version], 5300)


@pytest.mark.parametrize(("version", "second"), [(4, "127.0.0.2"), (6, "fd00::2")])
def test_flows_to_a_port_of_one_address(
    netfilter: NetfilterSocket, version: int, second: str
) -> None:
    run_in(None, ["ip", "address", "replace", second, "dev", "lo"])
    send(version, 5300)
    send(version, 5300, to=second)
    conntrack.forget(netfilter, FAMILY[version], 5300, parse_address(second))
    assert flows(version) == {f"udp {LOCAL[version]} 5300"}


def test_only_udp(netfilter: NetfilterSocket) -> None:
    with socket.create_server((LOCAL[4], 5300)), socket.create_connection((LOCAL[4], 5300)):
        send(4, 5300)
        assert flows(4) == {"udp 127.0.0.1 5300", "tcp 127.0.0.1 5300"}
        conntrack.forget(netfilter, socket.AF_INET, 5300)
        assert flows(4) == {"tcp 127.0.0.1 5300"}
