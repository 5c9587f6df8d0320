"""What a tenant, who writes network configurations, can make root write and read: a key each.

SECURITY.md has the table. The administrator allows nothing here but what is allowed by default, and
each call is made in process, by executables and by the agent.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Host, PluginRun, Sandbox, call_plugin, run_in, run_plugin
from harness.allowed import allow_paths
from harness.ways import WAYS, Way, way_of
from pycni.sdk import allowed_paths
from pycni.spec.errors import INVALID_CONFIG, CNIError

SECRET = "root:secret\n"
PREVIOUS = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/nowhere"}]}


@pytest.fixture(params=WAYS)
def way(
    request: pytest.FixtureRequest, host: Host, tmp_path: Path, plugin_dir: Path
) -> Iterator[Way]:
    """One of the ways to call plugins, on a host whose administrator allows nothing."""
    allow("")
    try:
        with way_of(request.param, tmp_path, plugin_dir) as found:
            yield found
    finally:
        allow_paths(private=True)


@pytest.fixture
def secret() -> Iterator[Path]:
    """A folder of root's with a file, neither of which is a tenant's business."""
    folder = Path("/run/elsewhere")
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / "secret").write_text(SECRET)
    yield folder / "secret"
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert (folder / "secret").read_text() == SECRET


@pytest.fixture
def flanneld() -> Iterator[None]:
    """What flanneld has written, where it writes by default."""
    environment = Path("/run/flannel/subnet.env")
    environment.parent.mkdir()
    environment.write_text(
        "FLANNEL_NETWORK=10.240.0.0/16\nFLANNEL_SUBNET=10.240.5.1/24\n"
        "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    )
    yield
    shutil.rmtree(environment.parent)


def allow(text: str) -> None:
    file = Path(allowed_paths.FILE)
    file.write_text(text)
    file.chmod(0o644)


def call(way: Way, plugin: str, command: str, **keys: Any) -> PluginRun:
    """One call of a plugin with these keys, for a container without a namespace."""
    environ = {
        name: keys.pop(name, value)
        for name, value in (("CNI_ARGS", None), ("CNI_NETNS", "/nowhere"))
    }
    config = {"cniVersion": "1.1.0", "name": "net", "type": plugin, **keys}
    if command == "GC":
        config["cni.dev/valid-attachments"] = []
    how = call_plugin if way.name == "in process" else run_plugin
    return how(way.plugins / plugin, command, config, **environ)


def refused(run: PluginRun, key: str, value: str, line: str = "") -> None:
    """It names the key, the value, and the line by which the administrator would allow it."""
    assert run.code != 0, run.stdout
    error = run.result
    assert error["code"] == INVALID_CONFIG
    assert f"{key}: {json.dumps(value)} is not where" in error["msg"]
    if line:
        assert f'"{line}" in {allowed_paths.FILE}' in error["details"]
    assert "secret" not in str(error).replace(value, "")


def host_local(**keys: Any) -> dict[str, Any]:
    return {"ipam": {"type": "host-local", "subnet": "10.4.0.0/24", **keys}}


# --- logFile -------------------------------------------------------------------------------------


def test_log_file_elsewhere(way: Way, secret: Path) -> None:
    for value in (
        str(secret),
        "/etc/cni/x.sh",
        "../../run/elsewhere/new",
        "a/b",
        "..",
        "-rf",
        "a b",
    ):
        for command in ("ADD", "CHECK", "STATUS"):
            run = call(way, "host-local", command, **host_local(), logFile=value)
            refused(run, "logFile", value, "logFile DIRECTORY")
        for command in ("DEL", "GC"):
            run = call(way, "host-local", command, **host_local(), logFile=value)
            assert run.code == 0, run.stdout
    assert not Path("/etc/cni/x.sh").exists()


def test_log_file_of_an_allowed_directory(way: Way, tmp_path: Path) -> None:
    """A plain name is in the directory that the administrator has set; a path, right in it."""
    allow(f"logFile {tmp_path}/logs\n")
    (tmp_path / "logs/below").mkdir(parents=True)
    for value in ("web.log", f"{tmp_path}/logs/web.log"):
        assert call(way, "host-local", "DEL", **host_local(), logFile=value).code == 0
    lines = (tmp_path / "logs/web.log").read_text().splitlines()
    assert [line.split(" ", 1)[1].rpartition(" ")[0] for line in lines] == [
        "info host-local DEL net=net id=pycni-test if=eth0 done"
    ] * 2
    below = f"{tmp_path}/logs/below/web.log"
    refused(call(way, "host-local", "ADD", **host_local(), logFile=below), "logFile", below)


@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "device", "folder"])
def test_log_file_that_is_none(way: Way, secret: Path, tmp_path: Path, kind: str) -> None:
    """What stands there under the name is not opened; the lines go to stderr."""
    allow(f"logFile {tmp_path}/logs\n")
    file = tmp_path / "logs/web.log"
    file.parent.mkdir()
    target = tmp_path / "target"
    target.write_text(SECRET)
    make: dict[str, Callable[[], Any]] = {
        "link": lambda: file.symlink_to(secret),
        "hard link": lambda: file.hardlink_to(target),
        "fifo": lambda: os.mkfifo(file),
        "device": lambda: os.mknod(file, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
        "folder": file.mkdir,
    }
    make[kind]()
    run = call(way, "host-local", "DEL", **host_local(), logFile="web.log")
    assert run.code == 0, run.stdout
    assert target.read_text() == SECRET
    if way.name != "in process":
        assert f"cannot log to {file}: not a plain file with one name" in run.stderr
        assert "info host-local DEL" in run.stderr


def test_log_file_s_content_is_not_acted_on(way: Way, tmp_path: Path) -> None:
    """Neither by a shell nor by a terminal, whatever a configuration says."""
    allow(f"logFile {tmp_path}/logs\n")
    hostile = "$(touch x)`touch x`;touch x\n#!/bin/sh\r\x1b[2J\u202e|&<>"
    run = call(
        way, "host-local", "ADD", logFile="log", logLevel="debug",
        ipam={"type": "host-local", "subnet": hostile}, type=hostile,
    )  # fmt: skip
    assert run.code == 1
    text = (tmp_path / "logs/log").read_text()
    assert "touch x" in text
    assert text.isascii()
    assert len(text.splitlines()) == 2
    assert set(text) & set("$`\r\x1b") == set()
    for line in text.splitlines():
        outside = "".join(line.replace('\\"', "").split('"')[::2])
        assert set(outside) & set(";|&<>()#\\'*?!~") == set(), line


# --- dataDir -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["/run/elsewhere", "/etc/kubernetes/manifests", "relative", "/var/lib/cni/../x", "/"]
)
@pytest.mark.parametrize("plugin", ["host-local", "tuning", "flannel"])
def test_data_dir_elsewhere(
    way: Way, secret: Path, flanneld: None, sandbox: Sandbox, plugin: str, place: str
) -> None:
    """Nothing is made there, DEL and GC go on, and nothing there is removed."""
    pod = {"apiVersion": "v1", "kind": "Pod"}
    keys: dict[str, Any] = {
        "host-local": host_local(dataDir=place),
        "tuning": {"dataDir": place, "sysctl": {"net.ipv4.conf.all.log_martians": "1"}},
        "flannel": {"dataDir": place, "delegate": {**pod, "bridge": "br7"}},
    }[plugin]
    keys |= {"CNI_NETNS": sandbox().path, "prevResult": PREVIOUS}
    before = sorted(os.listdir("/")), sorted(os.listdir(".")), sorted(os.listdir("/var/lib"))
    run = call(way, plugin, "ADD", **keys)
    is_path = place.startswith("/") and ".." not in place
    refused(run, "dataDir", place, f"{plugin}.dataDir {place}" if is_path else "")
    for command in ("DEL", "GC"):
        run = call(way, plugin, command, **keys)
        assert run.code == 0, run.stdout
    assert (sorted(os.listdir("/")), sorted(os.listdir(".")), sorted(os.listdir("/var/lib"))) == (
        before
    )
    assert not Path("/etc/kubernetes/manifests").exists()


def test_data_dir_that_is_allowed(way: Way, tmp_path: Path) -> None:
    """By default, by the administrator, and with /var/run for /run."""
    allow(f"# leases\n\nhost-local.dataDir  {tmp_path}/mine\n")
    shutil.rmtree("/run/cni-ipam-state", ignore_errors=True)
    shutil.rmtree("/run/cni/b", ignore_errors=True)
    shutil.rmtree("/var/lib/cni/c", ignore_errors=True)
    for place in (f"{tmp_path}/mine/a", "/run/cni-ipam-state", "/var/run/cni/b", "/var/lib/cni/c"):
        run = call(way, "host-local", "ADD", **host_local(dataDir=place))
        assert run.code == 0, run.stdout
        assert (Path(place) / "net/10.4.0.2").exists()
        assert call(way, "host-local", "DEL", **host_local(dataDir=place)).code == 0
        assert not (Path(place) / "net/10.4.0.2").exists()
    other = f"{tmp_path}/mineral"
    refused(call(way, "host-local", "ADD", **host_local(dataDir=other)), "dataDir", other)


@pytest.mark.parametrize("fault", ["another user's", "writable", "no key", "no path", "folder"])
def test_file_of_the_administrator_that_is_not_believed(
    way: Way, tmp_path: Path, fault: str
) -> None:
    file = Path(allowed_paths.FILE)
    text = f"host-local.dataDir {tmp_path}\n"
    allow({"no key": f"dataDir {tmp_path}", "no path": "logFile relative"}.get(fault, text))
    if fault == "another user's":
        os.chown(file, 65534, 0)
    elif fault == "writable":
        file.chmod(0o666)
    elif fault == "folder":
        file.unlink()
        file.mkdir()
    try:
        run = call(way, "host-local", "ADD", **host_local(dataDir=str(tmp_path)))
        assert run.code == 1
        assert allowed_paths.FILE in run.result["msg"]
        assert not (tmp_path / "net").exists()
    finally:
        if fault == "folder":
            file.rmdir()
        else:
            os.chown(file, 0, 0)


@pytest.mark.parametrize("name", ["host-local", "bandwidth"])
def test_data_dir_in_gc_of_the_runtime(way: Way, secret: Path, name: str) -> None:
    """It looks for leases of what has gone, and nowhere but where host-local may have put them."""
    folder = secret.parent / "net"
    folder.mkdir()
    lease = folder / "10.4.0.2"
    lease.write_text("gone\r\neth0")
    ipam = host_local(dataDir=str(secret.parent))
    network = way.network("net", {"type": name, **ipam})
    try:
        assert network.garbage([]).leftovers == ()
        network.gc([])
        assert [path.name for path in folder.iterdir()] == [lease.name]
    finally:
        shutil.rmtree(folder)


def test_data_dir_of_an_address_plugin_that_has_no_leases(way: Way, tmp_path: Path) -> None:
    """An allowed one: anyone who has leases there is none of this network's attachments."""
    allow(f"host-local.dataDir {tmp_path}")
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "10.4.0.2").write_text("gone\r\neth0")
    addresses = [{"address": "10.4.0.9/24"}]
    for kind, found in (("static", 0), ("host-local", 1)):
        ipam = {"type": kind, "addresses": addresses, "dataDir": str(tmp_path)}
        network = way.network("net", {"type": "bridge", "ipam": ipam})
        assert len(network.garbage([]).leftovers) == found, kind


