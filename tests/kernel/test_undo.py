"""An ADD that fails at any step leaves the host as it was; one that is killed, DEL cleans up.

The steps are found by refusing, in one ADD after another, the first, second, third ... thing that
it asks of the kernel, of the file system or of a program.
"""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, Namespace, Sandbox, Snapshot, ip_json, run_in
from harness.configs import host_local
from harness.faults import each_change_failing
from harness.ways import notes
from pycni.kernel import namespace
from pycni.kernel.netlink import socket as netlink_socket
from pycni.kernel.netlink.codec import NetlinkRequest
from pycni.kernel.netlink.errors import NetlinkError
from pycni.plan.steps import VethPair
from pycni.runtime import Network
from pycni.runtime.chain import Chain
from pycni.spec.errors import CNIError
from pycni.spec.owner import Owner
from pycni.steps import forwarding, masquerade, veth
from pycni.steps.namespaces import HostAndSandbox

TABLES_OF_IPTABLES = {
    "table ip nat {",
    "table ip6 nat {",
    "\tchain POSTROUTING {",
    "\t\ttype nat hook postrouting priority srcnat; policy accept;",
    "\t}",
    "}",
}


def config(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "bridge",
        "bridge": "br0",
        "isDefaultGateway": True,
        "ipMasq": True,
        "macspoofchk": True,
        "hairpinMode": True,
        "ipam": host_local(tmp_path / "leases", "10.8.0.0/24", "fd00:8::/64"),
        **keys,
    }


def observe(host: Host, tmp_path: Path, space: Namespace) -> Snapshot:
    """Host and sandbox. What a lease directory holds besides leases is no trace of an ADD."""
    seen = host.snapshot(tmp_path)
    seen["files"] = {
        path: content
        for path, content in seen["files"].items()
        if os.path.basename(path)[0].isdigit() or os.path.basename(path).startswith("fd")
    }
    # Any program that as much as lists rules with iptables makes its tables.
    seen["nft"] = [line for line in seen["nft"] if line not in TABLES_OF_IPTABLES]
    seen["iptables"] = [line for line in seen["iptables"] if line.startswith("-")]
    seen["sandbox"] = [link["ifname"] for link in ip_json("link", netns=space)]
    return seen


@pytest.mark.parametrize("exists", [False, True], ids=["new bridge", "bridge in use"])
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_host_is_as_it_was(
    backend: str,
    exists: bool,
    host: Host,
    sandbox: Sandbox,
    plugin_dir: Path,
    tmp_path: Path,
) -> None:
    conf = config(tmp_path, ipMasqBackend=backend)
    if exists:
        Attachment(plugin_dir / "bridge", conf, sandbox(), container="neighbour").add()
        _settle()
    one = Attachment(plugin_dir / "bridge", conf, sandbox())
    assert one.sandbox is not None
    before = observe(host, tmp_path, one.sandbox)
    refused = []
    for what, run in each_change_failing(lambda: one.run("ADD")):
        if run.code == 0:  # not vital, such as a sysctl that may be missing
            one.delete()
        else:
            refused.append(what)
            assert run.result["code"] not in (0, 999), (what, run.result)
        after = observe(host, tmp_path, one.sandbox)
        if not exists and run.code == 0:
            # An ADD that succeeded leaves the bridge and forwarding, as it should.
            subprocess.run(["ip", "link", "delete", "br0"], check=True)
            subprocess.run(["nft", "flush", "ruleset"], check=True)
            _set_forwarding(before)
            after = observe(host, tmp_path, one.sandbox)
        assert after == before, what
    # Enough of them, and of every sort.
    assert len(refused) > 20, refused
    text = "\n".join(refused)
    for sort in ("create veth", "add address", "create_file", "set link"):
        assert sort in text, refused


def _settle() -> None:
    """Wait until the kernel has given its links their own addresses, for the snapshots to agree."""
    while "tentative" in run_in(None, ["ip", "-6", "address"]).stdout:
        time.sleep(0.05)


def _set_forwarding(before: Snapshot) -> None:
    for path, value in before["sysctls"].items():
        if path.endswith(("/ip_forward", "/all/forwarding")):
            Path(path).write_bytes(value)


