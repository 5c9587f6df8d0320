"""Netlink's bytes: messages, attributes and acknowledgements. Pure, no I/O.

A `Schema` declares the attributes of one level by name; its `encode` and `decode` are inverse:

    LINK = Schema(name=(IFLA_IFNAME, STRING), mtu=(IFLA_MTU, U32))
    LINK.decode(LINK.encode({"name": "eth0", "mtu": 1500}))

Decoding takes whatever bytes come: they yield values or `MalformedMessage`, nothing else.
Formats: include/uapi/linux/netlink.h and include/net/netlink.h. The verbs of `pycni.kernel`
build on this; `pycni.kernel.netlink.socket` moves the bytes.
"""

from __future__ import annotations

from _struct import Struct
from _struct import error as StructError  # type: ignore[attr-defined]  # noqa: N812

from pycni.kernel.netlink.constants import (
    NLA_F_NESTED,
    NLA_TYPE_MASK,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLMSG_DONE,
    NLMSGERR_ATTR_MSG,
    NLMSGERR_ATTR_OFFS,
)
from pycni.spec.ip import IPAddress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping
    from typing import Any, Protocol

    class Codec(Protocol):
        """The payload of one attribute, in both directions."""

        def encode(self, value: Any) -> bytes: ...
        def decode(self, data: bytes) -> Any: ...


_HEADER = Struct("=IHHII")
_ATTRIBUTE = Struct("=HH")
_ERROR = Struct("=i")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class MalformedMessage(ValueError):
    """Bytes that are not the netlink message they should be."""


class Message:
    """One received message; `payload` is what follows the netlink header."""

    __slots__ = ("flags", "kind", "payload", "port", "sequence")

    def __init__(self, kind: int, flags: int, sequence: int, port: int, payload: bytes) -> None:
        self.kind = kind
        self.flags = flags
        self.sequence = sequence
        self.port = port
        self.payload = payload


class NetlinkRequest:
    """One message to send.

    what: the request in an error's words: create link "eth0". answered: whether one
    message, or an error, is all that the kernel answers, so that there is no acknowledgement.
    """

    __slots__ = ("answered", "body", "flags", "kind", "what")

    def __init__(
        self, kind: int, flags: int, body: bytes, what: str, *, answered: bool = False
    ) -> None:
        self.kind = kind
        self.flags = flags
        self.body = body
        self.what = what
        self.answered = answered

    def __repr__(self) -> str:
        return f"<NetlinkRequest: {self.what}>"


class Outcome:
    """What an acknowledgement says: `errno` is 0 for success.

    text: the kernel's explanation, "" if it gave none; offset: of the attribute it complains
    about, counted from the start of the request, or None.
    """

    __slots__ = ("errno", "offset", "text")

    def __init__(self, errno: int, text: str, offset: int | None) -> None:
        self.errno = errno
        self.text = text
        self.offset = offset


_SUCCESS = Outcome(0, "", None)


def pack(kind: int, flags: int, sequence: int, port: int, body: bytes) -> bytes:
    """One message, padded so that another may follow."""
    size = _HEADER.size + len(body)
    return _HEADER.pack(size, kind, flags, sequence, port) + body + _PADDING[size % 4]


def unpack(data: bytes) -> list[Message]:
    """The messages of one datagram."""
    messages = []
    offset, end, head = 0, len(data), _HEADER.size
    while offset < end:
        if end - offset < head:
            raise MalformedMessage(f"{end - offset} bytes where a message header should be")
        size, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if not head <= size <= end - offset:
            raise MalformedMessage(f"message of {size} bytes in {end - offset}")
        payload = data[offset + head : offset + size]
        messages.append(Message(kind, flags, sequence, port, payload))
        offset += (size + 3) & ~3
    return messages


def outcome(message: Message) -> Outcome:
    """Read NLMSG_ERROR (also the acknowledgement of success) or NLMSG_DONE."""
    payload = message.payload
    if len(payload) < _ERROR.size:
        raise MalformedMessage(f"acknowledgement of {len(payload)} bytes")
    errno = -_ERROR.unpack_from(payload)[0]
    if errno < 0:
        raise MalformedMessage(f"acknowledgement with the error number {errno}")
    if message.kind != NLMSG_DONE and len(payload) < _ERROR.size + _HEADER.size:
        raise MalformedMessage(f"acknowledgement of {len(payload)} bytes")
    if not message.flags & NLM_F_ACK_TLVS:
        return Outcome(errno, "", None) if errno else _SUCCESS
    start = _ERROR.size
    if message.kind != NLMSG_DONE:
        # The request comes back: its header only, if capped, or if it succeeded.
        size = _HEADER.unpack_from(payload, start)[0]
        if not errno or message.flags & NLM_F_CAPPED:
            size = _HEADER.size
        start += (size + 3) & ~3
    explained = _EXTENDED_ACK.decode(payload[start:])
    return Outcome(errno, explained.get("text", ""), explained.get("offset"))


def attributes(data: bytes, wanted: Container[int]) -> Iterator[tuple[int, bytes]]:
    """The attributes of one level whose type is wanted: (type, payload)."""
    offset, end = 0, len(data)
    read, mask = _ATTRIBUTE.unpack_from, NLA_TYPE_MASK
    try:
        while offset < end:
            size, number = read(data, offset)
            if size < 4 or offset + size > end:
                raise MalformedMessage(f"attribute of {size} bytes in {end - offset}")
            if number & mask in wanted:
                yield number & mask, data[offset + 4 : offset + size]
            offset += (size + 3) & ~3
    except StructError:
        raise MalformedMessage(f"{end - offset} bytes where an attribute should be") from None


