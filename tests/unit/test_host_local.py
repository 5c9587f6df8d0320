from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from harness.topics import host_local as kit
from harness.topics.host_local import SMALL, V4, V6, Network
from pycni.plugins.host_local import HostLocalConf
from pycni.plugins.shared.resolvconf import parse_resolv_conf
from pycni.spec.config import DNS
from pycni.spec.errors import (
    ADDRESS_UNAVAILABLE,
    ALREADY_EXISTS,
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    IO_FAILURE,
)
from pycni.spec.result import encode_result
from pycni.state.leases import DATA_DIR

net = kit.net


# --- ADD ---------------------------------------------------------------------------------------


def test_the_result_has_addresses_gateways_routes_and_dns(net: Network, tmp_path: Path) -> None:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 192.0.2.3\n")
    (tmp_path / "link").symlink_to(resolv_conf)
    result = net.run(
        "ADD",
        ranges=[[V4], [{**V6, "gateway": "fd00:1::ff"}]],
        routes=[{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "1.1.1.1", "mtu": 1400}],
        resolvConf=str(tmp_path / "link"),
    )
    assert result is not None
    assert encode_result(result, "1.1.0") == {
        "cniVersion": "1.1.0",
        "ips": [
            {"address": "10.1.2.2/24", "gateway": "10.1.2.1"},
            {"address": "fd00:1::1/64", "gateway": "fd00:1::ff"},
        ],
        "routes": [
            {"dst": "0.0.0.0/0"},
            {"dst": "192.168.0.0/16", "gw": "1.1.1.1", "mtu": 1400},
        ],
        "dns": {"nameservers": ["192.0.2.3"]},
    }


def test_first_use_says_nothing(net: Network, capfd: pytest.CaptureFixture[str]) -> None:
    net.add()
    net.run("CHECK")
    net.run("DEL")
    net.run("STATUS")
    assert capfd.readouterr() == ("", "")


def test_addresses_go_round(net: Network) -> None:
    given = [net.add(f"c{number}", **SMALL) for number in range(5)]
    assert given == [[f"10.1.2.{number}/29"] for number in range(2, 7)]
    net.run("DEL", "c1", **SMALL)
    net.run("DEL", "c3", **SMALL)
    assert net.add("d1", **SMALL) == ["10.1.2.3/29"]
    assert net.add("d2", **SMALL) == ["10.1.2.5/29"]


def test_a_released_address_is_not_given_again_at_once(net: Network) -> None:
    assert net.add("c1") == ["10.1.2.2/24"]
    net.run("DEL", "c1")
    assert net.add("c2") == ["10.1.2.3/24"]


def test_the_last_one_reserved_is_tried_last(net: Network) -> None:
    for number in range(5):
        net.add(f"c{number}", **SMALL)
    net.run("DEL", "c4", **SMALL)
    assert net.add("d", **SMALL) == ["10.1.2.6/29"]


def test_no_range_of_the_configuration_gives_a_gateway(net: Network) -> None:
    ranges = [
        [
            {"subnet": "10.1.2.0/29", "rangeEnd": "10.1.2.3", "gateway": "10.1.2.5"},
            {"subnet": "10.1.2.0/29", "rangeStart": "10.1.2.4"},
        ]
    ]
    given = [net.add(f"c{number}", ranges=ranges)[0] for number in range(4)]
    assert given == ["10.1.2.2/29", "10.1.2.3/29", "10.1.2.4/29", "10.1.2.6/29"]


def test_an_interface_is_attached_once(net: Network) -> None:
    assert net.add("c1") == ["10.1.2.2/24"]
    error = net.error("ADD", "c1")
    assert error.code == ALREADY_EXISTS
    assert error.message == (
        "failed to allocate for range 0: "
        "10.1.2.2 has been allocated to c1, duplicate allocation is not allowed"
    )
    assert net.add("c1", "eth1") == ["10.1.2.3/24"]
    assert net.error("ADD", "c1", args="IP=10.1.2.77").code == ALREADY_EXISTS
    assert sorted(net.held()) == ["10.1.2.2", "10.1.2.3"]


def test_a_failure_gives_back_what_this_call_took_and_no_more(net: Network) -> None:
    assert net.add("c1", ranges=[[{"subnet": "fd00:2::/64"}]]) == ["fd00:2::2/64"]
    before = net.held()
    full = {**SMALL, "rangeEnd": "10.1.2.1"}
    error = net.error("ADD", "c1", ranges=[[V6], [full]])
    assert error.message == (
        "failed to allocate for range 1: no IP addresses available in range set: 10.1.2.1-10.1.2.1"
    )
    assert net.held() == before


# --- a full range ------------------------------------------------------------------------------


