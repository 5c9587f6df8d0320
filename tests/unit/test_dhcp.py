"""dhcp: what its configuration may say, and a lease as a result."""

from __future__ import annotations

from typing import Any

import pytest

from pycni.plugins.dhcp import DHCPConf, make_result
from pycni.spec.errors import CNIError
from pycni.spec.result import encode_result


def ipam(**keys: Any) -> Any:
    return DHCPConf.decode({"name": "lan", "ipam": {"type": "dhcp", **keys}}).ipam


def test_defaults() -> None:
    found = ipam()
    assert found.daemon_socket_path == "/run/cni/dhcp.sock"
    assert found.wanted == (3, 1)
    assert found.provided("") == {}


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ([{"option": "121"}], (121, 3, 1)),
        ([{"option": "routers"}], (3, 1)),
        ([{"option": 12}, {"option": "host-name"}], (12, 3, 1)),
        ([{"option": "12", "skipDefault": True}, {"option": "1"}], (12, 1)),
        ([{"skipDefault": True}], ()),
    ],
)
def test_what_is_requested(request_: list[dict[str, Any]], wanted: tuple[int, ...]) -> None:
    assert ipam(request=request_).wanted == wanted


@pytest.mark.parametrize(
    ("args", "value"),
    [("", b"fixed"), ("NAME=given", b"given"), ("odd;NAME=a=b;X", b"a=b"), ("name=x", b"fixed")],
)
def test_an_argument_goes_before_a_value(args: str, value: bytes) -> None:
    found = ipam(provide=[{"option": "host-name", "value": "fixed", "fromArg": "NAME"}])
    assert found.provided(args) == {12: value}


def test_an_option_without_a_value_is_not_sent() -> None:
    assert ipam(provide=[{"option": 60, "fromArg": "NAME"}]).provided("") == {}


@pytest.mark.parametrize("name", ["host_name", "0", "255", "-1", "", 256, True, 1.5, None, "٣"])
def test_an_option_that_is_none(name: Any) -> None:
    with pytest.raises(CNIError) as caught:
        ipam(provide=[{"option": name, "value": "x"}])
    assert caught.value.code == 7
    assert "ipam.provide[0].option" in caught.value.message


def test_a_value_that_is_too_long() -> None:
    found = ipam(provide=[{"option": 60, "value": "x" * 256}])
    with pytest.raises(CNIError, match="value too long for option 60"):
        found.provided("")


@pytest.mark.parametrize("document", [{"name": "lan"}, {"name": "lan", "ipam": None}])
def test_without_ipam(document: dict[str, Any]) -> None:
    with pytest.raises(CNIError, match="missing 'ipam' key"):
        DHCPConf.decode(document)


def test_a_request_for_nothing() -> None:
    with pytest.raises(CNIError, match=r"ipam.request\[1\]"):
        ipam(request=[{"option": 3}, {}])


LEASE = {
    "address": "10.0.0.5/24",
    "routers": ["10.0.0.1", "10.0.0.2"],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "10.9.0.0/16", "gw": ""}],
    "dns": {"nameservers": ["10.0.0.53"], "domain": "example.net"},
}


def test_a_result() -> None:
    result = make_result(LEASE, (3, 1), 7)
    assert encode_result(result, "1.1.0") == {
        "cniVersion": "1.1.0",
        "ips": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "10.0.0.1", "priority": 7},
            {"dst": "10.9.0.0/16", "gw": "0.0.0.0", "priority": 7, "scope": 253},
        ],
    }


def test_dns_only_if_it_was_asked_for() -> None:
    assert make_result(LEASE, (6, 3, 1), 0).dns.to_json() == {"nameservers": ["10.0.0.53"]}


def test_a_network_without_a_router() -> None:
    result = make_result({**LEASE, "routers": [], "routes": []}, (3, 1), 0)
    assert result.ips[0].gateway is None
    assert result.routes == ()
