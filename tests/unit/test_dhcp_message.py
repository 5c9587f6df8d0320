"""DHCP messages: against RFC 2131, 2132, 3396, 3397 and 3442, and against pyroute2's reader."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.dhcp.dhcp4msg import dhcp4msg

from pycni.dhcp.lease import Lease
from pycni.dhcp.message import ClasslessRoute, DHCPRequest, MalformedDHCPMessage, MessageType, Reply

MAC = "02:00:00:00:00:01"
COOKIE = b"\x63\x82\x53\x63"


def answer(options: bytes, *, sname: bytes = b"", file: bytes = b"") -> bytes:
    """A BOOTREPLY as RFC 2131, section 2 has it: yiaddr 10.0.0.5, xid 0x01020304."""
    return (
        bytes((2, 1, 6, 0))
        + bytes((1, 2, 3, 4))
        + bytes(4)  # secs, flags
        + bytes(4)  # ciaddr
        + bytes((10, 0, 0, 5))
        + bytes(8)  # siaddr, giaddr
        + bytes.fromhex(MAC.replace(":", "")).ljust(16, b"\0")
        + sname.ljust(64, b"\0")
        + file.ljust(128, b"\0")
        + COOKIE
        + options
    )


def option(code: int, value: bytes) -> bytes:
    return bytes((code, len(value))) + value


ACK = option(53, b"\5") + option(1, bytes((255, 255, 255, 0)))


def test_a_request_as_another_reads_it() -> None:
    request = DHCPRequest(
        MessageType.REQUEST,
        0xDEADBEEF,
        MAC,
        IPv4Address("10.0.0.5"),
        broadcast=True,
        options={61: b"\0me", 50: bytes((10, 0, 0, 5)), 12: b"name", 55: bytes((3, 1))},
    )
    read = dhcp4msg(buf=request.encode(7)).decode()
    assert (read["op"], read["xid"], read["secs"]) == (1, 0xDEADBEEF, 7)
    assert (read["flags"], read["ciaddr"], read["chaddr"]) == (0x8000, "10.0.0.5", MAC)
    options = read["options"]
    assert options["message_type"] == MessageType.REQUEST
    assert options["client_id"] == {"type": 0, "key": b"me"}
    assert (options["requested_ip"], options["host_name"]) == ("10.0.0.5", "name")
    assert options["parameter_list"] == [3, 1]


def test_an_answer() -> None:
    more = option(54, bytes((10, 0, 0, 1))) + option(51, bytes((0, 0, 1, 0)))
    reply = Reply.decode(answer(ACK + b"\0\0" + more + b"\xff"))
    assert (reply.kind, reply.xid, reply.mac) == (MessageType.ACK, 0x01020304, MAC)
    assert str(reply.yiaddr) == "10.0.0.5"
    assert (str(reply.server), reply.prefix, reply.seconds(51)) == ("10.0.0.1", 24, 256)


def test_a_long_option_is_sent_and_read_in_parts() -> None:
    """RFC 3396."""
    value = bytes(range(256)) * 2
    sent = DHCPRequest(MessageType.DISCOVER, 1, MAC, options={43: value}).encode()
    assert option(43, value[:255]) + option(43, value[255:510]) + option(43, value[510:]) in sent
    assert Reply.decode(b"\2" + sent[1:]).options[43] == value


def test_options_in_the_fields_for_names() -> None:
    """RFC 2132, section 9.3: file before sname (RFC 3396, section 5)."""
    data = answer(
        ACK + option(52, b"\3") + option(56, b"one ") + b"\xff",
        file=option(56, b"two ") + b"\xff",
        sname=option(56, b"three") + b"\xff",
    )
    assert Reply.decode(data).message == "one two three"
    only_file = data.replace(option(52, b"\3"), option(52, b"\1"))
    assert Reply.decode(only_file).message == "one two "


@pytest.mark.parametrize(
    ("descriptor", "network"),
    [  # RFC 3442, page 4
        ("00", "0.0.0.0/0"),
        ("080a", "10.0.0.0/8"),
        ("180a0000", "10.0.0.0/24"),
        ("100a11", "10.17.0.0/16"),
        ("180a1b81", "10.27.129.0/24"),
        ("190a229880", "10.34.152.128/25"),
        ("200a1b8106", "10.27.129.6/32"),
    ],
)
def test_destinations_of_classless_routes(descriptor: str, network: str) -> None:
    value = bytes.fromhex(descriptor) + bytes((10, 0, 0, 1))
    reply = Reply.decode(answer(ACK + option(121, value) + b"\xff"))
    assert reply.routes == (ClasslessRoute(IPv4Network(network), IPv4Address("10.0.0.1")),)


def test_classless_routes_come_before_all_others() -> None:
    router, other = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
    options = option(3, other) + option(33, bytes((10, 9, 0, 0)) + other)
    with_121 = option(121, b"\x10\x0a\x08" + bytes(4)) + options
    assert Reply.decode(answer(ACK + with_121)).routes == (
        ClasslessRoute(IPv4Network("10.8.0.0/16"), None),
    )
    assert Reply.decode(answer(ACK + options)).routes == (
        ClasslessRoute(IPv4Network("10.0.0.0/8"), IPv4Address(other)),
        ClasslessRoute(IPv4Network("0.0.0.0/0"), IPv4Address(other)),
    )
    assert Reply.decode(answer(ACK + option(3, router))).routes == (
        ClasslessRoute(IPv4Network("0.0.0.0/0"), IPv4Address(router)),
    )


def test_domain_search() -> None:
    """RFC 3397, section 2: the example, with a pointer."""
    value = b"\3eng\5apple\3com\0\x09marketing\xc0\x04"
    reply = Reply.decode(answer(ACK + option(119, value)))
    assert reply.domains(119) == ("eng.apple.com", "marketing.apple.com")
    loop = Reply.decode(answer(ACK + option(119, b"\xc0\x00\xc0\x02")))
    assert loop.domains(119) == ()


def test_without_a_mask_the_address_s_class_says() -> None:
    reply = Reply.decode(answer(option(53, b"\5")))
    first = reply.yiaddr.packed[0]
    assert reply.prefix == (8 if first < 128 else 16 if first < 192 else 24)
    assert Lease.from_ack(reply, MAC, 0).prefix == reply.prefix


@pytest.mark.parametrize("mask", [(0, 0, 0, 255), (255, 0, 255, 0)])
def test_a_mask_that_is_no_prefix(mask: tuple[int, ...]) -> None:
    reply = Reply.decode(answer(option(53, b"\5") + option(1, bytes(mask))))
    assert reply.prefix is None
    with pytest.raises(ValueError, match="Subnet Mask not found"):
        Lease.from_ack(reply, MAC, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        answer(b""),
        answer(option(53, b"")),
        answer(option(53, b"\x63")),
        answer(option(53, b"\5") + b"\x01\x04\xff"),
        answer(option(53, b"\5") + b"\x01"),
        b"\1" + answer(ACK)[1:],
        answer(ACK).replace(COOKIE, bytes(4)),
    ],
)
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(MalformedDHCPMessage):
        Reply.decode(data)


@given(st.binary(max_size=400), st.binary(max_size=64), st.binary(max_size=128))
def test_anything_is_read_or_refused_never_worse(options: bytes, sname: bytes, file: bytes) -> None:
    try:
        reply = Reply.decode(answer(option(53, b"\5") + options, sname=sname, file=file))
    except MalformedDHCPMessage:
        return
    assert len(reply.domains(119)) <= 400
    assert all(route.dst.version == 4 for route in reply.routes)
    if reply.prefix is None:
        with pytest.raises(ValueError, match="Subnet Mask"):
            Lease.from_ack(reply, MAC, 1000.0)
    else:
        assert Lease.from_ack(reply, MAC, 1000.0).prefix == reply.prefix


@pytest.mark.parametrize(
    ("value", "mtu"),
    [(b"\x05\x78", 1400), (b"\0\0", 0), (b"\xff\xff", 65535), (b"\5", None), (b"\0\0\5\x78", None)],
)
def test_an_mtu(value: bytes, mtu: int | None) -> None:
    reply = Reply.decode(answer(ACK + option(26, value)))
    assert (reply.mtu, Lease.from_ack(reply, MAC, 0.0).mtu) == (mtu, mtu)
    assert Reply.decode(answer(ACK)).mtu is None


def granted(**seconds: int) -> Lease:
    codes = {"lease": 51, "renew": 58, "rebind": 59}
    timers = b"".join(
        option(codes[key], value.to_bytes(4, "big")) for key, value in seconds.items()
    )
    return Lease.from_ack(Reply.decode(answer(ACK + timers)), MAC, 1000.0)


def test_times_of_a_lease() -> None:
    reported = granted(lease=600, renew=100, rebind=500)
    assert (reported.renew_at, reported.rebind_at, reported.expires_at) == (1100, 1500, 1600)
    # RFC 2131, section 4.4.5: T1 is half, T2 seven eighths.
    usual = granted(lease=800)
    assert (usual.renew_at, usual.rebind_at, usual.expires_at) == (1400, 1700, 1800)
    absurd = granted(lease=800, renew=900, rebind=100)
    assert (absurd.renew_at, absurd.rebind_at) == (1400, 1700)
    assert granted().expires_at == 1000 + 3600
    forever = granted(lease=0xFFFFFFFF)
    assert (forever.renew_at, forever.rebind_at, forever.expires_at) == (None, None, None)


@given(
    st.fixed_dictionaries(
        {}, optional={key: st.integers(0, 0xFFFFFFFF) for key in ("lease", "renew", "rebind")}
    )
)
def test_times_are_in_order_and_never_at_once(seconds: dict[str, int]) -> None:
    lease = granted(**seconds)
    if lease.expires_at is None:
        return
    assert lease.renew_at is not None
    assert lease.rebind_at is not None
    assert 1000 < lease.renew_at <= lease.rebind_at <= lease.expires_at


@pytest.mark.parametrize("text", [b"a\nnameserver 192.0.2.66", b"a\r", b"\x1b[2J", b"a\x7f"])
def test_text_with_control_characters_is_none(text: bytes) -> None:
    """It would end up in logs, and in resolv.conf."""
    label = bytes((len(text),)) + text + b"\0"
    given = option(53, b"\5") + option(15, text) + option(56, text) + option(119, label)
    reply = Reply.decode(answer(given + option(119, b"\3abc\0")))
    assert (reply.text(15), reply.message, reply.domains(119)) == ("", "", ("abc",))


def test_text_ends_at_nul() -> None:
    reply = Reply.decode(answer(option(53, b"\5") + option(15, b"example\0.com\0")))
    assert reply.text(15) == "example"