def test_a_full_range_says_who_holds_it(net: Network) -> None:
    for number in range(4):
        net.add(f"c{number}", **SMALL)
    net.add("c0", "eth1", **SMALL)
    os.utime(net.path / "10.1.2.3", (0, 0))
    error = net.error("ADD", "late", **SMALL)
    assert error.code == ADDRESS_UNAVAILABLE
    assert error.message == (
        "failed to allocate for range 0: no IP addresses available in range set: 10.1.2.1-10.1.2.6"
    )
    assert error.details.startswith(
        "5 addresses held by 4 containers, the oldest, 10.1.2.3, by container c1, interface eth0 "
        "since 1970-01-01 00:00:00 UTC; 1 of them from before this machine was started"
    )
    assert "GC" in error.details
    assert "'pycni ipam reclaim' frees them" in error.details
    assert str(net.path) in error.details


def test_a_full_range_has_room_once_others_remove_a_file(net: Network) -> None:
    for number in range(5):
        net.add(f"c{number}", **SMALL)
    net.error("ADD", "late", **SMALL)
    stamp = net.path.stat().st_mtime_ns
    (net.path / "10.1.2.4").unlink()
    os.utime(net.path, ns=(stamp, stamp))  # the index cannot know
    net.run("STATUS", **SMALL)
    os.utime(net.path, ns=(stamp, stamp))
    assert net.add("late", **SMALL) == ["10.1.2.4/29"]


def test_a_crash_of_the_reference_costs_no_address(
    net: Network, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        net.add(f"c{number}", **SMALL)
    (net.path / "10.1.2.6").touch()
    assert net.add("c4", **SMALL) == ["10.1.2.6/29"]
    assert "host-local: removed" in capfd.readouterr().err


# --- addresses asked for -----------------------------------------------------------------------

WISHES = [
    {"args": "IP=10.1.2.88"},
    {"args": "IP=10.1.2.88/16"},
    {"args": "IgnoreUnknown=1;K8S_POD_NAME=p;IP=10.1.2.88"},
    {"top": {"args": {"cni": {"ips": ["10.1.2.88"]}}}},
    {"top": {"args": {"cni": {"ips": ["10.1.2.88/24"], "labels": []}}}},
    {"top": {"runtimeConfig": {"ips": ["10.1.2.88/24"], "mac": "x"}}},
    {"args": "IP=10.1.2.88", "top": {"runtimeConfig": {"ips": ["10.1.2.88"]}}},
]


@pytest.mark.parametrize("wish", WISHES)
def test_every_way_to_ask(net: Network, wish: dict[str, Any]) -> None:
    assert net.add("c1", **wish) == ["10.1.2.88/24"]
    assert net.add("c2") == ["10.1.2.89/24"]


def test_each_address_goes_to_its_range_set(net: Network) -> None:
    wishes = {"args": {"cni": {"ips": ["fd00:1::77", "10.1.3.9"]}}}
    ranges = [[V4, {"subnet": "10.1.3.0/24"}], [V6]]
    assert net.add("c1", top=wishes, ranges=ranges) == ["10.1.3.9/24", "fd00:1::77/64"]
    assert net.add("c2", args="IgnoreUnknown=1;IP=fd00:1::7", ranges=ranges) == [
        "10.1.3.10/24",
        "fd00:1::7/64",
    ]


def test_an_address_that_is_held(net: Network) -> None:
    net.add("c1", args="IP=10.1.2.88")
    error = net.error("ADD", "c2", args="IP=10.1.2.88")
    assert error.code == ADDRESS_UNAVAILABLE
    assert error.message == (
        "failed to allocate for range 0: requested IP address 10.1.2.88 is not available "
        "in range set 10.1.2.1-10.1.2.254"
    )
    assert error.details.startswith("it is held by container c1, interface eth0 since ")


def test_the_gateway_cannot_be_asked_for(net: Network) -> None:
    error = net.error("ADD", args="IP=10.1.2.1")
    assert error.message == (
        "failed to allocate for range 0: requested ip 10.1.2.1 is subnet's gateway"
    )


@pytest.mark.parametrize(
    ("wishes", "left"),
    [
        (["10.9.9.9"], "10.9.9.9"),
        (["10.1.2.88", "10.1.2.89"], "10.1.2.89"),
        (["10.9.9.9", "10.1.2.88", "fd00::9"], "10.9.9.9 fd00::9"),
    ],
)
def test_addresses_that_no_range_set_takes(net: Network, wishes: list[str], left: str) -> None:
    error = net.error("ADD", top={"runtimeConfig": {"ips": wishes}})
    assert error.code == ADDRESS_UNAVAILABLE
    assert error.message == f"failed to allocate all requested IPs: {left}"
    assert net.held() == {}


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"args": "IP=nonsense"}, INVALID_ENVIRONMENT),
        ({"top": {"args": {"cni": {"ips": ["nonsense"]}}}}, INVALID_CONFIG),
        ({"top": {"runtimeConfig": {"ips": ["nonsense"]}}}, INVALID_CONFIG),
    ],
)
def test_what_is_no_address(net: Network, wish: dict[str, Any], code: int) -> None:
    error = net.error("ADD", **wish)
    assert (error.code, error.message) == (code, "invalid IP address nonsense")
    assert not net.data_dir.exists()


