"""Results in every version, and from each version to each other.

The texts are what the reference prints since release 1.2.0 of its library; before, it prints a
1.0.0 result unsorted and with an empty dns object.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.spec import jsontext, versions
from pycni.spec.config import DNS
from pycni.spec.errors import CNIError
from pycni.spec.ip import IPNetwork, parse_address, parse_network
from pycni.spec.result import (
    FAMILIES,
    Interface,
    IPConfig,
    Result,
    Route,
    decode_result,
    encode_result,
    parse_prev_result,
    print_result,
    result_version,
)

FULL = Result(
    interfaces=(
        Interface("cni0", "00:11:22:33:44:55"),
        Interface(
            "eth0",
            "99:88:77:66:55:44",
            1500,
            "/var/run/netns/blue",
            "/path/to/vhost/fd",
            "8086:9a01",
        ),
    ),
    ips=(
        IPConfig(parse_network("1.2.3.30/24"), parse_address("1.2.3.1"), 0),
        IPConfig(parse_network("abcd:1234:ffff::cdde/64"), parse_address("abcd:1234:ffff::1"), 1),
        IPConfig(parse_network("1.2.3.31/24")),
    ),
    routes=(
        Route(parse_network("15.5.6.0/24"), parse_address("15.5.6.8")),
        Route(parse_network("1111:dddd::/80"), parse_address("1111:dddd::aaaa")),
        Route(parse_network("10.9.0.7/8"), None, 1400, 1340, 100, 50, 253),
        Route(parse_network("0.0.0.0/0"), table=0, scope=0),
    ),
    dns=DNS(("1.2.3.4", "1::cafe"), "acompany.com", ("somedomain.com",), ("foo", "bar")),
)

DNS_JSON = {
    "nameservers": ["1.2.3.4", "1::cafe"],
    "domain": "acompany.com",
    "search": ["somedomain.com"],
    "options": ["foo", "bar"],
}
ROUTES_JSON: list[dict[str, Any]] = [
    {"dst": "15.5.6.0/24", "gw": "15.5.6.8"},
    {"dst": "1111:dddd::/80", "gw": "1111:dddd::aaaa"},
    {
        "dst": "10.9.0.7/8",
        "mtu": 1400,
        "advmss": 1340,
        "priority": 100,
        "table": 50,
        "scope": 253,
    },
    {"dst": "0.0.0.0/0", "table": 0, "scope": 0},
]
OLD_JSON: dict[str, Any] = {
    "ip4": {
        "ip": "1.2.3.30/24",
        "gateway": "1.2.3.1",
        "routes": [
            {"dst": "15.5.6.0/24", "gw": "15.5.6.8"},
            {"dst": "10.9.0.7/8"},
            {"dst": "0.0.0.0/0"},
        ],
    },
    "ip6": {
        "ip": "abcd:1234:ffff::cdde/64",
        "gateway": "abcd:1234:ffff::1",
        "routes": [{"dst": "1111:dddd::/80", "gw": "1111:dddd::aaaa"}],
    },
    "dns": DNS_JSON,
}
MIDDLE_JSON: dict[str, Any] = {
    "interfaces": [
        {"name": "cni0", "mac": "00:11:22:33:44:55"},
        {"name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/var/run/netns/blue"},
    ],
    "ips": [
        {"version": "4", "interface": 0, "address": "1.2.3.30/24", "gateway": "1.2.3.1"},
        {
            "version": "6",
            "interface": 1,
            "address": "abcd:1234:ffff::cdde/64",
            "gateway": "abcd:1234:ffff::1",
        },
        {"version": "4", "address": "1.2.3.31/24"},
    ],
    "routes": ROUTES_JSON,
    "dns": DNS_JSON,
}
MODERN_JSON: dict[str, Any] = {
    "interfaces": [
        {"name": "cni0", "mac": "00:11:22:33:44:55"},
        {
            "name": "eth0",
            "mac": "99:88:77:66:55:44",
            "mtu": 1500,
            "sandbox": "/var/run/netns/blue",
            "socketPath": "/path/to/vhost/fd",
            "pciID": "8086:9a01",
        },
    ],
    "ips": [
        {"interface": 0, "address": "1.2.3.30/24", "gateway": "1.2.3.1"},
        {
            "interface": 1,
            "address": "abcd:1234:ffff::cdde/64",
            "gateway": "abcd:1234:ffff::1",
        },
        {"address": "1.2.3.31/24"},
    ],
    "routes": ROUTES_JSON,
    "dns": DNS_JSON,
}
SHAPES = dict(zip(FAMILIES, (OLD_JSON, MIDDLE_JSON, MODERN_JSON), strict=True))
BODY = {version: shape for family, shape in SHAPES.items() for version in family}

# What is left of FULL after a version's own shape.
OLD = Result(
    ips=(FULL.ips[0].replace(interface=None), FULL.ips[1].replace(interface=None)),
    routes=(
        FULL.routes[0],
        Route(parse_network("10.9.0.7/8")),
        Route(parse_network("0.0.0.0/0")),
        FULL.routes[1],
    ),
    dns=FULL.dns,
)
MIDDLE = FULL.replace(
    interfaces=(
        FULL.interfaces[0],
        FULL.interfaces[1].replace(mtu=0, socket_path="", pci_id=""),
    )
)
LEFT = dict(zip(FAMILIES, (OLD, MIDDLE, FULL), strict=True))
ORDER = ["cniVersion", "interfaces", "ips", "routes", "dns"]


def family(version: str) -> tuple[str, ...]:
    return next(family for family in FAMILIES if version in family)


@pytest.mark.parametrize("version", versions.ALL)
def test_written(version: str) -> None:
    assert encode_result(FULL, version) == {"cniVersion": version, **BODY[version]}


@pytest.mark.parametrize("version", versions.ALL)
def test_read(version: str) -> None:
    document = {"cniVersion": version, **BODY[version]}
    assert decode_result(document, version) == LEFT[family(version)].replace(cni_version=version)


@pytest.mark.parametrize("written", versions.ALL)
@pytest.mark.parametrize("wanted", versions.ALL)
def test_from_each_version_to_each(written: str, wanted: str) -> None:
    result = decode_result(encode_result(FULL, written), written)
    oldest = min(FAMILIES.index(family(written)), FAMILIES.index(family(wanted)))
    expected = encode_result(list(LEFT.values())[oldest], wanted)
    assert encode_result(result, wanted) == expected


def test_old_results_are_printed_in_the_order_the_reference_declares() -> None:
    for version in ("0.1.0", "0.2.0"):
        document = jsontext.loads(print_result(FULL, version))
        assert list(document) == ["cniVersion", "ip4", "ip6", "dns"]
        assert list(document["ip4"]) == ["ip", "gateway", "routes"]
    for version in ("0.3.0", "0.3.1", "0.4.0"):
        document = jsontext.loads(print_result(FULL, version))
        assert list(document) == ORDER
        assert list(document["interfaces"][1]) == ["name", "mac", "sandbox"]
        assert list(document["ips"][0]) == ["version", "interface", "address", "gateway"]
        assert list(document["routes"][2]) == list(ROUTES_JSON[2])
        assert list(document["dns"]) == ["nameservers", "domain", "search", "options"]


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_results_since_1_0_0_are_printed_sorted_at_every_level(version: str) -> None:
    document = jsontext.loads(print_result(FULL, version))
    assert list(document) == ["cniVersion", "dns", "interfaces", "ips", "routes"]
    eth0 = ["mac", "mtu", "name", "pciID", "sandbox", "socketPath"]
    assert list(document["interfaces"][1]) == eth0
    assert list(document["ips"][0]) == ["address", "gateway", "interface"]
    assert list(document["routes"][2]) == ["advmss", "dst", "mtu", "priority", "scope", "table"]
    assert list(document["dns"]) == ["domain", "nameservers", "options", "search"]


PRINTED = {
    "0.2.0": """{
    "cniVersion": "0.2.0",
    "ip4": {
        "ip": "10.1.0.5/16"
    },
    "dns": {}
}""",
    "0.4.0": """{
    "cniVersion": "0.4.0",
    "ips": [
        {
            "version": "4",
            "address": "10.1.0.5/16"
        }
    ],
    "dns": {}
}""",
    "1.0.0": """{
    "cniVersion": "1.0.0",
    "ips": [
        {
            "address": "10.1.0.5/16"
        }
    ]
}""",
}


@pytest.mark.parametrize("version", PRINTED)
def test_printed_to_the_byte_with_an_empty_dns_before_1_0_0_only(version: str) -> None:
    result = Result(ips=(IPConfig(parse_network("10.1.0.5/16")),))
    assert print_result(result, version) == PRINTED[version]


def test_empty_results() -> None:
    assert encode_result(Result(), "0.3.1") == {"cniVersion": "0.3.1", "dns": {}}
    assert encode_result(Result(), "1.1.0") == {"cniVersion": "1.1.0"}
    assert decode_result({}, "1.1.0") == Result(cni_version="1.1.0")
    assert decode_result({"cniVersion": "0.1.0"}, "0.1.0") == Result(cni_version="0.1.0")


@pytest.mark.parametrize("version", ["", "0.1.0", "0.2.0"])
def test_the_oldest_versions_need_an_address(version: str) -> None:
    with pytest.raises(CNIError) as caught:
        encode_result(FULL.replace(ips=()), version)
    assert caught.value.message == "cannot convert: no valid IP addresses"
    assert caught.value.code == 1


def test_routes_of_a_family_without_address_are_dropped_in_the_oldest_versions() -> None:
    document = encode_result(FULL.replace(ips=FULL.ips[1:2]), "0.2.0")
    assert "ip4" not in document
    assert document["ip6"] == OLD_JSON["ip6"]


def test_no_version_is_0_1_0() -> None:
    assert encode_result(FULL, "")["cniVersion"] == "0.1.0"
    assert decode_result({"cniVersion": "", **OLD_JSON}, "").cni_version == "0.1.0"
    assert decode_result(OLD_JSON, "") == OLD.replace(cni_version="0.1.0")
    assert result_version({}) == result_version({"cniVersion": ""}) == "0.1.0"
    assert result_version({"cniversion": "1.0.0"}) == "1.0.0"
    with pytest.raises(CNIError, match=r"^decoding version from network config: "):
        result_version({"cniVersion": 1})


@pytest.mark.parametrize("index", [0, 1, -1])
@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_interface_index(version: str, index: int) -> None:
    entry = {"interface": index, "address": "10.1.2.3/24"}
    result = decode_result({"ips": [entry]}, version)
    assert result.ips[0].interface == index
    assert encode_result(result, version)["ips"][0]["interface"] == index


def test_version_of_an_address_is_that_of_the_address() -> None:
    wrong: dict[str, Any] = {
        "ips": [{"version": "6", "address": "10.1.2.3/24"}, {"address": "fd00::1/64"}]
    }
    document = encode_result(decode_result(wrong, "0.4.0"), "0.4.0")
    assert [entry["version"] for entry in document["ips"]] == ["4", "6"]


def test_read_as_the_reference_reads() -> None:
    document: dict[str, Any] = {
        "CNIVersion": "1.0.0",
        "IPS": [{"ADDRESS": "::ffff:10.0.0.1/120", "gateway": "", "version": "4", "x": 1}],
        "routes": [{"dst": "10.0.0.7/8", "gw": None, "mtu": None}],
        "dns": None,
        "interfaces": None,
        "extra": {},
    }
    assert decode_result(document, "1.1.0") == Result(
        ips=(IPConfig(parse_network("10.0.0.1/24")),),
        routes=(Route(parse_network("10.0.0.7/8")),),
        cni_version="1.0.0",
    )


def test_a_version_of_the_same_family_is_kept() -> None:
    for family_versions in FAMILIES:
        for asked in family_versions:
            for own in family_versions:
                assert decode_result({"cniVersion": own}, asked).cni_version == own
    assert decode_result({"cniVersion": None}, "1.0.0").cni_version == "1.0.0"


@pytest.mark.parametrize(
    ("version", "own", "message"),
    [
        ("1.1.0", "0.2.0", '[1.0.0 1.1.0] but unmarshalled CNIVersion is "0.2.0"'),
        ("1.1.0", "5678.456", '[1.0.0 1.1.0] but unmarshalled CNIVersion is "5678.456"'),
        ("1.0.0", "", '[1.0.0 1.1.0] but unmarshalled CNIVersion is ""'),
        ("0.3.1", "1.0.0", '[0.3.0 0.3.1 0.4.0] but unmarshalled CNIVersion is "1.0.0"'),
        ("0.1.0", "0.3.0", '[0.1.0 0.2.0] but unmarshalled CNIVersion is "0.3.0"'),
    ],
)
def test_a_version_of_another_family_is_refused(version: str, own: str, message: str) -> None:
    with pytest.raises(CNIError) as caught:
        decode_result({"cniVersion": own}, version)
    assert (caught.value.code, caught.value.message) == (1, f"result type supports {message}")


def test_a_version_no_one_knows_is_refused() -> None:
    for call in (lambda: decode_result({}, "0.4567.0"), lambda: encode_result(FULL, "0.4567.0")):
        with pytest.raises(CNIError) as caught:
            call()
        assert caught.value.code == 1
        assert caught.value.message == 'unsupported CNI result version "0.4567.0"'


@pytest.mark.parametrize(
    ("document", "message", "details"),
    [
        ([], "the result is not a JSON object", ""),
        ({"cniVersion": 1}, "cniVersion: 1 is not valid", "expected a string"),
        ({"ips": {}}, "ips: an object is not valid", "expected a list, each item an object"),
        ({"ips": [None]}, "ips[0]: null is not valid", "expected an object"),
        (
            {"ips": [{"gateway": "10.0.0.1"}]},
            "ips[0].address: missing",
            "expected an address with a prefix length, such as 10.1.0.0/16",
        ),
        ({"ips": [{"address": 5}]}, "ips[0].address: 5 is not valid", None),
        (
            {"ips": [{"address": "\u003cnil\u003e"}]},
            "ips[0].address: invalid CIDR address: <nil>",
            None,
        ),
        ({"routes": [{"gw": "10.0.0.1"}]}, "routes[0].dst: missing", None),
        (
            {"routes": [{"dst": "1.2.3.0/24", "gw": "1.2.3.x"}]},
            "routes[0].gw: invalid IP address: 1.2.3.x",
            None,
        ),
        (
            {"routes": [{"dst": "1.2.3.0/24", "mtu": -1}]},
            "routes[0].mtu: -1 is not valid",
            None,
        ),
        (
            {"routes": [{"dst": "1.2.3.0/24", "scope": 256}]},
            "routes[0].scope: 256 is not valid",
            "expected a whole number from 0 to 255",
        ),
        ({"interfaces": [{"name": 1}]}, "interfaces[0].name: 1 is not valid", "expected a string"),
        ({"dns": {"search": "x"}}, 'dns.search: "x" is not valid', None),
        (
            {"dns": {"domain": 1, "search": 2}},
            "dns.domain: 1 is not valid; dns.search: 2 is not valid",
            "dns.domain: expected a string; dns.search: expected a list, each item a string",
        ),
    ],
)
@pytest.mark.parametrize("version", ["0.4.0", "1.1.0"])
def test_a_broken_result_is_refused_by_path_and_value(
    version: str, document: Any, message: str, details: str | None
) -> None:
    with pytest.raises(CNIError) as caught:
        decode_result(document, version)
    assert (caught.value.code, caught.value.message) == (6, message)
    if details is not None:
        assert caught.value.details == details


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        ({}, "ip4.ip: missing"),
        ([], "ip4: a list is not valid"),
        ({"ip": "10.0.0.1/8", "routes": [{}]}, "ip4.routes[0].dst: missing"),
    ],
)
def test_a_broken_old_result_is_refused(slot: Any, message: str) -> None:
    with pytest.raises(CNIError) as caught:
        decode_result({"ip4": slot}, "0.2.0")
    assert (caught.value.code, caught.value.message) == (6, message)


# --- prevResult --------------------------------------------------------------------------------


def test_prev_result_that_is_not_there() -> None:
    assert parse_prev_result({"name": "n"}, "1.1.0") is None
    assert parse_prev_result({"prevResult": None}, "1.1.0") is None


@pytest.mark.parametrize("version", versions.ALL)
def test_prev_result_without_a_version_has_the_configurations(version: str) -> None:
    expected = LEFT[family(version)].replace(cni_version=version)
    assert parse_prev_result({"prevResult": BODY[version]}, version) == expected
    assert parse_prev_result({"PREVRESULT": BODY[version]}, version) == expected


@pytest.mark.parametrize(
    ("prev_result", "code", "message"),
    [
        (
            {"cniVersion": "5678.456"},
            1,
            'result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is "5678.456"',
        ),
        (
            {"cniVersion": "0.2.0", "ip4": {"ip": "1.2.3.30/24", "gateway": "1.2.3.1"}},
            1,
            'result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is "0.2.0"',
        ),
        ({"ips": [{}]}, 6, "ips[0].address: missing"),
        ("text", 6, "the result is not a JSON object"),
    ],
)
def test_prev_result_that_cannot_be_read(prev_result: Any, code: int, message: str) -> None:
    with pytest.raises(CNIError) as caught:
        parse_prev_result({"prevResult": prev_result}, "1.1.0")
    assert caught.value.code == code
    assert caught.value.message == f"could not parse prevResult: {message}"


# --- any result --------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
ADDRESSES = st.ip_addresses().map(
    lambda address: parse_address(str(getattr(address, "ipv4_mapped", None) or address))
)
NETWORKS = ADDRESSES.flatmap(
    lambda address: st.integers(0, address.bits).map(lambda prefix: IPNetwork(address, prefix))
)
UINT = st.integers(0, 2**32 - 1)


def results() -> st.SearchStrategy[Result]:
    interfaces = st.builds(
        Interface, TEXT, mac=TEXT, mtu=UINT, sandbox=TEXT, socket_path=TEXT, pci_id=TEXT
    )
    ips = st.builds(
        IPConfig, NETWORKS, gateway=st.none() | ADDRESSES, interface=st.none() | st.integers(-1, 5)
    )
    routes = st.builds(
        Route,
        NETWORKS,
        gw=st.none() | ADDRESSES,
        mtu=UINT,
        advmss=UINT,
        priority=UINT,
        table=st.none() | UINT,
        scope=st.none() | st.integers(0, 255),
    )
    texts = st.lists(TEXT, max_size=2).map(tuple)
    dns = st.builds(DNS, nameservers=texts, domain=TEXT, search=texts, options=texts)
    return st.builds(
        Result,
        interfaces=st.lists(interfaces, max_size=3).map(tuple),
        ips=st.lists(ips, max_size=3).map(tuple),
        routes=st.lists(routes, max_size=3).map(tuple),
        dns=dns,
    )


def through(result: Result, version: str) -> Result:
    """The result after it was printed and read."""
    return decode_result(jsontext.loads(print_result(result, version)), version)


@given(results(), st.sampled_from(FAMILIES[2]))
def test_nothing_is_lost_since_1_0_0(result: Result, version: str) -> None:
    assert through(result, version) == result.replace(cni_version=version)


@given(results(), st.sampled_from(FAMILIES[1]))
def test_only_interface_keys_are_lost_in_0_3_and_0_4(result: Result, version: str) -> None:
    interfaces = tuple(
        interface.replace(mtu=0, socket_path="", pci_id="") for interface in result.interfaces
    )
    assert through(result, version) == result.replace(interfaces=interfaces, cni_version=version)


@given(results(), st.sampled_from(FAMILIES[0]), st.sampled_from(versions.ALL))
def test_what_0_1_and_0_2_can_say_goes_through_every_version(
    result: Result, version: str, other: str
) -> None:
    if not result.ips:
        return
    once = through(result, version)
    assert {str(entry.address) for entry in once.ips} <= {
        str(entry.address) for entry in result.ips
    }
    assert len({entry.address.is_ipv4 for entry in once.ips}) == len(once.ips)
    assert through(through(once, other), version) == once
