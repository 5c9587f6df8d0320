"""What repair leaves alone, its command, and faults while it works."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import ask, inside, ip_json, run_in
from harness.changes import Watch
from harness.host import forget_attachments
from harness.injection import FULL
from harness.machines import CLIENT, HOST, fill_bridge
from harness.topics import repair as kit
from harness.topics.repair import (
    MASQUERADED,
    Lab,
    bandwidth,
    findings,
    firewall,
    flush_ruleset,
    host_end,
    must_be_repaired,
    portmap,
    ports,
    reported,
    ruleset,
)
from pycni.plan.difference import FAILED
from pycni.plugins.bridge import BridgePlugin
from pycni.runtime.repair import inspect_all

lab = kit.lab


# --- what is left alone --------------------------------------------------------------------------


def test_the_namespace_is_gone(lab: Lab) -> None:
    network = lab.network(portmap("nftables"))
    lab.add(network, "one", **ports(0))
    flush_ruleset()
    path = Path(lab.sandboxes["one"].path)
    lab.machines.stack.close()
    lab.sandboxes["one"].delete()
    for _ in ("nothing there", "a file that once was one"):
        (report,) = network.repair()
        assert "is gone" in report.skipped
        assert not report.ok
        path.touch()
    path.unlink()
    path.symlink_to("/proc/self/ns/net")  # as when a process id is used again
    (report,) = network.repair()
    assert "the host's own" in report.skipped
    path.unlink()
    assert "pycni" not in json.dumps(ruleset())
    network.delete("one")
    assert network.repair() == []


def test_the_namespace_is_of_another_container(lab: Lab) -> None:
    network = lab.network(portmap("nftables"))
    for number, name in enumerate(("one", "two")):
        lab.add(network, name, **ports(number))
    one, two = (Path(lab.sandboxes[name].path) for name in ("one", "two"))
    run_in(None, ["umount", str(one)])
    run_in(None, ["mount", "--bind", str(two), str(one)])
    flush_ruleset()
    reports = {report.endpoint.container_id: report for report in network.repair()}
    assert reports["two"].ok
    assert "is another container's by now" in reports["one"].skipped
    assert "8080" not in json.dumps(ruleset())


def test_the_address_is_lost(lab: Lab) -> None:
    """Anyone who has it by now keeps it."""
    network = lab.network(portmap("nftables"))
    own = lab.add(network, "one", **ports(0))
    flush_ruleset()
    (lab.folder / "leases" / "lab" / own[4]).unlink()
    (report,) = network.repair()
    assert not report.ok
    assert "its address may be another container's by now" in reported([report])
    assert "pycni" not in json.dumps(ruleset())
    leases = [path.name for path in (lab.folder / "leases" / "lab").iterdir()]
    assert own[4] not in leases


def test_an_interface_in_a_process_namespace_is_not_made_again(lab: Lab) -> None:
    """The process id may be another's by now."""
    box = lab.machines.sandbox()
    network = lab.network()
    with inside(box):
        process = subprocess.Popen(["sleep", "60"])
    try:
        network.add("one", f"/proc/{process.pid}/ns/net")
        run_in(box, ["ip", "link", "delete", "eth0"])
        (report,) = network.repair()
        assert "may be another container's by now" in reported([report])
        assert [link["ifname"] for link in ip_json("link", "show", netns=box)] == ["lo"]
    finally:
        process.kill()
        process.wait()
    network.delete("one")


