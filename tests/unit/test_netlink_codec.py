"""The netlink codec: its bytes against the kernel's format and pyroute2, and against garbage."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from harness.surfaces import whole_link
from pycni.kernel import address, bridge_vlan, link, link_kinds, neighbour, route, rule
from pycni.kernel.netlink import codec
from pycni.kernel.netlink.codec import MalformedMessage, Message, NetlinkRequest, Schema
from pycni.spec.ip import IPAddress, parse_address, parse_network

AF_INET, AF_INET6 = 2, 10

INNER = Schema(
    small=(1, codec.U8),
    port=(2, codec.BE16),
    count=(3, codec.U64),
)
OUTER = Schema(
    name=(1, codec.STRING),
    mark=(2, codec.BE32),
    data=(3, codec.BYTES),
    there=(4, codec.FLAG),
    inner=(5, INNER),
    many=(6, codec.Many(codec.U16)),
    mac=(7, codec.MAC),
    address=(8, codec.IP),
    offset=(9, codec.S32),
    of_kind=(11, codec.NESTED),
    pair=(12, codec.Structure("=HI")),
)


def unsigned(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << bits) - 1)


INNER_VALUES = st.fixed_dictionaries(
    {}, optional={"small": unsigned(8), "port": unsigned(16), "count": unsigned(64)}
)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        "mark": unsigned(32),
        "data": st.binary(max_size=50),
        "there": st.just(True),
        "inner": INNER_VALUES,
        "many": st.lists(unsigned(16), min_size=1),
        "mac": st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":")),
        "address": st.one_of(
            st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)
        ).map(IPAddress),
        "offset": st.integers(-(1 << 31), (1 << 31) - 1),
        "pair": st.tuples(unsigned(16), unsigned(32)),
    },
)


# --- format ------------------------------------------------------------------------------------


def test_message_has_the_header_of_netlink_h() -> None:
    assert codec.pack(16, 0x601, 7, 99, b"abc") == (
        struct.pack("=IHHII", 19, 16, 0x601, 7, 99) + b"abc" + b"\0"
    )


def test_messages_are_split_at_their_padded_lengths() -> None:
    data = codec.pack(1, 2, 3, 4, b"abc") + codec.pack(5, 6, 7, 8, b"")
    found = [(m.kind, m.flags, m.sequence, m.port, m.payload) for m in codec.unpack(data)]
    assert found == [(1, 2, 3, 4, b"abc"), (5, 6, 7, 8, b"")]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "eth0"}, struct.pack("=HH", 9, 1) + b"eth0\0" + bytes(3)),
        ({"mark": 1}, struct.pack("=HH", 8, 2) + b"\0\0\0\1"),
        ({"there": True}, struct.pack("=HH", 4, 4)),
        ({"there": False}, b""),
        ({"name": None}, b""),
        (
            {"inner": {"small": 0}},
            struct.pack("=HHHHB", 12, 5 | 0x8000, 5, 1, 0) + bytes(3),
        ),
        ({"of_kind": b"1234"}, struct.pack("=HH", 8, 11 | 0x8000) + b"1234"),
        ({"many": [1, 2]}, b"".join(struct.pack("=HHHxx", 6, 6, n) for n in (1, 2))),
    ],
)
def test_attributes_have_the_format_of_netlink_h(values: dict[str, Any], expected: bytes) -> None:
    assert OUTER.encode(values) == expected


def test_nested_and_byteorder_flags_are_not_part_of_the_type() -> None:
    data = struct.pack("=HHI", 8, 2 | 0x4000, 0) + struct.pack("=HH", 4, 5 | 0x8000)
    assert OUTER.decode(data) == {"mark": 0, "inner": {}}


def test_unknown_attributes_are_passed_over() -> None:
    assert OUTER.decode(codec.attribute(4000, b"12345") + codec.attribute(1, b"a\0")) == {
        "name": "a"
    }


def test_text_ends_at_its_first_nul_and_keeps_foreign_bytes() -> None:
    assert OUTER.decode(codec.attribute(1, b"a\0b")) == {"name": "a"}
    odd = OUTER.decode(codec.attribute(1, b"\xff\xfe"))
    assert OUTER.encode(odd) == codec.attribute(1, b"\xff\xfe\0")
    with pytest.raises(ValueError, match="NUL"):
        OUTER.encode({"name": "eth0\0evil"})


@given(VALUES)
def test_decoding_is_the_inverse_of_encoding(values: dict[str, Any]) -> None:
    assert OUTER.decode(OUTER.encode(values)) == values


# --- acknowledgements --------------------------------------------------------------------------


def acknowledgement(errno: int, flags: int, request: bytes, *attributes: bytes) -> Message:
    body = struct.pack("=i", -errno) + request + b"".join(attributes)
    (message,) = codec.unpack(codec.pack(2, flags, 1, 1, body))
    return message


TEXT = codec.attribute(1, b"Device does not exist\0")
OFFSET = codec.attribute(2, struct.pack("=I", 36))


def test_success() -> None:
    request = codec.pack(16, 5, 1, 1, b"12345678")[:16]
    result = codec.outcome(acknowledgement(0, 0x100, request))
    assert (result.errno, result.text, result.offset) == (0, "", None)


def test_refusal_that_carries_the_whole_request() -> None:
    request = codec.pack(16, 5, 1, 1, b"1234567")
    result = codec.outcome(acknowledgement(19, 0x200, request, TEXT, OFFSET))
    assert (result.errno, result.text, result.offset) == (19, "Device does not exist", 36)


def test_refusal_with_a_capped_request() -> None:
    header = codec.pack(16, 5, 1, 1, b"1234567")[:16]
    result = codec.outcome(acknowledgement(19, 0x300, header, TEXT))
    assert (result.errno, result.text, result.offset) == (19, "Device does not exist", None)


def test_warning_with_success() -> None:
    header = codec.pack(16, 5, 1, 1, b"1234567")[:16]
    result = codec.outcome(acknowledgement(0, 0x200, header, TEXT))
    assert (result.errno, result.text) == (0, "Device does not exist")


def test_end_of_a_dump_can_be_a_refusal() -> None:
    body = struct.pack("=i", -22) + TEXT
    result = codec.outcome(Message(3, 0x202, 1, 1, body))
    assert (result.errno, result.text) == (22, "Device does not exist")


# --- garbage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        bytes(15),
        struct.pack("=IHHII", 15, 2, 0, 1, 1),
        struct.pack("=IHHII", 17, 2, 0, 1, 1),
        struct.pack("=IHHII", 0, 2, 0, 1, 1),
        struct.pack("=IHHII", 0xFFFFFFFF, 2, 0, 1, 1),
    ],
)
def test_broken_messages(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        codec.unpack(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        struct.pack("=HH", 0, 1),
        struct.pack("=HH", 3, 1),
        struct.pack("=HH", 5, 1),
        struct.pack("=HHH", 6, 2, 0),  # a 32-bit number of two bytes
        struct.pack("=HHI", 8, 12, 0),  # a structure that is cut
        codec.attribute(8, b"12345"),  # an address of five bytes
        codec.attribute(5, b"\0"),
    ],
)
def test_broken_attributes(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        OUTER.decode(data)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(3),
        struct.pack("=i", 19),  # positive: not how the kernel says it
        struct.pack("=i", -19),
        struct.pack("=i", -19) + bytes(15),
        struct.pack("=iIHHII", -19, 0, 16, 5, 1, 1),  # of a message without a header
        struct.pack("=iIHHII", -19, 16, 16, 5, 1, 1) + b"\1",
    ],
)
def test_broken_acknowledgements(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        codec.outcome(Message(2, 0x200, 1, 1, body))


DECODERS = {
    "attributes": OUTER.decode,
    "messages": codec.unpack,
    "acknowledgement": lambda data: codec.outcome(Message(2, 0x200, 1, 1, data)),
    "capped acknowledgement": lambda data: codec.outcome(Message(2, 0x300, 1, 1, data)),
    "end of dump": lambda data: codec.outcome(Message(3, 0x200, 1, 1, data)),
    "link": whole_link,
    "link index": link.index_of,
    "address": address.parse,
    "route": lambda data: route.parse(Message(24, 0, 1, 1, data)),
    "rule": rule.parse,
    "neighbour": neighbour.parse,
}
WHOLE = [
    link.veth("a", "b", mac="02:00:00:00:00:01").body,
    link.update(3, hairpin=True).body,
    address.add(3, parse_network("10.0.0.7/24")).body,
    route.add(
        route.KernelRoute(
            parse_network("10.0.0.0/24"),
            3,
            parse_address("fe80::1"),
            mtu=1400,
            multipath=(route.NextHop(3, parse_address("10.1.1.1")),),
        )
    ).body,
    rule.add(rule.Rule(AF_INET, 1000, src=parse_network("10.0.0.0/24"))).body,
    neighbour.add(neighbour.Neighbour(3, parse_address("10.0.0.1"), "02:00:00:00:00:01")).body,
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A message as the kernel could send it, with some of its bytes cut off or changed."""
    data = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(unsigned(8))
    return bytes(data[: draw(st.integers(0, len(data)))])