# --- what is read, or connected to ---------------------------------------------------------------


def test_resolv_conf_elsewhere(way: Way, secret: Path) -> None:
    secret.write_text("domain secret\n")
    try:
        run = call(way, "host-local", "ADD", **host_local(resolvConf=str(secret)))
        refused(run, "resolvConf", str(secret), f"host-local.resolvConf {secret}")
    finally:
        secret.write_text(SECRET)
    # No word on whether something is there.
    missing = str(secret.with_name("missing"))
    refused(call(way, "host-local", "ADD", **host_local(resolvConf=missing)), "resolvConf", missing)


def test_subnet_file_elsewhere(way: Way, secret: Path) -> None:
    run = call(way, "flannel", "ADD", subnetFile=str(secret))
    refused(run, "subnetFile", str(secret), f"flannel.subnetFile {secret}")
    assert call(way, "flannel", "DEL", subnetFile=str(secret)).code == 0


def test_daemon_socket_elsewhere(way: Way, tmp_path: Path) -> None:
    """No one else's socket is connected to."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        keys = {"ipam": {"type": "dhcp", "daemonSocketPath": path}}
        refused(
            call(way, "dhcp", "ADD", **keys), "daemonSocketPath", path,
            f"dhcp.daemonSocketPath {path}",
        )  # fmt: skip
        assert call(way, "dhcp", "DEL", **keys).code == 0
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_allowlist_is_no_key(way: Way, sandbox: Sandbox) -> None:
    """Which sysctls may be set stands in a file of root's, and no configuration names another."""
    listed = Path("/etc/cni/tuning/allowlist.conf")
    listed.parent.mkdir(exist_ok=True)
    listed.write_text("^net\\.core\\.somaxconn$\n")
    try:
        run = call(
            way, "tuning", "ADD", sysctl={"net.ipv4.conf.all.log_martians": "1"},
            allowlist="/dev/null", allowlistPath="/dev/null", prevResult=PREVIOUS,
            CNI_NETNS=sandbox().path,
        )  # fmt: skip
        assert "is not allowed" in run.result["msg"]
    finally:
        listed.unlink()


