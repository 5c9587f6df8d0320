"""The dispatcher: GC, the plugin's own namespace, and failures."""

from __future__ import annotations

import json
import os
from typing import Any, NoReturn

import pytest

from harness.topics.dispatch import CONFIG, CONFIGS, ENVIRON, Recorder, call, gc_config, refused
from pycni.sdk.dispatch import serve
from pycni.sdk.netns import find_sandbox
from pycni.sdk.request import Request
from pycni.spec import versions
from pycni.spec.config import Attachment
from pycni.spec.errors import TRY_AGAIN_LATER, CNIError
from pycni.spec.result import Result

# --- GC ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_an_add_whose_caller_has_gone_is_taken_back(command: str) -> None:
    """Also one by a plugin that does not look whether anybody still wants it."""
    reader, writer = os.pipe()
    plugin = Recorder(action=lambda: os.close(writer) if len(plugin.calls) == 1 else None)
    outcome = serve(
        plugin,
        {**ENVIRON, "CNI_COMMAND": command},
        lambda: json.dumps(CONFIG).encode(),
        cancel=reader,
    )
    os.close(reader)
    if command == "ADD":
        assert [command for command, _ in plugin.calls] == ["ADD", "DEL"]
        assert json.loads(outcome.stdout)["code"] == TRY_AGAIN_LATER
    else:
        assert [command for command, _ in plugin.calls] == [command]
        assert outcome.code == 0


def test_gc_keeps_what_is_listed() -> None:
    plugin = Recorder()
    listed = [{"containerID": "one", "ifname": "eth0"}, {"containerID": "two", "ifname": "net1"}]
    call(plugin, "GC", gc_config(**{"cni.dev/valid-attachments": listed}))
    assert plugin.kept == {Attachment("one", "eth0"), Attachment("two", "net1")}
    call(plugin, "GC", gc_config())
    assert plugin.kept == frozenset()


@pytest.mark.parametrize("config", [CONFIG])
def test_gc_without_a_list_is_refused(config: dict[str, Any]) -> None:
    error = refused(Recorder(), "GC", config)
    assert error["code"] == 7
    assert "cni.dev/valid-attachments" in error["msg"]


def test_gc_with_a_list_of_something_else_is_refused() -> None:
    for listed in ("all", [{"containerID": "one"}], [{"ifname": "eth0"}], [7]):
        error = refused(Recorder(), "GC", gc_config(**{"cni.dev/valid-attachments": listed}))
        assert error["code"] == 7
        assert "cni.dev/valid-attachments" in error["msg"]


# --- the plugin's own namespace ----------------------------------------------------------------


def test_own_namespace_is_refused_before_anything_is_done() -> None:
    plugin = Recorder()
    own = "/proc/self/ns/net"
    error = refused(plugin, "ADD", CNI_NETNS=own)
    assert error["code"] == 8
    assert error["msg"] == "plugin's netns and netns from CNI_NETNS should not be the same"
    for override in ("0", "false", "yes", ""):
        assert refused(plugin, "ADD", CNI_NETNS=own, CNI_NETNS_OVERRIDE=override)["code"] == 8


def test_del_in_the_own_namespace_goes_on_without_one() -> None:
    plugin = Recorder()
    outcome, _ = call(plugin, "DEL", CNI_NETNS="/proc/self/ns/net")
    assert outcome.code == 0
    ((command, request),) = plugin.calls
    assert (command, request.netns, request.netns_fd) == ("DEL", "", None)


@pytest.mark.parametrize("override", ["1", "true", "TRUE", "True"])
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_own_namespace_is_served_if_one_insists(command: str, override: str) -> None:
    plugin = Recorder()
    outcome, _ = call(plugin, command, CNI_NETNS="/proc/self/ns/net", CNI_NETNS_OVERRIDE=override)
    assert outcome.code == 0
    assert len(plugin.calls) == 1


def test_namespace_that_cannot_be_opened_is_the_plugins_to_judge() -> None:
    plugin = Recorder()
    for path in ("/nowhere", "/proc/self/ns/uts", "/etc/passwd"):
        call(plugin, "ADD", CNI_NETNS=path)
    call(plugin, "DEL", CNI_NETNS=None)
    assert len(plugin.calls) == 4


