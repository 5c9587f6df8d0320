"""dhcp and the MTU that a server gives (option 26), with a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Namespace, Sandbox, call_plugin, ip_json, run_in, run_plugin
from harness.dhcp import Daemon, Dnsmasq, Kea, Network
from harness.topics import dhcp as kit
from harness.ways import WAYS, way_of
from pycni.spec.errors import CNIError

daemon = kit.daemon
lan = kit.lan

ASKED = {"request": [{"option": "interface-mtu"}]}


Serve = Callable[..., Dnsmasq]


@pytest.fixture
def serve(lan: Network, tmp_path: Path) -> Iterator[Serve]:
    """Starts the server, which gives an MTU to anyone who asks for one."""
    running: list[Dnsmasq] = []

    def start(mtu: int | str, *options: str) -> Dnsmasq:
        option = f"--dhcp-option=26,{mtu}"
        running.append(Dnsmasq(lan, tmp_path / "dnsmasq", option, *options))
        running[-1].start()
        return running[-1]

    yield start
    for server in running:
        server.stop(9)


@pytest.fixture
def attach(plugin_dir: Path, sandbox: Sandbox, daemon: Daemon) -> Attach:
    """Makes attachments to br-lan that ask for the MTU: keys of the configuration."""

    def make(plugin: Path = plugin_dir / "bridge", **keys: Any) -> Attachment:
        config = {"cniVersion": "1.1.0", "name": "lan", **bridge(daemon), **keys}
        return Attachment(plugin, config, sandbox())

    return make


def bridge(daemon: Daemon, **ipam: Any) -> dict[str, Any]:
    ipam = {"type": "dhcp", "daemonSocketPath": str(daemon.socket), **(ipam or ASKED)}
    return {"type": "bridge", "bridge": "br-lan", "ipam": ipam}


def mtu(where: Attachment | Namespace | None, ifname: str = "eth0") -> int:
    netns = where.sandbox if isinstance(where, Attachment) else where
    found: int = ip_json("link", "show", ifname, netns=netns)[0]["mtu"]
    return found


def reported(attachment: Attachment) -> list[int]:
    """The MTU of the result's interfaces, 0 for those without."""
    return [interface.get("mtu", 0) for interface in attachment.result["interfaces"]]


# --- what is taken -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WAYS)
def test_interface_gets_it(
    kind: str,
    sandbox: Sandbox,
    serve: Serve,
    daemon: Daemon,
    tmp_path: Path,
    plugin_dir: Path,
) -> None:
    serve(1400)
    box = sandbox()
    with way_of(kind, tmp_path, plugin_dir) as way:
        network = way.network("lan", bridge(daemon))
        result = network.add("one", box.path)
        outer = result.interfaces[1].name
        assert [item.mtu for item in result.interfaces] == [0, 0, 1400]
        assert (mtu(box), mtu(None, outer), mtu(None, "br-lan")) == (1400, 1500, 1500)
        network.check("one", box.path)

        run_in(box, ["ip", "link", "set", "eth0", "mtu", "1500"])
        with pytest.raises(CNIError, match="MTU of eth0 is 1500, expected 1400"):
            network.check("one", box.path)
        (report,) = network.repair("one")
        assert [(item.what, item.state) for item in report.findings] == [
            ("MTU of eth0 is 1500, expected 1400", "repaired")
        ]
        assert mtu(box) == 1400
        run_in(box, ["ip", "link", "delete", "eth0"])
        (report,) = network.repair("one")
        assert report.ok, report.findings
        assert mtu(box) == 1400
        network.check("one", box.path)
        network.delete("one", box.path)
    assert mtu(None, "br-lan") == 1500
    assert daemon.leases() == []


def test_macvlan_on_a_device(serve: Serve, attach: Attach, plugin_dir: Path) -> None:
    serve(1400)
    run_in(None, ["ip", "link", "set", "wan", "nomaster"])
    one = attach(plugin_dir / "macvlan", type="macvlan", master="wan")
    one.add()
    assert (reported(one), mtu(one), mtu(None, "wan")) == ([1400], 1400, 1500)
    one.check()
    one.delete()


def test_device_of_the_host_has_its_own_again(
    serve: Serve, attach: Attach, plugin_dir: Path
) -> None:
    serve(1400)
    run_in(None, ["ip", "link", "set", "wan", "nomaster"])
    one = attach(plugin_dir / "host-device", type="host-device", device="wan")
    one.add()
    assert (reported(one), mtu(one)) == ([1400], 1400)
    one.check()
    one.delete()
    assert mtu(None, "wan") == 1500


def test_failed_add_takes_it_back(
    serve: Serve, attach: Attach, plugin_dir: Path, daemon: Daemon
) -> None:
    server = serve(1400, "--dhcp-option=121,192.0.2.0/24,203.0.113.1")
    run_in(None, ["ip", "link", "set", "wan", "nomaster"])
    ipam = bridge(daemon, request=[{"option": 26}, {"option": 121}])["ipam"]
    one = attach(plugin_dir / "host-device", type="host-device", device="wan", ipam=ipam)
    assert "203.0.113.1" in one.refused()["msg"]
    assert server.said("DHCPACK")
    assert mtu(None, "wan") == 1500
    assert daemon.leases() == []


