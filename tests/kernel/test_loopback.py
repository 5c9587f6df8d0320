"""loopback on the kernel: the sandbox's lo, up and down."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, Namespace, Sandbox, call_plugin, ip_json, run_in, run_plugin
from harness.changes import refused

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


@pytest.fixture(params=[call_plugin, run_plugin], ids=["in process", "as a process"])
def loopback(
    request: pytest.FixtureRequest, host: Host, sandbox: Sandbox, plugin_dir: Path
) -> Attachment:
    """An attachment of lo; CNI_ARGS and CNI_PATH are garbage, which must not matter."""
    config = {"cniVersion": "1.1.0", "name": "lo-net", "type": "loopback"}
    return Attachment(
        plugin_dir / "loopback",
        config,
        sandbox(),
        args="none",
        path="/some/test/path",
        call=request.param,
    )


def is_up(netns: Namespace | None) -> bool:
    (lo,) = ip_json("link", "show", "dev", "lo", netns=netns)
    return "UP" in lo["flags"]


@pytest.mark.parametrize("version", VERSIONS)
def test_add_check_del(loopback: Attachment, version: str) -> None:
    loopback.config["cniVersion"] = version
    assert not is_up(loopback.sandbox)
    result = loopback.add()
    assert is_up(loopback.sandbox)
    assert loopback.sandbox is not None
    lo = {"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": loopback.sandbox.path}
    if version < "0.3.0":
        assert result == {
            "cniVersion": version,
            "ip4": {"ip": "127.0.0.1/8"},
            "ip6": {"ip": "::1/128"},
            "dns": {},
        }
    elif version < "1.0.0":
        assert result == {
            "cniVersion": version,
            "interfaces": [lo],
            "ips": [
                {"version": "4", "interface": 0, "address": "127.0.0.1/8"},
                {"version": "6", "interface": 0, "address": "::1/128"},
            ],
            "dns": {},
        }
    else:
        assert result == {
            "cniVersion": version,
            "interfaces": [lo],
            "ips": [
                {"interface": 0, "address": "127.0.0.1/8"},
                {"interface": 0, "address": "::1/128"},
            ],
        }
    # A second time changes nothing.
    assert loopback.run("ADD").result == result
    if version >= "0.4.0":
        loopback.check()
    loopback.delete()
    assert not is_up(loopback.sandbox)
    loopback.delete()


def test_previous_result_is_handed_on(loopback: Attachment) -> None:
    previous: dict[str, Any] = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/x"}],
        "ips": [{"address": "10.1.0.2/24", "interface": 0}],
        "dns": {"nameservers": ["192.0.2.1"]},
    }
    run = loopback.run("ADD", cniVersion="1.0.0", prevResult=previous)
    assert run.code == 0
    assert run.result == previous
    assert is_up(loopback.sandbox)
    run = loopback.run("ADD", cniVersion="1.0.0", prevResult={"cniVersion": "0.4.0"})
    assert run.code == 1
    assert "prevResult" in run.result["msg"]


def test_check(loopback: Attachment) -> None:
    assert loopback.refused("CHECK")["msg"] == "loopback interface is down"
    loopback.add()
    loopback.check()
    run_in(loopback.sandbox, ["ip", "link", "set", "lo", "down"])
    assert loopback.refused("CHECK")["msg"] == "loopback interface is down"


def test_del_without_a_sandbox(loopback: Attachment) -> None:
    sandbox, loopback.sandbox = loopback.sandbox, None
    loopback.delete()
    assert sandbox is not None
    sandbox.delete()
    loopback.sandbox = sandbox
    loopback.delete()
    loopback.env["CNI_NETNS"] = "/etc/hostname"
    loopback.delete()


def test_address_that_does_not_belong_there(loopback: Attachment) -> None:
    run_in(loopback.sandbox, ["ip", "address", "add", "10.1.0.2/24", "dev", "lo"])
    error = loopback.refused()
    assert error["msg"] == ('loopback interface found with non-loopback address "10.1.0.2"')
    assert not is_up(loopback.sandbox)


def test_interface_down_as_before_if_the_rest_fails(loopback: Attachment) -> None:
    run = loopback.run("ADD", cniVersion="0.2.0", prevResult={"cniVersion": "0.2.0"})
    assert run.code == 1
    assert not is_up(loopback.sandbox)


def test_sandbox_without_ipv6(loopback: Attachment) -> None:
    run_in(loopback.sandbox, ["sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1"])
    result = loopback.add()
    assert [item["address"] for item in result["ips"]] == ["127.0.0.1/8"]
    loopback.check()


def test_host_is_not_touched(loopback: Attachment, host: Host) -> None:
    before = host.snapshot()
    loopback.add()
    loopback.delete()
    assert host.snapshot() == before


def test_gc_and_status(loopback: Attachment) -> None:
    for command, keys in (("STATUS", {}), ("GC", {"cni.dev/valid-attachments": []})):
        run = loopback.run(command, **keys)
        assert (run.code, run.stdout) == (0, "")


def test_namespace_that_is_none(loopback: Attachment) -> None:
    for path in ("/nowhere", "/etc/hostname", "/proc/self/ns/uts"):
        loopback.env["CNI_NETNS"] = path
        error = loopback.refused()
        assert error["code"] == 8
        assert path in error["msg"]


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
def test_after_a_lost_answer_lo_is_as_it_was(
    host: Host, sandbox: Sandbox, plugin_dir: Path, up: bool
) -> None:
    """The kernel may have set it up, and no one has heard of it."""
    config = {"cniVersion": "1.1.0", "name": "lo-net", "type": "loopback"}
    one = Attachment(plugin_dir / "loopback", config, sandbox(), call=call_plugin)
    if up:
        run_in(one.sandbox, ["ip", "link", "set", "lo", "up"])
    lost = 0
    for position in range(10):
        run, watch = refused(lambda: one.run("ADD"), position, errno.ENOBUFS)
        if watch.disturbed is None:
            break
        assert run.code == 1
        assert is_up(one.sandbox) == up
        lost += watch.disturbed.sort == "netlink"
    assert lost == 1
