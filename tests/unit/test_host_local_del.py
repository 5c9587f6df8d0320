"""host-local: CHECK, DEL, GC, STATUS, and work that does not grow."""

from __future__ import annotations

import posix
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.topics import host_local as kit
from harness.topics.host_local import SMALL, V6, Network
from pycni.plugins.host_local import plugin
from pycni.sdk.dispatch import perform
from pycni.spec.errors import ADDRESS_UNAVAILABLE, CHECK_FAILED, INVALID_CONFIG, UNAVAILABLE
from pycni.state import leases

net = kit.net


# --- CHECK -------------------------------------------------------------------------------------


def previous(*addresses: str) -> dict[str, Any]:
    return {
        "prevResult": {
            "cniVersion": "1.1.0",
            "ips": [{"address": address} for address in addresses],
        }
    }


def test_check(net: Network) -> None:
    assert net.add() == ["10.1.2.2/24"]
    net.run("CHECK")
    net.run("CHECK", top=previous("10.1.2.2/24", "192.0.2.1/32"))
    error = net.error("CHECK", top=previous("10.1.2.2/24", "10.1.2.3/24"))
    assert error.code == CHECK_FAILED
    assert "10.1.2.3 is not reserved for container c1" in error.message
    error = net.error("CHECK", "c2")
    assert error.code == CHECK_FAILED
    assert error.message == "host-local: Failed to find address added by container c2"


def test_check_makes_nothing(net: Network) -> None:
    assert net.error("CHECK").code == CHECK_FAILED
    assert not net.data_dir.exists()


# --- DEL ---------------------------------------------------------------------------------------


def test_del_removes_only_its_own(net: Network) -> None:
    net.add("c1")
    net.add("c1", "eth1")
    net.add("c2")
    net.run("DEL", "c1")
    assert net.held() == {"10.1.2.3": "c1 eth1", "10.1.2.4": "c2 eth0"}
    assert (net.path / "last_reserved_ip.0").read_text() == "10.1.2.4"


def test_del_of_nothing_succeeds_and_makes_nothing(net: Network) -> None:
    net.run("DEL")
    assert not net.data_dir.exists()


def test_del_of_the_oldest_format(net: Network) -> None:
    net.path.mkdir(parents=True)
    (net.path / "10.1.2.9").write_text("c1")
    net.run("CHECK", "c1")
    net.run("DEL", "c1")
    assert net.held() == {}


@pytest.mark.parametrize(
    "ipam",
    [
        {"subnet": "nonsense"},
        {"ranges": [[]]},
        {"subnet": "10.9.9.9/24"},
        {"type": "host-local"},
        {"routes": 7},
    ],
)
def test_del_needs_no_more_than_the_directory(net: Network, ipam: dict[str, Any]) -> None:
    net.add()
    net.run("DEL", **ipam, args="nonsense")
    assert net.held() == {}


def test_del_with_a_directory_that_is_none(net: Network) -> None:
    assert net.error("DEL", top={"ipam": {"dataDir": 7}}).message == "ipam.dataDir: 7 is not valid"


def test_the_directory_matches_in_any_letter_case(net: Network) -> None:
    net.add()
    request = net.request("DEL")
    document = {key: value for key, value in request.document.items() if key != "ipam"}
    document["IPAM"] = {"DATADIR": str(net.data_dir)}
    perform(plugin, request.replace(document=document))
    assert net.held() == {}


# --- GC ----------------------------------------------------------------------------------------


def keep(*attachments: tuple[str, str]) -> dict[str, Any]:
    return {
        "cni.dev/valid-attachments": [
            {"containerID": container, "ifname": ifname} for container, ifname in attachments
        ]
    }


def test_gc(net: Network) -> None:
    net.add("c1")
    net.add("c1", "eth1")
    net.add("c2")
    net.run("GC", top=keep(("c1", "eth0"), ("c9", "eth0")))
    assert net.held() == {"10.1.2.2": "c1 eth0"}
    net.run("GC", top=keep())
    assert net.held() == {}
    assert net.add("c3") == ["10.1.2.5/24"]


