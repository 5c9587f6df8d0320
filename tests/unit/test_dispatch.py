"""From environment and stdin to a plugin's call, and back: the protocol's rules, in their order."""

from __future__ import annotations

import json
import os
from typing import Any, NoReturn

import pytest

from harness.topics.dispatch import CONFIG, CONFIGS, ENVIRON, Recorder, call, refused
from pycni.sdk.dispatch import Outcome, serve
from pycni.sdk.plugin import Plugin
from pycni.spec import versions


class Old(Recorder):
    versions = ("0.1.0", "0.2.0", "0.3.0", "0.3.1")


class Broken(Recorder):
    versions = ("0.1.0", "1.x.0", "1.1.0")


# --- a call's way in and out -------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
def test_environment_and_stdin_become_a_request(command: str) -> None:
    plugin = Recorder()
    outcome, _ = call(plugin, command)
    assert outcome.code == 0
    ((called, request),) = plugin.calls
    assert called == command
    assert request.command == command
    assert request.container_id == "some-container-id"
    assert request.netns == "/nowhere/netns"
    assert request.ifname == "eth0"
    assert request.args == "some;extra;args"
    assert request.path == ("/some/cni/path", "/other")
    assert request.document == CONFIG
    assert request.network == "skel-test"


@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_network_commands_have_no_attachment(command: str) -> None:
    plugin = Recorder()
    gone = {"CNI_CONTAINERID": None, "CNI_NETNS": None, "CNI_IFNAME": None, "CNI_ARGS": None}
    outcome, _ = call(plugin, command, CONFIGS[command], **gone)
    assert (outcome.code, outcome.stdout) == (0, "")
    ((called, request),) = plugin.calls
    assert called == command
    assert request.path == ("/some/cni/path", "/other")
    assert (request.container_id, request.netns, request.ifname, request.args) == ("", "", "", "")


@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_variables_a_command_does_not_need_are_not_judged(command: str) -> None:
    plugin = Recorder()
    outcome, _ = call(
        plugin, command, CONFIGS[command], CNI_CONTAINERID="%%%", CNI_IFNAME="a/very/long/name"
    )
    assert outcome.code == 0
    assert len(plugin.calls) == 1


def test_add_prints_its_result_in_the_version_of_the_configuration() -> None:
    for version in versions.ALL:
        outcome, answer = call(Recorder(), "ADD", {**CONFIG, "cniVersion": version})
        assert answer["cniVersion"] == version
        assert ("ip4" in answer) == (version in ("0.1.0", "0.2.0"))
        # Indented by four, no newline at the end.
        assert outcome.stdout.startswith('{\n    "')
        assert outcome.stdout.endswith("\n}")
        assert outcome.stderr == ""


@pytest.mark.parametrize("command", ["CHECK", "DEL", "GC", "STATUS"])
def test_other_commands_print_nothing(command: str) -> None:
    outcome, _ = call(Recorder(), command, CONFIGS[command])
    assert outcome == Outcome("", 0, "")


def test_what_a_plugin_leaves_out_succeeds() -> None:
    for command in ("CHECK", "DEL", "GC", "STATUS"):
        outcome, _ = call(Plugin(), command, CONFIGS[command])
        assert outcome == Outcome("", 0, "")


