"""macvlan on the real kernel; its master is one end of a veth pair, a neighbour has the other."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Host, Namespace, Sandbox, ip_json, run_in, snapshot
from harness.faults import each_request_failing
from harness.frames import ARP, Wire
from harness.ways import WAYS, way_of
from pycni.runtime import PluginError

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
V4 = {"address": "192.0.2.5/24", "gateway": "192.0.2.1"}
V6 = {"address": "2001:db8::5/64", "gateway": "2001:db8::1"}


@pytest.fixture
def neighbour(host: Host, sandbox: Sandbox) -> Namespace:
    """A machine on the network that the host's interface lan0 is on."""
    other = sandbox()
    run_in(None, ["ip", "link", "add", "lan0", "type", "veth", "peer", "eth0", "netns", other.name])
    run_in(None, ["ip", "link", "set", "lan0", "up"])
    run_in(other, ["sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0"])
    run_in(other, ["ip", "address", "add", "192.0.2.1/24", "dev", "eth0"])
    run_in(other, ["ip", "address", "add", "2001:db8::1/64", "dev", "eth0", "nodad"])
    run_in(other, ["ip", "link", "set", "eth0", "up"])
    for netns, link in ((None, "lan0"), (other, "eth0")):
        while ip_json("link", "show", link, netns=netns)[0]["operstate"] != "UP":
            pass
    return other


@pytest.fixture
def attach(plugin_dir: Path, sandbox: Sandbox, neighbour: Namespace) -> Attach:
    def make(
        *addresses: dict[str, str],
        container: str = "one",
        args: str | None = None,
        netns: Namespace | None = None,
        **keys: Any,
    ) -> Attachment:
        config = {"cniVersion": "1.1.0", "name": "net", "type": "macvlan", "master": "lan0"}
        if addresses:
            routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}][: len(addresses)]
            config |= {"ipam": {"type": "static", "addresses": addresses, "routes": routes}}
        plugin = plugin_dir / "macvlan"
        return Attachment(plugin, config | keys, netns or sandbox(), container, args=args)

    return make


def test_container_is_on_the_network_of_the_master(attach: Attach, neighbour: Namespace) -> None:
    one = attach(V4, V6)
    one.add()
    # Duplicate address detection is over when ADD returns.
    run_in(one.sandbox, ["ping", "-c1", "-W1", "2001:db8::1"])
    run_in(one.sandbox, ["ping", "-c1", "-W1", "192.0.2.1"])
    run_in(neighbour, ["ping", "-c1", "-W1", "192.0.2.5"])
    (seen,) = ip_json("neighbour", "show", "192.0.2.5", netns=neighbour)
    assert seen["lladdr"] == one.result["interfaces"][0]["mac"]


@pytest.mark.parametrize(("mode", "together"), [("bridge", True), ("private", False)])
def test_mode(attach: Attach, mode: str, together: bool) -> None:
    one = attach(V4, mode=mode)
    two = attach({"address": "192.0.2.6/24"}, container="two", mode=mode)
    one.add()
    two.add()
    assert one.link()["linkinfo"]["info_data"]["mode"] == mode
    ping = run_in(one.sandbox, ["ping", "-c1", "-W1", "192.0.2.6"], check=False)
    assert (ping.returncode == 0) == together
    one.check()


