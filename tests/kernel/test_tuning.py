"""tuning on the kernel: what is set, what is found changed, and what is put back."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Host, Namespace, Sandbox, run_in, run_plugin
from harness.chained import VERSIONS, make_veth, previous_result
from harness.faults import each_request_failing
from harness.ways import WAYS, way_of
from pycni.kernel import namespace
from pycni.plugins import tuning
from pycni.runtime import PluginError
from pycni.sdk.request import Request
from pycni.spec.errors import CNIError

ALLOWLIST = Path("/etc/cni/tuning/allowlist.conf")
MAC = "0a:58:0a:01:02:03"
ALL = {"mac": MAC, "mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 500}


@pytest.fixture
def attach(host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path) -> Attach:
    """Makes an attachment of a veth in a sandbox of its own, not yet added."""
    count = 0

    def make(
        *, netns: Namespace | None = None, ifname: str = "eth0", version: str = "1.1.0", **keys: Any
    ) -> Attachment:
        nonlocal count
        inside, host_name = netns or sandbox(), f"veth{count}"
        count += 1
        make_veth(inside, f"10.1.{count}.2/24", ifname=ifname, host_name=host_name)
        address = (f"10.1.{count}.2/24", None)
        config = {
            "cniVersion": version,
            "name": "net",
            "type": "tuning",
            "dataDir": str(tmp_path / "tuning"),
            "prevResult": previous_result(
                version, inside, address, ifname=ifname, host_name=host_name
            ),
        }
        return Attachment(plugin_dir / "tuning", {**config, **keys}, inside, ifname=ifname)

    return make


@pytest.fixture
def allowlist() -> Iterator[Callable[[str], None]]:
    """Writes the host's allowlist, which is the test process's own."""

    def write(text: str) -> None:
        ALLOWLIST.parent.mkdir(parents=True, exist_ok=True)
        ALLOWLIST.write_text(text)

    yield write
    ALLOWLIST.unlink(missing_ok=True)


def attributes(one: Attachment) -> dict[str, Any]:
    found = one.link()
    return {
        "mac": found["address"],
        "mtu": found["mtu"],
        "promisc": "PROMISC" in found["flags"],
        "allmulti": "ALLMULTI" in found["flags"],
        "txQLen": found.get("txqlen", 0),
    }


def sysctl(one: Attachment, path: str) -> str:
    return run_in(one.sandbox, ["cat", f"/proc/sys/{path}"]).stdout.strip()


def backup(tmp_path: Path, name: str = "pycni-test_eth0.json") -> Path:
    return tmp_path / "tuning" / name


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
        ) as told:
            network.add("c", box.path)
        assert told.value.code == 7
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


# --- the backup ----------------------------------------------------------------------------------


def test_backup_has_the_reference_s_name_and_keys(attach: Attach, tmp_path: Path) -> None:
    one = attach(**ALL)
    before = attributes(one)
    one.add()
    file = backup(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    found = json.loads(file.read_text())
    ours = {name: found.pop(name) for name in ("network", "containerID", "ifname", "applied")}
    assert found == before
    assert ours == {
        "network": "net",
        "containerID": "pycni-test",
        "ifname": "eth0",
        "applied": ALL,
    }
    assert file.read_text().startswith('{\n "mac":')


def test_second_add_keeps_what_there_was_before_the_first(attach: Attach, tmp_path: Path) -> None:
    one = attach(**ALL, sysctl={"net.core.somaxconn": "500"})
    before, queue = attributes(one), sysctl(one, "net/core/somaxconn")
    one.add()
    one.add()
    one.delete()
    assert (attributes(one), sysctl(one, "net/core/somaxconn")) == (before, queue)


def test_delete_that_cannot_put_something_back(attach: Attach, tmp_path: Path) -> None:
    """It tells, and puts back the rest; the next one tries again, and does not fail for it."""
    one = attach(mtu=1400, sysctl={"net.core.somaxconn": "500"})
    queue = sysctl(one, "net/core/somaxconn")
    one.add()
    (file,) = (tmp_path / "tuning").iterdir()
    file.write_text(file.read_text().replace('"mtu": 1500', '"mtu": 1'))
    run = one.run("DEL")
    assert run.code == 1
    assert "mtu 1" in run.result["msg"]
    assert sysctl(one, "net/core/somaxconn") == queue
    assert one.run("DEL").code == 0
    assert not file.exists()


def test_two_tunings_in_one_list(attach: Attach, tmp_path: Path) -> None:
    one = attach(mtu=1400)
    before = attributes(one)
    one.add()
    two = Attachment(one.plugin, {**one.config, "mtu": 0, "txQLen": 7}, one.sandbox)
    two.add()
    two.delete()
    one.delete()
    assert attributes(one) == before


FIRST = {"mtu": 1300, "mac": "02:00:00:00:00:05", "sysctl": {"net.core.somaxconn": "500"}}
SECOND = {"mtu": 1200, "mac": "02:00:00:00:00:06", "sysctl": {"net.core.somaxconn": "600"}}


def test_two_tunings_of_which_one_cannot_put_something_back(attach: Attach, tmp_path: Path) -> None:
    """The DEL of the list, in which both fail, is tried again, and no more."""
    one = attach(mtu=1400)
    two = replace(one, config={**one.config, "mtu": None, "txQLen": 500})
    before = attributes(one)
    one.add()
    two.add()
    path = tmp_path / "tuning/pycni-test_eth0.json"
    sound = json.loads(path.read_text())
    path.write_text(json.dumps({**sound, "mtu": 70000}))
    for each in (two, one):
        assert "mtu" in each.refused("DEL")["msg"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "mtu": sound["mtu"]}))
    two.delete()
    one.delete()
    assert attributes(one) == before
    assert not path.exists()
    one.add()
    two.add()
    path.write_text(json.dumps({**json.loads(path.read_text()), "mtu": 70000}))
    assert [each.run("DEL").code for each in (two, one, two, one)] == [1, 1, 0, 0]
    assert not path.exists()


def test_delete_where_the_namespace_cannot_be_opened(
    attach: Attach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of descriptors, say; which holds nobody up for good."""
    one = attach(mtu=1400)
    one.add()
    assert one.sandbox is not None
    path, real = one.sandbox.path, namespace.open_path

    def refuse(asked: str) -> namespace.Namespace:
        if asked == path:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(asked)

    monkeypatch.setattr(namespace, "open_path", refuse)
    request = Request("DEL", one.config, one.container, path, one.ifname)
    with pytest.raises(CNIError, match=os.strerror(errno.EMFILE)):
        tuning.plugin.delete(request)
    tuning.plugin.delete(request)
    assert list((tmp_path / "tuning").iterdir()) == []