def test_detached_meanwhile(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put back for an attachment that another process detaches goes again."""
    network = lab.network(portmap("nftables"))
    lab.add(network, "one", **ports(0))
    empty = ruleset_without_elements()
    flush_ruleset()
    real = BridgePlugin.repair

    def repair(*args: Any, **keys: Any) -> Any:
        found = real(*args, **keys)
        # As the DEL of another runtime leaves it, which came just before.
        (lab.folder / "cache" / "results" / "lab-one-eth0").unlink()
        forget_attachments()
        return found

    monkeypatch.setattr(BridgePlugin, "repair", repair)
    (report,) = network.repair()
    assert report.skipped == "it was detached meanwhile"
    left = ruleset_without_elements()
    assert {name: empty[name] for name in left} == left
    assert "one" not in json.dumps(ruleset())
    assert [link["ifname"] for link in ip_json("link", "show", netns=lab.sandboxes["one"])] == [
        "lo"
    ]


def ruleset_without_elements() -> dict[str, Any]:
    found = ruleset()
    for items in found.values():
        for item in items:
            item.pop("elem", None)
    return found


# --- the command ---------------------------------------------------------------------------------


def test_command(lab: Lab) -> None:
    network = lab.network(portmap("nftables"))
    lab.add(network, "one", **ports(0))

    def pycni(*arguments: str) -> tuple[int, Any, str]:
        program = Path(sys.executable).parent / "pycni"
        where = ["--cache-dir", str(lab.folder / "cache"), "--plugin-dir", str(lab.plugins)]
        done = run_in(None, [str(program), "repair", *arguments, *where], check=False)
        return done.returncode, done.stdout, done.stderr.splitlines()[-1]

    assert pycni("lab") == (0, "", "1 attachment, 1 sound")
    code, output, words = pycni("other")
    assert (code, output) == (1, "")
    assert "which have attachments to lab; " in words
    flush_ruleset()
    code, output, words = pycni("--all", "--dry-run", "-o", "json")
    (report,) = json.loads(output)
    assert code == 1
    assert (report["network"], report["containerID"], report["ifname"]) == ("lab", "one", "eth0")
    assert {finding["state"] for finding in report["findings"]} == {"missing"}
    assert {finding["plugin"] for finding in report["findings"]} == {"bridge", "portmap"}
    assert words.endswith(" missing")
    code, output, words = pycni("lab", "--container-id", "two")
    assert (code, output) == (1, "")
    code, output, words = pycni("lab", "--container-id", "one")
    assert code == 0, output + words
    assert "repaired" in output.splitlines()[1]
    assert ask(lab.machines.client, HOST[4], 8080)
    assert pycni("--all")[0] == 0
    assert pycni("lab", "--all")[0] == 1


def test_inspect(lab: Lab) -> None:
    network = lab.network(portmap("nftables"))
    lab.add(network, "one", **ports(0))
    where = {"cache_dir": lab.folder / "cache", "plugin_dirs": lab.plugins}
    (found,) = inspect_all(**where)
    assert {step.plugin for step in found.steps} == {"bridge", "portmap"}
    assert [step.differences for step in found.steps] == [()] * len(found.steps)
    flush_ruleset()
    before = ruleset()
    (found,) = inspect_all(network="lab", container_id="one", **where)
    wrong = {step.kind for step in found.steps if step.differences}
    assert wrong == {"masquerade", "port_map"}
    assert ruleset() == before
    (step,) = [step for step in found.steps if step.kind == "port_map"]
    assert "mappings (protocol tcp, host port 8080, container port 80)" in step.what
    assert inspect_all(network="other", **where) == []


# --- faults --------------------------------------------------------------------------------------


def test_bridge_that_is_full(lab: Lab) -> None:
    network = lab.network()
    lab.add(network, "one")
    run_in(None, ["ip", "link", "set", host_end(lab), "nomaster"])
    fill_bridge("cni0")
    (report,) = network.repair()
    assert ("bridge", FAILED) in findings([report])
    assert "bridge cni0 is full" in reported([report])
    run_in(None, ["ip", "link", "delete", "a0"])
    must_be_repaired(network)
    assert lab.reaches("one") == MASQUERADED


@pytest.mark.parametrize(("backend", "step"), [("nftables", 3), ("iptables", 8)])
def test_each_change_refused(lab: Lab, backend: str, step: int) -> None:
    """What fails is reported, the rest is repaired, and the next repair repairs what was left."""
    network = lab.network(
        portmap(backend), firewall(backend), bandwidth(), backend=backend, macspoofchk=True
    )
    lab.add(network, "one", **ports(0))
    before, veth = ruleset(), host_end(lab)
    for position in range(0, 200, 1 if FULL else step):
        flush_ruleset()
        run_in(None, ["tc", "qdisc", "delete", "dev", veth, "root"])
        run_in(None, ["ip", "link", "set", veth, "nomaster"])
        with Watch(position, errno.EBUSY) as watch:
            (report,) = network.repair()
        if watch.disturbed is None:
            assert report.ok, reported([report])
            break
        assert not report.ok or report.findings, watch.disturbed
        (report,) = network.repair()
        assert report.ok, f"{watch.disturbed}: {reported([report])}"
        assert ruleset() == before, watch.disturbed
    assert position > 5
    assert ask(lab.machines.client, HOST[4], 8080, timeout=3.0) == f"one {CLIENT[4]}"
