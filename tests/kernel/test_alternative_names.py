"""Alternative names of links (`ip link property add ... altname`): whose interface one leads to.

The kernel finds a link by any of its names, and lets no other link have one of them. What is an
attachment's own is decided by the name itself: what merely has it as an alternative is another's.
Administrators may name a bridge, a master or a device of the host by any name it has.
"""

from __future__ import annotations

from typing import Any

import pytest

from harness import Attachment, Namespace, Sandbox, ip_json, run_in
from harness.chained import previous_result
from harness.kernel_state import link_names
from harness.ways import Way, notes, ports_of
from pycni.runtime import Network, PluginError
from pycni.spec.errors import CNIError

LINK_MAKERS = ("bridge", "ptp", "macvlan", "tap", "host-device")


@pytest.fixture
def way(way: Way) -> Way:
    run_in(None, ["ip", "link", "add", "up0", "type", "veth", "peer", "up1"])
    run_in(None, ["ip", "link", "set", "up0", "up"])
    return way


def maker(way: Way, kind: str, **keys: Any) -> dict[str, Any]:
    """The configuration of a plugin that makes a link."""
    own: dict[str, dict[str, Any]] = {
        "bridge": {"bridge": "br1", "isDefaultGateway": True},
        "macvlan": {"master": "up0"},
        "host-device": {"device": "up1"},
    }
    return {"type": kind, **own.get(kind, {}), "ipam": way.host_local("10.61.0.0/24"), **keys}


def add_altname(name: str, link: str, netns: Namespace | None = None) -> None:
    run_in(netns, ["ip", "link", "property", "add", "dev", link, "altname", name])


def stranger(box: Namespace) -> None:
    """A pair of the container's own, up and with an address: x0, also called eth0."""
    for line in (
        "link add x0 address 02:00:00:00:00:0a mtu 1400 type veth peer y0",
        "link set x0 addrgenmode none", "link set y0 addrgenmode none",
        "link property add dev x0 altname eth0",
        "link set x0 up", "link set y0 up",
        "address add 10.99.0.1/24 dev x0", "route add 10.98.0.0/16 via 10.99.0.2",
    ):  # fmt: skip
        run_in(box, ["ip", *line.split()])


def shown(box: Namespace) -> dict[str, Any]:
    """All that can be seen of x0."""
    (link,) = ip_json("-d", "address", "show", "dev", "x0", netns=box)
    link.pop("operstate")
    link["flags"] = sorted(set(link["flags"]) - {"LOWER_UP", "NO-CARRIER", "M-DOWN"})
    return {
        "link": link,
        "routes": [
            *ip_json("-4", "route", "show", "table", "all", "dev", "x0", netns=box),
            *ip_json("-6", "route", "show", "table", "all", "dev", "x0", netns=box),
        ],
        "queue": run_in(box, ["tc", "qdisc", "show", "dev", "x0"]).stdout,
        "sysctl": run_in(box, ["sysctl", "-n", "net.ipv4.conf.x0.arp_filter"]).stdout,
    }


def on_host() -> list[str]:
    return [name for name in sorted(link_names()) if name not in ("lo", "br1")]


# --- plugins that make a link --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", LINK_MAKERS)
def test_add_where_another_interface_has_the_name(way: Way, sandbox: Sandbox, kind: str) -> None:
    network = way.network("n", maker(way, kind))
    box = sandbox()
    stranger(box)
    before, host = shown(box), on_host()
    with pytest.raises(PluginError) as refused:
        network.add("a", box.path)
    reported = str(refused.value)
    assert "eth0" in reported
    assert "an alternative name of x0" in reported
    assert "ip link property del dev x0 altname eth0" in reported
    assert (shown(box), on_host(), way.leases("n"), notes()) == (before, host, {}, [])
    network.delete("a", box.path)
    network.gc([])
    assert (shown(box), on_host(), way.leases("n"), notes()) == (before, host, {}, [])