def test_two_tunings_of_the_same_settings(attach: Attach, tmp_path: Path) -> None:
    """The last one's count while the container is attached, and those before the first after."""
    one = attach(**FIRST)
    before = attributes(one), sysctl(one, "net/core/somaxconn")
    one.add()
    two = Attachment(one.plugin, {**one.config, **SECOND}, one.sandbox)
    two.config["prevResult"] = one.result
    two.add()
    one.result = two.result
    assert (attributes(one)["mtu"], sysctl(one, "net/core/somaxconn")) == (1200, "600")
    one.check()
    two.check()
    two.delete()
    one.delete()
    assert (attributes(one), sysctl(one, "net/core/somaxconn")) == before
    assert not backup(tmp_path).exists()


def test_two_tunings_of_which_the_second_fails(attach: Attach, tmp_path: Path) -> None:
    one = attach(**FIRST)
    before = attributes(one), sysctl(one, "net/core/somaxconn")
    one.add()
    within = attributes(one), sysctl(one, "net/core/somaxconn")
    two = Attachment(one.plugin, {**one.config, **SECOND, "mtu": 70000}, one.sandbox)
    two.refused()
    assert (attributes(one), sysctl(one, "net/core/somaxconn")) == within
    one.check()
    one.delete()
    assert (attributes(one), sysctl(one, "net/core/somaxconn")) == before
    assert not backup(tmp_path).exists()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_containers_whose_ids_begin_alike(attach: Attach, order: tuple[int, int]) -> None:
    """`web` and `web_1` are two containers, though `web_1_eth0.json` begins with `web_`."""
    first = attach(sysctl={"net.core.somaxconn": "500"})
    second = attach(sysctl={"net.core.somaxconn": "500"})
    first.container, second.container = "web", "web_1"
    before = []
    for one, value in ((first, "111"), (second, "222")):
        run_in(one.sandbox, ["sysctl", "-q", "-w", f"net.core.somaxconn={value}"])
        before.append(value)
        one.add()
    for number in order:
        (first, second)[number].delete()
    assert [sysctl(one, "net/core/somaxconn") for one in (first, second)] == before