def test_gc_without_a_list_refuses(net: Network) -> None:
    net.add("c1")
    assert net.error("GC").code == INVALID_CONFIG
    assert net.held() == {"10.1.2.2": "c1 eth0"}


def test_gc_of_nothing(net: Network) -> None:
    net.run("GC", top=keep())
    assert not net.data_dir.exists()


# --- STATUS ------------------------------------------------------------------------------------


def test_status_makes_nothing(net: Network) -> None:
    net.run("STATUS")
    assert not net.data_dir.exists()


def test_status_reports_a_full_range_set(net: Network, capfd: pytest.CaptureFixture[str]) -> None:
    """And succeeds: runtimes collect what has leaked only while it does."""
    for number in range(4):
        net.add(f"c{number}", ranges=[[V6], [SMALL]])
    net.run("STATUS", ranges=[[V6], [SMALL]])
    assert capfd.readouterr().err == ""
    net.add("c4", ranges=[[V6], [SMALL]])
    net.run("STATUS", ranges=[[V6], [SMALL]])
    said = capfd.readouterr().err
    full = "no IP addresses available in range set: 10.1.2.1-10.1.2.6"
    assert said.startswith(f"host-local: {full}; 5 addresses held by 5 containers")
    net.run("GC", top={"cni.dev/valid-attachments": []}, ranges=[[V6], [SMALL]])
    net.run("STATUS", ranges=[[V6], [SMALL]])
    assert capfd.readouterr().err == ""


def test_strict_status_names_a_full_range_set(net: Network) -> None:
    for number in range(5):
        net.add(f"c{number}", ranges=[[V6], [SMALL]])
    error = net.error("STATUS", ranges=[[V6], [SMALL]], strictStatus=True)
    assert error.code == UNAVAILABLE
    assert error.message == "no IP addresses available in range set: 10.1.2.1-10.1.2.6"
    assert error.details.startswith("5 addresses held by 5 containers")


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_status_of_a_directory_that_cannot_be(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    net = Network(tmp_path / "file" / below)
    error = net.error("STATUS")
    assert error.code == UNAVAILABLE
    assert str(tmp_path / "file") in error.details


# --- growth ------------------------------------------------------------------------------------


def test_the_one_free_address_is_found_without_trying_others(
    net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    net.path.mkdir(parents=True)
    for number in range(256, 4095):
        if number != 2000:
            (net.path / f"10.1.{number // 256}.{number % 256}").write_text("old\r\neth0")
    (net.path / "last_reserved_ip.0").write_text("10.1.12.3")
    tried: list[str] = []
    real = leases.create_file

    def create(name: str, data: bytes, **kwargs: int) -> None:
        tried.append(name)
        real(name, data, **kwargs)

    monkeypatch.setattr(leases, "create_file", create)
    ipam = {"subnet": "10.1.0.0/20", "rangeStart": "10.1.1.0"}
    assert net.add(**ipam) == ["10.1.7.208/20"]
    assert tried == ["10.1.7.208"]
    assert net.error("ADD", "late", **ipam).code == ADDRESS_UNAVAILABLE
    assert tried == ["10.1.7.208"]


def test_an_add_does_the_same_work_however_many_leases(
    net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def count(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def operation(*args: object, **kwargs: object) -> object:
            calls.append(name)
            return real(*args, **kwargs)

        return operation

    for name in ("open", "read", "pread", "pwrite", "link", "unlink", "stat", "fstat", "listdir"):
        monkeypatch.setattr(posix, name, count(name, getattr(posix, name)))

    def work() -> int:
        del calls[:]
        net.add("probe", subnet="10.1.0.0/16")
        net.run("DEL", "probe", subnet="10.1.0.0/16")
        assert "listdir" not in calls
        return len(calls)

    net.add("first", subnet="10.1.0.0/16")
    few = work()
    for number in range(2000):
        net.add(f"c{number}", subnet="10.1.0.0/16")
    assert work() <= few + 12  # a bucket or a level of bitmaps more, by chance