@pytest.mark.parametrize("decoder", DECODERS)
@given(data=st.one_of(st.binary(max_size=200), damaged()))
def test_any_bytes_are_decoded_or_malformed(decoder: str, data: bytes) -> None:
    try:
        DECODERS[decoder](data)
    except MalformedMessage as error:
        assert str(error)


def test_a_link_s_details_may_come_before_its_kind() -> None:
    head = struct.pack("=BxHiII", 0, 1, 3, 0, 0)
    data, kind = codec.attribute(2, codec.attribute(1, b"\x07\0")), codec.attribute(1, b"vlan\0")
    other = codec.attribute(1, b"other\0")
    assert link.parse(head + codec.attribute(18, data + kind)).vlan_id == 7
    assert link.parse(head + codec.attribute(18, data + other)).vlan_id is None
    assert link.parse(head + codec.attribute(18, data)).vlan_id is None


@pytest.mark.parametrize("flags", [0x000, 0x100, 0x200])
def test_an_acknowledgement_without_the_request_is_malformed(flags: int) -> None:
    with pytest.raises(MalformedMessage, match="acknowledgement of 8 bytes"):
        codec.outcome(Message(2, flags, 1, 1, bytes(8)))
    assert codec.outcome(Message(3, 0, 1, 1, bytes(4))).errno == 0