# --- variables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "required"),
    [
        ("ADD", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("CHECK", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("DEL", ["CNI_CONTAINERID", "CNI_IFNAME"]),
        ("GC", []),
        ("STATUS", []),
    ],
)
@pytest.mark.parametrize("missing", [None, ""], ids=["unset", "empty"])
def test_missing_variables(command: str, required: list[str], missing: str | None) -> None:
    for name in ENVIRON:
        plugin = Recorder()
        if name == "CNI_COMMAND":
            continue
        if name in required:
            error = refused(plugin, command, CONFIGS[command], **{name: missing})
            assert error["code"] == 4
            assert error["msg"] == f"required env variables [{name}] missing"
        else:
            outcome, _ = call(plugin, command, CONFIGS[command], **{name: missing})
            assert outcome.code == 0
    if not required:
        return
    nothing = dict.fromkeys(ENVIRON, missing)
    del nothing["CNI_COMMAND"]
    error = refused(Recorder(), command, CONFIGS[command], **nothing)
    assert error["msg"] == f"required env variables [{','.join(required)}] missing"


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        (
            "CNI_CONTAINERID",
            "some-%%container-id",
            {"code": 4, "msg": "invalid characters in containerID",
             "details": "some-%%container-id"},
        ),
        (
            "CNI_CONTAINERID",
            "id\n",
            {"code": 4, "msg": "invalid characters in containerID", "details": "id\n"},
        ),
        (
            "CNI_IFNAME",
            "1234567890123456",
            {"code": 4, "msg": "interface name is too long",
             "details": "interface name should be less than 16 characters"},
        ),
        (
            "CNI_IFNAME",
            "éééééééé",
            {"code": 4, "msg": "interface name is too long",
             "details": "interface name should be less than 16 characters"},
        ),
        ("CNI_IFNAME", ".", {"code": 4, "msg": "interface name is . or .."}),
        ("CNI_IFNAME", "..", {"code": 4, "msg": "interface name is . or .."}),
        *(
            (
                "CNI_IFNAME",
                f"test{bad}test",
                {"code": 4, "msg": "interface name contains / or : or whitespace characters"},
            )
            for bad in "/: \t\u2003"
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
def test_bad_variables(command: str, name: str, value: str, error: dict[str, Any]) -> None:
    assert refused(Recorder(), command, **{name: value}) == error


def test_bad_value_wins_over_missing_ones() -> None:
    error = refused(
        Recorder(), "ADD", CNI_CONTAINERID="%", CNI_NETNS=None, CNI_IFNAME=None, CNI_PATH=None
    )
    assert error["msg"] == "invalid characters in containerID"
    # The table's order decides between two.
    error = refused(Recorder(), "ADD", CNI_CONTAINERID=None, CNI_IFNAME="a/b")
    assert error["msg"] == "interface name contains / or : or whitespace characters"


def test_bytes_that_are_no_text_are_reported_as_such() -> None:
    # How os.environ shows a byte that is not UTF-8.
    error = refused(Recorder(), "ADD", CNI_CONTAINERID=os.fsdecode(b"id\xff"))
    assert error == {
        "code": 4,
        "msg": "invalid characters in containerID",
        "details": "id\N{REPLACEMENT CHARACTER}",
    }


# --- without a command -------------------------------------------------------------------------


@pytest.mark.parametrize("command", [None, ""])
def test_without_a_command_it_says_what_it_is(command: str | None) -> None:
    plugin = Recorder()
    read = []
    environ = {**ENVIRON, "CNI_COMMAND": command} if command is not None else {}
    outcome = serve(
        plugin, {k: v for k, v in environ.items() if v is not None}, lambda: read.append(1) or b""
    )
    assert (outcome.code, outcome.stdout) == (0, "")
    about, protocol, end = outcome.stderr.split("\n")
    assert about.startswith("CNI recorder plugin ")
    assert protocol == (
        "CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"
    )
    assert end == ""
    assert plugin.calls == []
    assert read == []


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        *((json.dumps({"cniVersion": version}).encode(), version) for version in versions.ALL),
        (b'{"cniVersion": "99.0.0"}', "99.0.0"),
        (b"", "1.1.0"),
        (b"{}", "1.1.0"),
        (b'{"cniVersion": ""}', "1.1.0"),
        (b'{"cniVersion": 7}', "1.1.0"),
        (b"[]", "1.1.0"),
        (b"no JSON", "1.1.0"),
    ],
)
def test_version_needs_only_the_command_and_answers_in_the_version_of_stdin(
    stdin: bytes, version: str
) -> None:
    plugin = Old()
    outcome = serve(plugin, {"CNI_COMMAND": "VERSION"}, lambda: stdin)
    assert outcome.code == 0
    assert outcome.stdout == (
        f'{{"cniVersion":"{version}","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1"]}}\n'
    )
    assert plugin.calls == []


def test_version_without_a_stdin() -> None:
    def fail() -> NoReturn:
        raise OSError(110, "its end did not arrive in time")

    outcome = serve(Old(), {"CNI_COMMAND": "VERSION"}, fail)
    assert (outcome.code, json.loads(outcome.stdout)["cniVersion"]) == (0, "1.1.0")