@pytest.mark.parametrize("mode", ["vepa", "passthru"])
def test_other_modes_reach_the_neighbour(attach: Attach, mode: str) -> None:
    one = attach(V4, mode=mode)
    one.add()
    assert one.link()["linkinfo"]["info_data"]["mode"] == mode
    run_in(one.sandbox, ["ping", "-c1", "-W1", "192.0.2.1"])
    one.check()
    one.delete()


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("by", ["mac", "CNI_ARGS"])
def test_passthru_has_the_address_of_its_master(
    kind: str, by: str, neighbour: Namespace, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """The kernel would ignore another."""
    with way_of(kind, tmp_path, plugin_dir) as way:
        mac = "02:00:00:00:00:77"
        plugin = {"type": "macvlan", "master": "lan0", "mode": "passthru"}
        asked = way.network("n", {**plugin, "mac": mac} if by == "mac" else plugin)
        args = {} if by == "mac" else {"MAC": mac}
        with pytest.raises(
            PluginError, match=f"passthru cannot have the MAC address {mac}"
        ) as caught:
            asked.add("c", sandbox().path, args=args)
        assert caught.value.code == 7
        way.network("n", plugin).add("c", sandbox().path)


def test_interface_may_be_named_as_one_of_the_host(attach: Attach) -> None:
    run_in(None, ["ip", "link", "add", "eth0", "type", "bridge"])
    one = attach(V4)
    one.add()
    run_in(one.sandbox, ["ping", "-c1", "-W1", "192.0.2.1"])
    one.delete()
    assert [item["ifname"] for item in ip_json("link", netns=one.sandbox)] == ["lo"]


@pytest.mark.parametrize("inside", [False, True])
def test_master_by_default_route(attach: Attach, neighbour: Namespace, inside: bool) -> None:
    one = attach(V4, master="", linkInContainer=inside)
    assert "no default route" in one.refused()["msg"]
    where = one.sandbox if inside else None
    if inside:
        assert one.sandbox is not None
        run_in(None, ["ip", "link", "set", "lan0", "netns", one.sandbox.name])
    run_in(where, ["ip", "link", "set", "lan0", "up"])
    run_in(where, ["ip", "address", "add", "192.0.2.9/24", "dev", "lan0"])
    run_in(where, ["ip", "route", "add", "default", "via", "192.0.2.1"])
    one.add()
    assert one.link()["linkinfo"]["info_kind"] == "macvlan"
    one.check()
    run_in(neighbour, ["ping", "-c1", "-W1", "192.0.2.5"])
    one.delete()


def test_master_in_the_container(attach: Attach) -> None:
    one = attach(V4, linkInContainer=True)
    assert "lan0" in one.refused()["msg"]
    assert one.sandbox is not None
    run_in(None, ["ip", "link", "set", "lan0", "netns", one.sandbox.name])
    run_in(one.sandbox, ["ip", "link", "set", "lan0", "up"])
    one.add()
    run_in(one.sandbox, ["ping", "-c1", "-W1", "192.0.2.1"])
    one.check()
    one.delete()
    assert {item["ifname"] for item in ip_json("link", netns=one.sandbox)} == {"lo", "lan0"}


def test_mtu(attach: Attach) -> None:
    run_in(None, ["ip", "link", "set", "lan0", "mtu", "1400"])
    inherited = attach(V4)
    inherited.add()
    assert inherited.link()["mtu"] == 1400
    inherited.delete()
    own = attach(V4, mtu=1300)
    own.add()
    assert own.link()["mtu"] == 1300
    own.delete()
    for mtu in (1401, -1):
        error = attach(V4, mtu=mtu).refused()
        assert (error["code"], error["msg"]) == (
            7,
            f"invalid MTU {mtu}, must be [0, master MTU(1400)]",
        )


def test_hardware_address(attach: Attach) -> None:
    conf, args, runtime = (f"02:00:00:00:00:0{number}" for number in range(3))
    for wanted, cni_args, keys in (
        (conf, None, {"mac": conf}),
        (args, f"IgnoreUnknown=1;FOO=1;MAC={args.upper()}", {"mac": conf}),
        (runtime, f"IgnoreUnknown=1;MAC={args}", {"mac": conf, "RuntimeConfig": {"mac": runtime}}),
    ):
        one = attach(V4, args=cni_args, **keys)
        assert one.add()["interfaces"][0]["mac"] == wanted
        assert one.link()["address"] == wanted
        one.check()
        one.delete()
    assert "ARGS" in attach(V4, args="FOO=1").refused()["msg"]
    assert "mac" in attach(V4, mac="02:00").refused()["msg"]


def test_delete_minds_no_fault_in_what_asks_for_something(attach: Attach) -> None:
    one = attach(V4)
    one.add()
    one.args = "nonsense"
    one.config = one.config | {"mac": "02:00", "mode": "sideways", "mtu": "big", "dns": 4}
    one.delete()
    assert [item["ifname"] for item in ip_json("link", netns=one.sandbox)] == ["lo"]


def test_broadcast_queue(attach: Attach) -> None:
    one = attach(V4, bcqueuelen=77)
    one.add()
    assert one.link()["linkinfo"]["info_data"]["bcqueuelen"] == 77


def test_network_without_addresses(attach: Attach, neighbour: Namespace) -> None:
    one = attach()
    result = one.add()
    assert set(result) == {"cniVersion", "interfaces"}
    assert "UP" in one.link()["flags"]
    assert not ip_json("-4", "address", "show", "dev", "eth0", netns=one.sandbox)
    one.check()
    one.delete()
    for version in VERSIONS[:2]:
        before = ip_json("link", netns=one.sandbox)
        assert (
            attach(cniVersion=version).refused()["msg"] == "cannot convert: no valid IP addresses"
        )
        assert ip_json("link", netns=one.sandbox) == before


@pytest.mark.parametrize("version", VERSIONS)
def test_result(attach: Attach, version: str) -> None:
    one = attach(V4, cniVersion=version)
    result = one.add()
    assert one.sandbox is not None
    if version in VERSIONS[:2]:
        routes = [{"dst": "0.0.0.0/0"}]
        assert result == {
            "cniVersion": version,
            "ip4": {"ip": V4["address"], "gateway": V4["gateway"], "routes": routes},
            "dns": {},
        }
    else:
        interface = {"name": "eth0", "mac": one.link()["address"], "sandbox": one.sandbox.path}
        assert result["interfaces"] == [interface]
        (entry,) = result["ips"]
        assert entry.items() >= {"interface": 0, **V4}.items()
        assert result["routes"] == [{"dst": "0.0.0.0/0"}]
        if version in VERSIONS[4:]:
            one.check()
    one.delete()


def test_neighbours_are_notified(attach: Attach, neighbour: Namespace) -> None:
    """Anyone who had the address before is forgotten at once."""
    run_in(neighbour, ["ip", "neighbour", "add", "192.0.2.5", "lladdr", "02:00:00:00:00:99",
                       "dev", "eth0", "nud", "stale"])  # fmt: skip
    with Wire(neighbour, "eth0", ARP) as wire:
        one = attach(V4, mac="02:00:00:00:00:05")
        one.add()
        announced = bytes.fromhex("020000000005") + bytes([192, 0, 2, 5])
        assert wire.receives(announced)
    (seen,) = ip_json("neighbour", "show", "192.0.2.5", netns=neighbour)
    assert seen["lladdr"] == "02:00:00:00:00:05"


def test_address_that_another_has_is_refused(attach: Attach) -> None:
    one = attach(V4, {"address": "2001:db8::1/64"})
    before, inside = snapshot(), ip_json("address", netns=one.sandbox)
    error = one.refused()
    assert "2001:db8::1" in error["msg"]
    assert snapshot() == before
    assert ip_json("address", netns=one.sandbox) == inside


def test_delete_whatever_is_missing(attach: Attach) -> None:
    one = attach(V4)
    one.delete()
    one.add()
    one.delete()
    one.delete()
    assert [item["ifname"] for item in ip_json("link", netns=one.sandbox)] == ["lo"]
    # The master gone, and with it the interface.
    one.add()
    run_in(None, ["ip", "link", "delete", "lan0"])
    before = snapshot()
    one.delete()
    assert [item["ifname"] for item in ip_json("link", netns=one.sandbox)] == ["lo"]
    assert one.sandbox is not None
    one.sandbox.delete()
    one.delete()
    one.sandbox = None
    one.delete()
    assert snapshot() == before


def test_each_failure_leaves_everything_as_it_was(attach: Attach) -> None:
    one = attach(V4, mtu=1300)
    before, inside = snapshot(), ip_json("-d", "address", netns=one.sandbox)
    refused = []
    for what in each_request_failing(lambda: one.run("ADD")):
        refused.append(what)
        assert snapshot() == before, what
        assert ip_json("-d", "address", netns=one.sandbox) == inside, what
    assert any("create macvlan" in what for what in refused)
    assert len(refused) > 6
    one.delete()


@pytest.mark.parametrize(
    ("damage", "reported"),
    [
        ("link delete eth0", "eth0 is missing"),
        ("link set eth0 down", "eth0 is down"),
        ("link set eth0 type macvlan mode private", "mode private"),
        ("link set eth0 address 02:00:00:00:00:01", "02:00:00:00:00:01"),
        ("address delete 192.0.2.5/24 dev eth0", "192.0.2.5/24 is missing"),
        ("route delete default", "0.0.0.0/0"),
    ],
)
def test_check_finds_drift(attach: Attach, damage: str, reported: str) -> None:
    attach(V4).drifts_by(damage, reported)


def test_check_finds_another_master_or_kind(attach: Attach) -> None:
    one = attach(V4)
    one.add()
    assert one.sandbox is not None
    run_in(None, ["ip", "link", "add", "lan1", "type", "veth", "peer", "lan2"])
    one.config["master"] = "lan1"
    assert "not on top of lan1" in one.drift()
    one.config["master"] = "lan9"
    assert "lan9" in one.drift()
    one.config["master"] = "lan0"
    run_in(one.sandbox, ["ip", "link", "delete", "eth0"])
    run_in(one.sandbox, ["ip", "link", "add", "eth0", "type", "bridge"])
    assert "not of type macvlan" in one.drift()
    one.delete()
    assert one.link()["linkinfo"]["info_kind"] == "bridge", "DEL took what is not its own"


def test_status(attach: Attach) -> None:
    one = attach(V4)
    assert one.run("STATUS").code == 0
    assert one.run("STATUS", master="lan9").result["code"] == 50
    assert one.run("STATUS", master="").result["code"] == 50
    assert one.run("STATUS", master="lan9", linkInContainer=True).code == 0
    run_in(None, ["ip", "route", "add", "default", "dev", "lan0"])
    assert one.run("STATUS", master="").code == 0


def test_unknown_mode_is_refused(attach: Attach) -> None:
    error = attach(V4, mode="source").refused()
    assert (error["code"], error["msg"]) == (7, 'unknown macvlan mode: "source"')


def test_many_at_once(attach: Attach) -> None:
    ones = [attach({"address": f"192.0.2.{n}/24"}, container=f"c{n}") for n in range(10, 26)]
    failures: list[AssertionError] = []

    def add(one: Attachment) -> None:
        try:
            one.add()
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=add, args=(one,)) for one in ones]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for one in ones:
        run_in(one.sandbox, ["ping", "-c1", "-W1", "192.0.2.1"])
        one.delete()