def test_a_bridge_port_without_settings() -> None:
    """Found by fuzzing: only the kind of the master."""
    kind = codec.attribute(4, b"bridge\0")  # IFLA_INFO_SLAVE_KIND in IFLA_LINKINFO
    found = link.parse(struct.pack("=BxHiII", 0, 1, 3, 0, 0) + codec.attribute(18, kind))
    assert (found.index, found.hairpin, found.isolated) == (3, None, None)


# --- what we send, as pyroute2 reads it --------------------------------------------------------


def decoded(kind: type, request: NetlinkRequest) -> dict[str, Any]:
    """The message as one dictionary: header fields and attributes, nested ones too."""
    message = kind(codec.pack(request.kind, request.flags, 1, 0, request.body))
    message.decode()
    return flat(message)


def flat(message: Any) -> Any:
    if isinstance(message, dict) or hasattr(message, "get_attr"):
        fields = {key: value for key, value in message.items() if key not in ("attrs", "header")}
        fields |= {"flags_sent": message["header"]["flags"]} if "header" in message else {}
        return fields | {item[0]: flat(item[1]) for item in message.get("attrs", ())}
    return message


def test_veth() -> None:
    request = link.veth(
        "veth1",
        "eth0",
        peer_netns=7,
        mtu=1400,
        master=3,
        mac="02:00:00:00:00:01",
        peer_mac="02:00:00:00:00:02",
    )
    sent = decoded(ifinfmsg, request)
    assert request.what == 'create veth "veth1"'
    assert sent["flags_sent"] == 0x600  # CREATE, EXCL
    assert sent["IFLA_IFNAME"] == "veth1"
    assert sent["IFLA_ADDRESS"] == "02:00:00:00:00:01"
    assert sent["IFLA_MTU"] == 1400
    assert sent["IFLA_MASTER"] == 3
    assert sent["IFLA_LINKINFO"]["IFLA_INFO_KIND"] == "veth"
    peer = sent["IFLA_LINKINFO"]["IFLA_INFO_DATA"]["VETH_INFO_PEER"]
    assert peer["IFLA_IFNAME"] == "eth0"
    assert peer["IFLA_ADDRESS"] == "02:00:00:00:00:02"
    assert peer["IFLA_MTU"] == 1400
    assert peer["IFLA_NET_NS_FD"] == 7
    assert peer["flags"] == 0


