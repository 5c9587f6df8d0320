"""Plugins that make an interface, behind another that made one in the same sandbox.

Their result is the chain's (SPEC 1.1.0, section 2, "ADD"); what they check and remove is their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, Namespace, Sandbox, ip_json, run_in, snapshot
from harness.configs import host_local

KEYS: dict[str, dict[str, Any]] = {
    "bridge": {"bridge": "br1", "isDefaultGateway": True, "ipMasq": True},
    "host-device": {"device": "spare"},
    "macvlan": {"master": "lan0"},
    "ptp": {"ipMasq": True},
    "tap": {},
}
HOST_LINKS = {"bridge": ["br1", "veth"], "ptp": ["veth"]}


@pytest.fixture
def first(plugin_dir: Path, sandbox: Sandbox, tmp_path: Path, host: Host) -> Attachment:
    """An attachment of another network that is there, with a gateway and a default route."""
    pair = ["ip", "link", "add", "lan0", "type", "veth", "peer", "name"]
    run_in(None, [*pair, "spare"])
    run_in(None, ["ip", "link", "set", "lan0", "up"])
    one = attachment(plugin_dir / "ptp", "first", "net0", sandbox(), tmp_path, subnet="10.8.0.0/24")
    one.add()
    return one


def attachment(
    plugin: Path,
    network: str,
    ifname: str,
    netns: Namespace,
    leases: Path,
    subnet: str,
    **keys: Any,
) -> Attachment:
    ipam = host_local(
        leases,
        subnet,
        routes=[{"dst": "0.0.0.0/0"}, {"dst": "10.99.0.0/16"}],
        resolvConf=str(write_resolv_conf(leases)),
    )
    config = {"cniVersion": "1.1.0", "name": network, "type": plugin.name, "ipam": ipam, **keys}
    return Attachment(plugin, config, netns, "one", ifname)


def write_resolv_conf(folder: Path) -> Path:
    path = folder / "resolv.conf"
    path.write_text("nameserver 10.8.0.53\n")
    return path


@contextmanager
def chained(one: Attachment, previous: Any) -> Iterator[None]:
    """ADD of an attachment is given the result of the plugins before."""
    one.config["prevResult"] = previous
    try:
        yield
    finally:
        del one.config["prevResult"]


def addresses(one: Attachment) -> set[tuple[str, str]]:
    return {
        (link["ifname"], item["local"])
        for link in ip_json("-4", "address", netns=one.sandbox)
        for item in link["addr_info"]
    }


def host_links() -> set[str]:
    return {item["ifname"] for item in ip_json("link")}


@pytest.mark.parametrize("name", KEYS)
def test_result_is_the_chain_s_and_the_rest_is_its_own(
    plugin_dir: Path, tmp_path: Path, first: Attachment, name: str
) -> None:
    assert first.sandbox is not None
    second = attachment(
        plugin_dir / name, "second", "eth0", first.sandbox, tmp_path, "10.9.0.0/24", **KEYS[name]
    )
    previous = first.result
    before = host_links()
    with chained(second, previous):
        result = second.add()
    names = [item["name"] for item in result["interfaces"]]
    assert result["interfaces"][: len(previous["interfaces"])] == previous["interfaces"]
    assert [name.rstrip("0123456789abcdef") or name for name in names[2:-1]] == [
        name.rstrip("0123456789abcdef") for name in HOST_LINKS.get(name, [])
    ]
    assert names[-1] == "eth0"
    assert result["ips"][0] == previous["ips"][0]
    assert result["ips"][1] == {
        "address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": len(names) - 1,
    }  # fmt: skip
    assert result["routes"][:2] == previous["routes"]
    assert {item.get("gw") for item in result["routes"][2:]} == {"10.9.0.1"}
    assert result["dns"]["nameservers"] == ["10.8.0.53"]
    second.check()
    first.check()

    # What the other made is not looked at; what it made itself is.
    run_in(first.sandbox, ["ip", "address", "delete", "10.8.0.2/24", "dev", "net0"])
    second.check()
    run_in(first.sandbox, ["ip", "address", "add", "10.8.0.2/24", "dev", "net0"])
    run_in(first.sandbox, ["ip", "route", "delete", "10.99.0.0/16", "via", "10.9.0.1"])
    assert "route 10.99.0.0/16 via 10.9.0.1 is missing" in second.drift()
    run_in(first.sandbox, ["ip", "route", "add", "10.99.0.0/16", "via", "10.9.0.1"])
    second.check()
    run_in(first.sandbox, ["ip", "address", "delete", "10.9.0.2/24", "dev", "eth0"])
    assert "10.9.0.2/24 is missing" in second.drift()

    second.delete()
    second.delete()
    links = {item["ifname"] for item in ip_json("link", netns=first.sandbox)}
    assert links == {"lo", "net0"}
    assert ("net0", "10.8.0.2") in addresses(first)
    assert (tmp_path / "first/10.8.0.2").exists()
    assert not (tmp_path / "second/10.9.0.2").exists()
    assert host_links() - {"br1"} == before


def test_an_unreadable_prev_result_is_refused_before_any_work(
    plugin_dir: Path, tmp_path: Path, first: Attachment
) -> None:
    assert first.sandbox is not None
    second = attachment(
        plugin_dir / "ptp", "second", "eth0", first.sandbox, tmp_path, "10.9.0.0/24"
    )
    before = snapshot(tmp_path)
    with chained(second, {"cniVersion": "1.1.0", "ips": [{"address": "none"}]}):
        assert second.refused()["code"] == 6
    assert snapshot(tmp_path) == before
