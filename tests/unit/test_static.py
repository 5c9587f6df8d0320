"""static: which addresses it gives, from the four places they can come from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pycni.plugins import load
from pycni.sdk.dispatch import serve

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
FOUR = {"address": "10.1.0.5/16", "gateway": "10.1.0.1"}
SIX = {"address": "fd00::A/64", "gateway": "FD00::1"}


def call(
    command: str,
    *addresses: dict[str, str],
    cni_args: str = "",
    ipam: dict[str, Any] | None = None,
    version: str = "1.1.0",
    **keys: Any,
) -> tuple[int, Any]:
    section = {"type": "static", "addresses": addresses, **(ipam or {})}
    config = {"cniVersion": version, "name": "net", "type": "any", "ipam": section, **keys}
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "one",
        "CNI_NETNS": "/no/such/namespace",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/nowhere",
        "CNI_ARGS": cni_args,
    }
    done = serve(load("static"), environ, json.dumps(config).encode)
    return done.code, json.loads(done.stdout) if done.stdout else None


def given(*addresses: dict[str, str], **keys: Any) -> list[tuple[str, str | None]]:
    code, result = call("ADD", *addresses, **keys)
    assert code == 0, result
    return [(entry["address"], entry.get("gateway")) for entry in result.get("ips", [])]


def refused(*addresses: dict[str, str], command: str = "ADD", **keys: Any) -> Any:
    code, error = call(command, *addresses, **keys)
    assert code == 1, error
    return error


def test_everything_configured_is_given_in_order() -> None:
    routes = [
        {"dst": "0.0.0.0/0", "gw": "10.1.0.1"},
        {"dst": "0.0.0.0/0", "gw": "10.1.0.2"},
        {"dst": "10.9.0.7/8", "mtu": 1400, "advmss": 1360, "priority": 3, "table": 5, "scope": 253},
    ]
    dns = {"nameservers": ["1.1.1.1"], "domain": "a", "search": ["b"], "options": ["c"]}
    code, result = call("ADD", FOUR, SIX, ipam={"routes": routes, "dns": dns})
    assert code == 0
    assert result == {
        "cniVersion": "1.1.0",
        "ips": [FOUR, {"address": "fd00::a/64", "gateway": "fd00::1"}],
        "routes": routes,
        "dns": dns,
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_result(version: str) -> None:
    code, result = call("ADD", FOUR, version=version)
    assert code == 0
    if version in VERSIONS[:2]:
        slot = {"ip": FOUR["address"], "gateway": FOUR["gateway"]}
        assert result == {"cniVersion": version, "ip4": slot, "dns": {}}
    elif version in VERSIONS[2:5]:
        assert result == {"cniVersion": version, "ips": [{"version": "4", **FOUR}], "dns": {}}
    else:
        assert result == {"cniVersion": version, "ips": [FOUR]}


def test_addresses_of_the_environment_come_behind() -> None:
    args = "IP=10.2.0.7/24, fd01::7/64;GATEWAY=10.2.0.1,fd01::1"
    assert given(FOUR, cni_args=args) == [
        ("10.1.0.5/16", "10.1.0.1"),
        ("10.2.0.7/24", "10.2.0.1"),
        ("fd01::7/64", "fd01::1"),
    ]


def test_gateway_of_the_environment_is_for_every_address_without_one() -> None:
    assert given({"address": "10.2.0.9/24"}, FOUR, cni_args="GATEWAY=10.2.0.1") == [
        ("10.2.0.9/24", "10.2.0.1"),
        ("10.1.0.5/16", "10.1.0.1"),
    ]


def test_requested_addresses_replace_the_others() -> None:
    cni = {"args": {"cni": {"ips": ["10.3.0.5/24"]}}}
    assert given(FOUR, cni_args="IP=10.2.0.7/24", **cni) == [("10.3.0.5/24", None)]
    runtime = {"RuntimeConfig": {"ips": ["10.4.0.5/24", "fd04::5/64"]}}
    assert given(FOUR, **cni, **runtime) == [("10.4.0.5/24", None), ("fd04::5/64", None)]
    assert given(FOUR, runtimeConfig={"ips": []}) == [("10.1.0.5/16", "10.1.0.1")]


def test_no_address_at_all() -> None:
    assert given() == []
    assert refused(version="0.2.0")["msg"] == "cannot convert: no valid IP addresses"


@pytest.mark.parametrize("version", VERSIONS)
def test_two_addresses_of_a_family(version: str) -> None:
    second = {"address": "10.1.0.6/16"}
    if version in VERSIONS[:2]:
        reported = f"CNI version {version} does not support more than 1 address per family"
        assert refused(FOUR, second, version=version)["msg"] == reported
    else:
        assert len(given(FOUR, second, version=version)) == 2
    assert call("ADD", FOUR, SIX, version=version)[0] == 0


def test_faults() -> None:
    notation = "field is expected to be in CIDR notation, got: '10.1.0.5'"
    assert refused({"address": "10.1.0.5"})["msg"] == f"the 'address' {notation}"
    assert refused(cni_args="IP=10.1.0.5")["msg"] == f"the 'ip' {notation}"
    entry = "an entry in the 'ips' field is NOT in CIDR notation, got: 'x'"
    assert refused(FOUR, runtimeConfig={"ips": ["x"]})["msg"] == entry
    assert refused(FOUR, cni_args="GATEWAY=x")["msg"] == "invalid gateway address: x"
    assert "ARGS: unknown args" in refused(FOUR, cni_args="FOO=1")["msg"]
    assert given(FOUR, cni_args="FOO=1;IgnoreUnknown=1") == [("10.1.0.5/16", "10.1.0.1")]
    code, error = call("ADD", args={"cni": {"ips": ["10.1.0.5/24"]}})
    assert code == 0, error
    for command in ("ADD", "STATUS"):
        done = serve(
            load("static"),
            {"CNI_COMMAND": command, "CNI_CONTAINERID": "one", "CNI_NETNS": "/x",
             "CNI_IFNAME": "eth0", "CNI_PATH": "/x"},
            lambda: b'{"cniVersion": "1.1.0", "name": "net", "type": "any"}',
        )  # fmt: skip
        assert json.loads(done.stdout)["msg"] == "IPAM config missing 'ipam' key"


def test_check() -> None:
    previous = {"cniVersion": "1.1.0", "ips": [FOUR, {"address": "10.7.0.1/24"}]}
    assert call("CHECK", FOUR, prevResult=previous) == (0, None)
    assert call("CHECK", {"address": FOUR["address"]}, prevResult=previous) == (0, None)
    # As an ADD that read no arguments left it; what is an argument is compared.
    assert call("CHECK", FOUR, prevResult=previous, cni_args="A=b=c") == (0, None)
    by_args = refused(FOUR, command="CHECK", prevResult=previous, cni_args="IP=10.1.0.6/16")
    assert "10.1.0.6/16" in by_args["msg"]
    other = {**FOUR, "gateway": "10.1.0.9"}
    for wanted in (other, SIX, {"address": "10.1.0.5/24"}):
        reported = refused(wanted, command="CHECK", prevResult=previous)["msg"]
        assert reported.startswith("static: Failed to match addr")
    assert refused(FOUR, command="CHECK")["msg"] == "Required prevResult missing"


def test_delete_reads_nothing() -> None:
    assert call("DEL", {"address": "nonsense"}, cni_args="nonsense") == (0, None)


def test_gc_and_status() -> None:
    assert call("GC", FOUR, **{"cni.dev/valid-attachments": []}) == (0, None)
    assert call("STATUS", FOUR) == (0, None)
    assert refused({"address": "x"}, command="STATUS")["code"] == 7