# --- debug, noop ---------------------------------------------------------------------------------


def test_output_of_debug_elsewhere(way: Way, secret: Path) -> None:
    keys = {"cniOutput": str(secret), "prevResult": PREVIOUS}
    run = call(way, "debug", "ADD", **keys)
    refused(run, "cniOutput", str(secret), f"debug.cniOutput {secret}")
    assert call(way, "debug", "DEL", **keys).code == 0


def test_hooks_of_debug(way: Way, secret: Path, sandbox: Sandbox) -> None:
    """No program is run that the administrator has not named."""
    hook = [["sh", "-c", f"echo x > {secret}"]]
    keys = {
        "addHooks": hook, "checkHooks": hook, "delHooks": hook, "prevResult": PREVIOUS,
        "CNI_NETNS": sandbox().path,
    }  # fmt: skip
    for command in ("ADD", "CHECK"):
        run = call(way, "debug", command, **keys)
        assert run.result["code"] == INVALID_CONFIG
        assert '"debug.hooks /' in run.result["details"]
    assert call(way, "debug", "DEL", **keys).code == 0


@pytest.mark.parametrize("key", ["debugFile", "commandLog", "DEBUG"])
def test_files_of_noop_elsewhere(way: Way, secret: Path, key: str) -> None:
    Path("/run/cni/noop").mkdir(parents=True, exist_ok=True)
    sound = Path("/run/cni/noop/debug.json")
    sound.write_text("{}")
    keys: dict[str, Any] = {
        "debugFile": {"debugFile": str(secret)},
        "commandLog": {"debugFile": str(sound), "commandLog": str(secret)},
        "DEBUG": {"CNI_ARGS": f"DEBUG={secret}"},
    }[key]
    for command in ("ADD", "DEL"):
        run = call(way, "noop", command, **keys)
        assert run.code != 0
        assert "is not where a configuration may lead" in run.stdout + run.stderr


