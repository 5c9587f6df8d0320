"""noop: what its file makes it answer, and what it writes down."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import PluginRun, call_plugin, run_plugin
from pycni.plugins.noop import plugin
from pycni.sdk.dispatch import perform
from pycni.sdk.request import Request
from pycni.spec.errors import CNIError

Call = Callable[..., PluginRun]
COMMANDS = ("ADD", "CHECK", "DEL", "GC", "STATUS")
PREVIOUS = {
    "cniVersion": "0.4.0",
    "interfaces": [{"name": "eth0"}],
    "ips": [{"version": "4", "interface": 0, "address": "10.1.2.3/24"}],
}


@pytest.fixture(params=[call_plugin, run_plugin], ids=["in process", "as a process"])
def call(request: pytest.FixtureRequest, plugin_dir: Path) -> Call:
    def run(command: str, config: Any, **env: str | None) -> PluginRun:
        if isinstance(config, dict):
            config = {"cniVersion": "1.1.0", "name": "net", "type": "noop"} | config
        env = {"CNI_NETNS": "/some/netns", **env}
        done: PluginRun = request.param(plugin_dir / "noop", command, config, **env)
        return done

    return run


@pytest.fixture
def debug(tmp_path: Path) -> Path:
    """The file, saying nothing yet."""
    return say(tmp_path / "debug.json")


def say(file: Path, **keys: Any) -> Path:
    file.write_text(json.dumps(keys))
    return file


@pytest.mark.parametrize("command", COMMANDS)
def test_result_is_printed_and_call_written_down(call: Call, debug: Path, command: str) -> None:
    say(debug, ReportResult='{ "some": "text"', ReportStderr="words")
    config = {
        "cniVersion": "1.1.0",
        "name": "net",
        "type": "noop",
        "cni.dev/valid-attachments": [],
    }
    text = json.dumps(config, indent=3)
    run = call(command, text, CNI_ARGS=f"DEBUG={debug};X=Y", CNI_NETNS_OVERRIDE="true")
    assert (run.code, run.stdout, run.stderr) == (0, '{ "some": "text"', "words")
    found = json.loads(debug.read_text())
    assert found["Command"] == command
    arguments = found["CmdArgs"]
    assert base64.b64decode(arguments.pop("StdinData")).decode() == text
    path = arguments.pop("Path")
    assert path
    assert arguments == {
        "ContainerID": "pycni-test",
        "Netns": "/some/netns",
        "IfName": "eth0",
        "Args": f"DEBUG={debug};X=Y",
        "NetnsOverride": "true",
    }
    assert debug.stat().st_mode & 0o777 == 0o600


def test_file_named_by_the_configuration(call: Call, debug: Path) -> None:
    say(debug, reportresult="PLAIN")
    assert call("ADD", {"debugFile": str(debug)}).stdout == "PLAIN"


def test_without_a_file(call: Call) -> None:
    run = call("ADD", {})
    assert (run.code, run.stdout) == (0, "{}")
    assert run.stderr == "CNI_ARGS or config empty, no debug behavior\n"


def test_nothing_to_report(call: Call, debug: Path) -> None:
    run = call("ADD", {}, CNI_ARGS=f"DEBUG={debug}")
    assert (run.code, run.stdout) == (0, "")


def test_errors(call: Call, debug: Path) -> None:
    say(debug, ReportError="banana", ReportStderr="words")
    run = call("DEL", {}, CNI_ARGS=f"DEBUG={debug}")
    assert (run.code, run.result) == (1, {"cniVersion": "1.1.0", "code": 999, "msg": "banana"})
    say(debug, ReportError="banana", ReportErrorCode=50)
    run = call("STATUS", {"debugFile": str(debug)})
    assert (run.code, run.result) == (1, {"cniVersion": "1.1.0", "code": 50, "msg": "banana"})


def test_exit_status(call: Call, debug: Path) -> None:
    say(debug, ExitWithCode=3)
    run = call("ADD", {}, CNI_ARGS=f"DEBUG={debug}")
    assert (run.code, run.stdout) == (3, "")
    say(debug, ExitWithCode=4, ReportResult="text")
    run = call("ADD", {}, CNI_ARGS=f"DEBUG={debug}")
    assert (run.code, run.stdout) == (4, "text")


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0"])
def test_previous_result_is_passed_on(call: Call, debug: Path, version: str) -> None:
    say(debug, ReportResult="PASSTHROUGH")
    config = {"cniVersion": version, "prevResult": {**PREVIOUS, "cniVersion": version}}
    run = call("ADD", config, CNI_ARGS=f"DEBUG={debug}")
    assert run.result == {**PREVIOUS, "cniVersion": version, "dns": {}}


def test_dns_is_injected(call: Call, debug: Path) -> None:
    say(debug, ReportResult="INJECT-DNS")
    config = {"cniVersion": "0.4.0", "prevResult": PREVIOUS}
    run = call("ADD", config, CNI_ARGS=f"DEBUG={debug}")
    assert run.result == {**PREVIOUS, "dns": {"nameservers": ["1.2.3.4"]}}


def test_all_calls_in_one_log(call: Call, debug: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    for command in ("ADD", "DEL"):
        call(command, {"commandLog": str(log)}, CNI_ARGS=f"DEBUG={debug}")
    assert [entry["Command"] for entry in json.loads(log.read_text())] == ["ADD", "DEL"]


def test_versions(call: Call, debug: Path) -> None:
    known = call("VERSION", {}).result["supportedVersions"]
    assert known == ["0.-42.0", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    say(debug, ReportVersionSupport=["0.987.6", "0.4.0"])
    run = call("VERSION", {}, CNI_ARGS=f"DEBUG={debug}")
    assert run.result["supportedVersions"] == ["0.987.6", "0.4.0"]
    run = call("ADD", {}, CNI_ARGS=f"DEBUG={debug}")
    assert (run.code, run.result["code"]) == (1, 1)


@pytest.mark.parametrize(
    ("args", "content", "config"),
    [
        ("DEBUG=/no/such/file", None, {}),
        ("X=Y", None, {}),
        ("garbage", None, {}),
        ("DEBUG=FILE", "garbage", {}),
        ("DEBUG=FILE", "{}", "garbage"),
        ("DEBUG=FILE", '{"ReportVersionSupport": []}', {}),
        ("DEBUG=FILE", '{"ReportResult": "PASSTHROUGH"}', {}),
        ("DEBUG=FILE", '{"ReportResult": "INJECT-DNS"}', {}),
    ],
)
def test_what_crashes_the_reference_exits_like_it(
    call: Call, tmp_path: Path, args: str, content: str | None, config: Any
) -> None:
    file = tmp_path / "debug.json"
    file.write_text(content or "{}")
    run = call("ADD", config, CNI_ARGS=args.replace("FILE", str(file)))
    assert (run.code, run.stdout) == (2, "")
    assert run.stderr


def test_undecodable_previous_result(call: Call, debug: Path) -> None:
    run = call("ADD", {"prevResult": {"cniVersion": "0.1.0"}}, CNI_ARGS=f"DEBUG={debug}")
    assert (run.code, run.result["code"]) == (1, 1)


def test_called_without_environment(debug: Path) -> None:
    document = {"cniVersion": "1.1.0", "name": "net", "debugFile": str(debug)}
    request = Request("ADD", document, container_id="one", ifname="eth0", path=("/a", "/b"))
    say(debug, ReportResult='{"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24"}]}')
    result = perform(plugin, request)
    assert result is not None
    assert str(result.ips[0].address) == "10.1.2.3/24"
    assert json.loads(debug.read_text())["CmdArgs"]["Path"] == "/a:/b"
    for keys, message in (
        ({"ExitWithCode": 7}, "netplugin failed with no error message: exit status 7"),
        ({"ReportResult": "PASSTHROUGH"}, "PASSTHROUGH without a prevResult"),
        ({"ReportResult": "text"}, "ReportResult is no result"),
        ({"ReportError": "banana"}, "banana"),
    ):
        say(debug, **keys)
        with pytest.raises(CNIError, match=message):
            perform(plugin, request)