@pytest.mark.slow
@pytest.mark.parametrize("after", ["check", "repair", "delete", "gc"])
@pytest.mark.parametrize("kind", LINK_MAKERS)
def test_interface_whose_name_another_has_by_now(
    way: Way, sandbox: Sandbox, kind: str, after: str
) -> None:
    network = way.network("n", maker(way, kind))
    box = sandbox()
    host = on_host()
    network.add("a", box.path)
    for line in ("link set eth0 down", "link set eth0 name mine"):
        run_in(box, ["ip", *line.split()])
    stranger(box)
    before = shown(box)
    if after == "check":
        with pytest.raises(CNIError, match="eth0"):
            network.check("a")
    elif after == "repair":
        (report,) = network.repair()
        assert not report.ok
    elif after == "gc":
        network.gc([])
    else:
        network.delete("a")
    assert shown(box) == before
    network.delete("a")
    assert shown(box) == before
    assert (link_names(box), on_host(), way.leases("n"), notes()) == (
        {"lo", "x0", "y0"}, host, {}, []
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", LINK_MAKERS)
def test_del_without_notes(way: Way, sandbox: Sandbox, kind: str) -> None:
    """Nothing but the name is left to go by: before 0.4.0 it decides."""
    network = way.network("n", maker(way, kind), version="0.3.1")
    box = sandbox()
    stranger(box)
    before, host = shown(box), on_host()
    network.delete("a", box.path)
    assert (shown(box), on_host()) == (before, host)


# --- plugins chained to one ----------------------------------------------------------------------


def chained(way: Way) -> dict[str, dict[str, Any]]:
    limits = {
        "ingressRate": 10**7,
        "ingressBurst": 10**6,
        "egressRate": 10**7,
        "egressBurst": 10**6,
    }
    return {
        "tuning": {
            "type": "tuning", "mtu": 1300, "mac": "02:00:00:00:00:0b", "promisc": True,
            "allmulti": True, "txQLen": 77, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
            "dataDir": str(way.folder / "tuning"),
        },
        "bandwidth": {"type": "bandwidth", **limits},
        "sbr": {"type": "sbr"},
        "portmap": {"type": "portmap", "capabilities": {"portMappings": True}},
        "firewall": {"type": "firewall"},
    }  # fmt: skip


CHAINED = ("tuning", "bandwidth", "sbr", "portmap", "firewall")


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHAINED)
def test_chained_plugin_of_an_interface_whose_name_another_has(
    way: Way, sandbox: Sandbox, kind: str
) -> None:
    network = way.network("n", maker(way, "bridge"), chained(way)[kind])
    box = sandbox()
    network.add("a", box.path, capabilities=ports_of((8080, 80)))
    for line in ("link set eth0 down", "link set eth0 name mine"):
        run_in(box, ["ip", *line.split()])
    stranger(box)
    before = shown(box)
    with pytest.raises(CNIError, match="eth0"):
        network.check("a")
    (report,) = network.repair()
    assert not report.ok
    assert shown(box) == before
    network.delete("a")
    assert (shown(box), link_names(box), on_host()) == (
        before,
        {"lo", "x0", "y0"},
        ["up0", "up1"],
    )
    assert (way.leases("n"), notes()) == ({}, [])


@pytest.mark.parametrize("kind", ["tuning", "bandwidth", "sbr"])
def test_chained_add_where_another_interface_has_the_name(
    way: Way, sandbox: Sandbox, kind: str
) -> None:
    box = sandbox()
    run_in(None, ["ip", "link", "add", "v0", "type", "veth", "peer", "x0", "netns", box.name])
    run_in(box, ["ip", "link", "set", "x0", "up"])
    run_in(box, ["ip", "address", "add", "10.99.0.1/24", "dev", "x0"])
    add_altname("eth0", "x0", box)
    before = shown(box)
    previous = previous_result(
        "1.1.0", box, ("10.99.0.1/24", "10.99.0.2"), ifname="x0", host_name="v0"
    )
    previous["interfaces"][1]["name"] = "eth0"
    config = {"cniVersion": "1.1.0", "name": "n", **chained(way)[kind], "prevResult": previous}
    config.pop("sysctl", None)  # IFNAME in one is a name of a file
    one = Attachment(way.plugins / kind, config, box)
    reported = one.refused()
    assert "an alternative name of x0" in f"{reported['msg']} {reported['details']}"
    assert "ip link property del dev x0 altname eth0" in reported["details"]
    assert shown(box) == before
    one.delete()
    assert shown(box) == before


