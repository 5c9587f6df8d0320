"""The conformance kit on our plugins, on the reference's, and on plugins with faults of their own.

What fails is asserted by id, so that a fault that appears is seen, and one that goes too.
"""

from __future__ import annotations

import json
import subprocess
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import pytest

from harness.conformance import PYCNI, outcomes, report
from harness.host import snapshot

pytestmark = pytest.mark.slow

OURS: dict[str, set[str]] = {
    "bandwidth": set(),
    "bridge": set(),
    "debug": set(),
    "dhcp": set(),
    "firewall": set(),
    "flannel": set(),
    "host-device": set(),
    # Failing would keep runtimes from the GC that frees what has leaked; "strictStatus" has it so.
    "host-local": {"status.exhausted"},
    "loopback": set(),
    "macvlan": set(),
    "portmap": set(),
    "ptp": set(),
    "sbr": set(),
    "static": set(),
    "tap": set(),
    "tuning": set(),
}

# Release 1.1.1, as in Debian 12, speaks 1.0.0: no STATUS and no GC.
REFERENCE_COMMON = {"error.cni-version", "version.echo"}
REFERENCE_PATH = REFERENCE_COMMON | {"parameters.path-optional"}
# Rules of the masquerade stay when the address is not known from the container any more.
MASQUERADE = {
    "del.interface-missing",
    "del.netns-missing",
    "del.netns-unset",
    "check.rules-missing",
}
REFERENCE = {
    "bandwidth": REFERENCE_PATH
    | {"del.undoes", "del.prev-result-empty", "check.queues-missing", "lifecycle.concurrent"},
    "bridge": REFERENCE_COMMON
    | MASQUERADE
    | {"add.prev-result", "add.second-interface", "delegation.add-error"},
    "dhcp": REFERENCE_PATH,
    "firewall": REFERENCE_PATH | {"del.prev-result-empty"},
    "host-device": REFERENCE_COMMON
    | {
        "add.prev-result",
        "add.failure-undone",
        "del.repeated",
        "del.without-add",
        "del.interface-missing",
        "del.netns-missing",
        "del.netns-unset",
        "delegation.add-error",
        "delegation.del-without-netns",
    },
    "host-local": REFERENCE_PATH,
    "loopback": REFERENCE_PATH
    | {"result.shape", "check.consults-prev-result", "check.address-missing"},
    "macvlan": REFERENCE_COMMON | {"add.prev-result", "delegation.add-error"},
    # It looks for IPv6 rules too, which an IPv4 address does not get.
    "portmap": REFERENCE_PATH | {"check.after-add", "del.not-others", "lifecycle.concurrent"},
    "ptp": REFERENCE_COMMON
    | MASQUERADE
    | {"add.prev-result", "add.second-interface", "delegation.add-error"},
    "sbr": REFERENCE_PATH
    | {
        "parameters.optional",
        "add.failure-undone",
        "del.undoes",
        "del.interface-missing",
        "del.netns-missing",
        "del.netns-unset",
        "del.prev-result-empty",
        "check.policy-rules-missing",
    },
    "static": REFERENCE_PATH,
    "tuning": REFERENCE_PATH | {"del.interface-missing", "del.netns-missing", "del.netns-unset"},
}


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("name", OURS)
def test_ours(name: str, plugin_dir: Path) -> None:
    code, document = report(plugin_dir / name)
    failed = outcomes(document)
    assert set(failed) == OURS[name], failed
    assert code == 0  # nothing that fails is a MUST
    assert document["triedWith"] == "1.1.0"
    passed = outcomes(document, "passed")
    assert {"add.succeeds", "del.repeated", "check.after-add", "lifecycle.concurrent"} <= set(
        passed
    )


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("name", REFERENCE)
def test_reference(name: str, reference_dir: Path) -> None:
    _, document = report(reference_dir / name)
    failed = outcomes(document)
    assert set(failed) == REFERENCE[name], failed
    assert document["triedWith"] == "1.0.0"
    assert "add.succeeds" in outcomes(document, "passed")