@pytest.mark.parametrize(
    ("request_", "kind", "data", "parent"),
    [
        (link.bridge("x", vlan_filtering=True), "bridge", {"IFLA_BR_VLAN_FILTERING": 1}, None),
        (link_kinds.vlan("x", 4, 100), "vlan", {"IFLA_VLAN_ID": 100}, 4),
        (link_kinds.macvlan("x", 4, "passthru"), "macvlan", {"IFLA_MACVLAN_MODE": "passthru"}, 4),
        (link_kinds.ipvlan("x", 4, "l3s"), "ipvlan", {"IFLA_IPVLAN_MODE": 2}, 4),
        (link_kinds.vrf("x", 1000), "vrf", {"IFLA_VRF_TABLE": 1000}, None),
        (link_kinds.dummy("x"), "dummy", None, None),
        (link_kinds.ifb("x"), "ifb", None, None),
    ],
)
def test_other_kinds(
    request_: NetlinkRequest, kind: str, data: dict[str, Any] | None, parent: int | None
) -> None:
    sent = decoded(ifinfmsg, request_)
    assert sent["IFLA_IFNAME"] == "x"
    assert sent["IFLA_LINKINFO"]["IFLA_INFO_KIND"] == kind
    assert sent.get("IFLA_LINK") == parent
    assert "IFLA_MTU" not in sent
    found = sent["IFLA_LINKINFO"].get("IFLA_INFO_DATA")
    found = found and {key: value for key, value in found.items() if key.startswith("IFLA")}
    assert found == data


def test_vlan_range_on_a_port() -> None:
    message = ifinfmsg(codec.pack(19, 0, 1, 0, bridge_vlan.add(4, 2, 10, untagged=True).body))
    message.decode()
    assert (message["family"], message["index"]) == (7, 4)
    spec = message.get_attr("IFLA_AF_SPEC")
    assert spec.get_attr("IFLA_BRIDGE_VLAN_FLAGS") == 1  # MASTER
    assert spec.get_attrs("IFLA_BRIDGE_VLAN_INFO") == [
        {"flags": 4 | 8, "vid": 2},
        {"flags": 4 | 16, "vid": 10},
    ]


def test_link_update_touches_only_what_is_named() -> None:
    sent = decoded(ifinfmsg, link.update(4, up=False, promiscuous=True))
    assert (sent["index"], sent["flags"], sent["change"]) == (4, 0x100, 0x101)
    assert not [key for key in sent if key.startswith("IFLA")]


def test_a_long_name_is_an_altname() -> None:
    assert decoded(ifinfmsg, link.delete("a" * 15))["IFLA_IFNAME"] == "a" * 15
    assert "IFLA_IFNAME" not in decoded(ifinfmsg, link.delete("a" * 16))
    with pytest.raises(ValueError, match="by its index"):
        link.update("eth0", name="eth1")