def test_arguments_of_others_need_permission(net: Network) -> None:
    assert net.error("ADD", args="K8S_POD_NAME=p").message == (
        'ARGS: unknown args ["K8S_POD_NAME=p"]'
    )


# --- configuration -----------------------------------------------------------------------------


def test_the_order_of_range_sets(net: Network) -> None:
    config = HostLocalConf.decode(
        net.request(
            "ADD",
            subnet="10.1.2.0/24",
            rangeStart="10.1.2.9",
            rangeEnd="10.1.2.20",
            gateway="10.1.2.30",
            ranges=[[{"subnet": "11.1.2.0/24"}, {"subnet": "11.2.2.0/24"}]],
            top={"runtimeConfig": {"ipRanges": [[{"subnet": "12.1.2.0/24"}]]}},
        ).document
    )
    assert [str(item) for item in config.range_sets()] == [
        "12.1.2.1-12.1.2.254",
        "10.1.2.9-10.1.2.20",
        "11.1.2.1-11.1.2.254,11.2.2.1-11.2.2.254",
    ]
    assert str(config.range_sets()[1].ranges[0].gateway) == "10.1.2.30"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ipam": None}, "IPAM config missing 'ipam' key"),
        ({"ipam": {"type": "host-local"}}, "no IP ranges specified"),
        ({"ipam": {"type": "host-local", "rangeStart": "10.1.2.3"}}, "no IP ranges specified"),
        (
            {"ipam": {"ranges": [[V4], [V4]]}},
            "range set 0 overlaps with 1",
        ),
        (
            {"cniVersion": "0.2.0", "ipam": {"ranges": [[V4], [{"subnet": "10.9.0.0/16"}]]}},
            "CNI version 0.2.0 does not support more than 1 address per family",
        ),
        ({"ipam": {"subnet": "10.1.2.3.4/24"}}, "ipam.subnet: invalid CIDR address: 10.1.2.3.4/24"),
        ({"ipam": {**V4, "gateway": 7}}, "ipam.gateway: 7 is not valid"),
    ],
)
def test_a_configuration_that_cannot_be(net: Network, change: dict[str, Any], message: str) -> None:
    for command in ("ADD", "CHECK", "STATUS"):
        if command == "ADD" or "cniVersion" not in change:
            error = net.error(command, top=change)
            assert (error.code, error.message) == (INVALID_CONFIG, message)
            assert error.details


def test_version_0_2_0_takes_one_address_of_each_family(net: Network) -> None:
    assert net.add(top={"cniVersion": "0.2.0"}, ranges=[[V4], [V6]]) == [
        "10.1.2.2/24",
        "fd00:1::2/64",
    ]


def test_faults_are_all_named(net: Network) -> None:
    document = {"ipam": {"subnet": "x", "ranges": [[{"subnet": 7}]], "routes": [{"gw": "y"}]}}
    assert [fault.path for fault in HostLocalConf.errors(document)] == [
        "ipam.subnet",
        "ipam.ranges[0][0].subnet",
        "ipam.routes[0].gw",
        "ipam.routes[0].dst",
    ]


def test_an_unreadable_resolv_conf(net: Network) -> None:
    error = net.error("ADD", **V4, resolvConf="/run/nonexistent/resolv.conf")
    assert error.code == IO_FAILURE
    assert "/nonexistent/resolv.conf" in error.message
    assert net.held() == {}


def test_resolv_conf() -> None:
    text = """
        ; a comment
        # another
        domain example.com
        domain example.org
        nameserver 192.0.2.0
        nameserver 2001:db8::1 ignored
        search
        search a.example b.example
        search c.example
        options ndots:1
        options rotate timeout:3
        sortlist 1.2.3.4
    """
    assert parse_resolv_conf(text) == DNS(
        ("192.0.2.0", "2001:db8::1"),
        "example.org",
        ("a.example", "b.example", "c.example"),
        ("ndots:1", "rotate", "timeout:3"),
    )
    assert parse_resolv_conf("") == DNS()


def test_the_default_directory_is_the_references() -> None:
    assert HostLocalConf.decode({"ipam": V4}).ipam.data_dir == DATA_DIR  # type: ignore[union-attr]
    assert DATA_DIR == "/var/lib/cni/networks"