def test_the_machine_is_not_touched(host: object, plugin_dir: Path) -> None:
    before = snapshot("/run", "/var/lib/cni")
    report(plugin_dir / "bridge", "--only", "del.", "--only", "lifecycle.")
    assert snapshot("/run", "/var/lib/cni") == before


# --- plugins with faults -------------------------------------------------------------------------

_SOUND = """
    import json, os, subprocess, sys
    command, out = os.environ["CNI_COMMAND"], sys.stdout
    if command == "VERSION":
        given = json.load(sys.stdin)["cniVersion"]
        print(json.dumps({"cniVersion": given, "supportedVersions": ["1.0.0", "1.1.0"]}))
        sys.exit()
    def fail(code, msg):
        print(json.dumps({"cniVersion": version, "code": code, "msg": msg}))
        sys.exit(1)
    version = "1.1.0"
    try:
        config = json.load(sys.stdin)
        config["name"], config["cniVersion"]
    except ValueError:
        fail(6, "not JSON")
    except (KeyError, TypeError):
        fail(6, "not a configuration")
"""
# Passes prevResult on and does nothing.
_PASS = (
    _SOUND
    + """
    if command == "ADD":
        print(json.dumps(config["prevResult"]))
"""
)
# Claims an interface and an address, and makes neither.
_LIAR = (
    _SOUND
    + """
    if command == "ADD":
        print(json.dumps({
            "cniVersion": version,
            "interfaces": [{"name": "eth0", "sandbox": os.environ["CNI_NETNS"]}],
            "ips": [{"address": "10.0.0.2/24", "interface": 0}],
            "routes": [{"dst": "0.0.0.0/0"}],
        }))
"""
)
# Makes a dangling pair on the host for each container, and never takes it away.
_LEAK = (
    _SOUND
    + """
    if command == "ADD":
        name = os.environ["CNI_CONTAINERID"][-8:]
        pair = ["ip", "link", "add", name + "a", "type", "veth", "peer", "name", name + "b"]
        subprocess.run(pair)
        print(json.dumps(config["prevResult"]))
    if command == "DEL" and subprocess.run(["ip", "link", "show", "nothing"],
                                           capture_output=True).returncode:
        fail(100, "there is nothing to delete")
"""
)


def write_plugin(folder: Path, source: str) -> Path:
    path = folder / "faulty"
    path.write_text("#!/usr/bin/python3\n" + textwrap.dedent(source))
    path.chmod(0o755)
    return path


def tried(folder: Path, source: str, kind: str) -> tuple[int, dict[str, str], dict[str, str]]:
    config = folder / "net.conf"
    config.write_text(json.dumps({"name": "n", "type": "faulty"}))
    plugin = write_plugin(folder, source)
    code, document = report(plugin, "--config", str(config), "--kind", kind)
    return code, outcomes(document), outcomes(document, "passed")


@pytest.mark.usefixtures("host")
def test_a_plugin_that_claims_what_it_does_not_make(tmp_path: Path) -> None:
    code, failed, passed = tried(tmp_path, _LIAR, "interface")
    assert code == 1
    assert {
        "add.interface",
        "add.interface-exists",
        "add.prev-result",
        "check.consults-prev-result",
        "config.name",
        "lifecycle.concurrent",  # the one address, six times
        "parameters.container-id",
        "parameters.required",
        "result.interface-exists",
        "result.ips",
        "result.routes",
    } <= set(failed)
    assert "10.0.0.2/24" in failed["result.ips"]
    assert {"version.echo", "error.object", "error.exit-code", "result.shape"} <= set(passed)


@pytest.mark.usefixtures("host")
def test_a_plugin_that_leaks_and_fails_to_delete(tmp_path: Path) -> None:
    code, failed, passed = tried(tmp_path, _LEAK, "chained")
    assert code == 1
    assert "there is nothing to delete" in failed["del.repeated"]
    assert {"del.without-add", "parameters.optional"} <= set(failed)
    assert {"add.prev-result", "check.after-add"} <= set(passed)