def test_unknown_command() -> None:
    error = refused(Recorder(), "NOPE")
    assert (error["code"], error["msg"]) == (4, "unknown CNI_COMMAND: NOPE")
    # Stdin comes first; needing nothing comes before both.
    error = refused(Recorder(), "NOPE", b"", CNI_CONTAINERID=None, CNI_PATH=None)
    assert error["code"] == 6
    assert refused(Recorder(), "add")["msg"] == "unknown CNI_COMMAND: add"


# --- stdin -------------------------------------------------------------------------------------


def test_stdin_that_cannot_be_read() -> None:
    def fail() -> NoReturn:
        raise OSError(5, "banana")

    plugin = Recorder()
    outcome = serve(plugin, ENVIRON, fail)
    assert outcome.code == 1
    error = json.loads(outcome.stdout)
    assert (error["code"], error["msg"]) == (5, "error reading from stdin: banana")
    assert plugin.calls == []


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL", "GC", "STATUS", "NOPE"])
@pytest.mark.parametrize(
    "stdin", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b'{"name": 3}', b'{"name": "n"} x', b"nul"]
)
def test_stdin_that_is_no_configuration(command: str, stdin: bytes) -> None:
    error = refused(Recorder(), command, stdin)
    assert error["code"] == 6
    assert error["msg"].startswith("error unmarshall network config: ")


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
def test_network_name(command: str) -> None:
    for missing in ({"cniVersion": "1.1.0"}, {**CONFIG, "name": ""}, {**CONFIG, "name": None}):
        error = refused(Recorder(), command, missing)
        assert (error["code"], error["msg"]) == (7, "missing network name")
    error = refused(Recorder(), command, {**CONFIG, "name": "bad name"})
    assert error == {
        "code": 7,
        "msg": "invalid characters found in network name",
        "details": "bad name",
    }


# --- versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_configuration_without_a_version_is_of_the_first(command: str) -> None:
    for config in ({"name": "n"}, {"name": "n", "cniVersion": ""}):
        plugin = Recorder()
        outcome, _ = call(plugin, command, config)
        assert outcome.code == 0
        assert plugin.calls[0][1].version == "0.1.0"

    class New(Recorder):
        versions = ("0.3.1", "1.0.0")

    assert refused(New(), command, {"name": "n"}) == {
        "code": 1,
        "msg": "incompatible CNI versions",
        "details": 'config is "0.1.0", plugin supports ["0.3.1" "1.0.0"]',
    }


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_versions_must_be_equal_as_text(command: str) -> None:
    for version in ("1.0", "01.0.0", "1.2.0", "nonsense"):
        error = refused(Recorder(), command, {**CONFIG, "cniVersion": version})
        assert (error["code"], error["msg"]) == (1, "incompatible CNI versions")
        assert error["details"].startswith(f'config is "{version}", plugin supports ["0.1.0" "0.2')


@pytest.mark.parametrize(
    ("command", "before"), [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")]
)
def test_commands_that_came_later(command: str, before: str) -> None:
    config = CONFIGS[command]
    error = refused(Recorder(), command, {**config, "cniVersion": before})
    assert (error["code"], error["msg"]) == (1, f"config version does not allow {command}")
    error = refused(Recorder(), command, {"name": "n", "cni.dev/valid-attachments": []})
    assert (error["code"], error["msg"]) == (1, f"config version does not allow {command}")
    error = refused(Old(), command, config)
    assert (error["code"], error["msg"]) == (1, f"plugin version does not allow {command}")
    for bad in ("adsfsadf", "1.2.3.4", 5):
        error = refused(Recorder(), command, {**config, "cniVersion": bad})
        assert error["code"] == 6
    error = refused(Broken(), command, config)
    assert error["code"] == 6
    # New enough, but not one that the plugin lists.
    error = refused(Recorder(), command, {**config, "cniVersion": "1.1"})
    assert (error["code"], error["msg"]) == (1, "incompatible CNI versions")


def test_first_version_of_each_command() -> None:
    plugin = Recorder()
    for command, version in (("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")):
        outcome, _ = call(plugin, command, {**CONFIGS[command], "cniVersion": version})
        assert outcome.code == 0
    assert [command for command, _ in plugin.calls] == ["CHECK", "GC", "STATUS"]
