"""bridge: CHECK, GC and STATUS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Sandbox, run_in
from harness.kernel_state import link_names, veths
from harness.topics import bridge as kit
from harness.topics.bridge import FULL, V4, V6

attach = kit.attach
leases = kit.leases


# --- CHECK ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "reported"),
    [
        ("ip -n {netns} link set eth0 down", "eth0 is down"),
        ("ip -n {netns} link delete eth0", "eth0 is missing"),
        ("ip -n {netns} address delete 10.1.2.2/24 dev eth0", "10.1.2.2/24 is missing"),
        ("ip -n {netns} address delete 2001:db8:1::2/64 dev eth0", "2001:db8:1::2/64 is missing"),
        ("ip -n {netns} route delete default", "0.0.0.0/0"),
        ("ip -n {netns} -6 route delete default", "::/0"),
        ("ip -n {netns} link set eth0 address 0a:00:00:00:00:07", "0a:00:00:00:00:07"),
        ("ip link set bridge0 address 0a:00:00:00:00:07", "0a:00:00:00:00:07"),
        ("ip link set {outer} address 0a:00:00:00:00:07", "0a:00:00:00:00:07"),
        ("ip link delete bridge0", "bridge0 is missing"),
        ("ip link set bridge0 down", "bridge0 is down"),
        ("ip link set {outer} down", "{outer} is down"),
        ("ip link set {outer} nomaster", "not plugged into bridge bridge0"),
        ("ip address delete 10.1.2.1/24 dev bridge0", "10.1.2.1/24 is missing on bridge0"),
        ("ip address delete 2001:db8:1::1/64 dev bridge0", "2001:db8:1::1/64 is missing"),
        ("sysctl -q -w net.ipv4.ip_forward=0", "net/ipv4/ip_forward is 0"),
        ("sysctl -q -w net.ipv6.conf.all.forwarding=0", "net/ipv6/conf/all/forwarding is 0"),
        ("nft delete table inet pycni", "masquerade"),
        ("nft flush set inet pycni masquerade-10.1.2.0/24", "10.1.2.2"),
        ("nft flush chain inet pycni masquerade-postrouting", "masquerade-postrouting"),
        ("nft delete table bridge pycni", "spoof-guard"),
        ("nft flush set bridge pycni spoof-guard-ports", "spoof-guard-ports"),
        ("nft flush set bridge pycni spoof-guard-allowed", "spoof-guard-allowed"),
        ("rm {leases}/net/10.1.2.2", "10.1.2.2"),
    ],
)
def test_check_finds_drift(attach: Attach, tmp_path: Path, damage: str, reported: str) -> None:
    one = attach((V4, V6), **FULL)
    one.add()
    one.check()
    assert one.sandbox is not None
    places = {"netns": one.sandbox.name, "outer": veths()[0], "leases": tmp_path / "leases"}
    run_in(None, damage.format(**places).split())
    assert reported.format(**places) in one.drift()


def test_check_finds_all_there_is(attach: Attach) -> None:
    one = attach((V4, V6), **FULL)
    one.add()
    assert one.sandbox is not None
    run_in(one.sandbox, ["ip", "address", "delete", "10.1.2.2/24", "dev", "eth0"])
    run_in(None, ["nft", "delete", "table", "inet", "pycni"])
    message = one.drift()
    assert "10.1.2.2/24 is missing" in message
    assert "masquerade" in message


def test_check_finds_iptables_flushed(attach: Attach) -> None:
    one = attach((V4, V6), **FULL, ipMasqBackend="iptables")
    one.add()
    one.check()
    run_in(None, ["ip6tables", "-t", "nat", "-F", "POSTROUTING"])
    assert "ip6tables" in one.drift()


def test_check_allows_what_later_plugins_may_do(attach: Attach) -> None:
    one = attach((V4, V6), **FULL)
    one.add()
    inside = one.sandbox
    run_in(inside, ["ip", "route", "replace", "default", "via", "10.1.2.77", "dev", "eth0"])
    run_in(inside, ["ip", "address", "add", "10.77.0.1/24", "dev", "eth0"])
    one.result["interfaces"].append({"name": "bwp1234", "mac": ""})
    one.check()


@pytest.mark.parametrize("keys", [{}, {"isGateway": True}], ids=["switch", "gateway"])
@pytest.mark.parametrize("gateway", ["10.1.2.1", ""], ids=["routed", "alone"])
def test_check_allows_a_later_plugin_s_address(
    attach: Attach, gateway: str, keys: dict[str, Any]
) -> None:
    """Which is not masqueraded, since the bridge plugin did not give it."""
    given = {"address": "10.1.2.9/24", **({"gateway": gateway} if gateway else {})}
    ipam = {"type": "static", "addresses": [given]}
    one = attach((), ipMasq=True, ipam=ipam, **keys)
    one.config["ipam"] = ipam
    one.add()
    run_in(one.sandbox, ["ip", "address", "add", "10.77.0.1/24", "dev", "eth0"])
    one.result["ips"].append({"address": "10.77.0.1/24", "interface": 2})
    one.check()
    run_in(None, ["nft", "flush", "set", "inet", "pycni", "masquerade-10.1.2.0/24"])
    assert "10.1.2.9 is not in set" in one.drift()
    one.delete()


def test_check_needs_the_previous_result(attach: Attach) -> None:
    one = attach()
    one.add()
    one.result = None
    error = one.refused("CHECK")
    assert (error["code"], error["msg"]) == (7, "Required prevResult missing")


def test_check_of_another_sandbox(attach: Attach, sandbox: Sandbox) -> None:
    one = attach()
    one.add()
    one.sandbox = sandbox()
    assert "Sandbox in prevResult" in one.drift()


# --- GC and STATUS -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_gc(attach: Attach, leases: Callable[[], set[str]], backend: str) -> None:
    keys = {**FULL, "ipMasqBackend": backend}
    kept, gone, lost = (attach((V4, V6), **keys) for _ in range(3))
    others = [{"subnet": "10.7.0.0/24"}]
    other = attach((others,), name="other", ipMasq=True, macspoofchk=True)
    for one in (kept, gone, lost, other):
        one.add()
    assert lost.sandbox is not None
    lost.sandbox.delete()
    valid = [{"containerID": kept.container, "ifname": "eth0"}, {"containerID": "x", "ifname": "y"}]
    run = kept.run("GC", **{"cni.dev/valid-attachments": valid})
    assert (run.code, run.stdout) == (0, "")
    kept.check()
    other.check()
    assert leases() == {"10.1.2.2", "2001:db8:1::2"}
    assert link_names(gone.sandbox) == {"lo"}
    assert len(veths()) == 2
    rules = run_in(None, ["iptables-save"]).stdout + run_in(None, ["nft", "list", "ruleset"]).stdout
    assert kept.container in rules
    assert gone.container not in rules
    assert lost.container not in rules

    run = kept.run("GC", **{"cni.dev/valid-attachments": []})
    assert run.code == 0
    assert leases() == set()
    assert link_names(kept.sandbox) == {"lo"}
    other.check()
    assert kept.run("GC").result["code"] == 7


def test_status(attach: Attach) -> None:
    one = attach()
    run = one.run("STATUS")
    assert (run.code, run.stdout) == (0, "")
    one.path = "/nowhere"
    assert "failed to find plugin" in one.refused("STATUS")["msg"]
    assert attach((), ipam={}).run("STATUS").code == 0
    assert attach(vlan=-1).refused("STATUS")["code"] == 7


def test_status_of_an_exhausted_range(attach: Attach) -> None:
    tight = [{"subnet": "10.1.2.0/30"}]
    one = attach((tight,))
    assert one.run("STATUS").code == 0
    one.add()
    two = attach((tight,))
    run = two.run("ADD")
    assert run.code == 1
    assert link_names(two.sandbox) == {"lo"}
