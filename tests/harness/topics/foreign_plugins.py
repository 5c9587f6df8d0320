"""A program with plugins of its own, in a chain between recorders."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycni.runtime import Network, PluginError, operation
from pycni.sdk import Plugin, Request, Result
from pycni.spec.errors import CNIError
from pycni.spec.ip import parse_network
from pycni.spec.result import IPConfig

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


@pytest.fixture(autouse=True)
def _nothing_is_never_awaited() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(one.message) for one in seen if "never awaited" in str(one.message)] == []


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


def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(operation, "_start_thread", refuse)
