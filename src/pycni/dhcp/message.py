"""DHCP messages: what a client sends, and what it reads from a server's answer (RFC 2131, 2132).

The message's fixed part is pyroute2's codec. Options are read and written here, since a network
configuration may send any option, and servers split long ones (RFC 3396) or move them into the
fields for names (RFC 2132, option 52). Pure: called by `exchange` and by tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from pyroute2.dhcp.dhcp4msg import dhcp4msg
from pyroute2.dhcp.enums.bootp import Flag
from pyroute2.dhcp.enums.bootp import MessageType as Direction
from pyroute2.dhcp.enums.dhcp import MessageType, Option
from pyroute2.protocols import msg

__all__ = [
    "ClasslessRoute",
    "DHCPRequest",
    "MalformedDHCPMessage",
    "MessageType",
    "Option",
    "Reply",
]

_UNSPECIFIED = IPv4Address(0)
_NAME_FIELDS = {"file": slice(108, 236), "sname": slice(44, 108)}
_OPTIONS_START = 240  # behind the magic cookie
_MAX_SIZE = 1500  # what our interfaces take; option 57
_MINIMUM = 300  # a BOOTP message, which old relays insist on


class MalformedDHCPMessage(ValueError):
    """What arrived is not a DHCP message, or an option of it is cut short."""


@dataclass(frozen=True)
class DHCPRequest:
    """A message from a client. mac: its interface's; ciaddr: its address, if it has one to use.

    options: in the order they are sent, besides the message's type.
    """

    kind: MessageType
    xid: int
    mac: str
    ciaddr: IPv4Address = _UNSPECIFIED
    broadcast: bool = False
    options: Mapping[int, bytes] = field(default_factory=dict)

    def encode(self, seconds: int = 0) -> bytes:
        """The message on the wire; seconds: since the client began."""
        header = dhcp4msg(
            {
                "op": Direction.BOOTREQUEST,
                "xid": self.xid,
                "secs": min(seconds, 0xFFFF),
                "flags": Flag.BROADCAST if self.broadcast else Flag.UNICAST,
                "ciaddr": str(self.ciaddr),
                "chaddr": self.mac,
            }
        )
        data = bytearray(msg.encode(header).buf)  # the fixed part alone
        data += bytes((Option.MESSAGE_TYPE, 1, self.kind))
        for code, value in self.options.items():
            for start in range(0, len(value) or 1, 255):
                part = value[start : start + 255]
                data += bytes((code, len(part))) + part
        data.append(Option.END)
        return bytes(data.ljust(_MINIMUM, b"\0"))


def options(
    client_id: bytes, wanted: Iterable[int], provided: Mapping[int, bytes], **more: IPv4Address
) -> dict[int, bytes]:
    """The options of a DISCOVER or REQUEST.

    client_id: option 61 as sent; wanted: codes for option 55; provided: options of the user's,
    which go before ours; more: `server` (54) and `requested` (50) where the state calls for them.
    """
    found = {
        Option.MAX_MSG_SIZE: _MAX_SIZE.to_bytes(2, "big"),
        Option.CLIENT_ID: client_id,
        Option.PARAMETER_LIST: bytes(wanted),
    }
    codes = {"server": Option.SERVER_ID, "requested": Option.REQUESTED_IP}
    found.update((codes[name], address.packed) for name, address in more.items())
    return {**found, **provided}


@dataclass(frozen=True)
class ClasslessRoute:
    """A route of a server's. router: None where the destination is on the link."""

    dst: IPv4Network
    router: IPv4Address | None