@pytest.mark.parametrize(
    ("network", "broadcast"),
    [
        ("10.0.0.7/24", "10.0.0.255"),
        ("10.0.0.7/31", None),
        ("10.0.0.7/32", None),
        ("fd00::7/64", None),
    ],
)
def test_address(network: str, broadcast: str | None) -> None:
    sent = decoded(ifaddrmsg, address.add(4, parse_network(network), no_dad=True))
    host, _, prefix = network.partition("/")
    assert sent["IFA_LOCAL"] == sent["IFA_ADDRESS"] == host
    assert (sent["index"], sent["prefixlen"], sent["scope"]) == (4, int(prefix), 0)
    assert sent.get("IFA_BROADCAST") == broadcast
    assert sent.get("IFA_FLAGS") == (2 if ":" in host else None)


def test_route() -> None:
    wanted = route.KernelRoute(
        parse_network("10.9.9.9/24"),
        index=4,
        gateway=parse_address("10.0.0.1"),
        source=parse_address("10.0.0.7"),
        priority=50,
        table=1000,
        scope=200,
        onlink=True,
        mtu=1400,
        advmss=1360,
    )
    sent = decoded(rtmsg, route.add(wanted))
    assert sent["RTA_DST"] == "10.9.9.0"
    assert (sent["dst_len"], sent["scope"], sent["table"], sent["proto"]) == (24, 200, 0, 3)
    assert (sent["type"], sent["flags"]) == (1, 4)
    assert (sent["RTA_OIF"], sent["RTA_PRIORITY"], sent["RTA_TABLE"]) == (4, 50, 1000)
    assert (sent["RTA_GATEWAY"], sent["RTA_PREFSRC"]) == ("10.0.0.1", "10.0.0.7")
    assert sent["RTA_METRICS"] == {"RTAX_MTU": 1400, "RTAX_ADVMSS": 1360}


def test_route_by_a_gateway_of_the_other_family() -> None:
    wanted = route.KernelRoute(parse_network("0.0.0.0/0"), 4, parse_address("fe80::1"))
    sent = decoded(rtmsg, route.add(wanted))
    assert sent["RTA_VIA"] == {"family": AF_INET6, "addr": "fe80::1"}
    assert "RTA_GATEWAY" not in sent
    assert "RTA_DST" not in sent


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        (route.add, 0x600),
        (route.prepend, 0x400),
        (route.append, 0xC00),
        (route.replace, 0x500),
    ],
)
def test_route_verbs_have_the_flags_of_ip_route(verb: Any, flags: int) -> None:
    assert decoded(rtmsg, verb(route.KernelRoute(parse_network("::/0"), 4)))["flags_sent"] == flags


def test_rule() -> None:
    wanted = rule.Rule(
        AF_INET,
        table=1000,
        priority=99,
        src=parse_network("10.0.0.0/24"),
        dst=parse_network("10.1.0.0/16"),
        oif="eth0",
        mark=5,
        mask=255,
    )
    sent = decoded(fibmsg, rule.add(wanted))
    assert (sent["FRA_SRC"], sent["src_len"]) == ("10.0.0.0", 24)
    assert (sent["FRA_DST"], sent["dst_len"]) == ("10.1.0.0", 16)
    assert (sent["FRA_OIFNAME"], sent["FRA_FWMARK"], sent["FRA_FWMASK"]) == ("eth0", 5, 255)
    assert (sent["FRA_TABLE"], sent["table"], sent["FRA_PRIORITY"]) == (1000, 0, 99)
    assert sent["action"] == 1


def test_neighbour() -> None:
    wanted = neighbour.Neighbour(4, parse_address("fd00::1"), "02:00:00:00:00:01")
    sent = decoded(ndmsg, neighbour.add(wanted))
    assert (sent["family"], sent["ifindex"], sent["state"]) == (AF_INET6, 4, 0x80)
    assert (sent["NDA_DST"], sent["NDA_LLADDR"]) == ("fd00::1", "02:00:00:00:00:01")
