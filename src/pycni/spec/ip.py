"""IP addresses and networks, read and written as the reference's library does.

Differences from the standard `ipaddress` that the protocol needs: an `IPNetwork` keeps its host
bits (`10.0.0.7/8` stays that), leading zeros in an IPv4 octet and IPv6 zones are refused, and an
IPv4-mapped IPv6 address is the IPv4 address it maps.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

_MAPPED = bytes(10) + b"\xff\xff"
_COMPATIBLE = bytes(12)


class IPAddress:
    """One address: `packed` is its 4 or 16 bytes in network order, `family` AF_INET or AF_INET6."""

    __slots__ = ("family", "packed")

    def __init__(self, packed: bytes) -> None:
        if len(packed) not in (4, 16):
            raise ValueError(f"an address has 4 or 16 bytes, not {len(packed)}")
        self.packed = packed
        self.family: int = AF_INET if len(packed) == 4 else AF_INET6

    @classmethod
    def from_int(cls, value: int, family: int) -> IPAddress:
        """The address of a family whose bits, read as a number, are `value`."""
        return cls(value.to_bytes(4 if family == AF_INET else 16, "big"))

    @property
    def is_ipv4(self) -> bool:
        return len(self.packed) == 4

    @property
    def bits(self) -> int:
        """The width of the family's addresses: 32 or 128."""
        return len(self.packed) * 8

    @property
    def is_unspecified(self) -> bool:
        return not any(self.packed)

    @property
    def is_loopback(self) -> bool:
        return self.packed[0] == 127 if self.is_ipv4 else self.packed == bytes(15) + b"\1"

    @property
    def is_link_local(self) -> bool:
        if self.is_ipv4:
            return self.packed[:2] == b"\xa9\xfe"
        return self.packed[0] == 0xFE and self.packed[1] & 0xC0 == 0x80

    def __int__(self) -> int:
        return int.from_bytes(self.packed, "big")

    def __str__(self) -> str:
        packed = self.packed
        if packed.startswith(_COMPATIBLE) and len(packed) == 16 and any(packed[12:14]):
            # inet_ntop would write ::10.0.0.1
            return f"::{packed[12:14].hex().lstrip('0')}:{int.from_bytes(packed[14:], 'big'):x}"
        return inet_ntop(self.family, packed)

    def __repr__(self) -> str:
        return f"IPAddress({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IPAddress) and self.packed == other.packed

    def __hash__(self) -> int:
        return hash(self.packed)

    def __lt__(self, other: IPAddress) -> bool:
        return (len(self.packed), self.packed) < (len(other.packed), other.packed)


class IPNetwork:
    """An address with a prefix length, host bits kept, as interfaces and routes have them."""

    __slots__ = ("address", "prefix")

    def __init__(self, address: IPAddress, prefix: int) -> None:
        if not 0 <= prefix <= address.bits:
            raise ValueError(f"a prefix length of {address} is 0 to {address.bits}, not {prefix}")
        self.address = address
        self.prefix = prefix

    @property
    def family(self) -> int:
        return self.address.family

    @property
    def is_ipv4(self) -> bool:
        return self.address.is_ipv4

    @property
    def network(self) -> IPNetwork:
        """The same network with its host bits cleared."""
        return IPNetwork(IPAddress.from_int(self.first, self.family), self.prefix)

    @property
    def first(self) -> int:
        """The lowest address of the network as a number."""
        return int(self.address) & ~self._host_mask

    @property
    def last(self) -> int:
        """The highest address of the network as a number."""
        return int(self.address) | self._host_mask

    @property
    def broadcast(self) -> IPAddress:
        """The highest address: IPv4's broadcast address where the prefix is under 31."""
        return IPAddress.from_int(self.last, self.family)

    @property
    def is_default(self) -> bool:
        """Whether this is 0.0.0.0/0 or ::/0."""
        return self.prefix == 0 and self.address.is_unspecified

    @property
    def _host_mask(self) -> int:
        return int((1 << (self.address.bits - self.prefix)) - 1)

    def contains(self, address: IPAddress) -> bool:
        return address.family == self.family and self.first <= int(address) <= self.last

    def overlaps(self, other: IPNetwork) -> bool:
        if other.family != self.family:
            return False
        return self.first <= other.last and other.first <= self.last

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix}"

    def __repr__(self) -> str:
        return f"IPNetwork({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, IPNetwork)
            and self.address == other.address
            and self.prefix == other.prefix
        )

    def __hash__(self) -> int:
        return hash((self.address, self.prefix))


def host_network(address: IPAddress) -> IPNetwork:
    """The network that holds this one address: /32 or /128."""
    return IPNetwork(address, address.bits)


def default_network(family: int) -> IPNetwork:
    """0.0.0.0/0 or ::/0."""
    return IPNetwork(IPAddress.from_int(0, family), 0)


def parse_address(text: str) -> IPAddress:
    """Read an IPv4 or IPv6 address. Raises ValueError with the reference's words."""
    family = AF_INET6 if ":" in text else AF_INET
    try:
        packed = inet_pton(family, text)
    except (OSError, ValueError):
        raise ValueError(f"invalid IP address: {text}") from None
    if packed.startswith(_MAPPED):
        packed = packed[12:]
    return IPAddress(packed)


def parse_network(text: str) -> IPNetwork:
    """Read `address/prefix length` (CIDR). Raises ValueError with the reference's words."""
    host, _, length = text.partition("/")
    try:
        address = parse_address(host)
        if not (length.isascii() and length.isdigit() and len(length) <= 3):
            raise ValueError
        prefix = int(length)
        if ":" in host and address.is_ipv4:
            prefix -= 96
        return IPNetwork(address, prefix)
    except ValueError:
        raise ValueError(f"invalid CIDR address: {text}") from None


def parse_address_or_network(text: str) -> tuple[IPAddress, int | None]:
    """Read an address whose prefix length may be missing: (address, prefix length or None)."""
    if "/" in text:
        network = parse_network(text)
        return network.address, network.prefix
    return parse_address(text), None
