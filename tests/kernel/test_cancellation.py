"""Cancelling and time-outs, wherever an operation waits; and what a program does beside."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Sandbox, ip_json
from harness.kernel_state import veths
from harness.ways import Way, notes
from pycni.runtime import (
    Canceled,
    Cancellation,
    ConfigError,
    Endpoint,
    Network,
    PluginError,
    SeveralErrors,
    TimedOut,
    chain,
    locks,
)
from pycni.runtime.aio import AsyncNetwork
from pycni.runtime.locks import ProcessLock
from pycni.runtime.repair import REPLACED, repair_all
from pycni.sdk.plugin import Plugin
from pycni.sdk.request import Request
from pycni.spec.errors import CNIError
from pycni.spec.owner import Owner
from pycni.spec.result import Result
from pycni.state.leases import LeaseStore


class Lab:
    """A network n of a bridge, and what is left of attachments."""

    def __init__(self, folder: Path) -> None:
        self.way = Way("in process", folder, folder)

    def network(self, *more: dict[str, Any], name: str = "n", **settings: Any) -> Network:
        bridge = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True}
        plugins = [{**bridge, "ipam": self.way.host_local("10.67.0.0/22")}, *more]
        document = {"cniVersion": "1.1.0", "name": name, "plugins": plugins}
        return Network.from_dict(document, cache_dir=self.way.folder / "cni", **settings)

    def left(self) -> list[object]:
        return [*self.way.leases("n"), *veths(), *notes(), *self.way.cached()]


@pytest.fixture
def lab(host: Host, tmp_path: Path) -> Lab:
    return Lab(tmp_path)


class Held(Plugin):
    """A plugin that holds its ADD, or its DEL, until it is let go."""

    type = "held"

    def __init__(self, command: str = "ADD") -> None:
        self.command = command
        self.entered = threading.Event()
        self.leave = threading.Event()

    def _hold(self, command: str) -> None:
        if command == self.command:
            self.entered.set()
            assert self.leave.wait(30)

    def add(self, request: Request) -> Result:
        self._hold("ADD")
        assert request.prev_result is not None
        return request.prev_result

    def delete(self, request: Request) -> None:
        self._hold("DEL")


def resolver(plugin: Plugin) -> Callable[[str], Plugin | None]:
    return lambda kind: plugin if kind == plugin.type else None


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


@contextmanager
def locked_by_another(lab: Lab) -> Iterator[None]:
    """The attachment's lock is held, and by none of the operations that are begun meanwhile."""
    lock = ProcessLock(str(lab.way.folder / "cni"), Owner("n", "c", "eth0"))
    elsewhere = contextvars.copy_context()
    elsewhere.run(lock.__enter__)
    try:
        yield
    finally:
        elsewhere.run(lock.__exit__)


# --- where an operation waits --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_waiting_for_the_container_s_turn(lab: Lab, sandbox: Sandbox, how: str) -> None:
    held = Held()
    network, box = lab.network({"type": "held"}, resolve=resolver(held)), sandbox()
    first = in_thread(lambda: network.add("c", box.path))
    assert held.entered.wait(10)
    try:
        _ends(how, lambda **options: network.add("c", box.path, "eth1", **options))
        _ends(how, lambda **options: network.delete("c", **options))
        _ends(how, lambda **options: network.gc([], **options))
    finally:
        held.leave.set()
        first.join()
    network.delete("c")
    assert lab.left() == []


@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_waiting_for_another_process(lab: Lab, sandbox: Sandbox, how: str) -> None:
    network, box = lab.network(), sandbox()
    network.add("c", box.path)
    with locked_by_another(lab):
        for call in (network.check, network.delete):
            _ends(how, lambda call=call, **options: call("c", **options))
    network.delete("c")
    assert lab.left() == []


