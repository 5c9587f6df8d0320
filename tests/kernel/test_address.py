"""Addresses on the real kernel, against `ip -j address`; duplicate address detection."""

from __future__ import annotations

import errno
import time
from typing import Any

import pytest

from harness import run_in
from harness.kernel_state import addresses
from pycni.kernel import address, link
from pycni.kernel.link import Link
from pycni.kernel.netlink import NetlinkError, NetlinkSocket
from pycni.spec.ip import parse_address, parse_network

AF_INET, AF_INET6 = 2, 10


@pytest.fixture
def eth0(netlink: NetlinkSocket) -> Link:
    made = link.create(netlink, link.veth("eth0", "peer", up=True))
    netlink.request(link.update("peer", up=True))
    return made


@pytest.mark.parametrize(
    ("text", "broadcast"),
    [
        ("10.0.0.7/24", "10.0.0.255"),
        ("10.0.0.7/30", "10.0.0.7"),
        ("10.0.0.7/31", None),
        ("10.0.0.7/32", None),
        ("fd00::7/64", None),
        ("fd00::7/128", None),
    ],
)
def test_add_and_delete(
    netlink: NetlinkSocket, eth0: Link, text: str, broadcast: str | None
) -> None:
    netlink.request(address.add(eth0.index, parse_network(text)))
    entry = addresses("eth0")[text]
    assert entry.get("broadcast") == broadcast
    assert entry["scope"] == "global"
    assert entry.get("label", "eth0") == "eth0"
    with pytest.raises(NetlinkError) as caught:
        netlink.request(address.add(eth0.index, parse_network(text)))
    assert caught.value.errno == errno.EEXIST
    assert caught.value.what == f"add address {text} to link {eth0.index}"
    netlink.request(address.add(eth0.index, parse_network(text), replace=True))
    netlink.request(address.delete(eth0.index, parse_network(text)))
    assert text not in addresses("eth0")
    with pytest.raises(NetlinkError) as caught:
        netlink.request(address.delete(eth0.index, parse_network(text)))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_delete_takes_the_one_with_that_prefix_length(netlink: NetlinkSocket, eth0: Link) -> None:
    for text in ("10.0.0.7/24", "10.0.0.7/16"):
        netlink.request(address.add(eth0.index, parse_network(text)))
    netlink.request(address.delete(eth0.index, parse_network("10.0.0.7/16")))
    assert "10.0.0.7/24" in addresses("eth0")
    assert "10.0.0.7/16" not in addresses("eth0")


def test_scope(netlink: NetlinkSocket, eth0: Link) -> None:
    netlink.request(address.add(eth0.index, parse_network("10.0.0.7/24"), scope=253))
    assert addresses("eth0")["10.0.0.7/24"]["scope"] == "link"
    assert address.dump(netlink, eth0.index, AF_INET)[0].scope == 253


def test_missing_link(netlink: NetlinkSocket) -> None:
    for act in (
        lambda: netlink.request(address.add(9999, parse_network("10.0.0.7/24"))),
        lambda: netlink.request(address.delete(9999, parse_network("10.0.0.7/24"))),
        lambda: address.dump(netlink, 9999),
    ):
        with pytest.raises(NetlinkError) as caught:
            act()
        assert caught.value.errno == errno.ENODEV


def test_dump_chooses(netlink: NetlinkSocket, eth0: Link) -> None:
    other = link.get(netlink, "peer").index
    netlink.batch(
        [
            address.add(eth0.index, parse_network("10.0.0.7/24")),
            address.add(eth0.index, parse_network("fd00::7/64"), no_dad=True),
            address.add(other, parse_network("10.0.1.7/24")),
        ]
    )

    def texts(index: int, family: int = 0) -> set[str]:
        found = address.dump(netlink, index, family)
        return {str(one.network) for one in found if one.network.address.packed[:2] != b"\xfe\x80"}

    assert texts(eth0.index) == {"10.0.0.7/24", "fd00::7/64"}
    assert texts(eth0.index, AF_INET) == {"10.0.0.7/24"}
    assert texts(eth0.index, AF_INET6) == {"fd00::7/64"}
    assert texts(other) == {"10.0.1.7/24"}
    assert texts(0, AF_INET) == {"10.0.0.7/24", "10.0.1.7/24", "127.0.0.1/8"}
    assert texts(0) == {"10.0.0.7/24", "10.0.1.7/24", "127.0.0.1/8", "fd00::7/64", "::1/128"}