def test_namespace_given_as_a_descriptor_counts_for_the_path() -> None:
    plugin = Recorder()
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        outcome = serve(plugin, ENVIRON, lambda: json.dumps(CONFIG).encode(), netns_fd=fd)
    finally:
        os.close(fd)
    assert json.loads(outcome.stdout)["code"] == 8
    assert plugin.calls == []


def test_a_path_with_a_nul_is_no_namespace() -> None:
    request = Request("DEL", CONFIG, container_id="c", ifname="eth0", netns="/run/\0/net")
    with find_sandbox(request) as kernel:
        assert kernel.sandbox is None


# --- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
def test_error_of_the_plugin_comes_out_as_it_is(command: str) -> None:
    def fail() -> NoReturn:
        raise CNIError(1234, "insufficient funds", "try <later> & elsewhere")

    outcome, answer = call(Recorder(fail), command, CONFIGS[command])
    assert outcome.code == 1
    assert answer == {
        "cniVersion": "1.1.0",
        "code": 1234,
        "msg": "insufficient funds",
        "details": "try <later> & elsewhere",
    }
    assert outcome.stdout == (
        '{\n    "cniVersion": "1.1.0",\n    "code": 1234,\n    "msg": "insufficient funds",\n'
        '    "details": "try \\u003clater\\u003e \\u0026 elsewhere"\n}'
    )


@pytest.mark.parametrize(
    ("given", "version"),
    [*((known, known) for known in versions.ALL), ("99.0.0", "1.1.0"), (7, "1.1.0")],
)
def test_errors_are_in_the_version_of_the_configuration(given: Any, version: str) -> None:
    def fail() -> NoReturn:
        raise CNIError(11, "later")

    for config in ({**CONFIG, "cniVersion": given}, {**CONFIG, "cniVersion": given, "name": "/"}):
        _, answer = call(Recorder(fail), "ADD", config)
        assert answer["cniVersion"] == version
    _, answer = call(Recorder(fail), "ADD", {"name": "net"})
    assert answer["cniVersion"] == "0.1.0"


@pytest.mark.parametrize(
    ("config", "env"),
    [(b"", {}), (b"[]", {}), (CONFIG, {"CNI_CONTAINERID": None}), (CONFIG, {"CNI_IFNAME": "/"})],
)
def test_errors_before_a_configuration_are_in_the_newest_version(
    config: Any, env: dict[str, str | None]
) -> None:
    _, answer = call(Recorder(), "ADD", config, **env)
    assert answer["cniVersion"] == "1.1.0"


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
def test_fault_of_the_plugin_is_an_error_object_too(command: str) -> None:
    def fail() -> NoReturn:
        raise ZeroDivisionError("banana")

    outcome, answer = call(Recorder(fail), command, CONFIGS[command])
    assert outcome.code == 1
    assert answer["code"] == 999
    assert "banana" in answer["msg"]
    assert "fault of the plugin recorder at" in answer["details"]
    assert "test_dispatch_failures.py" in answer["details"]
    assert "Traceback" not in outcome.stdout + outcome.stderr


def test_result_that_the_version_cannot_say_is_an_error() -> None:
    class Empty(Recorder):
        def add(self, request: Request) -> Result:
            return Result()

    plugin = Empty()
    outcome, answer = call(plugin, "ADD", {**CONFIG, "cniVersion": "0.2.0"})
    assert outcome.code == 1
    # What was made goes, since the runtime learns of nothing.
    assert [(called, request.command) for called, request in plugin.calls] == [("DEL", "DEL")]
    assert answer["msg"] == "cannot convert: no valid IP addresses"


def test_plugin_knows_where_others_are_and_what_they_inherit() -> None:
    plugin = Recorder()
    other = Recorder()
    outcome = serve(
        plugin,
        {**ENVIRON, "TRACEPARENT": "00-1"},
        lambda: json.dumps(CONFIG).encode(),
        resolve=lambda path: other if path == "/some/cni/path/other" else None,
    )
    assert outcome.code == 0
    request = plugin.calls[0][1]
    assert request.resolve("/some/cni/path/other") is other
    assert request.environ["TRACEPARENT"] == "00-1"
