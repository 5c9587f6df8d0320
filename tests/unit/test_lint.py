"""`pycni lint`: all forty seeded faults, each at its line and key, and none where none is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.faulty_configs import FAULTY, Faulty
from harness.sound_configs import SOUND
from pycni.cli.main import main
from pycni.runtime.lint import lint_file


@pytest.mark.parametrize("file", SOUND)
def test_sound(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    path.write_text(json.dumps(SOUND[file], indent=2))
    assert lint_file(str(path)) == []


@pytest.mark.parametrize("case", FAULTY, ids=lambda case: case.file)
def test_faulty(tmp_path: Path, case: Faulty) -> None:
    path = tmp_path / case.file
    path.write_text(case.text)
    (fault,) = lint_file(str(path))
    assert (fault.line, fault.path) == (case.line, case.key)
    assert case.word in f"{fault}; {fault.expected}"
    assert str(fault).startswith(f"{path}:{case.line}: ")


def test_there_are_forty_of_each() -> None:
    assert len(SOUND) == len(FAULTY) == 40


SEVERAL = """{
  "cniVersion": "1.0.0",
  "name": "my net",
  "plugins": [
    {
      "type": "bridge",
      "isGatway": true,
      "mtu": "1500",
      "ipam": {"type": "host-local", "subnet": "10.1.0.0/33"}
    },
    {"type": "portmap", "capabilities": {"portMapping": true}},
    {"type": "unheard-of", "whatever": 1}
  ]
}
"""


def test_all_faults_at_once(tmp_path: Path) -> None:
    path = tmp_path / "10-net.conflist"
    path.write_text(SEVERAL)
    done = CliRunner().invoke(main, ["lint", str(path)])
    assert done.exit_code == 1
    assert [line.split(": ")[0:2] for line in done.stdout.splitlines()] == [
        [f"{path}:3", "name"],
        [f"{path}:7", "plugins[0].isGatway"],
        [f"{path}:8", "plugins[0].mtu"],
        [f"{path}:9", "plugins[0].ipam.subnet"],
        [f"{path}:11", "plugins[1].capabilities.portMapping"],
        [f"{path}:12", "plugins[2].type"],
    ]
    assert 'did you mean "isGateway"?' in done.stdout
    assert done.stderr == "6 faults in 1 file\n"


def test_json_and_directories(tmp_path: Path) -> None:
    (tmp_path / "10-net.conflist").write_text(SEVERAL)
    (tmp_path / "20-lo.conf").write_text('{"name": "lo", "type": "loopback"}')
    (tmp_path / "notes.txt").write_text("{")
    done = CliRunner().invoke(main, ["lint", "-o", "json", str(tmp_path)])
    assert done.exit_code == 1
    faults = json.loads(done.stdout)
    assert len(faults) == 6
    assert faults[1] == {
        "file": str(tmp_path / "10-net.conflist"),
        "line": 7,
        "key": "plugins[0].isGatway",
        "problem": "unknown key",
        "expected": 'did you mean "isGateway"?',
    }
    done = CliRunner().invoke(main, ["lint", str(tmp_path / "20-lo.conf")])
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "0 faults in 1 file\n")
    assert CliRunner().invoke(main, ["lint", str(tmp_path / "none")]).exit_code == 1


def test_without_a_file_the_directories_of_configurations(tmp_path: Path) -> None:
    """As `add` takes them: CNI's own, NETCONFPATH or --conf-dir, several with ':' between."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    where = f"{first}:{tmp_path / 'none'}:{second}"
    for way in ({"args": ["lint"], "env": {"NETCONFPATH": where}},
                {"args": ["lint", "--conf-dir", where]}):  # fmt: skip
        (first / "10-net.conflist").unlink(missing_ok=True)
        done = CliRunner().invoke(main, **way)
        assert done.exit_code == 1
        assert f"no net configurations found in {where}" in done.stderr
        (first / "10-net.conflist").write_text(SEVERAL)
        (second / "20-lo.conf").write_text('{"name": "lo", "type": "loopback"}')
        done = CliRunner().invoke(main, **way)
        assert done.stdout.startswith(f"{first}/10-net.conflist:3: name: ")
        assert (done.exit_code, done.stderr) == (1, "6 faults in 2 files\n")
        (second / "20-lo.conf").unlink()


