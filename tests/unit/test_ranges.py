from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.plugins.shared.ranges import (
    RangeConfig,
    RangeSet,
    make_range,
    make_range_set,
    make_range_sets,
)
from pycni.spec.errors import INVALID_CONFIG, CNIError
from pycni.spec.ip import IPAddress, parse_address


def configs(*documents: dict[str, Any]) -> list[RangeConfig]:
    return [RangeConfig.decode(document) for document in documents]


def range_set(*documents: dict[str, Any]) -> RangeSet:
    return make_range_set(configs(*documents))


@pytest.mark.parametrize(
    ("subnet", "shown", "gateway"),
    [
        ("192.0.2.0/24", "192.0.2.1-192.0.2.254", "192.0.2.1"),
        ("192.0.2.0/25", "192.0.2.1-192.0.2.126", "192.0.2.1"),
        ("192.0.2.0/30", "192.0.2.1-192.0.2.2", "192.0.2.1"),
        ("2001:db8:1::/64", "2001:db8:1::1-2001:db8:1:0:ffff:ffff:ffff:ffff", "2001:db8:1::1"),
        ("fd00::/126", "fd00::1-fd00::3", "fd00::1"),
    ],
)
def test_defaults_of_a_range(subnet: str, shown: str, gateway: str) -> None:
    made = make_range(RangeConfig.decode({"subnet": subnet}))
    assert (str(made), str(made.gateway)) == (shown, gateway)


def test_what_a_range_says_is_kept() -> None:
    made = make_range(
        RangeConfig.decode(
            {
                "subnet": "192.0.2.0/24",
                "rangeStart": "192.0.2.40",
                "rangeEnd": "192.0.2.50",
                "gateway": "192.0.2.254",
            }
        )
    )
    assert (str(made), str(made.gateway)) == ("192.0.2.40-192.0.2.50", "192.0.2.254")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"subnet": "192.0.2.0/31"}, "Network 192.0.2.0/31 too small to allocate from"),
        ({"subnet": "fd00::/127"}, "Network fd00::/127 too small to allocate from"),
        ({}, "IP <nil> not v4 nor v6"),
        (
            {"subnet": "192.0.2.0/24", "rangeStart": "192.0.3.0"},
            "RangeStart 192.0.3.0 not in network 192.0.2.0/24",
        ),
        (
            {"subnet": "192.0.2.0/24", "rangeEnd": "192.0.4.0"},
            "RangeEnd 192.0.4.0 not in network 192.0.2.0/24",
        ),
        (
            {"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.50", "rangeEnd": "192.0.2.40"},
            "RangeStart 192.0.2.50 not in network 192.0.2.0/24",
        ),
        (
            {"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.0"},
            "RangeStart 192.0.2.0 is the address of network 192.0.2.0/24 itself",
        ),
        (
            {"subnet": "192.0.2.0/24", "rangeEnd": "192.0.2.255"},
            "RangeEnd 192.0.2.255 is the broadcast address of network 192.0.2.0/24",
        ),
        (
            {"subnet": "fd00::/64", "rangeStart": "fd00::"},
            "RangeStart fd00:: is the address of network fd00::/64 itself",
        ),
    ],
)
def test_a_range_that_cannot_be(document: dict[str, Any], message: str) -> None:
    with pytest.raises(CNIError) as caught:
        make_range(RangeConfig.decode(document))
    assert (caught.value.code, caught.value.message) == (INVALID_CONFIG, message)
    assert caught.value.details


@pytest.mark.parametrize(
    ("subnet", "length", "network"),
    [
        ("192.0.2.12/24", 24, "192.0.2.0"),
        ("10.0.1.0/23", 23, "10.0.0.0"),
        ("2001:db8:1::24:19ff:fee1:c44a/64", 64, "2001:db8:1::"),
        ("2001:db8:0:1::/63", 63, "2001:db8::"),
    ],
)
def test_a_subnet_with_host_bits(subnet: str, length: int, network: str) -> None:
    with pytest.raises(CNIError) as caught:
        range_set({"subnet": subnet})
    assert caught.value.message == (
        f"Network has host bits set. For a subnet mask of length {length} "
        f"the network address is {network}"
    )
    assert f'"{network}/{length}"' in caught.value.details


def test_the_last_address_of_an_ipv6_subnet_may_end_a_range() -> None:
    assert str(range_set({"subnet": "fd00::/126", "rangeEnd": "fd00::3"})) == "fd00::1-fd00::3"


