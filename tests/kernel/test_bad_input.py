"""Bad input: one error object that names the value and what was expected, and nothing done.

Every case goes to an installed executable as a process. Its stdout must hold one error object, its
stderr no traceback, its exit code must be 1, and the host must be as it was.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import Host, PluginRun, Sandbox, run_plugin

SUBNET = "10.8.0.0/24"


@dataclass(frozen=True)
class Case:
    """Bad input: what is wrong, the code of the error, and words that its texts must hold."""

    name: str
    code: int
    words: tuple[str, ...]
    config: Any = None  # bytes or text as they are; a dict changes the sound configuration
    env: dict[str, str | None] = field(default_factory=dict)
    plugin: str = "bridge"
    command: str = "ADD"


def ipam(**keys: Any) -> dict[str, Any]:
    return {"ipam": {"type": "host-local", "subnet": SUBNET, **keys}}


def ranges(*sets: list[dict[str, Any]]) -> dict[str, Any]:
    return {"ipam": {"type": "host-local", "ranges": list(sets)}}


def env(**variables: str | None) -> dict[str, str | None]:
    return {f"CNI_{name.upper()}": value for name, value in variables.items()}


LONG = "a" * 16

CASES = [
    # stdin
    Case("empty stdin", 6, ("unexpected end of JSON input",), b""),
    Case("only spaces", 6, ("unexpected end of JSON input",), b" \n\t"),
    Case("no JSON", 6, ("line 1",), b"bridge, please"),
    Case("cut short", 6, ("line 1",), b'{"cniVersion": "1.0.0", "name": "n'),
    Case("trailing comma", 6, ("line 1",), b'{"name": "n",}'),
    Case("text after the end", 6, ("after the end",), b'{"name": "n"} {"name": "n"}'),
    Case("single quotes", 6, ("line 1",), b"{'name': 'n'}"),
    Case("control character", 6, ("control character",), b'{"name": "a\x01"}'),
    Case("NaN", 6, ("NaN",), b'{"name": "n", "mtu": NaN}'),
    Case("number out of range", 6, ("1e999",), b'{"name": "n", "mtu": 1e999}'),
    Case("byte order mark", 6, ("BOM",), b'\xef\xbb\xbf{"name": "n"}'),
    Case("binary", 6, ("line 1",), bytes(range(256))),
    Case("a list", 6, ("not a JSON object",), b"[]"),
    Case("a string", 6, ("not a JSON object",), b'"bridge"'),
    Case("null", 6, ("not a JSON object",), b"null"),
    Case("too deep", 6, ("nested",), b'{"name": "n", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    Case("too long", 6, ("bytes",), b'{"name": "n", "x": "' + b"x" * (17 << 20) + b'"}'),
    # name and version
    Case("no name", 7, ("missing network name",), {"name": None}),
    Case("empty name", 7, ("missing network name",), {"name": ""}),
    Case("name with a slash", 7, ("network name", "../etc"), {"name": "../etc"}),
    Case("name with a space", 7, ("network name", "a b"), {"name": "a b"}),
    Case("name of a number", 6, ("name",), {"name": 7}),
    Case("version of the future", 1, ('"9.0.0"', '"1.1.0"'), {"cniVersion": "9.0.0"}),
    Case("version that is none", 1, ('"one"',), {"cniVersion": "one"}),
    Case("version of a number", 6, ("cniVersion",), {"cniVersion": 1}),
    Case("CHECK too old", 1, ("CHECK", "0.3.1"), {"cniVersion": "0.3.1"}, command="CHECK"),
    Case("GC too old", 1, ("GC", "1.0.0"), {"cniVersion": "1.0.0"}, command="GC"),
    Case("STATUS too old", 1, ("STATUS", "1.0.0"), {"cniVersion": "1.0.0"}, command="STATUS"),
    # environment
    Case("unknown command", 4, ("unknown CNI_COMMAND: ATTACH", "ADD"), command="ATTACH"),
    Case("command in small letters", 4, ("unknown CNI_COMMAND: add",), command="add"),
    Case("no container id", 4, ("[CNI_CONTAINERID]",), env=env(containerid=None)),
    Case("empty container id", 4, ("[CNI_CONTAINERID]",), env=env(containerid="")),
    Case("nowhere to find the address plugin", 4, ("[CNI_PATH]", "host-local"),
         env=env(path=None)),
    Case("several missing", 4, ("[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME]",),
         env=env(containerid=None, netns=None, ifname=None, path=None)),
    Case("container id with a slash", 4, ("containerID", "../x"), env=env(containerid="../x")),
    Case("container id with a newline", 4, ("containerID",), env=env(containerid="a\n")),
    Case("interface name too long", 4, ("too long", "16"), env=env(ifname=LONG)),
    Case("interface name of dots", 4, ("..",), env=env(ifname="..")),
    Case("interface name with a slash", 4, ("/",), env=env(ifname="a/b")),
    Case("interface name with a space", 4, ("whitespace",), env=env(ifname="a b")),
    Case("CNI_ARGS without =", 4, ("ARGS", '"MAC"'), env=env(args="MAC")),
    Case("CNI_ARGS unknown", 4, ("ARGS", "COLOUR=red"), env=env(args="COLOUR=red")),
    Case("CNI_ARGS IgnoreUnknown", 4, ("maybe",), env=env(args="IgnoreUnknown=maybe;A=b")),
    Case("MAC that is none", 7, ("0a:58", "CNI_ARGS"), env=env(args="MAC=0a:58;IgnoreUnknown=1")),
    # the namespace
    Case("no such netns", 8, ("/run/netns/none", "failed to open netns"),
         env=env(netns="/run/netns/none")),
    Case("netns is a file", 8, ("/etc/passwd", "network namespace"), env=env(netns="/etc/passwd")),
    Case("netns is a directory", 8, ("/run", "network namespace"), env=env(netns="/run")),
    Case("netns of another kind", 8, ("/proc/self/ns/uts", "network namespace"),
         env=env(netns="/proc/self/ns/uts")),
    Case("netns is the host", 8, ("should not be the same", "/proc/self/ns/net"),
         env=env(netns="/proc/self/ns/net")),
    # bridge
    Case("mtu of text", 7, ("mtu", '"1500"', "whole number"), {"mtu": "1500"}),
    Case("mtu with a fraction", 7, ("mtu", "1500.5"), {"mtu": 1500.5}),
    Case("mtu below zero", 7, ("mtu", "-1", "0"), {"mtu": -1}),
    Case("isGateway of text", 7, ("isGateway", '"yes"', "true or false"), {"isGateway": "yes"}),
    Case("bridge of a number", 7, ("bridge", "7", "a string"), {"bridge": 7}),
    Case("bridge name too long", 7, ("too long",), {"bridge": LONG}),
    Case("bridge name with a slash", 7, ("/",), {"bridge": "br/0"}),
    Case("vlan too high", 7, ("5000", "4094"), {"vlan": 5000}),
    Case("trunk without maxID", 7, ("maxID is missing",), {"vlanTrunk": [{"minID": 1}]}),
    Case("trunk the wrong way", 7, ("minID is greater",),
         {"vlanTrunk": [{"minID": 9, "maxID": 1}]}),
    Case("trunk of a number", 7, ("vlanTrunk[0]", "7"), {"vlanTrunk": [7]}),
    Case("hairpin and promisc", 7, ("hairpin", "promisc"),
         {"hairpinMode": True, "promiscMode": True}),
    Case("masquerade backend", 7, ('"ebtables"', "nftables"), {"ipMasqBackend": "ebtables"}),
    Case("IPAM with interface down", 7, ("IPAM", "DisableContainerInterface"),
         {"disableContainerInterface": True}),
    Case("bad MAC in runtimeConfig", 7, ("runtimeConfig.mac", "zz"),
         {"runtimeConfig": {"mac": "zz"}}),
    Case("bad MAC in args", 7, ("args.cni.mac",), {"args": {"cni": {"mac": "1:2:3"}}}),
    Case("bad dns", 7, ("dns.nameservers[0]", "7"), {"dns": {"nameservers": [7]}}),
    Case("prevResult missing", 7, ("Required prevResult missing",), command="CHECK"),
    Case("prevResult of another family", 1, ("prevResult", "0.2.0"),
         {"prevResult": {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/8"}}}, command="CHECK"),
    Case("prevResult broken", 6, ("prevResult", "ips[0].address", "10.0.0"),
         {"prevResult": {"ips": [{"address": "10.0.0"}]}}, command="CHECK"),
    Case("prevResult a list", 6, ("prevResult",), {"prevResult": []}, command="CHECK"),
    Case("GC without a list", 7, ("cni.dev/valid-attachments", "empty list"), command="GC"),
    Case("GC with a broken list", 7, ("valid-attachments",),
         {"cni.dev/valid-attachments": [{"containerID": 7, "ifname": "eth0"}]}, command="GC"),
    # finding the address plugin
    Case("ipam type with a slash", 7, ("../bin/true", "/"), {"ipam": {"type": "../bin/true"}}),
    Case("ipam type unknown", 0, ('"hostlocal"', "CNI_PATH"), {"ipam": {"type": "hostlocal"}}),
    Case("no addresses before 0.3.0", 7, ("0.2.0", "0.3.0"), {"cniVersion": "0.2.0", "ipam": {}}),
    # host-local
    Case("no ranges", 7, ("no IP ranges specified", "subnet"), {"ipam": {"type": "host-local"}}),
    Case("subnet is none", 7, ("ipam.subnet", "10.8.0.0/33"), ipam(subnet="10.8.0.0/33")),
    Case("subnet without prefix", 7, ("ipam.subnet", "10.8.0.0"), ipam(subnet="10.8.0.0")),
    Case("subnet with host bits", 7, ("10.8.0.0",), ipam(subnet="10.8.0.7/24")),
    Case("subnet too small", 7, ("too small", "10.8.0.0/31"), ipam(subnet="10.8.0.0/31")),
    Case("rangeStart outside", 7, ("RangeStart", "10.9.0.1"), ipam(rangeStart="10.9.0.1")),
    Case("rangeEnd outside", 7, ("RangeEnd", "10.9.0.1"), ipam(rangeEnd="10.9.0.1")),
    Case("range the wrong way", 7, ("10.8.0.9",), ipam(rangeStart="10.8.0.9", rangeEnd="10.8.0.2")),
    Case("gateway is none", 7, ("ipam.gateway", "10.8.0"), ipam(gateway="10.8.0")),
    Case("range set empty", 7, ("empty range set",), ranges([])),
    Case("range set mixed", 7, ("mixed",), ranges([{"subnet": SUBNET}, {"subnet": "fd00::/64"}])),
    Case("ranges overlap in a set", 7, ("overlap",),
         ranges([{"subnet": SUBNET}, {"subnet": SUBNET}])),
    Case("range sets overlap", 7, ("overlap",), ranges([{"subnet": SUBNET}], [{"subnet": SUBNET}])),
    Case("two sets before 0.3.0", 7, ("0.2.0", "more than 1 address"),
         {"cniVersion": "0.2.0", **ranges([{"subnet": SUBNET}], [{"subnet": "10.9.0.0/24"}])}),
    Case("ranges of a number", 7, ("ipam.ranges",), {"ipam": {"type": "host-local", "ranges": 7}}),
    Case("route without dst", 7, ("ipam.routes[0].dst",), ipam(routes=[{"gw": "10.8.0.1"}])),
    Case("route to nowhere", 7, ("ipam.routes[0].dst", "0/0"), ipam(routes=[{"dst": "0/0"}])),
    Case("resolvConf missing", 5, ("/run/none",), ipam(resolvConf="/run/none")),
    Case("dataDir elsewhere", 7, ("/etc/passwd",), ipam(dataDir="/etc/passwd")),
    Case("requested address is none", 4, ("10.8.0",), env=env(args="IP=10.8.0;IgnoreUnknown=1")),
    Case("requested address elsewhere", 103, ("10.9.0.1",),
         env=env(args="IP=10.9.0.1;IgnoreUnknown=1")),
    Case("requested address is the gateway", 103, ("10.8.0.1", "gateway"),
         env=env(args="IP=10.8.0.1;IgnoreUnknown=1")),
    Case("host-local by itself", 7, ("ipam",), {"ipam": None}, plugin="host-local"),
    # loopback
    Case("loopback without netns", 4, ("[CNI_NETNS]",), env=env(netns=None), plugin="loopback"),
    Case("loopback in a file", 8, ("/etc/passwd",), env=env(netns="/etc/passwd"),
         plugin="loopback"),
]  # fmt: skip


def sound(tmp_path: Path) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "bridge",
        "bridge": "br0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {"type": "host-local", "subnet": SUBNET, "dataDir": str(tmp_path / "leases")},
    }


def stdin_of(case: Case, tmp_path: Path) -> Any:
    if isinstance(case.config, bytes):
        return case.config
    changed = {**sound(tmp_path), **(case.config or {})}
    section = changed["ipam"]
    if isinstance(section, dict) and section:
        section.setdefault("dataDir", str(tmp_path / "leases"))
    return {key: value for key, value in changed.items() if value is not None}


def assert_refused(run: PluginRun, code: int, words: tuple[str, ...]) -> None:
    assert run.code == 1, run
    error = json.loads(run.stdout)
    assert set(error) <= {"cniVersion", "code", "msg", "details"}, error
    assert error["code"] == code, error
    for word in words:
        assert word in error["msg"] + error.get("details", ""), error
    assert "Traceback" not in run.stdout + run.stderr
    assert "internal error" not in error["msg"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(
    case: Case, host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    space = sandbox()
    before = host.snapshot(tmp_path)
    given = {"CNI_NETNS": space.path, **case.env}
    run = run_plugin(plugin_dir / case.plugin, case.command, stdin_of(case, tmp_path), **given)
    assert_refused(run, case.code, case.words)
    # What a lease directory holds besides leases is no trace of an attachment.
    after = host.snapshot(tmp_path)
    after["files"] = {
        path: content
        for path, content in after["files"].items()
        if not path.endswith(("/lock", "/last_reserved_ip.0")) and "/.pycni/" not in path
    }
    assert after == before


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


def test_range_exhausted(host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path) -> None:
    """The error says how many addresses are held, and by how many containers."""
    config = {**sound(tmp_path), **ipam(subnet="10.8.0.0/29", dataDir=str(tmp_path / "leases"))}
    for number in range(5):
        held = {"CNI_CONTAINERID": f"c{number}", "CNI_NETNS": "/x"}
        assert run_plugin(plugin_dir / "host-local", "ADD", config, **held).code == 0
    before = host.snapshot(tmp_path)
    run = run_plugin(plugin_dir / "bridge", "ADD", config, CNI_NETNS=sandbox().path)
    assert_refused(run, 103, ("no IP addresses available in range set", "10.8.0.1-10.8.0.6", "5"))
    after = host.snapshot(tmp_path)
    assert {**after, "files": None} == {**before, "files": None}


def test_address_taken(host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path) -> None:
    """The error names the container that has the address."""
    config = sound(tmp_path)
    args = {"CNI_ARGS": "IP=10.8.0.9;IgnoreUnknown=1", "CNI_NETNS": "/x"}
    first = {**args, "CNI_CONTAINERID": "first-one"}
    assert run_plugin(plugin_dir / "host-local", "ADD", config, **first).code == 0
    second = {**args, "CNI_NETNS": sandbox().path}
    run = run_plugin(plugin_dir / "bridge", "ADD", config, **second)
    assert_refused(run, 103, ("10.8.0.9", "not available", "first-one"))


def test_interface_is_there_already(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    space = sandbox()
    subprocess.run(["ip", "-n", space.name, "link", "add", "eth0", "type", "bridge"], check=True)
    before = host.snapshot()
    run = run_plugin(plugin_dir / "bridge", "ADD", sound(tmp_path), CNI_NETNS=space.path)
    assert_refused(run, 101, ('"eth0"', "already exists"))
    assert host.snapshot() == before


def test_bridge_is_something_else(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    subprocess.run(["ip", "link", "add", "br0", "type", "veth", "peer", "x"], check=True)
    before = host.snapshot()
    run = run_plugin(plugin_dir / "bridge", "ADD", sound(tmp_path), CNI_NETNS=sandbox().path)
    assert_refused(run, 7, ('"br0" already exists but is not a bridge', "veth"))
    assert host.snapshot() == before


def test_bridge_has_another_address(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    subprocess.run(["ip", "link", "add", "br0", "type", "bridge"], check=True)
    subprocess.run(["ip", "address", "add", "10.7.0.1/24", "dev", "br0"], check=True)
    run = run_plugin(plugin_dir / "bridge", "ADD", sound(tmp_path), CNI_NETNS=sandbox().path)
    assert_refused(run, 101, ('"br0" already has an IP address different from', "10.7.0.1/24"))


@pytest.mark.parametrize("plugin", ["bridge", "loopback"])
def test_no_privileges(
    plugin: str, host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """A process without capabilities learns that they are missing."""
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c",
        "CNI_NETNS": sandbox().path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(plugin_dir),
    }
    before = host.snapshot()
    done = subprocess.run(
        ["setpriv", "--inh-caps=-all", "--bounding-set=-all", plugin_dir / plugin],
        input=json.dumps(sound(tmp_path)).encode(),
        env=environ,
        capture_output=True,
        check=False,
    )
    run = PluginRun(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert_refused(run, 4, ("root",))
    assert host.snapshot() == before
    leases = tmp_path / "leases" / "net"
    assert not leases.exists() or not any(name[0].isdigit() for name in os.listdir(leases))


def test_stdin_without_an_end(plugin_dir: Path) -> None:
    with Path("/dev/zero").open("rb") as endless:
        run = subprocess.run(
            [plugin_dir / "bridge"],
            stdin=endless,
            env={"CNI_COMMAND": "STATUS", "CNI_PATH": str(plugin_dir)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    error = json.loads(run.stdout)
    assert (run.returncode, error["code"]) == (1, 6)
    assert "bytes are more than" in error["msg"]