def test_point_to_point_address_of_ip(netlink: NetlinkSocket, eth0: Link) -> None:
    run_in(None, ["ip", "address", "add", "10.0.0.1", "peer", "10.9.9.9/32", "dev", "eth0"])
    (found,) = address.dump(netlink, eth0.index, AF_INET)
    assert (str(found.network), str(found.peer)) == ("10.0.0.1/32", "10.9.9.9")
    assert found.label == "eth0"
    netlink.request(address.delete(eth0.index, found.network, found.peer))
    assert address.dump(netlink, eth0.index, AF_INET) == []


# --- duplicate address detection ---------------------------------------------------------------


def test_no_dad_is_usable_at_once(netlink: NetlinkSocket, eth0: Link) -> None:
    netlink.request(address.add(eth0.index, parse_network("fd00::7/64"), no_dad=True))
    entry = addresses("eth0")["fd00::7/64"]
    assert entry["nodad"] is True
    assert "tentative" not in entry


def test_wait_until_settled(netlink: NetlinkSocket, eth0: Link) -> None:
    netlink.request(address.add(eth0.index, parse_network("fd00::7/64")))
    assert addresses("eth0")["fd00::7/64"]["tentative"] is True
    address.wait_settled(netlink, eth0.index, time.monotonic() + 10)
    for entry in addresses("eth0").values():
        assert "tentative" not in entry
    # At once, when there is nothing to wait for.
    address.wait_settled(netlink, eth0.index, time.monotonic() - 1)


def test_address_of_another_host(netlink: NetlinkSocket, eth0: Link) -> None:
    peer = link.get(netlink, "peer")
    netlink.request(address.add(peer.index, parse_network("fd00::7/64"), no_dad=True))
    netlink.request(address.add(eth0.index, parse_network("fd00::7/64")))
    with pytest.raises(NetlinkError, match="another host has fd00::7") as caught:
        address.wait_settled(netlink, eth0.index, time.monotonic() + 10)
    assert caught.value.errno == errno.EADDRINUSE
    assert addresses("eth0")["fd00::7/64"]["dadfailed"] is True
    # Also when detection failed before we look.
    with pytest.raises(NetlinkError, match="another host has fd00::7"):
        address.wait_settled(netlink, eth0.index, time.monotonic() + 10)


def test_deadline_before_it_settles(netlink: NetlinkSocket, eth0: Link) -> None:
    link.wait_running(netlink, eth0.index, time.monotonic() + 10)
    netlink.request(address.add(eth0.index, parse_network("fd00::7/64")))
    with pytest.raises(NetlinkError, match=r"still tentative: .*fd00::7") as caught:
        address.wait_settled(netlink, eth0.index, time.monotonic() + 0.01)
    assert caught.value.errno == errno.ETIMEDOUT


def test_without_carrier_the_deadline_is_no_error(netlink: NetlinkSocket) -> None:
    made = link.create(netlink, link.veth("v0", "v1", up=True))
    netlink.request(address.add(made.index, parse_network("fd00::7/64")))
    address.wait_settled(netlink, made.index, time.monotonic() + 0.05)
    assert addresses("v0")["fd00::7/64"]["tentative"] is True


def test_address_deleted_while_waiting(netlink: NetlinkSocket, eth0: Link) -> None:
    address.wait_settled(netlink, eth0.index, time.monotonic() + 10)
    netlink.request(address.add(eth0.index, parse_network("fd00::7/64")))

    class Deleting(NetlinkSocket):
        """Deletes the address once it has been seen."""

        def events(self, deadline: float) -> Any:
            if any(one.network.address == parse_address("fd00::7") for one in listed(other)):
                other.request(address.delete(eth0.index, parse_network("fd00::7/64")))
            return super().events(deadline)

    def listed(socket: NetlinkSocket) -> list[address.InterfaceAddress]:
        return address.dump(socket, eth0.index, AF_INET6)

    with NetlinkSocket() as other, Deleting() as waiting:
        address.wait_settled(waiting, eth0.index, time.monotonic() + 10)
    assert "fd00::7/64" not in addresses("eth0")
