"""What a failed ADD takes back, where a part of that fails as well: all the rest."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, Sandbox, ip_json, nft_list, run_in
from harness.configs import host_local
from harness.ways import notes
from pycni.kernel import namespace
from pycni.kernel.netfilter import iptables
from pycni.kernel.netfilter.iptables import IPTablesError
from pycni.kernel.netlink.errors import NetlinkError
from pycni.plan.plan import Plan
from pycni.plan.steps import ChildLink, Firewall, IngressPolicy, Masquerade, PortMap, PortMapping
from pycni.spec.ip import parse_network
from pycni.spec.owner import Owner
from pycni.steps import executor, forwarding
from pycni.steps.namespaces import HostAndSandbox

NETWORKS = tuple(map(parse_network, ("10.30.0.2/24", "fd00:30::2/64")))
ADDRESSES = tuple(network.address for network in NETWORKS)
OWNER = Owner("net", "one", "eth0")
STEPS = [
    Firewall(OWNER, ADDRESSES, "iptables"),
    IngressPolicy("br0", True, (2, 10), "iptables"),
    Masquerade(OWNER, NETWORKS, "iptables"),
    PortMap(OWNER, (PortMapping("tcp", 8080, 80),), NETWORKS, "iptables"),
]


def own() -> list[str]:
    """What names the container, its address or its bridge, of IPv4 and of sets."""
    lines = run_in(None, ["iptables-save"]).stdout.splitlines()
    lines += [str(entry) for entry in nft_list() if "set" in entry]
    names = ("10.30.0.", "fd00:30:", "one", "br0")
    return [line for line in lines if any(name in line for name in names)]


def hide(program: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Have no programs be installed whose names begin so."""
    folder.mkdir()
    for path in map(Path, iptables.SYSTEM_PATH.split(":")):
        for each in path.glob("ip*tables*"):
            if not each.name.startswith(program) and not (folder / each.name).exists():
                (folder / each.name).symlink_to(each)
    patch.setattr(iptables, "SYSTEM_PATH", str(folder))
    patch.setenv("PATH", str(folder))
    assert shutil.which(f"{program}-restore") is None


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.kind)
def test_what_cannot_be_taken_back_does_not_keep_the_rest(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Any
) -> None:
    run_in(None, ["ip", "link", "add", "br0", "type", "bridge"])
    with HostAndSandbox(None) as kernel:
        undo = executor.handler(step.kind).apply(step, kernel)
        assert undo is not None
        assert own()
        with monkeypatch.context() as patch:
            hide("ip6tables", tmp_path / "programs", patch)
            with pytest.raises(IPTablesError, match="ip6tables"):
                undo()
        assert own() == []


def test_the_first_error_is_the_one_that_is_reported(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both programs are gone when the second family is to be made."""
    step = STEPS[2]
    restore = iptables.restore

    def fail(family: int, *arguments: Any) -> None:
        restore(family, *arguments)
        hide("ip", tmp_path / "programs", monkeypatch)

    monkeypatch.setattr(iptables, "restore", fail)
    with HostAndSandbox(None) as kernel, pytest.raises(IPTablesError, match="ip6tables"):
        executor.handler(step.kind).apply(step, kernel)


@pytest.mark.parametrize("failing", ["masquerade", "a later step"])
def test_what_is_left_is_noted_for_del(
    host: Host,
    sandbox: Sandbox,
    tmp_path: Path,
    plugin_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    """Of a step that failed itself too, and by parts of it that others took back."""
    config = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "bridge",
        "bridge": "br0",
        "isGateway": True,
        "ipMasq": True,
        "ipMasqBackend": "iptables",
        "ipam": host_local(tmp_path / "leases", "10.30.0.0/24", "fd00:30::/64"),
    }
    one = Attachment(plugin_dir / "bridge", config, sandbox(), "one")
    restore = iptables.restore
    with monkeypatch.context() as patch:

        def fail(family: int, *arguments: Any) -> None:
            restore(family, *arguments)
            hide("ip", tmp_path / "programs", patch)

        def refuse(*_: object) -> None:
            hide("ip", tmp_path / "programs", patch)
            raise NetlinkError(errno.ENOBUFS, "", "refused")

        if failing == "masquerade":
            patch.setattr(iptables, "restore", fail)
        else:
            patch.setattr(forwarding, "apply", refuse)
        one.refused()
    assert any("10.30.0.2" in line for line in own())
    (left,) = notes()
    assert left["addresses"] == ["10.30.0.2", "fd00:30::2"]
    assert reserved(tmp_path / "leases/net") == ["10.30.0.2", "fd00:30::2"]
    one.delete()
    assert reserved(tmp_path / "leases/net") == []
    assert not any("10.30.0.2" in line for line in own())
    assert notes() == []


def reserved(folder: Path) -> list[str]:
    """The addresses that host-local gives to no other container."""
    return sorted(path.name for path in folder.glob("*") if path.name[:2] in ("10", "fd"))


@pytest.mark.parametrize("another", [False, True])
def test_a_macvlan_that_its_container_hides_meanwhile(
    host: Host, sandbox: Sandbox, another: bool
) -> None:
    """Before anything of it was noted, and with another MAC address."""
    run_in(None, ["ip", "link", "add", "up0", "type", "veth", "peer", "up1"])
    box, hidden = sandbox(), sandbox()
    step = ChildLink("eth0", "macvlan", master="up0", mode="bridge")
    with HostAndSandbox(namespace.open_path(box.path), box.path) as kernel:
        transaction = executor.Transaction(kernel)
        transaction.apply(Plan((step,)))
        (made,) = ip_json("link", "show", "dev", "eth0", netns=box)
        run_in(box, ["ip", "link", "set", "eth0", "address", "02:00:00:00:00:77"])
        run_in(box, ["ip", "link", "set", "eth0", "netns", hidden.name])
        if another:
            index = str(made["ifindex"])
            run_in(box, ["ip", "link", "add", "eth0", "index", index, "type", "bridge"])
        transaction.undo()
    assert [link["ifname"] for link in ip_json("link", netns=hidden)] == ["lo"]
    assert len(ip_json("link", netns=box)) == 1 + another