def test_ranges_of_a_set_share_a_family() -> None:
    with pytest.raises(CNIError, match="mixed address families"):
        range_set({"subnet": "192.0.2.0/24"}, {"subnet": "fd00::/64"})


def test_an_empty_set() -> None:
    with pytest.raises(CNIError) as caught:
        make_range_sets([configs({"subnet": "192.0.2.0/24"}), []])
    assert caught.value.message == "invalid range set 1: empty range set"


@pytest.mark.parametrize(
    ("one", "two", "overlap"),
    [
        ({"subnet": "10.0.0.0/20"}, {"subnet": "10.1.0.0/20"}, False),
        ({"subnet": "10.0.0.0/20"}, {"subnet": "a00::/20"}, False),
        ({"subnet": "10.0.0.0/20"}, {"subnet": "10.0.0.0/20"}, True),
        ({"subnet": "10.0.0.0/20"}, {"subnet": "10.0.1.0/24"}, True),
        (
            {"subnet": "10.0.0.0/20", "rangeEnd": "10.0.0.4"},
            {"subnet": "10.0.0.0/20", "rangeStart": "10.0.0.5"},
            False,
        ),
        (
            {"subnet": "10.0.0.0/20", "rangeEnd": "10.0.0.5"},
            {"subnet": "10.0.0.0/20", "rangeStart": "10.0.0.5"},
            True,
        ),
    ],
)
def test_overlap(one: dict[str, Any], two: dict[str, Any], overlap: bool) -> None:
    first, second = (make_range(config) for config in configs(one, two))
    assert first.overlaps(second) is overlap
    assert second.overlaps(first) is overlap
    if overlap:
        with pytest.raises(CNIError) as within:
            make_range_sets([configs(one, two)])
        assert within.value.message == (
            f"invalid range set 0: subnets {first} and {second} overlap"
        )
        with pytest.raises(CNIError) as between:
            make_range_sets([configs(one), configs(two)])
        assert between.value.message == "range set 0 overlaps with 1"


def test_the_range_of_an_address() -> None:
    made = range_set({"subnet": "10.1.0.0/24"}, {"subnet": "10.2.0.0/24"})
    assert made.range_of(parse_address("10.2.0.9")) is made.ranges[1]
    assert made.range_of(parse_address("10.3.0.9")) is None
    assert str(made) == "10.1.0.1-10.1.0.254,10.2.0.1-10.2.0.254"


# --- properties --------------------------------------------------------------------------------


@st.composite
def small_sets(draw: st.DrawFn) -> RangeSet:
    """One to four ranges without overlap, of a few addresses each, in any order."""
    base = int(draw(st.sampled_from([ip_address("10.0.0.0"), ip_address("fd00::")])))
    version = 4 if base < 1 << 32 else 6
    ranges = []
    for slot in draw(st.permutations(range(4)))[: draw(st.integers(1, 4))]:
        bits = draw(st.integers(2, 4))
        width = 32 if version == 4 else 128
        subnet = ip_network((base + slot * 16, width - bits))
        usable = list(subnet)[1 : -1 if version == 4 else None]
        ends = sorted(draw(st.tuples(st.sampled_from(usable), st.sampled_from(usable))))
        ranges.append({"subnet": str(subnet), "rangeStart": str(ends[0]), "rangeEnd": str(ends[1])})
    return range_set(*ranges)


def members(made: RangeSet) -> list[IPAddress]:
    return [item.address(n) for item in made.ranges for n in range(item.first, item.last + 1)]


def order(made: RangeSet, after: IPAddress | None) -> list[IPAddress]:
    return [
        item.address(number)
        for item, first, last in made.stretches(after)
        for number in range(first, last + 1)
    ]


@given(small_sets())
def test_without_a_last_address_all_come_in_order(made: RangeSet) -> None:
    assert order(made, None) == members(made)
    assert order(made, parse_address("192.0.2.1")) == members(made)


@given(small_sets(), st.data())
def test_after_an_address_comes_the_next_and_it_comes_last(
    made: RangeSet, data: st.DataObject
) -> None:
    everything = members(made)
    after = data.draw(st.sampled_from(everything))
    place = everything.index(after) + 1
    assert order(made, after) == everything[place:] + everything[:place]


@given(small_sets(), st.integers(-8, 80))
def test_a_set_contains_what_it_hands_out(made: RangeSet, offset: int) -> None:
    lowest = min(item.first for item in made.ranges)
    address = IPAddress.from_int(lowest + offset, made.family)
    assert (made.range_of(address) is not None) == (address in members(made))
