"""Plugin objects of a program's own: their mistakes are reported as theirs, and are no one else's.

The plugins before them in the list, and after them, do their part whatever they do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from harness.topics import foreign_plugins as kit
from harness.topics.foreign_plugins import (
    ADDRESS,
    BOX,
    Program,
    Recorder,
    assert_is_no_fault_of_pycni,
    no_threads,
    perform,
)
from pycni.runtime import PluginError
from pycni.sdk import Plugin, Request, Result
from pycni.spec.config import DNS
from pycni.spec.errors import CNIError
from pycni.spec.ip import parse_address, parse_network
from pycni.spec.result import Interface, IPConfig, Route

_nothing_is_never_awaited = kit._nothing_is_never_awaited


class Doing(kit.Doing):
    """One of this file, whose lines errors name."""


def line_of(function: Callable[..., Any], offset: int = 0) -> str:
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno + offset}"


# --- what ADD returns --------------------------------------------------------------------------


async def _coroutine() -> Result:
    return Result()


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda: {"cniVersion": "1.1.0"}, ["a dict", "expected a Result"]),
        (lambda: None, ["None", "expected a Result"]),
        (lambda: "10.1.2.3/24", ["a str", "expected a Result"]),
        (lambda: Result, ["the class Result", "expected a Result"]),
        (_coroutine, ["a coroutine", "is never awaited"]),
        (lambda: (Result() for _ in "1"), ["a generator", "never"]),
        (lambda: Result(ips=("10.0.0.1/24",)), ["ips[0]", "a str", "IPConfig"]),
        (lambda: Result(ips=IPConfig(address=ADDRESS)), ["ips", "an IPConfig", "tuple"]),
        (lambda: Result(ips="10.0.0.1/24"), ["ips", "a str", "tuple"]),
        (lambda: Result(ips=(IPConfig(address="10.0.0.1/24"),)),
         ["ips[0].address", "a str", "IPNetwork", "parse_network"]),
        (lambda: Result(ips=(IPConfig(address=None),)), ["ips[0].address", "None", "IPNetwork"]),
        (lambda: Result(ips=(IPConfig(address=ADDRESS, gateway="10.0.0.1"),)),
         ["ips[0].gateway", "a str", "IPAddress", "parse_address"]),
        (lambda: Result(ips=(IPConfig(address=ADDRESS, interface="0"),)),
         ["ips[0].interface", '"0"', "whole number"]),
        (lambda: Result(interfaces=({"name": "eth0"},)), ["interfaces[0]", "a dict", "Interface"]),
        (lambda: Result(interfaces=(Interface(name=None),)), ["interfaces[0].name", "a string"]),
        (lambda: Result(interfaces=(Interface(name="eth0", mtu=True),)), ["interfaces[0].mtu"]),
        (lambda: Result(routes=(Route(dst=ADDRESS, scope=999),)), ["routes[0].scope", "999"]),
        (lambda: Result(routes=(Route(dst=parse_address("10.0.0.1")),)),
         ["routes[0].dst", "an IPAddress", "IPNetwork"]),
        (lambda: Result(dns={}), ["dns", "a dict", "DNS"]),
        (lambda: Result(dns=DNS(nameservers="1.1.1.1")), ["dns.nameservers", "a str", "tuple"]),
        (lambda: Result(dns=DNS(search=(1,))), ["dns.search[0]", "a string"]),
        (lambda: Result(cni_version=1), ["cni_version", "a string"]),
    ],
)  # fmt: skip
def test_a_wrong_result_is_reported_and_undone(
    tmp_path: Path, returned: Callable[[], Any], words: list[str]
) -> None:
    mine = Doing(lambda _: returned(), "ADD")
    error = Program(tmp_path, mine).fail_to_add()
    assert [word for word in words if word not in str(error)] == []
    assert f"{Doing.add.__code__.co_filename}:" in str(error)
    assert mine.calls == ["ADD", "DEL"]


def test_lists_are_as_good_as_tuples(tmp_path: Path) -> None:
    kept = [IPConfig(address=ADDRESS)]
    dns = DNS(nameservers=["1.1.1.1"])
    mine = Doing(lambda _: Result(ips=kept, dns=dns), "ADD")  # type: ignore[arg-type]
    result = Program(tmp_path, mine).add()
    assert (result.ips, result.dns.nameservers) == ((IPConfig(address=ADDRESS),), ("1.1.1.1",))
    kept.clear()
    assert len(result.ips) == 1


# --- functions that is never awaited --------------------------------------------------------------


class Async(Recorder):
    async def add(self, request: Request) -> Result:  # type: ignore[override]
        self.calls.append("ADD")
        return Result()

    async def delete(self, request: Request) -> None:  # type: ignore[override]
        self.calls.append("DEL")


class AsyncDelete(Recorder):
    async def delete(self, request: Request) -> None:  # type: ignore[override]
        self.calls.append("DEL")


def test_an_async_plugin_is_refused(tmp_path: Path) -> None:
    mine = Async()
    program = Program(tmp_path, mine)
    with pytest.raises(PluginError) as caught:
        program.add()
    error = caught.value
    assert_is_no_fault_of_pycni(error)
    assert "add is an async function; delete is an async function" in str(error)
    assert line_of(Async.add) in str(error)
    assert mine.calls == program.first.calls == []
    assert "async" in str(program.fail_to_delete())


def test_what_cannot_be_deleted_is_not_added(tmp_path: Path) -> None:
    mine = AsyncDelete()
    program = Program(tmp_path, mine)
    with pytest.raises(PluginError, match="delete is an async function"):
        program.add()
    assert program.first.calls == []
    assert mine.calls == []


@pytest.mark.parametrize("make", [_coroutine, lambda: (1 for _ in "1")])
def test_delete_does_not_succeed_unrun(tmp_path: Path, make: Callable[[], Any]) -> None:
    class Lazy(Recorder):
        def delete(self, request: Request) -> Any:
            return make()

    program = Program(tmp_path, Lazy())
    program.add()
    error = program.fail_to_delete()
    assert line_of(Lazy.delete) in str(error)
    assert len(program.network.attachments()) == 1


@pytest.mark.parametrize("command", ["CHECK", "GC", "STATUS"])
def test_other_async_operations(tmp_path: Path, command: str) -> None:
    class Waiting(Recorder):
        async def check(self, request: Request) -> None:  # type: ignore[override]
            pass

        async def gc(self, request: Request, keep: Any) -> None:  # type: ignore[override]
            pass

        async def status(self, request: Request) -> None:  # type: ignore[override]
            pass

    program = Program(tmp_path, Waiting())
    program.add()
    with pytest.raises(CNIError, match="async") as caught:
        perform(program.network, command)
    assert_is_no_fault_of_pycni(caught.value)
    if command == "GC":
        assert program.last.calls[-1] == "GC"


# --- exceptions --------------------------------------------------------------------------------


class OwnError(Exception):
    pass


class OwnBase(BaseException):
    def __str__(self) -> str:
        raise OwnError("no words")


class Bare(CNIError):
    def __init__(self) -> None:
        pass


EXCEPTIONS = [
    SystemExit(3), KeyboardInterrupt(), StopIteration(), GeneratorExit(), OwnError("own"),
    OwnBase(), ValueError("bad"), FileNotFoundError(2, "No such file", "/nowhere"),
    PermissionError(1, "No"), MemoryError(), RecursionError(), Bare(),
    CNIError(*cast("Any", ("7", "text for a code"))), CNIError(*cast("Any", (7, None))),
]  # fmt: skip


@pytest.mark.parametrize("raised", EXCEPTIONS, ids=lambda raised: type(raised).__name__)
@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
def test_an_exception_is_the_plugins(tmp_path: Path, raised: BaseException, command: str) -> None:
    def fail(request: Request) -> Any:
        raise raised

    program = Program(tmp_path, Doing(fail, command))
    error: CNIError
    if command == "ADD":
        error = program.fail_to_add()
    else:
        program.add()
        if command == "DEL":
            error = program.fail_to_delete()
        else:
            with pytest.raises(CNIError) as caught:
                perform(program.network, command)
            error = caught.value
        if command == "GC":
            assert program.first.calls[-1] == program.last.calls[-1] == "GC"
    assert_is_no_fault_of_pycni(error)
    assert isinstance(error.code, int)
    assert "fault of the plugin of type mine" in error.message
    assert line_of(fail, 1) in error.message
    assert type(raised).__name__ in error.message


def test_a_plugins_own_error_is_left_as_it_is(tmp_path: Path) -> None:
    refused = CNIError(123, "no more of them", "make some")

    def fail(request: Request) -> Any:
        raise refused

    error = Program(tmp_path, Doing(fail, "ADD")).fail_to_add()
    assert (error.code, error.details) == (123, "make some")
    assert error.message.endswith(": no more of them")
    assert error.__cause__ is refused


def test_undo_goes_on_after_any_exception(tmp_path: Path) -> None:
    def fail(request: Request) -> Any:
        raise SystemExit(request.command)

    program = Program(tmp_path, Doing(fail, "ADD", "DEL"))
    with pytest.raises(PluginError) as caught:
        program.add()
    assert program.first.calls == ["ADD", "DEL"]
    assert "SystemExit: ADD" in caught.value.message
    assert "not all could be undone" in caught.value.details
    assert "SystemExit: DEL" in caught.value.details


def test_the_place_is_the_plugins_where_another_raises(tmp_path: Path) -> None:
    def fail(request: Request) -> Any:
        return parse_network("no network")

    error = Program(tmp_path, Doing(fail, "ADD")).fail_to_add()
    assert line_of(fail, 1) in error.message


def test_a_method_that_takes_something_else(tmp_path: Path) -> None:
    class Other(Recorder):
        def delete(self) -> None:  # type: ignore[override]
            pass

    program = Program(tmp_path, Other())
    program.add()
    error = program.fail_to_delete()
    assert "TypeError" in error.message
    assert line_of(Other.delete) in error.message


def test_ctrl_c_where_the_system_has_no_thread_is_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_threads(monkeypatch)

    def interrupted(request: Request) -> Any:
        raise KeyboardInterrupt

    program = Program(tmp_path, Doing(interrupted, "ADD"))
    with pytest.raises(KeyboardInterrupt):
        program.add()
    assert program.first.calls == ["ADD", "DEL"]


# --- what is no plugin -------------------------------------------------------------------------


class Plain:
    """No `Plugin`, but its methods."""

    def add(self, request: Request) -> Result:
        return request.prev_result or Result()

    def check(self, request: Request) -> None:
        pass

    def delete(self, request: Request) -> None:
        pass

    def gc(self, request: Request, keep: object) -> None:
        pass

    def status(self, request: Request) -> None:
        pass


def test_a_plain_object_is_a_plugin(tmp_path: Path) -> None:
    program = Program(tmp_path, Plain())
    for command in ("STATUS", "ADD", "CHECK", "GC", "DEL"):
        perform(program.network, command)
    assert program.last.calls == ["STATUS", "ADD", "CHECK", "GC", "DEL"]
    assert program.network.versions()["mine"] == Plugin.versions


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        (Plain, "the class Plain"),
        (object(), "no method add"),
        ("mine", "a str"),
        (type("NoDelete", (), {"add": Plain.add})(), "no method delete"),
    ],
)
def test_what_is_no_plugin(tmp_path: Path, mine: Any, words: str) -> None:
    program = Program(tmp_path, mine)
    with pytest.raises(PluginError, match=words) as caught:
        program.add()
    assert caught.value.plugin_type == "mine"
    assert program.first.calls == []
    program.fail_to_delete()


@pytest.mark.parametrize("versions", ["1.1.0", (1,), None])
def test_versions_that_are_none(tmp_path: Path, versions: Any) -> None:
    mine = Recorder()
    mine.versions = versions  # type: ignore[misc]
    program = Program(tmp_path, mine)
    with pytest.raises(PluginError, match="versions"):
        program.add()
    assert program.first.calls == []
    program.network.delete(*BOX)
    assert mine.calls == ["DEL"]


def test_a_resolve_that_raises(tmp_path: Path) -> None:
    program = Program(tmp_path, None, resolve={}.__getitem__)
    with pytest.raises(PluginError, match=r"resolve.*KeyError") as caught:
        program.add()
    assert_is_no_fault_of_pycni(caught.value)