# --- what becomes a path of /proc and /sys -------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {"kernelpath": "/sys/devices/../class/net/lo"}, {"kernelpath": "/etc"},
        {"kernelpath": "sys/devices/x"}, {"pciBusID": ".."}, {"pciBusID": "."},
        {"pciBusID": "../../../class"}, {"runtimeConfig": {"deviceID": ".."}},
        {"runtimeConfig": {"deviceID": "."}}, {"runtimeConfig": {"deviceID": "../x"}},
    ],
    ids=str,
)  # fmt: skip
def test_devices_of_host_device(way: Way, sandbox: Sandbox, keys: dict[str, Any]) -> None:
    """A device is one of its bus, or below /sys/devices: nothing else is looked at."""
    run = call(way, "host-device", "ADD", **keys, CNI_NETNS=sandbox().path)
    assert run.code == 1
    assert run.result["code"] == INVALID_CONFIG
    expected = ("must be absolute", "is not an address on the PCI bus", "not found or unsupported")
    assert any(words in run.result["msg"] for words in expected)


@pytest.mark.parametrize("key", ["kernelpath", "pciBusID", "deviceID"])
@pytest.mark.parametrize("place", ["/run/elsewhere", "/sys/devices/../../run/elsewhere", "../x"])
def test_devices_of_host_device_at_del(
    way: Way, sandbox: Sandbox, key: str, place: str, secret: Path
) -> None:
    """DEL, which takes a configuration as it is, looks at nothing else either."""
    listed = secret.parent / "net"
    listed.mkdir()
    os.utime(listed, ns=(0, 0))  # so that its next reading shows
    keys = {"runtimeConfig": {key: place}} if key == "deviceID" else {key: place}
    try:
        assert call(way, "host-device", "DEL", **keys, CNI_NETNS=sandbox().path).code == 0
        assert listed.stat().st_atime_ns == 0
    finally:
        listed.rmdir()


