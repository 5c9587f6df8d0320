"""Typed configuration: what decodes, and how a person learns what does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.spec.errors import CNIError
from pycni.spec.ip import IPAddress, IPNetwork, parse_address, parse_network
from pycni.spec.schema import (
    CIDR,
    Address,
    Anything,
    Config,
    Fault,
    Flag,
    Integer,
    Kind,
    ListOf,
    MACAddress,
    MapOf,
    Object,
    Text,
    field,
    normal_mac,
)


class Range(Config):
    subnet: IPNetwork = field("subnet", CIDR(), required=True, doc="the network")
    first: IPAddress | None = field("rangeStart", Address(), doc="first address")


class Plugin(Config):
    name: str = field("name", Text(), "", doc="a name")
    mode: str = field("mode", Text("l2", "l3"), "l2", doc="a choice")
    mtu: int = field("mtu", Integer(0, 65535), 0, doc="bytes")
    table: int | None = field("table", Integer(), doc="any integer")
    enabled: bool = field("isEnabled", Flag(), False, doc="a flag")
    mac: str = field("mac", MACAddress(), "", doc="a hardware address")
    ranges: tuple[Range, ...] = field("ranges", ListOf(Object(Range)), (), doc="ranges")
    sysctl: dict[str, str] = field("sysctl", MapOf(Text()), None, doc="a map")
    gateways: dict[str, IPAddress] = field("gateways", MapOf(Address()), None, doc="another")
    args: Any = field("args", Anything(), doc="anything")

    def validate(self) -> None:
        if self.enabled and not self.name:
            raise CNIError(7, "isEnabled needs a name", "set name")


def refusal(document: Any) -> dict[str, Any]:
    with pytest.raises(CNIError) as caught:
        Plugin.decode(document)
    return caught.value.to_json()


def test_decodes_every_kind() -> None:
    plugin = Plugin.decode(
        {
            "name": "n",
            "mode": "l3",
            "mtu": 1500,
            "table": -1,
            "isEnabled": True,
            "mac": "0A-58-0A-01-02-03",
            "ranges": [
                {"subnet": "10.1.0.7/16", "rangeStart": "10.1.0.9"},
                {"subnet": "fd00::/64"},
            ],
            "sysctl": {"net.core.somaxconn": "500"},
            "args": {"cni": [1, None]},
            "unknown": "left alone",
        }
    )
    assert plugin == Plugin(
        name="n",
        mode="l3",
        mtu=1500,
        table=-1,
        enabled=True,
        mac="0a:58:0a:01:02:03",
        ranges=(
            Range(parse_network("10.1.0.7/16"), parse_address("10.1.0.9")),
            Range(parse_network("fd00::/64"), None),
        ),
        sysctl={"net.core.somaxconn": "500"},
        args={"cni": [1, None]},
    )


@pytest.mark.parametrize("value", [-1, 65536, True, 1.5, "1", None])
def test_a_fault_of_a_number_decodes_to_none_of_its_values(value: Any) -> None:
    faults: list[Fault] = []
    assert Integer(0, 65535).decode(value, "mtu", faults) == 0
    assert [fault.path for fault in faults] == ["mtu"]


def test_absent_and_null_are_the_default() -> None:
    assert Plugin.decode({}) == Plugin()
    assert Plugin.decode(dict.fromkeys(["name", "mode", "mtu", "ranges", "sysctl"])) == Plugin()
    assert Plugin.decode({"sysctl": {"a": None, "b": "1"}}).sysctl == {"b": "1"}


def test_keys_match_in_any_letter_case() -> None:
    assert Plugin.decode({"NAME": "n", "isenabled": True}) == Plugin(name="n", enabled=True)
    assert Plugin.decode({"Name": "a", "name": "exact", "NAME": "b"}).name == "exact"
    assert Plugin.decode({"Name": "a", "NAME": "last"}).name == "last"


@pytest.mark.parametrize(
    ("document", "message", "details"),
    [
        ({"name": 5}, "name: 5 is not valid", "expected a string"),
        ({"name": ["n"]}, "name: a list is not valid", "expected a string"),
        ({"mode": "l4"}, 'mode: "l4" is not valid', 'expected "l2" or "l3"'),
        ({"mtu": "1500"}, 'mtu: "1500" is not valid', "expected a whole number from 0 to 65535"),
        ({"mtu": 1500.0}, "mtu: 1500.0 is not valid", "expected a whole number from 0 to 65535"),
        ({"mtu": True}, "mtu: true is not valid", "expected a whole number from 0 to 65535"),
        ({"mtu": -1}, "mtu: -1 is not valid", "expected a whole number from 0 to 65535"),
        ({"mtu": 65536}, "mtu: 65536 is not valid", "expected a whole number from 0 to 65535"),
        (
            {"table": 1 << 63},
            f"table: {1 << 63} is not valid",
            "expected a whole number of 64 bits",
        ),
        (
            {"table": 10**300},
            f"table: 1{'0' * 60}... is not valid",
            "expected a whole number of 64 bits",
        ),
        ({"isEnabled": 1}, "isEnabled: 1 is not valid", "expected true or false"),
        ({"isEnabled": "true"}, 'isEnabled: "true" is not valid', "expected true or false"),
        (
            {"mac": "0a:58"},
            'mac: "0a:58" is not valid',
            "expected a MAC address such as 0a:58:0a:01:02:03",
        ),
        ({"ranges": {}}, "ranges: an object is not valid", "expected a list, each item an object"),
        ({"ranges": [None]}, "ranges[0]: null is not valid", "expected an object"),
        (
            {"ranges": [{"subnet": "10.0.0.0/8"}, {}]},
            "ranges[1].subnet: missing",
            "expected an address with a prefix length, such as 10.1.0.0/16",
        ),
        (
            {"ranges": [{"SUBNET": "10.0.0/8"}]},
            "ranges[0].subnet: invalid CIDR address: 10.0.0/8",
            "expected an address with a prefix length, such as 10.1.0.0/16",
        ),
        (
            {"ranges": [{"subnet": "10.0.0.0/8", "rangeStart": "10.0.0.x"}]},
            "ranges[0].rangeStart: invalid IP address: 10.0.0.x",
            "expected an IPv4 or IPv6 address",
        ),
        ({"sysctl": {"a.b": 1}}, "sysctl.a.b: 1 is not valid", "expected a string"),
        ([], "a list is not valid", "expected an object"),
        (
            {"name": 1, "ranges": [{}]},
            "name: 1 is not valid; ranges[0].subnet: missing",
            (
                "name: expected a string; ranges[0].subnet: "
                "expected an address with a prefix length, such as 10.1.0.0/16"
            ),
        ),
        ({"name": "x" * 100, "mtu": "y" * 100}, f'mtu: "{"y" * 61}..." is not valid', None),
        ({"isEnabled": True}, "isEnabled needs a name", "set name"),
    ],
)
def test_a_fault_names_path_value_and_what_was_expected(
    document: Any, message: str, details: str | None
) -> None:
    error = refusal(document)
    assert (error["code"], error["msg"]) == (7, message)
    if details is not None:
        assert error["details"] == details


def test_all_faults_at_once_for_tools_that_check() -> None:
    faults = Plugin.errors({"mtu": "x", "mode": 1, "isEnabled": True}, "plugins[2]")
    assert [str(fault) for fault in faults] == [
        'plugins[2].mtu: "x" is not valid',
        "plugins[2].mode: 1 is not valid",
    ]
    (rule,) = Plugin.errors({"isEnabled": True})
    assert (str(rule), rule.expected) == ("isEnabled needs a name", "set name")
    assert Plugin.errors({"name": "n"}) == []


def test_to_json_writes_what_is_not_the_default_and_reads_back() -> None:
    document = {
        "name": "n",
        "table": 0,
        "mac": "0a:58:0a:01:02:03",
        "ranges": [{"subnet": "10.1.0.7/16", "rangeStart": "10.1.0.9"}],
        "gateways": {"a": "10.0.0.1"},
    }
    plugin = Plugin.decode(document)
    assert plugin.to_json() == document
    assert Plugin().to_json() == {}


@pytest.mark.parametrize(
    ("text", "mac"),
    [
        ("0a:58:0a:01:02:03", "0a:58:0a:01:02:03"),
        ("0A-58-0A-01-02-FF", "0a:58:0a:01:02:ff"),
        ("0a58.0a01.0203", "0a:58:0a:01:02:03"),
        ("", ""),
        ("0a:58:0a:01:02", ""),
        ("0a:58:0a:01:02:03:04:05", ""),
        ("0a-58:0a:01:02:03", ""),
        ("0a580a010203", ""),
        ("0g:58:0a:01:02:03", ""),
        ("  :58:0a:01:02:03", ""),
        ("a:58:0a:01:02:033", ""),
        ("٠a:58:0a:01:02:03", ""),
    ],
)
def test_mac(text: str, mac: str) -> None:
    assert normal_mac(text) == mac


@given(st.binary(min_size=6, max_size=6))
def test_any_mac_comes_back(packed: bytes) -> None:
    mac = packed.hex(":")
    dotted = packed.hex(".", 2)
    assert normal_mac(mac) == normal_mac(mac.upper().replace(":", "-")) == normal_mac(dotted) == mac


def test_fields_are_inherited_and_can_be_added_to() -> None:
    class Child(Range):
        gateway: IPAddress | None = field("gateway", Address(), doc="next hop")

    child = Child.decode({"subnet": "10.0.0.0/8", "gateway": ""})
    assert (str(child.subnet), child.gateway) == ("10.0.0.0/8", None)
    assert "gateway" not in Range.declared


def test_schema() -> None:
    schema = Plugin.schema()
    assert schema["type"] == "object"
    properties = schema["properties"]
    assert properties["mtu"] == {
        "type": "integer",
        "minimum": 0,
        "maximum": 65535,
        "description": "bytes",
        "default": 0,
    }
    assert properties["mode"]["enum"] == ["l2", "l3"]
    assert properties["sysctl"]["additionalProperties"] == {"type": "string"}
    assert properties["ranges"]["items"]["required"] == ["subnet"]
    assert properties["args"] == {"description": "anything"}
    assert "required" not in schema


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (CIDR(), ["10.0.0.1/8", "fd00::1/64", "::ffff:10.0.0.1/120"], ["10.0.0.1", "x/8"]),
        (
            MACAddress(),
            ["0a:58:0a:01:02:03", "0A-58-0a-01-02-03", "0a58.0a01.0203", ""],
            ["0a:58:0a:01:02", "0a58.0a01-0203"],
        ),
    ],
)
def test_schema_pattern_takes_what_the_kind_takes(
    kind: Kind, good: list[str], bad: list[str]
) -> None:
    import re

    for text in good + bad:
        faults: list[Any] = []
        kind.decode(text, "", faults)
        assert bool(faults) == (text in bad)
        assert bool(re.search(kind.schema()["pattern"], text)) == (text in good)


def test_a_configuration_can_have_several_bases() -> None:
    class Limits(Config):
        rate: int = field("rate", Integer(), 0, doc="")

    class Named(Config):
        name: str = field("name", Text(), "", doc="")

    class Both(Limits, Named):
        more: int = field("more", Integer(), 5, doc="")

    assert Both.decode({"rate": 1, "name": "x"}) == Both(rate=1, name="x", more=5)
    assert set(Both.schema()["properties"]) == {"rate", "name", "more"}


def test_nul_is_refused_anywhere() -> None:
    """The kernel and the file system would cut the text there."""
    for document, path in (
        ({"name": "a\0b"}, "name"),
        ({"names": ["a", "\0"]}, "names[1]"),
        ({"free": {"key": "\0"}}, "free.key"),
    ):
        (fault,) = Texts.errors(document)
        assert (fault.path, fault.problem) == (path, "a NUL character is not valid")


class Texts(Config):
    name: str = field("name", Text(), "", doc="a text")
    names: tuple[str, ...] = field("names", ListOf(Text()), (), doc="texts")
    free: dict[str, str] = field("free", MapOf(Text()), None, doc="texts by name")


def test_nul_in_a_key_of_a_map_is_refused() -> None:
    class Free(Config):
        sysctl: dict[str, str] = field("sysctl", MapOf(Text()), None, doc="")

    (fault,) = Free.errors({"sysctl": {"net\0x": "1", "net.y": "2"}})
    assert str(fault) == 'sysctl: a NUL character in the key "net\\x00x" is not valid'
