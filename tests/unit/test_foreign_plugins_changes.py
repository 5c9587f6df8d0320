"""A program's own plugin: what it may not change, what it is given, and who hears of calls."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.topics import foreign_plugins as kit
from harness.topics.foreign_plugins import (
    BOX,
    Doing,
    Program,
    Recorder,
    assert_is_no_fault_of_pycni,
    no_threads,
    perform,
)
from pycni.plugins import loopback
from pycni.runtime import Endpoint, Network, PluginError, SeveralErrors
from pycni.runtime.aio import AsyncNetwork
from pycni.runtime.engine import Engine
from pycni.sdk import Request, Result
from pycni.spec.errors import CNIError

_nothing_is_never_awaited = kit._nothing_is_never_awaited


# --- what a plugin may not change --------------------------------------------------------------


def _change_directory(_: Request) -> Result:
    os.chdir("/proc")
    return Result()


def _change_umask(_: Request) -> Result:
    os.umask(0o123)
    return Result()


def _set_variable(_: Request) -> Result:
    os.environ["MINE"] = "set"
    return Result()


def _change_variable(_: Request) -> Result:
    os.environ["HERE"] = "changed"
    return Result()


def _unset_variable(_: Request) -> Result:
    del os.environ["HERE"]
    return Result()


CHANGES = [
    (_change_directory, "working directory"),
    (_change_umask, "umask"),
    (_set_variable, "os.environ (MINE)"),
    (_change_variable, "os.environ (HERE)"),
    (_unset_variable, "os.environ (HERE)"),
]


def state() -> list[object]:
    status = Path("/proc/thread-self/status").read_text()
    umask = next(line for line in status.splitlines() if line.startswith("Umask"))
    environ = {**os.environ, "PYTEST_CURRENT_TEST": ""}
    return [os.getcwd(), umask, environ, signal.getsignal(signal.SIGUSR1)]


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    monkeypatch.setenv("HERE", "as it was")
    found = state()
    yield found
    try:
        assert state() == found
    finally:
        os.chdir(str(found[0]))
        os.environ.pop("MINE", None)


@pytest.mark.parametrize(("change", "words"), CHANGES)
@pytest.mark.parametrize("in_thread", [True, False])
def test_what_is_changed_is_put_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: list[object],
    change: Callable[[Request], Result],
    words: str,
    in_thread: bool,
) -> None:
    if not in_thread:
        no_threads(monkeypatch)
    seen: list[list[object]] = []
    program = Program(tmp_path, Doing(change, "ADD"))
    program.first.delete = lambda request: seen.append(state())  # type: ignore[method-assign]
    with pytest.raises(PluginError) as caught:
        program.add()
    assert words in str(caught.value)
    assert "type mine" in caught.value.message
    assert_is_no_fault_of_pycni(caught.value)
    assert seen == [before]
    program = Program(tmp_path, Doing(change, "DEL"))
    program.add()
    assert words in str(program.fail_to_delete())
    assert state() == before


def test_signal_handlers_are_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[object]
) -> None:
    no_threads(monkeypatch)

    def handle(_: Request) -> Result:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        return Result()

    error = Program(tmp_path, Doing(handle, "ADD")).fail_to_add()
    assert "the handler of SIGUSR1" in str(error)


def test_a_failure_and_a_change_are_both_reported(tmp_path: Path, before: list[object]) -> None:
    def fail(request: Request) -> Any:
        _set_variable(request)
        raise CNIError(123, "no more of them", "make some")

    error = Program(tmp_path, Doing(fail, "ADD")).fail_to_add()
    assert error.code == 123
    assert "no more of them" in error.message
    assert "make some" in error.details
    assert "os.environ (MINE)" in error.details


def test_what_the_program_changes_meanwhile_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE", "as it was")
    home = os.getcwd()
    begun, go_on = threading.Event(), threading.Event()

    def wait(request: Request) -> Result:
        begun.set()
        assert go_on.wait(10)
        return Result()

    network = AsyncNetwork(Program(tmp_path, Doing(wait, "ADD")).network)

    async def program() -> None:
        task = asyncio.create_task(network.add(*BOX))
        assert await asyncio.to_thread(begun.wait, 10)
        os.environ["HERE"] = "changed"
        os.chdir("/")
        go_on.set()
        await task

    try:
        asyncio.run(program())
        assert (os.getcwd(), os.environ["HERE"]) == ("/", "changed")
    finally:
        os.chdir(home)


def test_what_another_call_changes_is_reported_as_its_own(
    tmp_path: Path, before: list[object]
) -> None:
    """Two calls at once, one of which changes what it may not."""
    both = threading.Barrier(2, timeout=10)

    def act(request: Request) -> Result:
        both.wait()
        if request.container_id == "bad":
            _set_variable(request)
            _change_directory(request)
        both.wait()
        return Result()

    network = Program(tmp_path, Doing(act, "ADD")).network
    good, bad = network.add_many([Endpoint(name, BOX[1]) for name in ("good", "bad")], workers=2)
    assert (good.ok, bad.ok) == (True, False)
    assert "os.environ (MINE)" in str(bad.error)


def test_what_is_back_by_itself_is_no_change(tmp_path: Path, before: list[object]) -> None:
    def there_and_back(request: Request) -> Result:
        home = os.getcwd()
        os.chdir("/")
        os.chdir(home)
        os.environ["MINE"] = "set"
        del os.environ["MINE"]
        return Result()

    Program(tmp_path, Doing(there_and_back, "ADD")).add()


# --- what a plugin is given --------------------------------------------------------------------


def test_the_document_is_the_plugins_own(tmp_path: Path) -> None:
    seen: list[Any] = []

    def mutate(request: Request) -> Result:
        document: Any = request.document
        seen.append(len(document["nested"]["list"]) + len(document["nested"]["list"][0]))
        document["nested"]["list"][0]["mine"] = document
        document["nested"]["list"].append(1)
        document["runtimeConfig"]["bandwidth"]["rate"] = 2
        document["name"] = "other"
        environ: Any = request.environ
        environ["MINE"] = "set"
        return Result()

    nested: dict[str, Any] = {"list": [{}]}
    kinds = ("one", "two")
    document = {
        "cniVersion": "1.1.0",
        "name": "n",
        "plugins": [
            {"type": kind, "nested": nested, "capabilities": {"bandwidth": True}} for kind in kinds
        ],
    }
    capabilities: dict[str, Any] = {"bandwidth": {"rate": 1}}
    network = Network.from_dict(
        document, cache_dir=tmp_path, resolve=lambda _: Doing(mutate, "ADD", "DEL")
    )
    for name in ("a", "b"):
        network.add(name, BOX[1], capabilities=capabilities)
    network.delete("a", capabilities=capabilities)
    assert seen == [1] * 6
    assert (nested, capabilities) == ({"list": [{}]}, {"bandwidth": {"rate": 1}})
    assert "MINE" not in os.environ


def test_pycnis_own_plugins_are_called_as_they_are() -> None:
    own = loopback.plugin
    assert Engine().find("loopback").plugin is own
    assert Engine(resolve={"mine": own}.get).find("mine").plugin is own


# --- what is called before each call --------------------------------------------------------------


class Raised(Exception):
    pass


class Observer:
    """Raises at the calls that it is asked to."""

    def __init__(self, *at: tuple[str, str]) -> None:
        self.at = at
        self.errors: list[BaseException] = []
        self.make: Callable[[str], BaseException] = Raised

    def __call__(self, command: str, kind: str) -> None:
        if (command, kind) in self.at:
            self.errors.append(self.make(f"{command} {kind}"))
            raise self.errors[-1]


@pytest.mark.parametrize("make", [Raised, SystemExit, KeyboardInterrupt, lambda m: CNIError(7, m)])
def test_an_add_that_is_not_to_go_on(tmp_path: Path, make: Callable[[str], BaseException]) -> None:
    observer = Observer(("ADD", "last"))
    observer.make = make
    mine = Recorder()
    program = Program(tmp_path, mine, on_call=observer)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - it is the very one
        program.add()
    assert caught.value is observer.errors[0]
    assert program.first.calls == mine.calls == ["ADD", "DEL"]
    assert program.network.attachments() == []


@pytest.mark.parametrize("make", [Raised, SystemExit, lambda m: CNIError(7, m)])
@pytest.mark.parametrize("command", ["DEL", "GC"])
def test_others_are_called_whatever_on_call_raises(
    tmp_path: Path, command: str, make: Callable[[str], BaseException]
) -> None:
    observer = Observer((command, "mine"), (command, "last"))
    observer.make = make
    mine = Recorder()
    program = Program(tmp_path, mine, on_call=observer)
    program.add()
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - it is the very one
        perform(program.network, command)
    assert caught.value is observer.errors[0]
    assert program.first.calls[-1] == mine.calls[-1] == program.last.calls[-1] == command
    assert len(program.network.attachments()) == (command == "GC")


def test_gc_deletes_all_that_is_stale_whatever_on_call_raises(tmp_path: Path) -> None:
    observer = Observer(("DEL", "last"))
    program = Program(tmp_path, Recorder(), on_call=observer)
    for name in ("a", "b"):
        program.network.add(name, BOX[1])
    with pytest.raises(Raised) as caught:
        program.network.gc([])
    assert caught.value in observer.errors
    assert program.network.attachments() == []
    assert program.first.calls == ["ADD", "ADD", "DEL", "DEL", "GC"]


def test_undo_goes_on_whatever_on_call_raises(tmp_path: Path) -> None:
    def fail(request: Request) -> Any:
        raise CNIError(123, "no more of them")

    observer = Observer(("DEL", "mine"))
    mine = Doing(fail, "ADD")
    program = Program(tmp_path, mine, on_call=observer)
    with pytest.raises(Raised) as caught:
        program.add()
    assert isinstance(caught.value.__context__, PluginError)
    assert program.first.calls == mine.calls == ["ADD", "DEL"]


def test_a_plugins_failure_beside_is_not_lost(tmp_path: Path) -> None:
    def fail(request: Request) -> Any:
        raise CNIError(123, "no more of them")

    program = Program(tmp_path, Doing(fail, "DEL"), on_call=Observer(("DEL", "last")))
    program.add()
    with pytest.raises(Raised) as caught:
        program.network.delete(*BOX)
    assert isinstance(caught.value.__context__, PluginError)
    assert not isinstance(caught.value.__context__, SeveralErrors)
    assert len(program.network.attachments()) == 1
