"""Ranges of addresses to hand out, and the order they are handed out in. No I/O.

A range is a stretch of one subnet; a range set is a list of ranges of one family that together give
one address. Rules and texts are the reference's, with one rule more: a range that starts at the
network address or ends at the IPv4 broadcast address is refused, since a container cannot use
either. Used by host-local.
"""

from __future__ import annotations

from pycni.spec.errors import CNIError, invalid_config
from pycni.spec.ip import IPAddress, IPNetwork
from pycni.spec.record import Record
from pycni.spec.schema import CIDR, Address, Config, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class RangeConfig(Config):
    """A range as the configuration gives it."""

    subnet: IPNetwork | None = field(
        "subnet", CIDR(), None, doc="addresses are taken from it", default_doc="required in a range"
    )
    range_start: IPAddress | None = field(
        "rangeStart", Address(), None, doc="first address to give", default_doc="the subnet's first"
    )
    range_end: IPAddress | None = field(
        "rangeEnd",
        Address(),
        None,
        doc="last address to give",
        default_doc="the subnet's last, without IPv4's broadcast address",
    )
    gateway: IPAddress | None = field(
        "gateway",
        Address(),
        None,
        doc="the gateway, which is not given out",
        default_doc="the subnet's first address",
    )


class Range(Record):
    """Addresses `first` to `last` (both included, as numbers) of a subnet."""

    subnet: IPNetwork
    first: int
    last: int
    gateway: IPAddress

    def address(self, number: int) -> IPAddress:
        """The address that a number of this range stands for."""
        return IPAddress.from_int(number, self.subnet.family)

    def contains(self, address: IPAddress) -> bool:
        return address.family == self.subnet.family and self.first <= int(address) <= self.last

    def overlaps(self, other: Range) -> bool:
        return (
            self.subnet.family == other.subnet.family
            and self.first <= other.last
            and other.first <= self.last
        )

    def __str__(self) -> str:
        return f"{self.address(self.first)}-{self.address(self.last)}"


class RangeSet(Record):
    """Ranges of one family, without overlap, that give one address between them."""

    ranges: tuple[Range, ...]

    @property
    def family(self) -> int:
        return self.ranges[0].subnet.family

    def range_of(self, address: IPAddress) -> Range | None:
        """The range that has this address."""
        return next((item for item in self.ranges if item.contains(address)), None)

    def stretches(self, after: IPAddress | None = None) -> Iterator[tuple[Range, int, int]]:
        """Where to look for a free address, in order: (range, first, last).

        Round robin: from the address after `after` to the end, then from the start up to and
        including it. An address of no range counts as none.
        """
        index = next(
            (i for i, item in enumerate(self.ranges) if after and item.contains(after)), None
        )
        if index is None or after is None:
            for item in self.ranges:
                yield item, item.first, item.last
            return
        here, cursor = self.ranges[index], int(after)
        if cursor < here.last:
            yield here, cursor + 1, here.last
        for item in self.ranges[index + 1 :] + self.ranges[:index]:
            yield item, item.first, item.last
        yield here, here.first, cursor

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))


def make_range(config: RangeConfig) -> Range:
    """Fill in what a range's configuration leaves out, and check it. Raises CNIError (code 7)."""
    subnet = config.subnet
    if subnet is None:
        raise invalid_config(
            "IP <nil> not v4 nor v6", 'a range needs "subnet", such as "10.1.0.0/16"'
        )
    if subnet.prefix > subnet.address.bits - 2:
        raise invalid_config(
            f"Network {subnet} too small to allocate from",
            f"the longest prefix length is {subnet.address.bits - 2}",
        )
    if int(subnet.address) != subnet.first:
        raise invalid_config(
            f"Network has host bits set. For a subnet mask of length {subnet.prefix} "
            f"the network address is {subnet.network.address}",
            f'write "subnet": "{subnet.network}" instead of "{subnet}"',
        )
    first, last = subnet.first + 1, subnet.last - subnet.is_ipv4
    start = first if config.range_start is None else _bound("Start", config.range_start, subnet)
    end = last if config.range_end is None else _bound("End", config.range_end, subnet)
    if start > end:
        raise invalid_config(
            f"RangeStart {_text(start, subnet)} not in network {subnet}",
            f"rangeEnd {_text(end, subnet)} lies before it; {_usable(first, last, subnet)}",
        )
    if start < first:
        raise invalid_config(
            f"RangeStart {_text(start, subnet)} is the address of network {subnet} itself",
            _usable(first, last, subnet),
        )
    if end > last:
        raise invalid_config(
            f"RangeEnd {_text(end, subnet)} is the broadcast address of network {subnet}",
            _usable(first, last, subnet),
        )
    gateway = config.gateway or IPAddress.from_int(first, subnet.family)
    return Range(subnet, start, end, gateway)


def make_range_set(configs: Sequence[RangeConfig]) -> RangeSet:
    """A range set from its ranges' configurations. Raises CNIError (code 7)."""
    if not configs:
        raise invalid_config("empty range set", 'a range set is a list of objects with "subnet"')
    ranges = tuple(map(make_range, configs))
    if len({item.subnet.family for item in ranges}) > 1:
        raise invalid_config(
            "mixed address families", "a range set is IPv4 or IPv6; make one for each family"
        )
    common = _overlap(ranges)
    if common is not None:
        raise invalid_config(
            f"subnets {ranges[common[0]]} and {ranges[common[1]]} overlap",
            "narrow one of them by rangeStart and rangeEnd",
        )
    return RangeSet(ranges)


def make_range_sets(sets: Sequence[Sequence[RangeConfig]]) -> tuple[RangeSet, ...]:
    """All the range sets of a configuration, checked against each other. Raises CNIError."""
    made: list[RangeSet] = []
    for index, configs in enumerate(sets):
        try:
            made.append(make_range_set(configs))
        except CNIError as error:
            raise error.with_context(f"invalid range set {index}") from None
    ranges = [(index, item) for index, range_set in enumerate(made) for item in range_set.ranges]
    common = _overlap([item for _, item in ranges])
    if common is not None:
        index, other = (ranges[position][0] for position in common)
        raise invalid_config(
            f"range set {index} overlaps with {other}",
            f"{made[index]} and {made[other]} have addresses in common",
        )
    return tuple(made)


def _overlap(ranges: Sequence[Range]) -> tuple[int, int] | None:
    """The positions of two ranges that have an address in common; None if no two have."""
    highest: int | None = None
    for position in sorted(
        range(len(ranges)), key=lambda index: (ranges[index].subnet.family, ranges[index].first)
    ):
        if highest is not None and ranges[position].overlaps(ranges[highest]):
            return min(position, highest), max(position, highest)
        if (
            highest is None
            or ranges[position].subnet.family != ranges[highest].subnet.family
            or ranges[position].last > ranges[highest].last
        ):
            highest = position
    return None


def _bound(which: str, address: IPAddress, subnet: IPNetwork) -> int:
    if not subnet.contains(address):
        raise invalid_config(
            f"Range{which} {address} not in network {subnet}",
            f'"range{which}" is an address of {subnet}, '
            f"{_text(subnet.first, subnet)} to {_text(subnet.last, subnet)}",
        )
    return int(address)


def _text(number: int, subnet: IPNetwork) -> str:
    return str(IPAddress.from_int(number, subnet.family))


def _usable(first: int, last: int, subnet: IPNetwork) -> str:
    return f"usable are {_text(first, subnet)} to {_text(last, subnet)}"