def test_attachments_with_one_file_name(attach: Attach, tmp_path: Path) -> None:
    first, second = attach(mtu=1300), attach(mtu=1400, ifname="1_eth0")
    first.container, second.container = "web_1", "web"
    before = attributes(first), attributes(second)
    first.add()
    second.add()
    assert len(list((tmp_path / "tuning").iterdir())) == 2
    first.delete()
    second.delete()
    assert (attributes(first), attributes(second)) == before
    assert list((tmp_path / "tuning").iterdir()) == []


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_attachments_with_one_sysctl(attach: Attach, order: tuple[int, int]) -> None:
    first = attach(sysctl={"net.core.somaxconn": "500"})
    second = attach(netns=first.sandbox, ifname="net1", sysctl={"net.core.somaxconn": "600"})
    before = sysctl(first, "net/core/somaxconn")
    first.add()
    second.add()
    (first, second)[order[0]].delete()
    # What the other one asked for is in force still, or again.
    assert sysctl(first, "net/core/somaxconn") == ("600" if order[0] == 0 else "500")
    (first, second)[order[1]].delete()
    assert sysctl(first, "net/core/somaxconn") == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"mtu": "x", "mac": 5, "sysctl": [1]}'])
def test_damaged_backup_is_no_obstacle(attach: Attach, tmp_path: Path, content: str) -> None:
    one = attach(**ALL)
    one.add()
    backup(tmp_path).write_text(content)
    one.delete()
    assert not backup(tmp_path).exists()


def test_delete_without_namespace_or_interface(attach: Attach, tmp_path: Path) -> None:
    """The reference leaves the file for ever."""
    one, two, three = attach(**ALL), attach(**ALL), attach(**ALL)
    for number, each in enumerate((one, two, three)):
        each.container = f"container-{number}"
        each.add()
    run_in(one.sandbox, ["ip", "link", "delete", "eth0"])
    one.delete()
    assert two.sandbox is not None
    two.sandbox.delete()
    two.delete()
    three.sandbox = None
    three.result = None
    del three.config["prevResult"]
    three.delete()
    assert list((tmp_path / "tuning").iterdir()) == []


def test_gc_removes_files_of_its_network_that_are_not_kept(attach: Attach, tmp_path: Path) -> None:
    kept, stale, other = attach(mtu=1400), attach(mtu=1400), attach(mtu=1400)
    for number, each in enumerate((kept, stale, other)):
        each.container = f"container_{number}"
    other.config["name"] = "other"
    for each in (kept, stale, other):
        each.add()
    foreign = backup(tmp_path, "container_9_eth0.json")
    foreign.write_text('{"mtu": 1500}')  # the reference's: of what network, nobody knows
    valid = [{"containerID": "container_0", "ifname": "eth0"}]
    run = kept.run("GC", **{"cni.dev/valid-attachments": valid})
    assert (run.code, run.stdout) == (0, "")
    left = {file.name for file in (tmp_path / "tuning").iterdir()}
    assert left == {"container_0_eth0.json", "container_2_eth0.json", "container_9_eth0.json"}


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