@dataclass(frozen=True)
class Reply:
    """A server's answer."""

    kind: MessageType
    xid: int
    mac: str
    yiaddr: IPv4Address
    options: Mapping[int, bytes]

    @classmethod
    def decode(cls, data: bytes) -> Reply:
        """Read an answer. Raises MalformedDHCPMessage."""
        header = dhcp4msg(buf=data)
        try:
            msg.decode(header)
        except ValueError as error:
            raise MalformedDHCPMessage(str(error)) from error
        if header["op"] != Direction.BOOTREPLY or data[236:240] != b"\x63\x82\x53\x63":
            raise MalformedDHCPMessage("not a DHCP server's answer")
        found: dict[int, bytes] = {}
        _read_options(data[_OPTIONS_START:], found)
        overload = int.from_bytes(found.get(Option.OPTION_OVERLOAD, b""), "big")
        for bit, name in enumerate(_NAME_FIELDS):
            if overload & 1 << bit:
                _read_options(data[_NAME_FIELDS[name]], found)
        try:
            kind = MessageType(int.from_bytes(found.get(Option.MESSAGE_TYPE, b""), "big"))
        except ValueError:
            raise MalformedDHCPMessage("an answer without a DHCP message type") from None
        yiaddr = IPv4Address(header["yiaddr"])
        return cls(kind, header["xid"], header["chaddr"], yiaddr, found)

    @property
    def server(self) -> IPv4Address | None:
        """The server's identifier, its address."""
        return self._address(Option.SERVER_ID)

    @property
    def prefix(self) -> int | None:
        """The length of the subnet mask; None if that is no prefix.

        Without a mask it is that of the address's class (RFC 1122, section 3.3.6).
        """
        if Option.SUBNET_MASK not in self.options:
            return _classful(self.yiaddr)
        mask = self._address(Option.SUBNET_MASK)
        if mask is None:
            return None
        ones = int(mask).bit_count()
        return ones if int(mask) == (0xFFFFFFFF << 32 - ones) & 0xFFFFFFFF else None

    @property
    def routers(self) -> tuple[IPv4Address, ...]:
        return self.addresses(Option.ROUTER)

    @property
    def mtu(self) -> int | None:
        """The MTU for the interface in bytes, any number; None if the server gives none."""
        value = self.options.get(Option.INTERFACE_MTU, b"")
        return int.from_bytes(value, "big") if len(value) == 2 else None

    @property
    def routes(self) -> tuple[ClasslessRoute, ...]:
        """Classless routes (121) alone if there are any, else static (33) and the first router."""
        classless = self.options.get(Option.CLASSLESS_STATIC_ROUTE)
        if classless:
            return _classless(classless)
        pairs = self.addresses(Option.STATIC_ROUTE)
        routes = [
            ClasslessRoute(IPv4Network((destination, _classful(destination)), strict=False), router)
            for destination, router in zip(pairs[::2], pairs[1::2], strict=False)
        ]
        if self.routers:
            routes.append(ClasslessRoute(IPv4Network((0, 0)), self.routers[0]))
        return tuple(routes)

    @property
    def message(self) -> str:
        """The server's words, as in a NAK; "" if it has none."""
        return self.text(Option.MESSAGE)

    def addresses(self, code: int) -> tuple[IPv4Address, ...]:
        """An option that is a list of addresses."""
        value = self.options.get(code, b"")
        return tuple(IPv4Address(value[at : at + 4]) for at in range(0, len(value) - 3, 4))

    def seconds(self, code: int) -> int | None:
        """An option that is a time; None if it is not there."""
        value = self.options.get(code, b"")
        return int.from_bytes(value, "big") if len(value) == 4 else None

    def text(self, code: int) -> str:
        """An option that is text; "" for what holds line breaks or other control characters.

        It goes into logs, and by way of a result into files such as resolv.conf.
        """
        text = self.options.get(code, b"").partition(b"\0")[0].decode("utf-8", "replace")
        return text if text.isprintable() else ""

    def domains(self, code: int) -> tuple[str, ...]:
        """An option that is a list of domain names, as DNS writes them (RFC 3397)."""
        return _domains(self.options.get(code, b""))

    def _address(self, code: int) -> IPv4Address | None:
        found = self.addresses(code)
        return found[0] if found else None


def _read_options(data: bytes, found: dict[int, bytes]) -> None:
    at = 0
    while at < len(data) and data[at] != Option.END:
        if data[at] == Option.PAD:
            at += 1
            continue
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            raise MalformedDHCPMessage(f"option {data[at]} is cut short")
        value = data[at + 2 : at + 2 + data[at + 1]]
        found[data[at]] = found.get(data[at], b"") + value
        at += 2 + len(value)


def _classless(data: bytes) -> tuple[ClasslessRoute, ...]:
    """Routes of option 121 (RFC 3442); what is cut short or no prefix length ends the list."""
    routes = []
    at = 0
    while at < len(data):
        prefix, octets = data[at], (data[at] + 7) // 8
        at += 1
        if prefix > 32 or at + octets + 4 > len(data):
            break
        network = data[at : at + octets].ljust(4, b"\0")
        router = IPv4Address(data[at + octets : at + octets + 4])
        at += octets + 4
        routes.append(
            ClasslessRoute(
                IPv4Network((network, prefix), strict=False),
                None if router == _UNSPECIFIED else router,
            )
        )
    return tuple(routes)


def _classful(destination: IPv4Address) -> int:
    """The prefix length that an address has without a mask (RFC 791)."""
    first = destination.packed[0]
    return 8 if first < 128 else 16 if first < 192 else 24


def _domains(data: bytes) -> tuple[str, ...]:
    names = []
    at = 0
    while at < len(data):
        labels, at = _labels(data, at)
        name = ".".join(labels)
        if name and name.isprintable() and " " not in name:
            names.append(name)
    return tuple(names)


def _labels(data: bytes, at: int) -> tuple[list[str], int]:
    """The labels of one name and where it ends; pointers lead backwards only."""
    labels: list[str] = []
    end = 0
    limit = len(data)
    while at < limit:
        length = data[at]
        if length & 0xC0 == 0xC0 and at + 1 < len(data):
            end = end or at + 2
            limit = at
            at = (length & 0x3F) << 8 | data[at + 1]
            continue
        if length == 0 or length & 0xC0:
            at += 1
            break
        labels.append(data[at + 1 : at + 1 + length].decode("utf-8", "replace"))
        at += 1 + length
    return labels, end or max(at, 1)