@pytest.mark.parametrize("version", ["0.2.0", "0.4.0", "1.0.0"])
def test_older_results(version: str, serve: Serve, attach: Attach) -> None:
    """The interface has it, whatever the version of the specification can say of that."""
    serve(1400)
    one = attach(cniVersion=version)
    one.add()
    assert mtu(one) == 1400
    if version != "0.2.0":
        assert reported(one) == [0, 0, 1400 if version == "1.0.0" else 0]
        one.check()
    one.delete()


def test_tuning_goes_before(serve: Serve, attach: Attach, tmp_path: Path) -> None:
    serve(1400)
    one = attach()
    one.add()
    config = {key: one.config[key] for key in ("cniVersion", "name")}
    config |= {"type": "tuning", "mtu": 1300, "prevResult": one.result}
    two = Attachment(one.plugin.parent / "tuning", config, one.sandbox)
    one.result = two.add()
    assert (reported(one), mtu(one)) == ([0, 0, 1300], 1300)
    one.check()
    two.check()


@pytest.mark.parametrize("kind", ["bridge", "macvlan"])
def test_reference_s_interfaces_get_it(
    kind: str,
    serve: Serve,
    attach: Attach,
    tmp_path: Path,
    plugin_dir: Path,
    reference_dir: Path,
) -> None:
    serve(1400)
    if kind == "macvlan":
        run_in(None, ["ip", "link", "set", "wan", "nomaster"])
    (tmp_path / kind).symlink_to(reference_dir / kind)
    (tmp_path / "dhcp").symlink_to(plugin_dir / "dhcp")
    one = attach(tmp_path / kind, cniVersion="1.0.0", type=kind, master="wan")
    one.call = run_plugin
    one.add()
    assert mtu(one) == 1400
    one.check()
    one.delete()


# --- what is not ---------------------------------------------------------------------------------


def test_only_if_it_was_asked_for(
    lan: Network, attach: Attach, tmp_path: Path, daemon: Daemon
) -> None:
    """A server that gives it to everybody."""
    given = {"name": "interface-mtu", "data": "1400", "always-send": True}
    with Kea(lan, tmp_path / "kea", options=[given]):
        one = attach(**bridge(daemon, priority=0))
        one.add()
        assert (reported(one), mtu(one)) == ([0, 0, 0], 1500)
        two = attach()
        two.container = "two"
        two.add()
        assert (reported(two), mtu(two)) == ([0, 0, 1400], 1400)


def test_configured_one_goes_before(serve: Serve, attach: Attach) -> None:
    serve(1400)
    one = attach(mtu=1450)
    one.add()
    assert (reported(one), mtu(one)) == ([0, 0, 0], 1450)
    one.check()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("0", "68 bytes at least"),
        ("67", "68 bytes at least"),
        ("1279", "IPv6, which eth0 has, needs 1280"),
        ("1501", "eth0 carries 1500"),
        ("65535", "eth0 carries 1500"),
    ],
)
@pytest.mark.parametrize("kind", WAYS)
def test_what_makes_no_sense_is_reported(
    kind: str,
    given: str,
    why: str,
    serve: Serve,
    attach: Attach,
    tmp_path: Path,
    plugin_dir: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    serve(given)
    one = attach()
    with way_of(kind, tmp_path, plugin_dir) as way:
        one.plugin = way.plugins / "bridge"
        one.call = call_plugin if kind == "in process" else run_plugin
        capfd.readouterr()
        done = one.run("ADD")
        assert done.code == 0, done.stdout
        said = done.stderr + capfd.readouterr().err
        one.result = done.result
        assert f"dhcp: the server's MTU of {given} for eth0 is not used: " in said
        assert why in said
        assert (reported(one), mtu(one)) == ([0, 0, 0], 1500)
        one.check()


@pytest.mark.parametrize("given", [68, 1279])
def test_small_ones_without_ipv6(given: int, serve: Serve, attach: Attach) -> None:
    serve(given)
    one = attach()
    run_in(one.sandbox, ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])
    one.add()
    assert (reported(one), mtu(one)) == ([0, 0, given], given)
    one.check()


def test_the_same_is_no_change(
    serve: Serve, attach: Attach, capfd: pytest.CaptureFixture[str]
) -> None:
    serve(1500)
    one = attach()
    one.add()
    assert (reported(one), mtu(one)) == ([0, 0, 0], 1500)
    assert "MTU" not in capfd.readouterr().err


@pytest.mark.parametrize("hexadecimal", ["05", "00:00:05:78"])
def test_of_another_length(hexadecimal: str, lan: Network, attach: Attach, tmp_path: Path) -> None:
    with Dnsmasq(lan, tmp_path / "dnsmasq", f"--dhcp-option-force=26,{hexadecimal}"):
        one = attach()
        one.add()
        assert (reported(one), mtu(one)) == ([0, 0, 0], 1500)