def attribute(number: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    size = 4 + len(payload)
    return _ATTRIBUTE.pack(size, number) + payload + _PADDING[size % 4]


class Integer:
    """A number of fixed width. A longer payload is cut, as the kernel does it."""

    __slots__ = ("_layout",)

    def __init__(self, layout: str) -> None:
        self._layout = Struct(layout)

    def encode(self, value: int) -> bytes:
        return self._layout.pack(value)

    def decode(self, data: bytes) -> int:
        value: int
        try:
            (value,) = self._layout.unpack_from(data)
        except StructError:
            raise MalformedMessage(f"integer of {len(data)} bytes") from None
        return value


class Structure:
    """A C structure as a tuple of its members."""

    __slots__ = ("_layout", "size")

    def __init__(self, layout: str) -> None:
        self._layout = Struct(layout)
        self.size = self._layout.size

    def encode(self, value: tuple[Any, ...]) -> bytes:
        return self._layout.pack(*value)

    def decode(self, data: bytes) -> tuple[Any, ...]:
        try:
            return self._layout.unpack_from(data)
        except StructError:
            raise MalformedMessage(f"structure of {len(data)} bytes, not {self.size}") from None


class Text:
    """A string that ends at its first NUL. Bytes that are not UTF-8 survive both ways."""

    __slots__ = ()

    def encode(self, value: str) -> bytes:
        if "\0" in value:
            raise ValueError(f"NUL byte in {value!r}")
        return value.encode("utf-8", "surrogateescape") + b"\0"

    def decode(self, data: bytes) -> str:
        return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


class Raw:
    """Bytes as they are."""

    __slots__ = ()

    def encode(self, value: bytes) -> bytes:
        return value

    def decode(self, data: bytes) -> bytes:
        return data


class Presence:
    """An attribute without payload, which is there (True) or not."""

    __slots__ = ()

    def encode(self, value: bool) -> bytes:
        return b""

    def decode(self, data: bytes) -> bool:
        return True


class HardwareAddress:
    """A MAC address as text in the lower-case colon form."""

    __slots__ = ()

    def encode(self, value: str) -> bytes:
        return bytes.fromhex(value.replace(":", ""))

    def decode(self, data: bytes) -> str:
        return data.hex(":")


class Address:
    """An IPv4 or IPv6 address; the payload's length says which."""

    __slots__ = ()

    def encode(self, value: IPAddress) -> bytes:
        return value.packed

    def decode(self, data: bytes) -> IPAddress:
        try:
            return IPAddress(data)
        except ValueError as error:
            raise MalformedMessage(str(error)) from None


class Many:
    """An attribute that may occur several times: a list of values."""

    __slots__ = ("item",)

    def __init__(self, item: Codec) -> None:
        self.item = item

    def encode(self, value: Any) -> bytes:
        return self.item.encode(value)

    def decode(self, data: bytes) -> Any:
        return self.item.decode(data)


class Schema:
    """The attributes of one level: name=(type, codec). A Schema is itself a codec, for nesting."""

    __slots__ = ("_by_name", "_by_number")

    def __init__(self, **declared: tuple[int, Codec]) -> None:
        self._by_name = {
            name: (number | NLA_F_NESTED if _is_nested(codec) else number, codec)
            for name, (number, codec) in declared.items()
        }
        self._by_number = {number: (name, codec) for name, (number, codec) in declared.items()}

    def encode(self, value: Mapping[str, Any]) -> bytes:
        """The attributes in the mapping's order. None leaves one out; a flag's False does too."""
        parts = []
        for name, item in value.items():
            if item is None:
                continue
            number, codec = self._by_name[name]
            if type(codec) is Many:
                parts += [attribute(number, codec.encode(one)) for one in item]
            elif item or codec is not FLAG:
                parts.append(attribute(number, codec.encode(item)))
        return b"".join(parts)

    def decode(self, data: bytes) -> dict[str, Any]:
        """The attributes this schema declares, by name; others are passed over."""
        found: dict[str, Any] = {}
        by_number = self._by_number
        for number, payload in attributes(data, by_number):
            name, codec = by_number[number]
            if type(codec) is Many:
                found.setdefault(name, []).append(codec.decode(payload))
            else:
                found[name] = codec.decode(payload)
        return found

    def first(self, name: str, data: bytes) -> Any:
        """The value of one attribute, None if it is not there. What follows it is not read."""
        number, codec = self._by_name[name]
        for _, payload in attributes(data, (number & NLA_TYPE_MASK,)):
            return codec.decode(payload)
        return None


def _is_nested(codec: Codec) -> bool:
    if isinstance(codec, Many):
        codec = codec.item
    return codec is NESTED or isinstance(codec, Schema)


U8 = Integer("=B")
U16 = Integer("=H")
U32 = Integer("=I")
U64 = Integer("=Q")
S32 = Integer("=i")
BE16 = Integer(">H")
BE32 = Integer(">I")
STRING = Text()
BYTES = Raw()
NESTED = Raw()  # attributes whose schema depends on something beside them
FLAG = Presence()
MAC = HardwareAddress()
IP = Address()

_EXTENDED_ACK = Schema(text=(NLMSGERR_ATTR_MSG, STRING), offset=(NLMSGERR_ATTR_OFFS, U32))
