"""Plugin objects of a program's own: their mistakes are told as theirs, and are nobody else's.

The plugins before them in the list, and after them, do their part whatever they do.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from pycni.plugins import loopback
from pycni.runtime import Endpoint, Network, PluginError, SeveralErrors, operation
from pycni.runtime.aio import AsyncNetwork
from pycni.runtime.engine import Engine
from pycni.sdk import Plugin, Request, Result
from pycni.spec.config import DNS
from pycni.spec.errors import CNIError
from pycni.spec.ip import parse_address, parse_network
from pycni.spec.result import Interface, IPConfig, Route

BOX = ("box", "/run/netns/nowhere")
ADDRESS = parse_network("10.1.2.3/24")
MINE = 'plugin type="mine" failed'


class Recorder(Plugin):
    """A plugin without mistakes."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def add(self, request: Request) -> Result:
        self.calls.append("ADD")
        return request.prev_result or Result(ips=(IPConfig(address=ADDRESS),))

    def check(self, request: Request) -> None:
        self.calls.append("CHECK")

    def delete(self, request: Request) -> None:
        self.calls.append("DEL")

    def gc(self, request: Request, keep: frozenset[Any]) -> None:
        self.calls.append("GC")

    def status(self, request: Request) -> None:
        self.calls.append("STATUS")


class Doing(Recorder):
    """A plugin that does something of one's own in some operations, and no more than that."""

    def __init__(self, do: Callable[[Request], Any], *commands: str) -> None:
        super().__init__()
        self.do = do
        self.commands = commands

    def add(self, request: Request) -> Result:
        result = super().add(request)
        if "ADD" not in self.commands:
            return result
        done: Result = self.do(request)
        return done

    def check(self, request: Request) -> None:
        super().check(request)
        self._do("CHECK", request)

    def delete(self, request: Request) -> None:
        super().delete(request)
        self._do("DEL", request)

    def gc(self, request: Request, keep: frozenset[Any]) -> None:
        super().gc(request, keep)
        self._do("GC", request)

    def status(self, request: Request) -> None:
        super().status(request)
        self._do("STATUS", request)

    def _do(self, command: str, request: Request) -> None:
        if command in self.commands:
            self.do(request)


class Program:
    """A network of three plugins: `mine` between `first` and `last`, which are without mistakes."""

    def __init__(self, folder: Path, mine: Any, **settings: Any) -> None:
        self.first, self.last = Recorder(), Recorder()
        objects = {"first": self.first, "mine": mine, "last": self.last}
        document = {
            "cniVersion": "1.1.0",
            "name": "n",
            "plugins": [{"type": kind, "nested": {"list": [{}]}} for kind in objects],
        }
        settings = {"resolve": objects.get, **settings}
        self.network = Network.from_dict(document, cache_dir=folder, **settings)

    def add(self) -> Result:
        return self.network.add(*BOX)

    def fail_to_add(self) -> PluginError:
        """The error of an ADD that `mine` fails, and that must have been undone."""
        with pytest.raises(PluginError) as caught:
            self.add()
        assert (caught.value.plugin_type, caught.value.command) == ("mine", "ADD")
        assert caught.value.message.startswith(MINE)
        assert self.first.calls == ["ADD", "DEL"]
        assert self.last.calls == []
        assert self.network.attachments() == []
        assert_is_no_fault_of_pycni(caught.value)
        return caught.value

    def fail_to_delete(self) -> PluginError:
        """The error of a DEL that `mine` fails, and the others do all the same."""
        with pytest.raises(PluginError) as caught:
            self.network.delete(*BOX)
        assert (caught.value.plugin_type, caught.value.command) == ("mine", "DEL")
        assert self.first.calls[-1:] == self.last.calls[-1:] == ["DEL"]
        assert_is_no_fault_of_pycni(caught.value)
        return caught.value


def assert_is_no_fault_of_pycni(error: CNIError) -> None:
    assert "fault in pycni" not in str(error)
    assert "not all could be undone" not in str(error)


def line_of(function: Callable[..., Any], offset: int = 0) -> str:
    return f"{__file__}:{function.__code__.co_firstlineno + offset}"


@pytest.fixture(autouse=True)
def _nothing_is_never_awaited() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(one.message) for one in seen if "never awaited" in str(one.message)] == []


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
def test_a_wrong_result_is_told_and_undone(
    tmp_path: Path, returned: Callable[[], Any], words: list[str]
) -> None:
    mine = Doing(lambda _: returned(), "ADD")
    error = Program(tmp_path, mine).fail_to_add()
    assert [word for word in words if word not in str(error)] == []
    assert f"{__file__}:" in str(error)
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


def perform(network: Network, command: str) -> None:
    if command == "ADD":
        network.add(*BOX)
    elif command == "CHECK":
        network.check(*BOX)
    elif command == "DEL":
        network.delete(*BOX)
    elif command == "GC":
        network.gc([(BOX[0], "eth0")])
    else:
        network.status()


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


def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(operation, "_start_thread", refuse)


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


def test_a_failure_and_a_change_are_both_told(tmp_path: Path, before: list[object]) -> None:
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


def test_what_another_call_changes_is_told_of_that(tmp_path: Path, before: list[object]) -> None:
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


# --- who is told before each call --------------------------------------------------------------


class Told(Exception):
    pass


class Observer:
    """Raises at the calls that it is told to."""

    def __init__(self, *at: tuple[str, str]) -> None:
        self.at = at
        self.errors: list[BaseException] = []
        self.make: Callable[[str], BaseException] = Told

    def __call__(self, command: str, kind: str) -> None:
        if (command, kind) in self.at:
            self.errors.append(self.make(f"{command} {kind}"))
            raise self.errors[-1]


@pytest.mark.parametrize("make", [Told, SystemExit, KeyboardInterrupt, lambda m: CNIError(7, m)])
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


@pytest.mark.parametrize("make", [Told, SystemExit, lambda m: CNIError(7, m)])
@pytest.mark.parametrize("command", ["DEL", "GC"])
def test_others_are_called_whoever_is_told(
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


def test_gc_deletes_all_that_is_stale_whoever_is_told(tmp_path: Path) -> None:
    observer = Observer(("DEL", "last"))
    program = Program(tmp_path, Recorder(), on_call=observer)
    for name in ("a", "b"):
        program.network.add(name, BOX[1])
    with pytest.raises(Told) as caught:
        program.network.gc([])
    assert caught.value in observer.errors
    assert program.network.attachments() == []
    assert program.first.calls == ["ADD", "ADD", "DEL", "DEL", "GC"]


def test_undo_goes_on_whoever_is_told(tmp_path: Path) -> None:
    def fail(request: Request) -> Any:
        raise CNIError(123, "no more of them")

    observer = Observer(("DEL", "mine"))
    mine = Doing(fail, "ADD")
    program = Program(tmp_path, mine, on_call=observer)
    with pytest.raises(Told) as caught:
        program.add()
    assert isinstance(caught.value.__context__, PluginError)
    assert program.first.calls == mine.calls == ["ADD", "DEL"]


def test_a_plugins_failure_beside_is_not_lost(tmp_path: Path) -> None:
    def fail(request: Request) -> Any:
        raise CNIError(123, "no more of them")

    program = Program(tmp_path, Doing(fail, "DEL"), on_call=Observer(("DEL", "last")))
    program.add()
    with pytest.raises(Told) as caught:
        program.network.delete(*BOX)
    assert isinstance(caught.value.__context__, PluginError)
    assert not isinstance(caught.value.__context__, SeveralErrors)
    assert len(program.network.attachments()) == 1
