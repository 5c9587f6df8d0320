"""host-device on the real kernel; a veth end is the device, its peer the network it is on.

What only hardware shows (a device that outlives its namespace, the PCI bus) is in tests/lab.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Host, Namespace, Sandbox, ip_json, run_in, snapshot
from harness.faults import each_request_failing
from harness.kernel_state import link, link_names

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
V4 = {"address": "192.0.2.5/24", "gateway": "192.0.2.1"}
V6 = {"address": "2001:db8::5/64", "gateway": "2001:db8::1"}
MAC = "02:00:00:00:00:55"


@pytest.fixture
def neighbour(host: Host, sandbox: Sandbox) -> Namespace:
    """A machine on the network that the host's device dev0 is on."""
    other = sandbox()
    run_in(None, ["ip", "link", "add", "dev0", "address", MAC, "type", "veth",
                  "peer", "eth0", "netns", other.name])  # fmt: skip
    run_in(other, ["sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0"])
    run_in(other, ["ip", "address", "add", "192.0.2.1/24", "dev", "eth0"])
    run_in(other, ["ip", "address", "add", "2001:db8::1/64", "dev", "eth0"])
    run_in(other, ["ip", "link", "set", "eth0", "up"])
    return other


@pytest.fixture
def attach(plugin_dir: Path, sandbox: Sandbox, neighbour: Namespace) -> Attach:
    def make(*addresses: dict[str, str], container: str = "one", **keys: Any) -> Attachment:
        config: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "host-device"}
        if addresses:
            routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}][: len(addresses)]
            config["ipam"] = {"type": "static", "addresses": addresses, "routes": routes}
        if not keys.keys() & {"hwaddr", "kernelpath", "pciBusID", "runtimeConfig"}:
            config["device"] = "dev0"
        return Attachment(plugin_dir / "host-device", config | keys, sandbox(), container)

    return make


