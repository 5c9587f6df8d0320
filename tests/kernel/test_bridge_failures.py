"""bridge: DEL whatever is missing, and ADD that must fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Attach, Host, run_in
from harness.kernel_state import link_names, pings, veths
from harness.topics import bridge as kit
from harness.topics.bridge import FULL, V4, V6, owned

attach = kit.attach
leases = kit.leases


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize(
    "loss", ["nothing", "prevResult", "interface", "netns", "netns and path", "lease", "everything"]
)
def test_del_whatever_is_missing(
    attach: Attach, leases: Callable[[], set[str]], tmp_path: Path, loss: str, backend: str
) -> None:
    one = attach((V4, V6), **FULL, ipMasqBackend=backend)
    one.add()
    sandbox = one.sandbox
    assert sandbox is not None
    if loss in ("prevResult", "everything"):
        one.result = None
    if loss in ("interface", "everything"):
        run_in(sandbox, ["ip", "link", "delete", "eth0"])
    if loss in ("netns", "netns and path", "everything"):
        sandbox.delete()
    if loss in ("netns and path", "everything"):
        one.sandbox = None
    if loss in ("lease", "everything"):
        for path in (tmp_path / "leases/net").glob("[12]*"):
            path.unlink()
    one.delete()
    assert leases() == set()
    assert veths() == []
    assert owned() == []
    assert "CNI-" not in run_in(None, ["iptables-save"]).stdout
    one.delete()


def test_del_of_what_was_never_added(attach: Attach, host: Host, tmp_path: Path) -> None:
    before = host.snapshot()
    one = attach((V4, V6), **FULL)
    one.delete()
    assert host.snapshot() == before
    one.sandbox = None
    one.delete()
    assert host.snapshot() == before


def test_del_without_a_namespace_while_the_interface_lives(attach: Attach) -> None:
    # Some runtimes forget the path while a process still holds the namespace.
    one = attach(**FULL)
    one.add()
    sandbox, one.sandbox = one.sandbox, None
    one.result = None
    one.delete()
    assert veths() == []
    assert link_names(sandbox) == {"lo"}


def test_del_leaves_the_interface_of_another_alone(attach: Attach) -> None:
    mine, other = attach(), attach()
    mine.add()
    other.add()
    # A stale result names the host end that another attachment has by now.
    mine.delete()
    mine.result["interfaces"][1]["name"] = other.result["interfaces"][1]["name"]
    mine.sandbox = None
    mine.delete()
    other.check()


def test_del_goes_on_where_the_configuration_has_a_fault(
    attach: Attach, leases: Callable[[], set[str]]
) -> None:
    one = attach(**FULL)
    one.add()
    one.config |= {"mtu": "wide", "vlanTrunk": [{"minID": 7}], "runtimeConfig": {"mac": 7}}
    one.args = "nonsense"
    one.run("DEL")
    assert veths() == []
    assert owned() == []
    assert leases() == set()


@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
def test_del_leaves_an_interface_that_cannot_be_a_plugin_s(
    attach: Attach, plugin: str, plugin_dir: Path
) -> None:
    one = attach(ifname="lo")
    one.plugin = plugin_dir / plugin
    one.config["type"] = plugin
    one.delete()
    assert link_names(one.sandbox) == {"lo"}


def test_del_says_all_failures_and_removes_the_rest(
    attach: Attach, leases: Callable[[], set[str]]
) -> None:
    one = attach(**FULL)
    one.add()
    one.path = "/nowhere"
    error = one.refused("DEL")
    assert "failed to find plugin" in error["msg"]
    assert veths() == []
    assert owned() == []
    one.path = None
    one.delete()
    assert leases() == set()


def test_del_with_a_path_that_is_no_namespace_cleans_the_host(
    attach: Attach, leases: Callable[[], set[str]]
) -> None:
    """What is no namespace (any more) holds nothing to clean: a file left by an unmount, say."""
    one = attach(**FULL)
    one.add()
    one.env["CNI_NETNS"] = "/etc/hostname"
    one.delete()
    assert veths() == []
    assert owned() == []
    assert leases() == set()


# --- ADD that must fail --------------------------------------------------------------------------


def test_interface_that_is_there_already(
    attach: Attach, host: Host, leases: Callable[[], set[str]], tmp_path: Path
) -> None:
    one = attach(**FULL)
    run_in(one.sandbox, ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x"])
    before = host.snapshot(tmp_path)
    error = one.refused()
    assert error["code"] == 101
    assert "eth0" in error["msg"]
    assert leases() == set()
    assert link_names(one.sandbox) == {"lo", "eth0", "x"}
    assert host.snapshot()["links"] == before["links"]


def test_second_add_fails_and_leaves_the_first_as_it_is(
    attach: Attach, leases: Callable[[], set[str]]
) -> None:
    one = attach((V4, V6), **FULL)
    one.add()
    for _ in range(2):
        assert one.run("ADD").code == 1
    assert len(leases()) == 2
    one.check()
    assert pings(one.sandbox, "10.1.2.1")


def test_host_end_of_an_attachment_that_was_cut_short(attach: Attach) -> None:
    one = attach()
    one.add()
    outer = veths()[0]
    one.delete()
    run_in(None, ["ip", "link", "add", outer, "type", "veth", "peer", "name", "stale"])
    one.result = None
    one.add()
    assert link_names() == {"lo", "bridge0", outer}
    one.check()


def test_released_when_the_rest_fails(attach: Attach, leases: Callable[[], set[str]]) -> None:
    attach(isGateway=True).add()
    assert len(leases()) == 1
    other = attach(([{"subnet": "10.1.3.0/24"}],), isGateway=True)
    assert other.refused()["code"] == 101
    assert leases() == {"10.1.2.2"}
    assert link_names(other.sandbox) == {"lo"}


def test_sandbox_that_is_the_hosts_own(attach: Attach, host: Host) -> None:
    before = host.snapshot()
    one = attach()
    one.env["CNI_NETNS"] = "/proc/thread-self/ns/net"
    assert one.refused()["code"] == 8
    assert host.snapshot() == before
