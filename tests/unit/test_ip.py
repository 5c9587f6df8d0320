"""Addresses and networks, against the reference's rules and the standard library."""

from __future__ import annotations

import ipaddress
from socket import AF_INET, AF_INET6

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pycni.spec.ip import (
    IPAddress,
    IPNetwork,
    default_network,
    host_network,
    parse_address,
    parse_address_or_network,
    parse_network,
)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("0.0.0.0", "0.0.0.0"),
        ("FD00:0:0::00A", "fd00::a"),
        ("::", "::"),
        ("::1", "::1"),
        ("1:0:0:2:0:0:0:3", "1:0:0:2::3"),
        ("1:0:2:3:4:5:6:7", "1:0:2:3:4:5:6:7"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:a00:1", "10.0.0.1"),
        ("64:ff9b::10.0.0.1", "64:ff9b::a00:1"),
        ("::10.0.0.1", "::a00:1"),  # inet_ntop(3) prints this one as ::10.0.0.1, Go does not
        ("::1:0", "::1:0"),
    ],
)
def test_address_text(text: str, printed: str) -> None:
    address = parse_address(text)
    assert str(address) == printed
    assert parse_address(printed) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0",
        "10.0.0.256",
        "10.0.0.01",
        "1.2.3.x",
        "10.0.0.1/24",
        " 10.0.0.1",
        "10.0.0.1\n",
        "10.0.0.1\0",
        "fe80::1%eth0",
        "1::2::3",
        "12345::",
        "\udcff",
        "١.٢.٣.٤",
    ],
)
def test_bad_address_is_refused_in_the_references_words(text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse_address(text)
    assert str(caught.value) == f"invalid IP address: {text}"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("1.2.3.4/24", "1.2.3.4/24"),
        ("10.0.0.7/8", "10.0.0.7/8"),
        ("10.0.0.7/024", "10.0.0.7/24"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::ffff:10.0.0.1/120", "10.0.0.1/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_network_text_keeps_host_bits(text: str, printed: str) -> None:
    assert str(parse_network(text)) == printed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "10.0.0.1",
        "10.0.0.1/",
        "1.2.3/45",
        "1.2.3.4/99",
        "1.2.3.4/33",
        "::/129",
        "10.0.0.01/24",
        "1.2.3.4/-1",
        "1.2.3.4/+8",
        "1.2.3.4/ 8",
        "1.2.3.4/٨",
        "1.2.3.4/255.255.255.0",
        "1.2.3.4/8/8",
        "fe80::1%eth0/64",
        "::ffff:10.0.0.1/64",  # its network is not one of IPv4
    ],
)
def test_bad_network_is_refused_in_the_references_words(text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse_network(text)
    assert str(caught.value) == f"invalid CIDR address: {text}"


def test_prefix_length_is_optional_where_a_range_or_argument_allows() -> None:
    assert parse_address_or_network("10.0.0.1") == (parse_address("10.0.0.1"), None)
    assert parse_address_or_network("10.0.0.1/8") == (parse_address("10.0.0.1"), 8)
    with pytest.raises(ValueError, match="invalid CIDR address"):
        parse_address_or_network("10.0.0.1/x")


ADDRESSES = st.ip_addresses()
NETWORKS = ADDRESSES.flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(
        lambda length: ipaddress.ip_interface((address, length))
    )
)


def is_mapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None


@given(ADDRESSES)
@example(ipaddress.ip_address("::1.2.3.4"))
@example(ipaddress.ip_address("::0.0.1.0"))
def test_address_agrees_with_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if is_mapped(address):
        return
    ours = parse_address(str(address))
    assert str(ours) == str(address)
    assert ours.packed == address.packed
    assert int(ours) == int(address)
    assert ours.family == (AF_INET if address.version == 4 else AF_INET6)
    assert ours.is_ipv4 == (address.version == 4)
    assert ours.bits == address.max_prefixlen
    assert ours.is_unspecified == address.is_unspecified
    assert ours.is_loopback == address.is_loopback
    assert ours.is_link_local == address.is_link_local
    assert IPAddress.from_int(int(address), ours.family) == ours


@given(NETWORKS, ADDRESSES)
def test_network_agrees_with_the_standard_library(
    interface: ipaddress.IPv4Interface | ipaddress.IPv6Interface,
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if is_mapped(interface.ip) or is_mapped(address):
        return
    ours = parse_network(interface.with_prefixlen)
    network = interface.network
    assert str(ours) == interface.with_prefixlen
    assert ours.network.address.packed == network.network_address.packed
    assert ours.network.prefix == network.prefixlen
    assert ours.first == int(network.network_address)
    assert ours.last == int(network.broadcast_address)
    assert ours.broadcast.packed == network.broadcast_address.packed
    assert ours.contains(parse_address(str(interface.ip)))
    assert ours.contains(parse_address(str(address))) == (address in network)


@given(NETWORKS, NETWORKS)
def test_overlap_agrees_with_the_standard_library(
    one: ipaddress.IPv4Interface | ipaddress.IPv6Interface,
    other: ipaddress.IPv4Interface | ipaddress.IPv6Interface,
) -> None:
    if is_mapped(one.ip) or is_mapped(other.ip):
        return
    expected = one.version == other.version and one.network.overlaps(other.network)
    assert parse_network(str(one)).overlaps(parse_network(str(other))) == expected


@given(st.lists(st.ip_addresses(v=4), max_size=5), st.lists(st.ip_addresses(v=6), max_size=5))
def test_sorts_ipv4_first_then_by_number(
    v4: list[ipaddress.IPv4Address], v6: list[ipaddress.IPv6Address]
) -> None:
    packed6, packed4 = [ip.packed for ip in v6], [ip.packed for ip in v4]
    ours = sorted(map(IPAddress, packed6 + packed4))
    assert [address.packed for address in ours] == sorted(packed4) + sorted(packed6)


def test_values_are_checked_when_made_in_code() -> None:
    with pytest.raises(ValueError, match="an address has 4 or 16 bytes, not 3"):
        IPAddress(b"abc")
    with pytest.raises(ValueError, match=r"a prefix length of 10\.0\.0\.1 is 0 to 32, not 33"):
        IPNetwork(parse_address("10.0.0.1"), 33)


def test_equality_and_hash_follow_the_value() -> None:
    assert parse_address("::ffff:10.0.0.1") == parse_address("10.0.0.1")
    assert parse_address("10.0.0.1") != "10.0.0.1"
    assert len({parse_network("10.0.0.1/8"), parse_network("10.0.0.1/08")}) == 1
    assert parse_network("10.0.0.1/8") != parse_network("10.0.0.0/8")
    assert parse_network("0.0.0.0/0") != parse_network("::/0")
    assert repr(parse_network("10.0.0.1/8")) == "IPNetwork('10.0.0.1/8')"


def test_host_and_default_networks() -> None:
    assert str(host_network(parse_address("10.0.0.1"))) == "10.0.0.1/32"
    assert str(host_network(parse_address("fd00::1"))) == "fd00::1/128"
    for family, text in ((AF_INET, "0.0.0.0/0"), (AF_INET6, "::/0")):
        assert str(default_network(family)) == text
        assert default_network(family).is_default
    assert not parse_network("10.0.0.0/0").is_default
    assert not parse_network("0.0.0.0/1").is_default