def test_plugins_beside_the_list(tmp_path: Path) -> None:
    (tmp_path / "net.conflist").write_text('{"cniVersion": "1.0.0", "name": "net"}')
    (tmp_path / "net").mkdir()
    (tmp_path / "net/10-bridge.conf").write_text('{"type": "bridge",\n"isGatway": true}')
    (tmp_path / "net/20-tuning.conf").write_text('{\n"type": 7}')
    (tmp_path / "net/30-broken.conf").write_text("{")
    found = lint_file(str(tmp_path / "net.conflist"))
    assert [(Path(fault.file).name, fault.line, fault.path) for fault in found] == [
        ("10-bridge.conf", 2, "isGatway"),
        ("20-tuning.conf", 2, "type"),
        ("30-broken.conf", 1, ""),
    ]


@pytest.mark.parametrize("section", ["{}", '{"type": "bridge", "ipam": {}}'])
def test_a_plugin_that_is_nowhere(tmp_path: Path, section: str) -> None:
    """`add` would refuse it, and so does lint; but one of a plugin directory is known."""
    path, bin_dir = tmp_path / "net.conf", tmp_path / "bin"
    bin_dir.mkdir()
    network = {"cniVersion": "1.0.0", "name": "net", **json.loads(section)}
    place = network.get("ipam", network)
    place["type"] = "nonesuch"
    path.write_text(json.dumps(network))
    key = "ipam.type" if "ipam" in network else "type"
    command = ["lint", str(path), "--plugin-dir", str(bin_dir)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert done.stdout.startswith(f'{path}:1: {key}: no plugin "nonesuch"; --plugin-dir ')
    (bin_dir / "nonesuch").write_text("#!/bin/sh\n")
    assert CliRunner().invoke(main, command).exit_code == 1  # it cannot be run
    (bin_dir / "nonesuch").chmod(0o755)
    done = CliRunner().invoke(main, command)
    assert (done.exit_code, done.stdout) == (0, "")


BRIDGE = {
    "type": "bridge",
    "bridge": "br0",
    "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"},
}


@pytest.mark.parametrize(
    ("plugins", "key", "words"),
    [
        ([BRIDGE, {"type": "portmap"}], "plugins[1].capabilities", '{"portMappings": true}'),
        (
            [BRIDGE, {"type": "portmap", "capabilities": {"portMappings": False}}],
            "plugins[1].capabilities",
            "no port would be published",
        ),
        (
            [{**BRIDGE, "ipam": {**BRIDGE["ipam"], "gateway": "10.2.0.1"}}],  # type: ignore[dict-item]
            "plugins[0].ipam.gateway",
            "10.2.0.1 is not in 10.1.0.0/16",
        ),
        (
            [
                {
                    **BRIDGE,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": "fd00:1::/64", "gateway": "fd00:2::1"}]],
                    },
                }
            ],
            "plugins[0].ipam.ranges[0][0].gateway",
            "fd00:2::1 is not in fd00:1::/64",
        ),
        (
            [
                {
                    **BRIDGE,
                    "ipam": {
                        "type": "static",
                        "addresses": [{"address": "10.1.0.9/16", "gateway": "10.2.0.1"}],
                    },
                }
            ],
            "plugins[0].ipam.addresses[0].gateway",
            "10.2.0.1 is not in",
        ),
        (
            [BRIDGE, {"type": "bandwidth", "egressRate": 1000000, "egressBurst": 12000}],
            "plugins[1].egressBurst",
            "less than one frame of 1514 bytes",
        ),
        (
            [
                {
                    "type": "macvlan",
                    "mode": "passthru",
                    "capabilities": {"mac": True},
                    "ipam": {"type": "dhcp"},
                }
            ],
            "plugins[0].mode",
            "changes that of the master",
        ),
    ],
)
def test_keys_that_do_not_go_together(
    tmp_path: Path, plugins: list[dict[str, object]], key: str, words: str
) -> None:
    path = tmp_path / "10-net.conflist"
    path.write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": plugins}, indent=2)
    )
    (fault,) = lint_file(str(path))
    assert fault.path == key
    assert words in f"{fault.problem}; {fault.expected}"
    assert fault.line > 1


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_port_of_ipv6_s_localhost(tmp_path: Path, backend: str) -> None:
    """Where a configuration has ports of its own, which runtimes otherwise give."""
    ports = [{"hostPort": 8080, "containerPort": 80, "hostIP": "::1"}]
    portmap = {"type": "portmap", "backend": backend, "runtimeConfig": {"portMappings": ports}}
    faults = lint_networks(tmp_path, net={**portmap, "capabilities": {"portMappings": True}})
    (fault,) = (one for one in faults if "hostIP" in str(one["key"]))
    assert "cannot be mapped on ::1" in str(fault["problem"])