def test_loopback_is_no_other_interface(way: Way, sandbox: Sandbox) -> None:
    network = way.network("n", {"type": "loopback"})
    box = sandbox()
    network.add("a", box.path, "lo")
    for line in (
        "link set lo down", "link set lo name l", "link add x0 type veth peer y0", "link set x0 up",
        "link property add dev x0 altname lo",
    ):  # fmt: skip
        run_in(box, ["ip", *line.split()])
    with pytest.raises(CNIError):
        network.check("a")
    network.delete("a")
    assert "UP" in ip_json("link", "show", "dev", "x0", netns=box)[0]["flags"]


# --- names of the host ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bridge", "macvlan", "host-device"])
def test_what_is_the_host_s_may_be_named_by_any_name(way: Way, sandbox: Sandbox, kind: str) -> None:
    key, own = {"bridge": ("bridge", "br7"), "macvlan": ("master", "up0")}.get(
        kind, ("device", "up1")
    )
    if kind == "bridge":
        run_in(None, ["ip", "link", "add", own, "type", "bridge"])
    add_altname("lan", own)
    network = way.network("n", maker(way, kind, **{key: "lan"}))
    box, before = sandbox(), on_host()
    result = network.add("a", box.path)
    assert result.ips
    network.check("a")
    (report,) = network.repair()
    assert report.is_sound
    if kind == "bridge":
        assert result.interfaces[0].name == "br7"
        run_in(None, ["ping", "-qc1", "-W2", "10.61.0.2"])
        assert run_in(None, ["sysctl", "-n", "net.ipv6.conf.br7.accept_ra"]).stdout == "0\n"
    network.delete("a")
    assert (link_names(box), on_host(), way.leases("n"), notes()) == (
        {"lo"},
        before,
        {},
        [],
    )


@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_host_end_whose_name_another_has(way: Way, sandbox: Sandbox, kind: str) -> None:
    network = way.network("n", maker(way, kind))
    box = sandbox()
    result = network.add("a", box.path)
    outer = [one.name for one in result.interfaces if not one.sandbox][-1]
    network.delete("a")
    add_altname(outer, "up0")
    before = on_host()
    with pytest.raises(PluginError) as refused:
        network.add("a", box.path)
    assert f"{outer} is an alternative name of up0" in str(refused.value).replace('"', "")
    assert (link_names(box), on_host(), way.leases("n"), notes()) == (
        {"lo"},
        before,
        {},
        [],
    )
    network.delete("a", box.path)
    assert on_host() == before


def test_ifb_whose_name_another_has(way: Way, sandbox: Sandbox) -> None:
    network = way.network("n", maker(way, "bridge"), chained(way)["bandwidth"])
    box = sandbox()
    result = network.add("a", box.path)
    ifb = result.interfaces[-1].name
    assert ifb.startswith("bwp")
    network.delete("a")
    add_altname(ifb, "up0")
    network.add("a", box.path)  # there is a second name for such cases
    network.check("a")
    network.delete("a")
    assert (on_host(), notes()) == (["up0", "up1"], [])


def test_network_interface_of_the_runtime(way: Way, sandbox: Sandbox) -> None:
    """GC of the runtime asks who is alive: not who merely has the name as an alternative."""
    network: Network = way.network("n", maker(way, "bridge"))
    box = sandbox()
    network.add("a", box.path)
    run_in(box, ["ip", "link", "delete", "eth0"])
    stranger(box)
    network.gc([])
    assert (on_host(), way.leases("n"), way.cached(), notes()) == (["up0", "up1"], {}, [], [])
