"""What the specification itself says of a plugin's configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pycni.plugins import NAMES, load
from pycni.sdk.request import Request
from pycni.spec.config import (
    DNS,
    Attachment,
    NetConf,
    config_version,
    network_name,
    parse_config,
    valid_attachments,
)
from pycni.spec.errors import CNIError
from pycni.spec.schema import Config, Fault, Object


def refusal(call: Any, *arguments: Any) -> CNIError:
    with pytest.raises(CNIError) as caught:
        call(*arguments)
    return caught.value


def test_parse_config() -> None:
    assert parse_config(b'{"name": "n", "mtu": 1500}') == {"name": "n", "mtu": 1500}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "error unmarshall network config: unexpected end of JSON input"),
        (
            b"{",
            "error unmarshall network config: expecting property name enclosed in double quotes",
        ),
        (b"{}x", "error unmarshall network config: unexpected 'x' after the end of the value"),
        (b"[]", "error unmarshall network config: the document is not a JSON object"),
        (b"null", "error unmarshall network config: the document is not a JSON object"),
    ],
)
def test_stdin_that_is_no_configuration(data: bytes, message: str) -> None:
    error = refusal(parse_config, data)
    assert error.code == 6
    assert error.message.startswith(message)
    assert error.details == "stdin must hold the network configuration as one JSON object"


def test_network_name() -> None:
    assert network_name({"name": "net-1"}) == "net-1"
    assert network_name({"NAME": "net-1"}) == "net-1"
    for document in ({}, {"name": ""}, {"name": None}):
        error = refusal(network_name, document)
        assert (error.code, error.message) == (7, "missing network name")
    error = refusal(network_name, {"name": "a/b"})
    assert (error.code, error.message, error.details) == (
        7,
        "invalid characters found in network name",
        "a/b",
    )
    assert refusal(network_name, {"name": 5}).code == 6


def test_config_version() -> None:
    assert config_version({"cniVersion": "1.1.0"}) == "1.1.0"
    assert config_version({"CNIVERSION": "1.1.0"}) == "1.1.0"
    assert config_version({"CNIVERSION": "0.3.0", "CNIversion": "0.4.0"}) == "0.4.0"
    for document in ({}, {"cniVersion": ""}, {"cniVersion": None}):
        assert config_version(document) == "0.1.0"
    error = refusal(config_version, {"cniVersion": 1.1})
    assert error.code == 6
    assert error.message.startswith("decoding version from network config: ")


def test_netconf_of_the_specifications_example() -> None:
    conf = NetConf.decode(
        {
            "cniVersion": "1.1.0",
            "name": "dbnet",
            "type": "bridge",
            "bridge": "cni0",
            "keyA": ["some more", "plugin specific", "configuration"],
            "capabilities": {"mac": True, "portMappings": False},
            "ipam": {"type": "host-local", "subnet": "10.1.0.0/16", "gateway": "10.1.0.1"},
            "dns": {"nameservers": ["10.1.0.1"]},
        }
    )
    assert (conf.version, conf.name, conf.type, conf.ipam_type) == (
        "1.1.0",
        "dbnet",
        "bridge",
        "host-local",
    )
    assert conf.capabilities == {"mac": True, "portMappings": False}
    assert conf.dns == DNS(nameservers=("10.1.0.1",))
    assert conf.prev_result is None


@pytest.mark.parametrize(
    ("ipam", "kind"),
    [
        ({"type": "static"}, "static"),
        ({"TYPE": "static"}, "static"),
        ({}, ""),
        ({"type": 1}, ""),
        (None, ""),
        ("x", ""),
    ],
)
def test_ipam_type(ipam: Any, kind: str) -> None:
    for document in ({"ipam": ipam}, {"IPAM": ipam}):
        assert NetConf.decode(document).ipam_type == kind
        assert Request("ADD", document).ipam_type == kind


def test_capability_that_is_neither_true_nor_false() -> None:
    error = refusal(NetConf.decode, {"capabilities": {"mac": "yes"}})
    assert error.message == 'capabilities.mac: "yes" is not valid'


ONE = {"containerID": "c1", "ifname": "eth0"}
TWO = {"containerID": "c2", "ifname": "net1"}


def test_valid_attachments() -> None:
    assert valid_attachments({"cni.dev/valid-attachments": [ONE, TWO]}) == frozenset(
        [Attachment("c1", "eth0"), Attachment("c2", "net1")]
    )
    assert valid_attachments({"cni.dev/attachments": [ONE]}) == frozenset(
        [Attachment("c1", "eth0")]
    )
    both = {"cni.dev/attachments": [ONE], "cni.dev/valid-attachments": [TWO]}
    assert valid_attachments(both) == frozenset([Attachment("c2", "net1")])


def test_nothing_to_keep_is_not_the_same_as_not_said() -> None:
    assert valid_attachments({"cni.dev/valid-attachments": []}) == frozenset()
    assert valid_attachments({}) is None
    # libcni sends an empty list as null (a nil slice).
    null = {"cni.dev/valid-attachments": None, "cni.dev/attachments": None}
    assert valid_attachments(null) == frozenset()
    assert valid_attachments({"CNI.dev/Valid-Attachments": None}) == frozenset()
    one = valid_attachments({**null, "cni.dev/attachments": [ONE]})
    assert one == valid_attachments({"cni.dev/valid-attachments": [ONE]})


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({}, "cni.dev/valid-attachments: an object is not valid"),
        (["c1"], 'cni.dev/valid-attachments[0]: "c1" is not valid'),
        # Read as "", this one's container would lose its network.
        (
            [{"containerID": "c1", "ifname": ""}],
            "cni.dev/valid-attachments: an attachment without containerID or ifname",
        ),
        ([{"ifname": "eth0"}], "cni.dev/valid-attachments[0].containerID: missing"),
        ([{"containerID": "c1"}], "cni.dev/valid-attachments[0].ifname: missing"),
    ],
)
def test_a_list_that_cannot_be_read_keeps_gc_from_deleting(listed: Any, message: str) -> None:
    error = refusal(valid_attachments, {"cni.dev/valid-attachments": listed})
    assert (error.code, error.message) == (7, message)


def test_an_attachment_is_written_as_gc_expects_it() -> None:
    assert Attachment("c1", "eth0").to_json() == ONE


# Senders in Go write what they do not set as null, where they write it at all. But for the list of
# GC, that says no more than a key that is absent.


def keys_of(config: type[Config], within: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for declared in config.declared.values():
        yield (*within, declared.key)
        kind = declared.kind
        if isinstance(kind, Object) and len(within) < 3:
            yield from keys_of(kind.config, (*within, declared.key))


PLUGIN_KEYS = [(name, keys) for name in NAMES for keys in keys_of(load(name).config)]


@pytest.mark.parametrize(("name", "keys"), PLUGIN_KEYS, ids=str)
def test_null_is_as_absent(name: str, keys: tuple[str, ...]) -> None:
    config = load(name).config
    null: Any = None
    absent: Any = None
    for depth, key in enumerate(reversed(keys)):
        null = {key: null}
        absent = {} if depth == 0 else {key: absent}
    faults: list[Fault] = []
    expected: list[Fault] = []
    assert config.read_lenient(null, "", faults) == config.read_lenient(absent, "", expected)
    assert faults == expected
