"""What later plugins do to a bridge's port is as it should be, and what a container does is not.

By all three ways of calling plugins.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from harness import Namespace, Sandbox, ip_json, nft_list, run_in
from harness.ways import Way
from pycni.runtime import Network, PluginError

GIVEN = "02:00:00:00:00:07"
FORGED = "02:00:00:00:00:99"
TUNING = {"type": "tuning", "mac": GIVEN}
ISOLATED = {"type": "firewall", "backend": "nftables", "ingressPolicy": "isolated"}


def bridge(way: Way, subnet: str = "10.64.0.0/24", **keys: Any) -> dict[str, Any]:
    ipam = way.host_local(subnet)
    return {"type": "bridge", "bridge": "br1", "isGateway": True, "ipam": ipam, **keys}


def pings(space: Namespace) -> bool:
    command = ["ping", "-c1", "-W1", "10.64.0.1"]
    return run_in(space, command, check=False).returncode == 0


def mac_of(space: Namespace) -> str:
    mac: str = ip_json("link", "show", "eth0", netns=space)[0]["address"]
    return mac


def set_mac(space: Namespace, mac: str) -> None:
    run_in(space, ["ip", "link", "set", "eth0", "address", mac])


def allowed() -> list[str]:
    """The MAC addresses that the spoof guard lets in."""
    found = [entry["set"] for entry in nft_list() if "set" in entry]
    return [
        item["elem"]["val"]["concat"][1]
        for one in found
        if one["name"] == "spoof-guard-allowed"
        for item in one.get("elem", [])
    ]


def port() -> dict[str, Any]:
    (found,) = ip_json("-d", "link", "show", "master", "br1")
    flags: dict[str, Any] = found["linkinfo"]["info_slave_data"]
    return {"name": found["ifname"], **flags}


def is_sound(network: Network) -> bool:
    """Whether CHECK and repair find nothing to say."""
    network.check("one")
    (report,) = network.repair(dry_run=True)
    return report.is_sound


# --- what later plugins add ----------------------------------------------------------------------


def test_isolation_by_a_later_firewall(way: Way, sandbox: Sandbox) -> None:
    network, box = way.network("n", bridge(way), ISOLATED), sandbox()
    network.add("one", box.path)
    assert port()["isolated"]
    assert is_sound(network)
    run_in(None, ["ip", "link", "set", port()["name"], "down"])
    network.repair()
    assert port()["isolated"]
    assert is_sound(network)


def test_hairpin_mode_by_someone_else(way: Way, sandbox: Sandbox) -> None:
    network, box = way.network("n", bridge(way)), sandbox()
    network.add("one", box.path)
    run_in(None, ["bridge", "link", "set", "dev", port()["name"], "hairpin", "on"])
    assert is_sound(network)


def test_spoof_guard_follows_the_mac_address_that_tuning_sets(way: Way, sandbox: Sandbox) -> None:
    network, box = way.network("n", bridge(way, macspoofchk=True), TUNING), sandbox()
    network.add("one", box.path)
    assert (mac_of(box), allowed()) == (GIVEN, [GIVEN])
    assert pings(box)
    assert is_sound(network)
    set_mac(box, FORGED)
    assert not pings(box)
    with pytest.raises(PluginError, match=FORGED):
        network.check("one")
    network.repair()
    assert (mac_of(box), allowed()) == (GIVEN, [GIVEN])
    assert pings(box)
    network.delete("one")
    assert allowed() == []


def test_spoof_guard_of_a_tuning_that_fails(way: Way, sandbox: Sandbox) -> None:
    refused = {**TUNING, "sysctl": {"net.ipv4.no_such_key": "1"}}
    network, box = way.network("n", bridge(way, macspoofchk=True), refused), sandbox()
    with pytest.raises(PluginError, match="no_such_key"):
        network.add("one", box.path)
    assert allowed() == []


def test_tuning_gives_no_mac_address_to_another_s_port(way: Way, sandbox: Sandbox) -> None:
    guarded, box = way.network("n", bridge(way, macspoofchk=True)), sandbox()
    guarded.add("other", box.path)
    before = allowed()
    plain, mine = way.network("m", bridge(way, "10.65.0.0/24", bridge="br2"), TUNING), sandbox()
    plain.add("one", mine.path)
    assert allowed() == before


# --- what a container does -----------------------------------------------------------------------


@contextmanager
def forging(space: Namespace) -> Iterator[None]:
    """A program inside sets the interface's MAC address until the end of the block."""
    line = f"link set eth0 address {FORGED}"
    script = 'while :; do yes "$1" | head -n 2000 | ip -force -n "$2" -batch - ; done'
    program = subprocess.Popen(
        ["sh", "-c", script, "sh", line, space.name],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
        assert program.poll() is None
    finally:
        program.kill()
        program.wait()


@pytest.mark.parametrize("subnet", ["10.64.0.0/24", "fd00:64::/64", ""])
def test_forged_mac_address_is_never_let_in(way: Way, sandbox: Sandbox, subnet: str) -> None:
    own = bridge(way, subnet, macspoofchk=True)
    if not subnet:
        del own["ipam"]
    network, box = way.network("n", own), sandbox()
    with forging(box):
        for _ in range(5):
            try:
                network.add("one", box.path)
            except PluginError:
                assert allowed() == []  # it may be refused, for what was found
                continue
            assert len(allowed()) == 1
            assert FORGED not in allowed()
            network.delete("one")
            assert allowed() == []


@pytest.mark.parametrize("subnet", ["10.64.0.0/24", "fd00:64::/64"])
def test_repair_believes_the_result_and_not_the_container(
    way: Way, sandbox: Sandbox, subnet: str
) -> None:
    network, box = way.network("n", bridge(way, subnet, macspoofchk=True)), sandbox()
    network.add("one", box.path)
    first = mac_of(box)
    set_mac(box, FORGED)
    run_in(None, ["nft", "flush", "ruleset"])
    network.repair()
    assert (mac_of(box), allowed()) == (first, [first])
    assert is_sound(network)


def test_containers_without_an_ipv4_address_have_mac_addresses_of_their_own(
    way: Way, sandbox: Sandbox
) -> None:
    network = way.network("n", bridge(way, "fd00:64::/64"))
    boxes = [sandbox() for _ in range(3)]
    for number, box in enumerate(boxes):
        network.add(str(number), box.path)
    found = [mac_of(box) for box in boxes]
    assert len(set(found)) == len(found)
    assert all(int(mac[:2], 16) & 3 == 2 for mac in found)  # one station's, given by this host
