"""debug: what it writes down, and that its hooks run in the container's namespace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, Sandbox, call_plugin, ip_json, run_plugin

PREVIOUS = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24"}]}


@pytest.fixture(params=[call_plugin, run_plugin], ids=["in process", "as a process"])
def debug(
    request: pytest.FixtureRequest,
    host: Host,
    sandbox: Sandbox,
    plugin_dir: Path,
    tmp_path: Path,
) -> Attachment:
    config = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "debug",
        "cniOutput": str(tmp_path / "output"),
        "prevResult": PREVIOUS,
    }
    return Attachment(plugin_dir / "debug", config, sandbox(), args="A=B", call=request.param)


def test_calls_are_written_down(debug: Attachment, tmp_path: Path) -> None:
    assert debug.add() == PREVIOUS
    debug.check()
    debug.delete()
    lines = (tmp_path / "output").read_text().splitlines()
    assert debug.sandbox is not None
    for number, command in enumerate(("CmdAdd", "CmdCheck", "CmdDel")):
        entry = lines[8 * number : 8 * number + 8]
        assert entry[:6] == [
            command,
            "ContainerID: pycni-test",
            f"Netns: {debug.sandbox.path}",
            "IfName: eth0",
            "Args: A=B",
            f"Path: {debug.plugin.parent}",
        ]
        assert json.loads(entry[6].removeprefix("StdinData: ")) == debug.config
        assert entry[7] == 22 * "-"
    assert len(lines) == 24


def test_hooks_run_in_the_container(debug: Attachment, tmp_path: Path) -> None:
    debug.config |= {
        "addHooks": [
            ["false"],
            ["no-such-program"],
            [],
            ["ip", "link", "add", "hook0", "type", "bridge"],
        ],
        "checkHooks": [["sh", "-c", "echo $CNI_COMMAND $CNI_IFNAME > " + str(tmp_path / "seen")]],
        "delHooks": [["ip", "link", "del", "hook0"]],
    }
    run = debug.run("ADD")
    assert (run.code, run.result) == (0, PREVIOUS)
    assert [link["ifname"] for link in ip_json("link", netns=debug.sandbox)] == ["lo", "hook0"]
    assert [link["ifname"] for link in ip_json("link")] == ["lo"]
    if debug.call is run_plugin:
        assert "ERR: false: exit status 1" in run.stderr
    debug.check()
    assert (tmp_path / "seen").read_text() == "CHECK eth0\n"
    debug.run("DEL")
    assert len(ip_json("link", netns=debug.sandbox)) == 1


def test_without_a_namespace(debug: Attachment) -> None:
    debug.config["delHooks"] = [["true"]]
    assert debug.sandbox is not None
    debug.sandbox.delete()
    debug.delete()


@pytest.mark.parametrize("version", ["0.1.0", "0.3.1", "1.1.0"])
def test_without_a_previous_result(debug: Attachment, version: str) -> None:
    debug.config["cniVersion"] = version
    del debug.config["prevResult"]
    if version == "0.1.0":
        assert "cannot convert: no valid IP addresses" in debug.refused()["msg"]
        return
    expected: dict[str, Any] = {"cniVersion": version}
    assert debug.add() == (expected if version == "1.1.0" else {**expected, "dns": {}})


def test_output_that_cannot_be_written(debug: Attachment, tmp_path: Path) -> None:
    debug.config["cniOutput"] = str(tmp_path)
    assert debug.refused()["code"] == 5
