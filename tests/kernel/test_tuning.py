"""tuning on the kernel: what is set, what is found changed, and what is put back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import Attach, Sandbox, run_in, run_plugin
from harness.chained import VERSIONS
from harness.faults import each_request_failing
from harness.topics import tuning as kit
from harness.topics.tuning import ALL, MAC, attributes, backup, sysctl
from harness.ways import WAYS, way_of
from pycni.runtime import PluginError

attach = kit.attach


ALLOWLIST = Path("/etc/cni/tuning/allowlist.conf")


@pytest.fixture
def allowlist() -> Iterator[Callable[[str], None]]:
    """Writes the host's allowlist, which is the test process's own."""

    def write(text: str) -> None:
        ALLOWLIST.parent.mkdir(parents=True, exist_ok=True)
        ALLOWLIST.write_text(text)

    yield write
    ALLOWLIST.unlink(missing_ok=True)


# --- what is set and put back --------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_link_attributes_are_set_and_put_back(attach: Attach, version: str, tmp_path: Path) -> None:
    one = attach(version=version, **ALL)
    before = attributes(one)
    result = one.add()
    assert attributes(one) == ALL
    expected = one.config["prevResult"]
    for interface in expected.get("interfaces", ()):
        if interface["name"] == "eth0":
            interface["mac"] = MAC
    assert result == expected
    if version >= "0.4.0":
        one.check()
    one.delete()
    assert attributes(one) == before
    assert not backup(tmp_path).exists()
    one.delete()


@pytest.mark.parametrize("key", ALL)
def test_each_attribute_alone(attach: Attach, key: str) -> None:
    one = attach(**{key: ALL[key]})
    before = attributes(one)
    one.add()
    assert attributes(one) == {**before, key: ALL[key]}
    one.check()
    one.delete()
    assert attributes(one) == before


@pytest.mark.parametrize("key", ALL)
def test_check_names_the_attribute_that_changed(attach: Attach, key: str) -> None:
    one = attach(**ALL)
    one.add()
    change = {
        "mac": ["address", "0a:58:0a:01:02:04"],
        "mtu": ["mtu", "1300"],
        "promisc": ["promisc", "off"],
        "allmulti": ["allmulticast", "off"],
        "txQLen": ["txqueuelen", "10"],
    }[key]
    run_in(one.sandbox, ["ip", "link", "set", "eth0", *change])
    words = {
        "mac": "MAC address of eth0 is 0a:58:0a:01:02:04, expected 0a:58:0a:01:02:03",
        "mtu": "MTU of eth0 is 1300, expected 1400",
        "promisc": "promiscuous mode of eth0 is off, expected on",
        "allmulti": "all-multicast mode of eth0 is off, expected on",
        "txQLen": "transmit queue length of eth0 is 10, expected 500",
    }
    assert one.drift() == words[key]


OTHER_FORMS = {
    "net.ipv4.ip_local_reserved_ports": "8080,8081,8082",
    "net.ipv4.tcp_rmem": "4096 70000",
    "net.ipv4.ip_default_ttl": "0x20",
    "net.ipv4.route.flush": "1",
}


@pytest.mark.parametrize("kind", WAYS)
def test_values_that_the_kernel_shows_in_another_form(
    kind: str, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    with way_of(kind, tmp_path, plugin_dir) as way:
        settings = {"dataDir": str(tmp_path / "tuning"), "sysctl": OTHER_FORMS}
        network = way.network("n", {"type": "bridge"}, {"type": "tuning", **settings})
        box = sandbox()
        shown = [f"/proc/sys/net/ipv4/{name}" for name in ("ip_local_reserved_ports", "tcp_rmem")]
        before = run_in(box, ["cat", *shown]).stdout
        network.add("c", box.path)
        assert run_in(box, ["cat", *shown]).stdout.split()[:3] == ["8080-8082", "4096", "70000"]
        network.check("c")
        assert all(report.is_sound for report in network.repair())
        run_in(box, ["sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=8080-8081"])
        with pytest.raises(PluginError, match="8080-8081, expected 8080-8082"):
            network.check("c")
        network.repair()
        network.check("c")
        network.delete("c")
        assert run_in(box, ["cat", *shown]).stdout == before


@pytest.mark.parametrize("kind", WAYS)
def test_mtu_that_would_cost_the_ipv6_addresses(
    kind: str, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """The kernel takes it, and takes IPv6 away."""
    with way_of(kind, tmp_path, plugin_dir) as way:
        ipam = way.host_local("10.12.0.0/24")
        bridge = {"type": "bridge", "ipam": ipam}
        tuning = {"type": "tuning", "mtu": 1200}
        way.network("v4", bridge, tuning).add("c", sandbox().path)
        ipam["ranges"].append([{"subnet": "fd12::/64"}])
        network, box = way.network("n", bridge, tuning), sandbox()
        with pytest.raises(
            PluginError, match="1200 eth0 would lose the address fd12::2/64"
        ) as caught:
            network.add("c", box.path)
        assert caught.value.code == 7
        way.network("n", bridge, {**tuning, "mtu": 1280}).add("c", box.path)


def test_what_is_refused_is_not_set(attach: Attach) -> None:
    """Nor what was set before it; an empty value is one to be put back, too."""
    before = "net/ipv4/ip_local_reserved_ports", "net/ipv4/tcp_rmem"
    one = attach(sysctl={**OTHER_FORMS, "net.ipv4.tcp_wmem": "5000 70000 many"})
    held = [sysctl(one, path) for path in (*before, "net/ipv4/tcp_wmem")]
    assert "Invalid argument" in one.refused()["msg"]
    assert [sysctl(one, path) for path in (*before, "net/ipv4/tcp_wmem")] == held


def test_sysctls_are_set_and_put_back(attach: Attach, tmp_path: Path) -> None:
    asked = {
        "net.core.somaxconn": "500",
        "net/ipv4/conf/IFNAME/arp_filter": "1",
        "net.ipv4.ip_local_port_range": "1024 65000",
    }
    one = attach(sysctl=asked)
    paths = ("net/core/somaxconn", "net/ipv4/conf/eth0/arp_filter", "net/ipv4/ip_local_port_range")
    before = [sysctl(one, path) for path in paths]
    one.add()
    assert [sysctl(one, path) for path in paths] == ["500", "1", "1024\t65000"]
    one.check()
    run_in(one.sandbox, ["sysctl", "-qw", "net.core.somaxconn=400"])
    assert one.drift() == "net/core/somaxconn is 400, expected 500"
    one.delete()
    assert [sysctl(one, path) for path in paths] == before
    assert not backup(tmp_path).exists()


def test_sysctl_of_an_interface_with_a_dot_in_its_name(attach: Attach) -> None:
    one = attach(ifname="eth0.5", sysctl={"net.ipv4.conf.IFNAME.arp_filter": "1"})
    one.add()
    assert sysctl(one, "net/ipv4/conf/eth0.5/arp_filter") == "1"
    one.check()


def test_false_and_zero_leave_things_alone(attach: Attach) -> None:
    one = attach(promisc=False, mtu=0)
    run_in(one.sandbox, ["ip", "link", "set", "eth0", "promisc", "on", "mtu", "1300"])
    before = attributes(one)
    one.add()
    assert attributes(one) == before
    # The reference takes a running packet capture for a difference.
    one.check()


def test_allmulti_false_switches_it_off(attach: Attach) -> None:
    one = attach(allmulti=False)
    run_in(one.sandbox, ["ip", "link", "set", "eth0", "allmulticast", "on"])
    one.add()
    assert not attributes(one)["allmulti"]
    one.delete()
    assert attributes(one)["allmulti"]


# --- where settings come from --------------------------------------------------------------------


def test_args_go_before_the_configuration(attach: Attach) -> None:
    one = attach(
        sysctl={"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1"},
        mtu=1400,
        promisc=True,
        args={
            "cni": {
                "sysctl": {"net.core.somaxconn": "600"},
                "mtu": 1450,
                "promisc": False,
                "txQLen": 0,
            }
        },
    )
    one.add()
    assert (attributes(one)["mtu"], attributes(one)["promisc"], attributes(one)["txQLen"]) == (
        1450,
        False,
        0,
    )
    assert sysctl(one, "net/core/somaxconn") == "600"
    assert sysctl(one, "net/ipv4/conf/eth0/arp_filter") == "1"
    one.check()


def test_args_without_a_configuration_of_the_same(attach: Attach) -> None:
    """The reference crashes here."""
    one = attach(args={"cni": {"sysctl": {"net.core.somaxconn": "600"}}})
    one.add()
    assert sysctl(one, "net/core/somaxconn") == "600"


def test_mac_by_every_way(attach: Attach) -> None:
    one = attach()
    macs = [f"0a:58:0a:01:02:0{number}" for number in range(4)]
    one.config["mac"] = macs[0].upper()
    for number in range(4):
        if number == 1:
            one.args = f"IgnoreUnknown=1;K8S_POD_NAME=x;MAC={macs[1]}"
        elif number == 2:
            one.config["runtimeConfig"] = {"mac": macs[2]}
        elif number == 3:
            one.config["args"] = {"cni": {"mac": macs[3]}}
        result = one.add()
        assert attributes(one)["mac"] == macs[number]
        assert result["interfaces"][1]["mac"] == macs[number]
        one.check()


def test_unknown_cni_args_are_refused(attach: Attach) -> None:
    one = attach(mtu=1400)
    one.args = "COLOUR=red"
    error = one.refused()
    assert error["code"] == 4
    assert error["msg"] == 'ARGS: unknown args ["COLOUR=red"]'


def test_only_the_sandbox_s_interface_gets_the_mac_in_the_result(attach: Attach) -> None:
    one = attach(mac=MAC)
    one.config["prevResult"]["interfaces"].append({"name": "eth0", "mac": "02:00:00:00:00:09"})
    macs = [interface["mac"] for interface in one.add()["interfaces"]]
    assert macs[1:] == [MAC, "02:00:00:00:00:09"]


# --- refusals ------------------------------------------------------------------------------------


def test_failing_half_way_leaves_everything_as_it_was(attach: Attach, tmp_path: Path) -> None:
    one = attach(**ALL, sysctl={"net.core.somaxconn": "500"})
    before, queue = attributes(one), sysctl(one, "net/core/somaxconn")
    refused = []
    for what in each_request_failing(lambda: one.run("ADD")):
        refused.append(what)
        assert attributes(one) == before
        assert sysctl(one, "net/core/somaxconn") == queue
        assert not backup(tmp_path).exists()
    assert any(what.startswith("set link") for what in refused)


def test_attribute_refused_by_the_kernel(attach: Attach, tmp_path: Path) -> None:
    one = attach(mac=MAC, mtu=70000, sysctl={"net.core.somaxconn": "500"})
    before, queue = attributes(one), sysctl(one, "net/core/somaxconn")
    error = one.refused()
    assert error["code"] == 100
    assert "mtu 70000" in error["msg"]
    assert (attributes(one), sysctl(one, "net/core/somaxconn")) == (before, queue)
    assert not backup(tmp_path).exists()


@pytest.mark.parametrize(
    "key",
    ["kernel.hostname", "net", "net..ipv4", "net/../kernel/hostname", "/net/core/somaxconn", ""],
)
def test_sysctl_outside_the_network(attach: Attach, key: str) -> None:
    error = attach(sysctl={key: "1"}).refused()
    assert error["code"] == 7
    assert error["msg"] == f'invalid net sysctl key: "{key}"'


def test_unknown_sysctl(attach: Attach) -> None:
    error = attach(sysctl={"net.core.no_such_thing": "1"}).refused()
    assert "/proc/sys/net/core/no_such_thing" in error["msg"]


def test_repeated_sysctl_is_refused(attach: Attach) -> None:
    one = attach()
    text = json.dumps({**one.config, "sysctl": {"net.core.somaxconn": "1"}})
    twice = text.replace('"net.core.somaxconn": "1"', '"net.core.somaxconn": "1", ' * 2)
    twice = twice.replace(", }", "}")
    run = run_plugin(
        one.plugin, "ADD", twice, CNI_NETNS=one.config["prevResult"]["interfaces"][1]["sandbox"]
    )
    assert run.code == 1
    assert run.result["msg"] == "duplicated sysctl keys are not allowed"


def test_allowlist(attach: Attach, allowlist: Callable[[str], None]) -> None:
    one = attach(sysctl={"net.core.somaxconn": "500"})
    allowlist("^net\\.ipv4\\.conf\\.IFNAME\\.\n\nnetfilter\n")
    error = one.refused()
    assert error["msg"] == (
        "Sysctl net.core.somaxconn is not allowed. Only the following sysctls are allowed: "
        "[^net\\.ipv4\\.conf\\.IFNAME\\. netfilter]"
    )
    status = one.run("STATUS")
    assert (status.code, status.result["code"]) == (1, 50)
    one.delete()
    allowlist("somaxconn\n")
    one.add()
    assert one.run("STATUS").code == 0
    allowlist("")
    assert one.refused()["code"] == 7
    allowlist("(\n")
    assert "no regular expression" in one.refused()["msg"]


def test_without_previous_result(attach: Attach) -> None:
    one = attach(mtu=1400)
    del one.config["prevResult"]
    for command in ("ADD", "CHECK"):
        error = one.refused(command)
        assert (error["code"], error["msg"]) == (7, "Required prevResult missing")