def lint_networks(folder: Path, **plugins: dict[str, object]) -> list[dict[str, object]]:
    for name, plugin in plugins.items():
        document = {"cniVersion": "1.0.0", "name": name.partition("_")[0], "plugins": [plugin]}
        (folder / f"{name}.conflist").write_text(json.dumps(document, indent=2))
    done = CliRunner().invoke(main, ["lint", str(folder), "-o", "json"])
    found: list[dict[str, object]] = json.loads(done.stdout)
    assert done.exit_code == bool(found)
    return found


def bridge(bridge: str, **ipam: object) -> dict[str, object]:
    return {"type": "bridge", "bridge": bridge, "ipam": {"type": "host-local", **ipam}}


def test_two_files_with_one_name(tmp_path: Path) -> None:
    (fault,) = lint_networks(
        tmp_path, net_a=bridge("a", subnet="10.1.0.0/16"), net_b=bridge("b", subnet="10.2.0.0/16")
    )
    assert (fault["file"], fault["key"]) == (str(tmp_path / "net_b.conflist"), "name")
    assert str(tmp_path / "net_a.conflist") in str(fault["problem"])
    assert fault["line"] == 3


def test_subnets_that_overlap(tmp_path: Path) -> None:
    (fault,) = lint_networks(
        tmp_path,
        one=bridge("a", subnet="10.1.0.0/16"),
        two=bridge("b", ranges=[[{"subnet": "10.1.7.0/24"}]]),
        three=bridge("c", subnet="10.2.0.0/16"),
    )
    assert (fault["file"], fault["key"]) == (str(tmp_path / "two.conflist"), "plugins[0].ipam")
    assert "10.1.7.0/24 overlaps with 10.1.0.0/16 of the network one" in str(fault["problem"])


def ipvlan(subnet: str, **keys: object) -> dict[str, object]:
    return {"type": "ipvlan", "ipam": {"type": "host-local", "subnet": subnet}, **keys}


@pytest.mark.parametrize(
    ("one", "two", "key"),
    [
        ({"master": "eth1"}, {"master": "eth1", "mode": "l3"}, "mode"),
        ({"master": "eth1", "mode": "l3"}, {"master": "eth1"}, "master"),
        ({"mode": "l3"}, {}, "type"),
        ({"master": "eth1", "mode": "l3"}, {"master": "eth1", "mode": "l3"}, ""),
        ({"master": "eth1"}, {"master": "eth1", "mode": "l2"}, ""),
        ({"master": "eth1"}, {"master": "eth2", "mode": "l3"}, ""),
        ({"master": "eth1"}, {"master": "eth1", "mode": "l3", "linkInContainer": True}, ""),
    ],
)
def test_modes_of_one_master(
    tmp_path: Path, one: dict[str, object], two: dict[str, object], key: str
) -> None:
    """Linux keeps one mode for all ipvlans on a link."""
    found = lint_networks(
        tmp_path, one=ipvlan("10.1.0.0/16", **one), two=ipvlan("10.2.0.0/16", **two)
    )
    if not key:
        assert found == []
        return
    (fault,) = found
    assert (fault["file"], fault["key"]) == (str(tmp_path / "two.conflist"), f"plugins[0].{key}")
    assert "which the network one in" in str(fault["problem"])
    assert f"in mode {two.get('mode', 'l2')}" in str(fault["problem"])
    assert isinstance(fault["line"], int)
    assert fault["line"] > 1


@pytest.mark.parametrize(("other", "faults"), [("br0", 0), ("br1", 1)])
def test_parts_of_one_subnet(tmp_path: Path, other: str, faults: int) -> None:
    """On one bridge they are well."""
    found = lint_networks(
        tmp_path,
        one=bridge("br0", subnet="10.1.0.0/16", rangeEnd="10.1.9.255"),
        two=bridge(other, subnet="10.1.0.0/16", rangeStart="10.1.10.0"),
    )
    assert len(found) == faults


def test_a_type_that_is_a_path_is_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "net.conf"
    path.write_text('{"cniVersion": "1.0.0", "name": "net", "type": "../bridge"}')
    (fault,) = lint_file(str(path))
    assert (fault.path, fault.problem) == ("type", "invalid plugin name: ../bridge")


def test_what_a_file_holds_does_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "net.conf"
    key = "is\x1b[2JGateway\u202e"
    path.write_text(json.dumps({"cniVersion": "1.0.0", "name": "net", "type": "loopback", key: 1}))
    done = CliRunner().invoke(main, ["lint", str(path)])
    assert r"net.conf:1: is\x1b[2JGateway\u202e: unknown key" in done.stdout