@pytest.mark.usefixtures("host")
def test_what_a_plugin_leaves_is_named(tmp_path: Path) -> None:
    _, failed, _ = tried(tmp_path, _LEAK.partition('if command == "DEL"')[0], "chained")
    assert "mance-1a (veth)" in failed["del.undoes"]
    assert "del.repeated" not in failed


@pytest.mark.usefixtures("host")
def test_a_plugin_that_passes_prev_result_on(tmp_path: Path) -> None:
    _, failed, passed = tried(tmp_path, _PASS, "chained")
    assert {"add.prev-result", "add.prev-result-dns", "del.undoes", "gc.silent"} <= set(passed)
    assert "result.shape" not in failed


@pytest.mark.usefixtures("host")
def test_what_each_container_needs_is_made_before_its_add(tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path, _PASS)
    config = tmp_path / "net.conf"
    config.write_text(json.dumps({"name": "n", "type": "faulty"}))
    noted = tmp_path / "noted"
    made = f"echo $PLUGIN $NETNS $IFNAME $N >> {noted}; ip -n $NETNS link show dev lo"
    argv = ["--config", str(config), "--kind", "chained", "--only", "add.succeeds"]
    _, document = report(plugin, *argv, "--container-setup", made)
    assert set(outcomes(document, "passed")) == {"add.succeeds"}
    assert noted.read_text() == f"{plugin} c1 eth0 1\n"
    _, document = report(plugin, *argv, "--container-setup", "echo no cable >&2; exit 3")
    assert "no cable" in outcomes(document, "skipped")["add.succeeds"]


def test_what_a_setup_leaves_in_the_background_ends_with_the_check(
    host: object, tmp_path: Path
) -> None:
    plugin = write_plugin(tmp_path, _PASS)
    config = tmp_path / "net.conf"
    config.write_text(json.dumps({"name": "n", "type": "faulty"}))
    noted = tmp_path / "noted"
    left = f"sleep 1000 > /dev/null 2>&1 & echo $! >> {noted}"
    argv = ["--config", str(config), "--kind", "chained", "--only", "add."]
    report(plugin, *argv, "--setup", left)
    started = noted.read_text().split()
    assert len(started) > 1
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []


# --- reports -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("host")
def test_junit_says_which_sentence_is_broken(reference_dir: Path) -> None:
    argv = [PYCNI, "conformance", reference_dir / "loopback", "-o", "junit", "--only", "version."]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    suite = ElementTree.fromstring(done.stdout)
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "0")
    (failure,) = suite.iter("failure")
    assert failure.get("type") == "MUST"
    assert "The value of cniVersion specified on input" in (failure.text or "")
    assert "0.4.0 by '1.0.0'" in (failure.get("message") or "")


@pytest.mark.usefixtures("host")
def test_table_and_exit_code(reference_dir: Path) -> None:
    argv = [PYCNI, "conformance", reference_dir / "loopback", "--only", "error."]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "error.cni-version" in done.stdout
    assert "4 passed, 1 failed (0 MUST, 1 SHOULD), 0 skipped" in done.stderr
    done = subprocess.run([*argv, "--strict"], capture_output=True, text=True, check=False)
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/unknown"], "no ready configuration for a plugin called unknown"),
        (["{folder}/unknown", "--config", "{folder}/bad.conf"], "bad.conf is not JSON"),
        (["{folder}/plain"], "plain is not an executable file"),
        (["{folder}/unknown", "--config", "{folder}/ok.conf", "--setup", "false"], "sh -ec false"),
        (["{folder}/unknown", "--config", "{folder}/ok.conf", "--only", "x"], "no requirement x"),
    ],
)
@pytest.mark.usefixtures("host")
def test_what_cannot_be_tried_is_reported(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    write_plugin(tmp_path, _PASS).rename(tmp_path / "unknown")
    (tmp_path / "plain").write_text("")
    (tmp_path / "bad.conf").write_text("{")
    (tmp_path / "ok.conf").write_text("{}")
    argv = [PYCNI, "conformance", *(text.format(folder=tmp_path) for text in arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