def test_killed_add_is_cleaned_up_by_del(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """SIGKILL at forty moments of an ADD; DEL, without a prevResult, leaves nothing of it."""
    conf = config(tmp_path)
    warm = Attachment(plugin_dir / "bridge", conf, sandbox(), container="neighbour")
    warm.add()
    _settle()
    space = sandbox()
    before = observe(host, tmp_path, space)
    chance = random.Random(5)
    killed = 0
    for _ in range(40):
        environ = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "pycni-test",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": space.path,
            "CNI_PATH": str(plugin_dir),
            "PATH": os.environ["PATH"],
        }
        plugin = subprocess.Popen(
            [plugin_dir / "bridge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
        )
        assert plugin.stdin is not None
        plugin.stdin.write(json.dumps(conf).encode())
        plugin.stdin.close()
        time.sleep(chance.uniform(0.012, 0.03))
        plugin.kill()
        killed += plugin.wait() != 0
        assert plugin.stdout is not None
        plugin.stdout.close()
        Attachment(plugin_dir / "bridge", conf, space).delete()
        assert observe(host, tmp_path, space) == before
    assert killed


def test_what_one_batch_did_before_it_was_refused(
    host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path
) -> None:
    """A bridge without IPv6 takes the IPv4 gateway and refuses the other: neither stays."""
    subprocess.run(["ip", "link", "add", "br0", "type", "bridge"], check=True)
    subprocess.run(["ip", "link", "set", "br0", "up"], check=True)
    Path("/proc/sys/net/ipv6/conf/br0/disable_ipv6").write_text("1")
    one = Attachment(plugin_dir / "bridge", config(tmp_path), sandbox())
    assert one.sandbox is not None
    before = observe(host, tmp_path, one.sandbox)
    assert "fd00:8::1" in one.refused()["msg"]
    assert observe(host, tmp_path, one.sandbox) == before


def test_the_first_failure_is_reported_when_the_link_has_gone_meanwhile(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What there is to be undone is gone, so that undoing it must not fail in its turn."""

    def refuse(request: NetlinkRequest) -> None:
        if request.what.startswith("set link"):
            monkeypatch.undo()
            run_in(None, ["ip", "link", "del", "vethtest"])
            raise NetlinkError(errno.EBUSY, "", request.what)

    step = VethPair(Owner("net", "one", "eth0"), "eth0", "vethtest")
    with HostAndSandbox(namespace.create()) as kernel:
        monkeypatch.setattr(netlink_socket, "before_send", refuse)
        with pytest.raises(NetlinkError) as caught:
            veth.apply(step, kernel)
    assert (caught.value.errno, caught.value.what[:8]) == (errno.EBUSY, "set link")


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_what_cannot_be_undone_is_left_to_del(
    host: Host,
    sandbox: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
) -> None:
    """With a note of the address, for there is no result of an ADD that failed."""
    network = Network.from_dict(config(tmp_path, ipMasqBackend=backend), cache_dir=tmp_path / "cni")
    network.add("neighbour", sandbox().path)
    space = sandbox()
    before = observe(host, tmp_path, space)
    make = masquerade.apply

    def refuse(*_: object) -> None:
        raise NetlinkError(errno.ENOBUFS, "", "refused")

    def made(*args: Any) -> Callable[[], None]:
        make(*args)
        return refuse

    monkeypatch.setattr(masquerade, "apply", made)
    monkeypatch.setattr(forwarding, "apply", refuse)
    monkeypatch.setattr(Chain, "_undo", lambda *_: [])
    with pytest.raises(CNIError, match="refused"):
        network.add("one", space.path)
    (left,) = (note for note in notes() if note["containerID"] == "one")
    assert (left["addresses"], left["detaching"]) == (["10.8.0.3", "fd00:8::3"], True)
    assert left["parts"][0]["kinds"] == ["veth", "spoof_guard", "masquerade"]
    network.delete("one", space.path)
    assert observe(host, tmp_path, space) == before
    assert [note["containerID"] for note in notes()] == ["neighbour"]