# --- what becomes part of a rule -----------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "ip saddr set 192.0.2.9", "meta mark set 0x4000", "tcp dport vmap { 22 : drop }", "log",
        "tcp dport vmap {22:accept}", "ip daddr 192.0.2.1 counter accept", "tcp dport 22 drop",
        "jump port-map-dnat", 'meta iifname "x', "update @sets { ip saddr }", "goto x", "notrack",
        "tcp dport 22notrack", "tcp dport 0x16notrack", "meta mark 4-5 -notrack",
        "--modprobe=/run/elsewhere/secret", "-M/run/elsewhere/secret", "! -M /run/elsewhere/secret",
        "-s 192.0.2.1 -h", "-s 192.0.2.1 -vM/x", "--jump ACCEPT", "--jum ACCEPT", "-jACCEPT", "-6",
        "-m bpf --object-pinned /run/elsewhere/secret", "-m comment --comment another", "-g x",
        "-s 192.0.2.1 -fjACCEPT", "-s 192.0.2.1 \x1b[2J", "-m tcp " * 600,
    ],
    ids=lambda words: words[:40],
)  # fmt: skip
def test_conditions_of_portmap(way: Way, sandbox: Sandbox, words: str) -> None:
    """They match, and nothing else: the rule sees all that is for the host."""
    previous = {**PREVIOUS, "ips": [{"address": "10.4.0.2/24"}]}
    mapped = {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}
    # nft gets them side by side, so there may be several in one.
    for given in (words.split(" "),) if words[0] in "-!" else (words.split(" "), [words]):
        run = call(
            way, "portmap", "ADD", conditionsV4=given, runtimeConfig=mapped, prevResult=previous,
            CNI_NETNS=sandbox().path,
        )  # fmt: skip
        assert run.code == 1, run.stdout
        assert run.result["code"] == INVALID_CONFIG
        assert "conditionsV4" in str(run.result)
        assert "pycni" not in run_in(None, ["nft", "list", "tables"]).stdout
        assert "CNI" not in run_in(None, ["iptables-save", "-t", "nat"]).stdout


@pytest.mark.parametrize(
    "key",
    ["net/../kernel/panic", "kernel.panic", "net/", "net.ipv4.conf.../x", "net.ipv4.conf.\0.a"],
)
def test_sysctls_of_tuning(way: Way, sandbox: Sandbox, key: str) -> None:
    """Parameters of network namespaces, and nothing else below /proc/sys."""
    run = call(
        way, "tuning", "ADD", sysctl={key: "1"}, prevResult=PREVIOUS, CNI_NETNS=sandbox().path
    )
    assert run.code == 1
    assert run.result["code"] == INVALID_CONFIG, run.stdout


@pytest.mark.parametrize("name", ["../../elsewhere", "a/b", "/run/elsewhere/secret", "..", "."])
@pytest.mark.parametrize(
    ("plugin", "key"),
    [
        ("bridge", "bridge"), ("macvlan", "master"), ("ipvlan", "master"), ("vlan", "master"),
        ("host-device", "device"), ("vrf", "vrfname"), ("tap", "bridge"),
    ],
)  # fmt: skip
def test_names_of_links(
    way: Way, secret: Path, sandbox: Sandbox, plugin: str, key: str, name: str
) -> None:
    """They are in paths of sysctls: what no link can be called is refused."""
    previous = {} if plugin != "vrf" else {"prevResult": PREVIOUS}
    keys = {key: name, "vlanId": 7, "isGateway": True, **previous}
    run = call(way, plugin, "ADD", **keys, CNI_NETNS=sandbox().path)
    assert run.code == 1
    assert run.result["code"] != 999, run.stdout


def test_a_path_says_nothing_of_what_is_there() -> None:
    """Nothing of a path that is not allowed is looked at."""
    for path in ("/dev/watchdog", "/etc/shadow", "/nowhere"):
        with pytest.raises(CNIError, match="is not where"):
            allowed_paths.require("host-local.resolvConf", path, {})
