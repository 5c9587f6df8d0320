"""The spoof guard as frames meet it: real ones, sent raw from a container into a bridge."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Host, Namespace, Sandbox, ip_json, nft_list, run_in, run_plugin
from harness.configs import host_local
from harness.kernel_state import ruleset
from harness.threads import at_once
from pycni.kernel import namespace
from pycni.plan.steps import SpoofGuard
from pycni.spec.config import Attachment
from pycni.spec.owner import Owner, Owners
from pycni.steps import spoof_guard
from pycni.steps.namespaces import HostAndSandbox

ETHERTYPE = 0x88B5  # for local experiments
MAC = "0a:58:0a:0f:14:02"
FORGED = "0a:58:0a:0f:14:66"


@pytest.fixture
def kernel(host: Host) -> Iterator[HostAndSandbox]:
    with HostAndSandbox(None) as kernel:
        yield kernel


def step(
    container: str = "one", link: str = "veth2", mac: str = MAC, net: str = "net"
) -> SpoofGuard:
    return SpoofGuard(Owner(net, container, "eth0"), link, mac)


@pytest.fixture
def container(host: Host, sandbox: Sandbox) -> Namespace:
    inside = sandbox()
    batch = (
        "link add br0 type bridge\n"
        "link set br0 up\n"
        f"link add veth2 type veth peer name eth0 address {MAC} netns {inside.name}\n"
        "link set veth2 master br0 up\n"
    )
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
    run_in(inside, ["ip", "link", "set", "eth0", "up"])
    # The kernel may take its time to let a new port forward, and its bridge be up.
    for name in ("veth2", "br0"):
        while ip_json("link", "show", name)[0]["operstate"] != "UP":
            pass
    return inside


def passes(container: Namespace, source: str) -> bool:
    """Whether a frame with this source address comes out of the bridge, before a rightful one."""
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE)) as receiver,
        namespace.open_path(container.path) as space,
    ):
        receiver.bind(("br0", ETHERTYPE))
        receiver.settimeout(5)
        with space.enter():
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with sender:
            sender.bind(("eth0", 0))
            for number, address in enumerate((source, MAC)):
                header = b"\xff" * 6 + bytes.fromhex(address.replace(":", ""))
                sender.send(header + ETHERTYPE.to_bytes(2, "big") + bytes((number,)) * 46)
        first = receiver.recv(100)
        if first[14] == 0:
            assert receiver.recv(100)[14] == 1
        return first[14] == 0


def test_forged_frames_are_dropped(container: Namespace, kernel: HostAndSandbox) -> None:
    assert passes(container, FORGED)
    undo = spoof_guard.apply(step(), kernel)
    assert undo is not None
    assert spoof_guard.check(step(), kernel) == []
    assert not passes(container, FORGED)
    assert passes(container, MAC)
    spoof_guard.remove(step(), kernel)
    assert passes(container, FORGED)


def test_other_ports_are_not_guarded(container: Namespace, kernel: HostAndSandbox) -> None:
    spoof_guard.apply(step(link="veth3"), kernel)
    assert passes(container, FORGED)


def test_undo_applying_twice_and_stale_ports(kernel: HostAndSandbox) -> None:
    spoof_guard.apply(step("other", "veth9"), kernel)
    before = ruleset()
    spoof_guard.apply(step("crashed", mac=FORGED), kernel)
    undo = spoof_guard.apply(step(), kernel)
    assert undo is not None
    assert "id: crashed" not in ruleset()
    assert FORGED not in ruleset()
    assert spoof_guard.apply(step(), kernel) is None
    undo()
    assert ruleset() == before


@pytest.mark.parametrize("mac", [MAC, ""])
def test_removal(kernel: HostAndSandbox, mac: str) -> None:
    spoof_guard.apply(step("keep", "veth9"), kernel)
    before = ruleset()
    spoof_guard.apply(step(), kernel)
    spoof_guard.remove(step(mac=mac), kernel)
    assert ruleset() == before
    spoof_guard.remove(step(mac=mac), kernel)
    spoof_guard.remove(step("other", "veth9", mac=mac), kernel)
    assert ruleset() == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("flush ruleset", ["lacks the rule", "veth2 is not in set", f"veth2 with {MAC}"]),
        ("flush table bridge pycni", ["lacks the rule: iifname"]),
        ("flush set bridge pycni spoof-guard-ports", ["nothing is dropped"]),
        ("flush set bridge pycni spoof-guard-allowed", [f"veth2 with {MAC}"]),
    ],
)
def test_check_says_what_is_missing_and_apply_repairs_it(
    kernel: HostAndSandbox, damage: str, words: list[str]
) -> None:
    spoof_guard.apply(step(), kernel)
    run_in(None, ["nft", damage])
    reported = "\n".join(spoof_guard.check(step(), kernel))
    for word in words:
        assert word in reported
    spoof_guard.apply(step(), kernel)
    assert spoof_guard.check(step(), kernel) == []


def test_threads(kernel: HostAndSandbox) -> None:
    steps = [step(f"c{number}", f"veth{number}") for number in range(24)]

    def attach(wanted: SpoofGuard) -> None:
        with HostAndSandbox(None) as own:
            spoof_guard.apply(wanted, own)

    assert at_once(attach, steps) == []
    assert [spoof_guard.check(wanted, kernel) for wanted in steps] == [[]] * len(steps)
    assert sum("rule" in entry for entry in nft_list()) == 1


def test_collect(kernel: HostAndSandbox) -> None:
    kept, gone, foreign = step("kept"), step("gone", "veth3"), step("gone", "veth4", net="another")
    for each in (kept, gone, foreign):
        spoof_guard.apply(each, kernel)
    spoof_guard.collect(kernel, Owners("net", keep=frozenset({Attachment("kept", "eth0")})))
    assert spoof_guard.check(kept, kernel) == spoof_guard.check(foreign, kernel) == []
    assert "veth3" not in ruleset()
    spoof_guard.collect(kernel, Owners("net"))
    assert spoof_guard.check(foreign, kernel) == []
    assert "veth2" not in ruleset()


def test_what_the_reference_made(
    kernel: HostAndSandbox, sandbox: Sandbox, reference_dir: Path, tmp_path: Path
) -> None:
    config = {
        "cniVersion": "1.0.0",
        "name": "net",
        "type": "bridge",
        "bridge": "br0",
        "macspoofchk": True,
        "ipam": host_local(tmp_path, "10.15.20.0/24"),
    }
    for container in ("one", "two"):
        inside = sandbox()
        done = run_plugin(
            reference_dir / "bridge",
            "ADD",
            config,
            CNI_CONTAINERID=container,
            CNI_NETNS=inside.path,
        )
        assert done.code == 0, done.stdout
    assert ruleset().count("one-eth0") >= 4
    ports = [link["ifname"] for link in ip_json("link", "show", "master", "br0")]
    wanted = step("one", ports[0])
    assert spoof_guard.check(wanted, kernel) == []
    spoof_guard.remove(wanted, kernel)
    assert "one-eth0" not in ruleset()
    assert ruleset().count("two-eth0") >= 4
    assert spoof_guard.check(wanted, kernel) != []