@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_waiting_for_the_leases(
    lab: Lab, sandbox: Sandbox, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Undoing waits for them as well, and not for long."""
    monkeypatch.setattr(chain, "UNDO_TIMEOUT", 0.5)
    network, box = lab.network(), sandbox()
    network.add("c", box.path)
    network.delete("c")
    with LeaseStore(str(lab.way.folder / "cni/networks"), "n"):
        _ends(how, lambda **options: network.add("c", box.path, **options))
    network.delete("c")
    assert lab.left() == []


def test_a_plugin_that_hangs_and_a_gc_that_waits_for_it_hold_up_no_others(
    lab: Lab, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PRECEDENCE", 0.2)
    held = Held()
    hanging, network = lab.network({"type": "held"}, resolve=resolver(held)), lab.network(name="m")
    first = in_thread(lambda: hanging.add("c", sandbox().path))
    assert held.entered.wait(10)
    collected = threading.Event()
    collector = in_thread(lambda: (network.gc([], force=True), collected.set()))
    try:
        network.add("d", sandbox().path)
        network.delete("d")
        assert not collected.is_set()
    finally:
        held.leave.set()
        first.join()
        collector.join()
    assert collected.is_set()
    hanging.delete("c")
    assert lab.left() == []


@pytest.mark.parametrize("verb", ["add", "gc"])
def test_a_plugin_that_hangs_is_not_waited_for_without_end(
    lab: Lab, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(locks, "TIMEOUT", 0.3)
    held, box = Held(), sandbox()
    network = lab.network({"type": "held"}, resolve=resolver(held))
    first = in_thread(lambda: network.add("c", box.path))
    assert held.entered.wait(10)
    try:
        with pytest.raises(
            CNIError, match=r"another operation .* is at work on c for 0\.3 s"
        ) as caught:
            network.gc([]) if verb == "gc" else network.add("c", box.path, "eth1")
        assert caught.value.code == 11
    finally:
        held.leave.set()
        first.join()
    network.delete("c")
    assert lab.left() == []


def test_an_operation_within_a_repair_of_the_same_attachment(lab: Lab, sandbox: Sandbox) -> None:
    """Its place is taken by another attachment of that name, and the repair leaves that alone."""
    network, box = lab.network(), sandbox()
    network.add("c", box.path)
    moved = sandbox()

    def replace(command: str, kind: str) -> None:
        if (command, kind) == ("repair", "bridge"):
            network.delete("c")
            network.add("c", moved.path)

    (report,) = repair_all(cache_dir=lab.way.folder / "cni", on_call=replace)
    assert report.skipped == REPLACED
    assert [link["ifname"] for link in ip_json("link", netns=box)] == ["lo"]
    network.check("c", moved.path)
    network.delete("c")
    assert lab.left() == []


def _ends(how: str, call: Callable[..., object]) -> None:
    """The call ends by a time-out or by being cancelled."""
    if how == "timeout":
        with pytest.raises(TimedOut, match=r"timed out after 0\.2 s") as caught:
            call(timeout=0.2)
        assert caught.value.code == 11
        return
    cancel = Cancellation()
    timer = threading.Timer(0.2, cancel.cancel)
    timer.start()
    with pytest.raises(Canceled) as caught:
        call(cancel=cancel)
    assert not isinstance(caught.value, TimedOut)
    timer.join()


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_plugin_that_attaches_within_an_operation(
    lab: Lab, sandbox: Sandbox, timeout: float | None
) -> None:
    inner, box = lab.network(name="n"), sandbox()

    class Meta(Plugin):
        type = "meta"

        def add(self, request: Request) -> Result:
            return inner.add(request.container_id, request.netns, "eth1", timeout=timeout)

        def delete(self, request: Request) -> None:
            inner.delete(request.container_id, request.netns, "eth1", timeout=timeout)

    outer = Network.from_dict(
        {"cniVersion": "1.1.0", "name": "m", "plugins": [{"type": "meta"}]},
        cache_dir=lab.way.folder / "cni",
        resolve=resolver(Meta()),
    )
    outer.add("c", box.path, timeout=20)
    assert [link["ifname"] for link in ip_json("link", netns=box)] == ["lo", "eth1"]
    outer.delete("c")
    assert lab.left() == []


def test_a_gc_within_an_operation_is_refused(lab: Lab, sandbox: Sandbox) -> None:
    other = lab.network()

    class Collector(Plugin):
        type = "collector"

        def add(self, request: Request) -> Result:
            other.gc([])
            raise AssertionError

        def delete(self, request: Request) -> None:
            pass

    network = lab.network({"type": "collector"}, resolve=resolver(Collector()))
    with pytest.raises(PluginError, match="GC within an operation on c"):
        network.add("c", sandbox().path)
    assert lab.left() == []


# --- asyncio -------------------------------------------------------------------------------------


def test_leaving_is_not_cancelled(lab: Lab, sandbox: Sandbox) -> None:
    network, box, cancel = AsyncNetwork(lab.network()), sandbox(), Cancellation()

    async def work() -> None:
        async with network.attached("c", box.path, cancel=cancel):
            cancel.cancel()

    asyncio.run(work())
    assert lab.left() == []


def test_one_task_s_cancellation_is_its_own(lab: Lab, sandbox: Sandbox) -> None:
    held = Held()
    attaching = lab.network({"type": "held"}, resolve=resolver(held))
    network = AsyncNetwork(attaching)
    boxes, cancel = [sandbox() for _ in range(6)], Cancellation()

    async def work() -> list[Any]:
        tasks = [
            asyncio.create_task(network.add(f"c{number}", box.path, cancel=cancel))
            for number, box in enumerate(boxes)
        ]
        await asyncio.to_thread(held.entered.wait, 10)
        tasks[0].cancel()
        await asyncio.sleep(0.1)
        held.leave.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(work())
    assert [type(one) for one in outcomes] == [asyncio.CancelledError, *[Result] * 5]
    assert len(lab.way.leases("n")) == 5
    assert not cancel.canceled
    attaching.gc([], force=True)
    assert lab.left() == []


def test_time_out_of_asyncio_while_a_lock_is_held(lab: Lab, sandbox: Sandbox) -> None:
    network, box = AsyncNetwork(lab.network()), sandbox()

    async def work() -> None:
        async with asyncio.timeout(0.2):
            await network.add("c", box.path)

    with (
        locked_by_another(lab),
        pytest.raises(TimeoutError),
    ):
        asyncio.run(work())
    assert lab.left() == []


def test_many_tasks_with_random_cancellation(lab: Lab, sandbox: Sandbox) -> None:
    tasks = int(os.environ.get("PYCNI_TASKS", "60"))
    boxes, choice = [sandbox() for _ in range(10)], random.Random(20)
    network = AsyncNetwork(lab.network())

    async def one(number: int) -> None:
        async with network.attached(f"c{number}", boxes[number % len(boxes)].path, f"e{number}"):
            await asyncio.sleep(choice.random() * 0.05)

    async def work() -> None:
        running = [asyncio.create_task(one(number)) for number in range(tasks)]
        for task in running:
            asyncio.get_running_loop().call_later(choice.random() * tasks / 100, task.cancel)
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        assert {type(one) for one in outcomes} <= {type(None), asyncio.CancelledError}

    asyncio.run(work())
    assert lab.left() == []


def test_asyncnetwork_has_what_network_has() -> None:
    own = {name for name in dir(Network) if not name.startswith("_")}
    made = {"load", "from_dict", "from_cache"}  # by `AsyncNetwork(Network.load(...))`
    assert own - made <= set(dir(AsyncNetwork)) | {"name"}


# --- whole before anything is removed ------------------------------------------------------------


@pytest.mark.parametrize(
    "keep", [[(1234, "e1"), ("web", "e2")], [("web", "e2"), "web"], [("1234", "e1"), ("web", 2)],
             [("web", "e2", "e3")], [("web/..", "e2")]],
)  # fmt: skip
def test_gc_with_a_list_that_is_none(lab: Lab, sandbox: Sandbox, keep: Any) -> None:
    network = lab.network()
    network.add("1234", sandbox().path, "e1")
    network.add("web", sandbox().path, "e2")
    with pytest.raises((CNIError, TypeError)):
        network.gc(keep)
    assert len(network.attachments()) == 2
    network.check("1234", ifname="e1")
    network.gc([], force=True)


@pytest.mark.parametrize(
    "wrong",
    [
        Endpoint("b", 12),  # type: ignore[arg-type]
        Endpoint("b", b"/run/netns/b"),  # type: ignore[arg-type]
        Endpoint(7, "/run/netns/b"),  # type: ignore[arg-type]
        Endpoint("b", "/run/netns/b", args={"A": 1}),  # type: ignore[dict-item]
        Endpoint("b", "/run/netns/b", args=[("A",)]),  # type: ignore[list-item]
        Endpoint("b", "/run/netns/b", capabilities=[1]),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_one_of_many_that_is_wrong(lab: Lab, sandbox: Sandbox, wrong: Endpoint) -> None:
    network, endpoints = lab.network(), [Endpoint("a", sandbox().path), wrong]
    first, second = network.add_many(endpoints)
    assert first.ok
    assert second.error is not None
    assert "expected" in second.error.details
    (first, second) = network.delete_many(endpoints)
    assert (first.ok, second.ok) == (True, False)
    assert lab.left() == []


@pytest.mark.parametrize("options", [{"tiemout": 5}, {"timeout": "5"}, {"cancel": 1}])
def test_options_that_are_none(lab: Lab, sandbox: Sandbox, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        lab.network().add("c", sandbox().path, **options)
    assert lab.left() == []


def test_a_time_out_without_an_end(lab: Lab, sandbox: Sandbox) -> None:
    network = lab.network()
    network.add("c", sandbox().path, timeout=float("inf"))
    network.delete("c", timeout=10**12)
    assert lab.left() == []


# --- forks, and errors from one process to another -----------------------------------------------


def test_a_child_forked_during_an_operation(lab: Lab, sandbox: Sandbox) -> None:
    """It has a copy of the turns and locks, and none of the threads that have them."""
    held = Held()
    network, box = lab.network({"type": "held"}, resolve=resolver(held)), sandbox()
    first = in_thread(lambda: network.add("c", box.path))
    assert held.entered.wait(10)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with pytest.raises(CNIError):  # not "c" itself: the parent is at it
                network.check("d")
            os.write(writer, b"done")
            time.sleep(2)  # with copies of all descriptors
        finally:
            os._exit(0)
    try:
        held.leave.set()
        first.join()
        assert os.read(reader, 10) == b"done"
        network.delete("c", timeout=1)
    finally:
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
    assert lab.left() == []


POOL = """
import multiprocessing, sys
from harness.pools import attach_by_no_plugin
from pycni.runtime import PluginError
with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
    try:
        pool.apply_async(attach_by_no_plugin, (sys.argv[2],)).get(60)
    except PluginError as error:
        print(error.plugin_type)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_errors_of_a_pool(host: Host, tmp_path: Path, method: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", POOL, method, tmp_path],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "nonesuch\n"), done.stderr


ATTACHING_POOL = """
import multiprocessing, sys
from harness.pools import attach_and_detach
from pycni.runtime import Network, namespaces
with namespaces.temporary() as path:  # this process has attached before, with what that loads
    attach_and_detach(sys.argv[2], path, 1)
with multiprocessing.get_context(sys.argv[1]).Pool(4) as pool:
    for found in pool.starmap(attach_and_detach, [(sys.argv[2], path, 5) for path in sys.argv[3:]]):
        print(len(found))
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_that_attaches(lab: Lab, sandbox: Sandbox, method: str) -> None:
    paths = [sandbox().path for _ in range(8)]
    done = subprocess.run(
        [sys.executable, "-c", ATTACHING_POOL, method, lab.way.folder / "cni", *paths],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "5\n" * 8), done.stderr
    assert lab.left() == []


@pytest.mark.parametrize(
    "error",
    [
        CNIError(7, "message", "details"),
        PluginError(CNIError(7, "message", "details"), "bridge", "ADD", "failed: "),
        SeveralErrors([CNIError(7, "one"), CNIError(5, "two", "why")]),
        ConfigError([]),
        Canceled(),
        TimedOut(3, "failure"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_pickled_and_copied(error: CNIError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert (str(again), again.code, again.to_json()) == (
            str(error),
            error.code,
            error.to_json(),
        )
        assert {key: str(value) for key, value in vars(again).items()} == {
            key: str(value) for key, value in vars(error).items()
        }
        assert str(again.__cause__) == str(error.__cause__)