def test_device_is_in_the_sandbox_and_comes_back(attach: Attach, neighbour: Namespace) -> None:
    one = attach(V4, V6)
    one.add()
    assert link_names() == {"lo"}
    inner = link("eth0", one.sandbox)
    assert (inner["address"], inner["ifalias"]) == (MAC, "dev0")
    run_in(one.sandbox, ["ping", "-c1", "-W1", "2001:db8::1"])
    run_in(one.sandbox, ["ping", "-c1", "-W1", "192.0.2.1"])
    run_in(neighbour, ["ping", "-c1", "-W1", "192.0.2.5"])
    one.check()
    one.delete()
    back = link("dev0")
    assert back["address"] == MAC
    assert "ifalias" not in back
    assert link_names(one.sandbox) == {"lo"}
    assert not ip_json("address", "show", "dev", "dev0")[0]["addr_info"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("addresses", [(), (V4,)], ids=["l2", "l3"])
def test_result(attach: Attach, version: str, addresses: tuple[Any, ...]) -> None:
    one = attach(*addresses, cniVersion=version)
    old = version in VERSIONS[:2]
    if old and not addresses:
        assert "no valid IP addresses" in one.refused()["msg"]
        assert link_names() == {"lo", "dev0"}
        return
    result = one.add()
    assert one.sandbox is not None
    assert "UP" in link("eth0", one.sandbox)["flags"]
    if old:
        slot = {"ip": V4["address"], "gateway": V4["gateway"], "routes": [{"dst": "0.0.0.0/0"}]}
        assert result == {"cniVersion": version, "ip4": slot, "dns": {}}
    else:
        assert result["interfaces"] == [{"name": "eth0", "mac": MAC, "sandbox": one.sandbox.path}]
        assert [entry["interface"] for entry in result.get("ips", [])] == [0] * len(addresses)
        if version in VERSIONS[4:]:
            one.check()
    one.delete()
    assert link_names() == {"lo", "dev0"}


def test_device_by_hardware_address(attach: Attach) -> None:
    one = attach(V4, hwaddr=MAC.upper().replace(":", "-"))
    one.add()
    assert link("eth0", one.sandbox)["address"] == MAC
    one.check()
    one.delete()
    assert link_names() == {"lo", "dev0"}


def test_first_selector_counts(attach: Attach) -> None:
    run_in(None, ["ip", "link", "add", "dev1", "type", "veth", "peer", "dev2"])
    one = attach(V4, device="dev1", hwaddr=MAC, kernelpath="/sys/devices/no/such")
    one.add()
    assert link("eth0", one.sandbox)["ifalias"] == "dev1"
    one.delete()
    assert "dev1" in link_names()


@pytest.mark.parametrize(
    "taken", ["dev0", "other"], ids=["the device's own name is in the sandbox", "or is not"]
)
def test_names_on_the_other_side_do_not_matter(attach: Attach, taken: str) -> None:
    one = attach(V4)
    run_in(one.sandbox, ["ip", "link", "add", taken, "type", "bridge"])
    run_in(one.sandbox, ["ip", "link", "set", taken, "up"])
    run_in(None, ["ip", "link", "add", "eth0", "type", "bridge"])
    one.add()
    assert link("eth0", one.sandbox)["address"] == MAC
    one.delete()
    assert link("dev0")["address"] == MAC
    other = link(taken, one.sandbox)
    assert other["linkinfo"]["info_kind"] == "bridge"
    assert "UP" in other["flags"]


def test_interface_of_that_name_in_the_sandbox_is_not_touched(attach: Attach) -> None:
    one = attach(V4)
    run_in(one.sandbox, ["ip", "link", "add", "eth0", "type", "bridge"])
    before = snapshot()
    assert one.refused()["code"] == 101
    assert snapshot() == before
    one.delete()
    assert link("eth0", one.sandbox)["linkinfo"]["info_kind"] == "bridge"
    assert snapshot() == before


def test_own_name_taken_meanwhile(attach: Attach) -> None:
    """DEL fails, the container keeps its interface, and a later DEL succeeds."""
    one = attach(V4)
    one.add()
    run_in(None, ["ip", "link", "add", "dev0", "type", "bridge"])
    assert "dev0" in one.refused("DEL")["msg"]
    inner = link("eth0", one.sandbox)
    assert (inner["address"], "UP" in inner["flags"]) == (MAC, True)
    run_in(one.sandbox, ["ping", "-c1", "-W1", "192.0.2.1"])
    run_in(None, ["ip", "link", "delete", "dev0"])
    one.delete()
    assert link("dev0")["address"] == MAC


def test_delete_whatever_is_missing(attach: Attach) -> None:
    one = attach(V4)
    before = snapshot()
    one.delete()
    assert snapshot() == before
    one.add()
    one.delete()
    one.delete()
    assert link_names() == {"lo", "dev0"}
    run_in(None, ["ip", "link", "delete", "dev0"])
    one.delete()
    assert one.sandbox is not None
    one.sandbox.delete()
    one.delete()
    one.sandbox = None
    one.delete()
    assert link_names() == {"lo"}


def test_addresses_are_released_whatever_is_missing(attach: Attach, tmp_path: Path) -> None:
    ipam = {"type": "host-local", "dataDir": str(tmp_path), "subnet": "192.0.2.0/24"}

    def taken() -> list[str]:
        return [name for name in os.listdir(tmp_path / "net") if name[0].isdigit()]

    for loss in ("path", "sandbox", "device"):
        one = attach(ipam=ipam)
        one.add()
        assert taken()
        assert one.sandbox is not None
        if loss == "path":
            gone, one.sandbox = one.sandbox, None
            one.delete()
            one.sandbox = gone
            one.delete()
        elif loss == "sandbox":
            run_in(one.sandbox, ["ip", "link", "set", "eth0", "netns", str(os.getpid()),
                                 "name", "dev0", "alias", ""])  # fmt: skip
            one.sandbox.delete()
            one.delete()
        else:
            run_in(one.sandbox, ["ip", "link", "delete", "eth0"])
            one.delete()
        assert not taken()


def test_device_that_came_back_by_itself_gets_its_name(attach: Attach) -> None:
    """As hardware does when its namespace dies: under the name it had there, alias and all."""
    one = attach(V4)

    def stray() -> None:
        one.add()
        assert one.sandbox is not None
        run_in(one.sandbox, ["ip", "link", "set", "eth0", "netns", str(os.getpid())])
        assert link_names() == {"lo", "eth0"}

    stray()
    one.delete()
    assert link("dev0")["address"] == MAC
    assert "ifalias" not in link("dev0")
    stray()
    keep = [{"containerID": "other", "ifname": "eth0"}]
    assert one.run("GC", **{"cni.dev/valid-attachments": keep}).code == 0
    assert link_names() == {"lo", "dev0"}
    one.config = {**one.config, "device": "", "hwaddr": MAC}
    stray()
    gone, one.sandbox = one.sandbox, None
    one.delete()
    assert link_names() == {"lo", "dev0"}
    one.sandbox = gone


def test_other_device_with_an_alias_is_left_alone(attach: Attach) -> None:
    run_in(None, ["ip", "link", "add", "up0", "type", "veth", "peer", "up1"])
    run_in(None, ["ip", "link", "set", "up0", "alias", "uplink"])
    one = attach(V4)
    before = snapshot()
    one.delete()
    assert one.run("GC", **{"cni.dev/valid-attachments": []}).code == 0
    assert snapshot() == before


def test_each_failure_leaves_everything_as_it_was(attach: Attach) -> None:
    """The device is up again, with its addresses, routes and alias."""
    one = attach(V4)
    run_in(None, ["ip", "link", "set", "dev0", "up", "alias", "uplink"])
    run_in(None, ["ip", "address", "add", "192.0.2.9/24", "dev", "dev0"])
    run_in(None, ["ip", "address", "add", "2001:db8::9/64", "dev", "dev0", "nodad"])
    run_in(None, ["ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.1", "metric", "7"])
    run_in(None, ["ip", "route", "add", "2001:db8:9::/64", "via", "2001:db8::1"])

    def state() -> Any:
        found = snapshot()
        for key in ("ifindex", "operstate", "link_index"):
            for entry in (*found["links"], *found["addresses"]):
                entry.pop(key, None)
        for entry in (*found["links"], *found["addresses"]):  # the carrier takes its time
            entry["flags"] = sorted({*entry["flags"]} - {"NO-CARRIER", "LOWER_UP"})
        for entry in found["addresses"]:  # the kernel probes its own one again
            entry["addr_info"] = sorted(
                (a["local"], a["prefixlen"]) for a in entry["addr_info"] if a["scope"] != "link"
            )
        own = [r for r in found["routes"] if r.get("protocol") != "kernel"]
        return found["links"], found["addresses"], own

    before, inside = state(), ip_json("-d", "address", netns=one.sandbox)
    refused = []
    for what in each_request_failing(lambda: one.run("ADD")):
        refused.append(what)
        assert state() == before, what
        assert ip_json("-d", "address", netns=one.sandbox) == inside, what
    assert any("netns" in what for what in refused)
    assert any("add address" in what for what in refused)
    one.delete()


@pytest.mark.parametrize(
    ("damage", "reported"),
    [
        ("link delete eth0", "eth0 is missing"),
        ("link set eth0 down", "eth0 is down"),
        ("link set eth0 alias none_of_yours/", "alias"),
        ("link set eth0 address 02:00:00:00:00:01", "02:00:00:00:00:01"),
        ("address delete 192.0.2.5/24 dev eth0", "192.0.2.5/24 is missing"),
    ],
)
def test_check_finds_drift(attach: Attach, damage: str, reported: str) -> None:
    attach(V4).drifts_by(damage, reported)


def test_configuration_is_refused(attach: Attach) -> None:
    for keys, reported in (
        ({"device": ""}, 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"'),
        ({"device": "dev9"}, "failed to find physical interface"),
        ({"hwaddr": "02:00:00:00:00:99"}, "failed to find physical interface"),
        ({"hwaddr": "02:00"}, "hwaddr"),
        ({"kernelpath": "/etc"}, "must be absolute and begin with /sys/devices/"),
        ({"kernelpath": "/sys/devices/../../etc"}, "must be absolute"),
        ({"kernelpath": "/sys/devices/no/such"}, "failed to find network device in path"),
        ({"pciBusID": "ffff:ff:1f.7"}, "no net directory under pci device ffff:ff:1f.7"),
        ({"pciBusID": "../.."}, "pciBusID"),
        (
            {"runtimeConfig": {"deviceID": "ffff:ff:1f.7"}},
            "runtime config DeviceID ffff:ff:1f.7 not found or unsupported",
        ),
        ({"runtimeConfig": {"deviceID": "../../devices"}}, "not found or unsupported"),
    ):
        error = attach(V4, **keys).refused()
        assert error["code"] == 7
        assert reported in error["msg"]
    assert link_names() == {"lo", "dev0"}


def test_status(attach: Attach) -> None:
    one = attach(V4)
    assert one.run("STATUS").code == 0
    assert one.run("STATUS", device="dev9").result["code"] == 50
    # The runtime says the device with each ADD.
    assert one.run("STATUS", device="").code == 0


# --- buses: /sys as the kernel lays it out, with names of links that are there ------------------


@pytest.fixture
def bus() -> Callable[[str, dict[str, str]], None]:
    """Put files below /sys/bus, which this process has mounts of its own of."""

    def make(folder: str, entries: dict[str, str]) -> None:
        run_in(None, ["mount", "-t", "tmpfs", "none", folder])
        for path, target in entries.items():
            place = Path(folder, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            if target:
                place.symlink_to(target)
            else:
                place.mkdir()

    return make


def test_buses(attach: Attach, bus: Callable[[str, dict[str, str]], None]) -> None:
    bus(
        "/sys/bus",
        {
            "pci/devices/0000:01:00.0/net/dev0": "",
            "pci/devices/0000:01:00.0/driver": "../../drivers/ixgbe",
            "pci/devices/0000:01:00.1/virtio3/net/dev0": "",
            "pci/devices/0000:01:00.2/driver": "../../drivers/vfio-pci",
            "auxiliary/devices/mlx5_core.sf.2/net/dev0": "",
        },
    )
    try:
        for keys in (
            {"pciBusID": "0000:01:00.0"},
            {"pciBusID": "0000:01:00.1"},
            {"runtimeConfig": {"deviceID": "0000:01:00.1"}, "pciBusID": "0000:01:00.9"},
            {"RuntimeConfig": {"deviceID": "mlx5_core.sf.2"}, "pciBusID": "0000:01:00.2"},
        ):
            one = attach(V4, device="", **keys)
            one.add()
            assert link("eth0", one.sandbox)["ifalias"] == "dev0"
            one.check()
            one.delete()
            assert link_names() == {"lo", "dev0"}
        assert_dpdk(attach)
    finally:
        run_in(None, ["umount", "/sys/bus"])


def assert_dpdk(attach: Attach) -> None:
    """A device that a program drives is reported, and nothing else."""
    one = attach(V4, device="", runtimeConfig={"deviceID": "0000:01:00.2"})
    before, inside = snapshot(), ip_json("address", netns=one.sandbox)
    result = one.add()
    assert one.sandbox is not None
    assert result["interfaces"] == [{"name": "eth0", "sandbox": one.sandbox.path}]
    assert result["ips"] == [{"interface": 0, **V4}]
    one.check()
    one.delete()
    l2 = attach(device="", pciBusID="0000:01:00.2", cniVersion="0.4.0")
    assert "ips" not in l2.add()
    l2.check()
    l2.delete()
    assert snapshot() == before
    assert ip_json("address", netns=one.sandbox) == inside
