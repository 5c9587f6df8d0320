"""Mistakes of a program's own plugin objects among pycni's: nothing stays of them in the kernel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Namespace, Sandbox, ip_json
from harness.kernel_state import veths
from harness.ways import Way, notes
from pycni.kernel import namespace
from pycni.runtime import Network, PluginError
from pycni.sdk import Plugin, Request, Result
from pycni.spec.errors import ALREADY_EXISTS, CHECK_FAILED, CNIError
from pycni.spec.ip import parse_network
from pycni.spec.result import IPConfig


class Mine(Plugin):
    """Does as it is asked in one operation, and nothing in the others."""

    def __init__(self, command: str, do: Callable[[Request], Any]) -> None:
        self.command = command
        self.do = do

    def add(self, request: Request) -> Result:
        done = self._do(request)
        return done if self.command == "ADD" else request.prev_result or Result()

    def delete(self, request: Request) -> None:
        self._do(request)

    def gc(self, request: Request, keep: object) -> None:
        self._do(request)

    def _do(self, request: Request) -> Any:
        return self.do(request) if request.command == self.command else None


@pytest.fixture(autouse=True)
def _stays_at_home(host: Host) -> Iterator[None]:
    with namespace.current() as before:
        yield
        with namespace.current() as after:
            assert after.same_as(before)


def network_of(folder: Path, mine: Plugin, *kinds: str, ipam: str = "") -> Network:
    """A bridge and what comes after it, `mine` among that or as the bridge's address plugin."""
    way = Way("in process", folder, folder)
    plugins = {
        "bridge": {
            "type": "bridge",
            "bridge": "br0",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {"type": ipam} if ipam else way.host_local("10.66.0.0/24"),
        }
    }
    document = {
        "cniVersion": "1.1.0",
        "name": "n",
        "plugins": [plugins.get(kind, {"type": kind}) for kind in kinds],
    }
    return Network.from_dict(document, cache_dir=folder / "cni", resolve={"mine": mine}.get)


def left(folder: Path) -> list[object]:
    way = Way("", folder, folder)
    return [*way.leases("n"), *way.cached(), *veths(), *notes()]


def goes_into(box: Namespace) -> Callable[[Request], Any]:
    """Goes into a container's namespace and stays there."""

    def go(request: Request) -> Result:
        with namespace.open_path(box.path) as inside:
            namespace.setns(inside.fd, namespace.CLONE_NEWNET)
        return request.prev_result or Result()

    return go


def returns(result: object) -> Callable[[Request], Any]:
    return lambda _: result


def fails(request: Request) -> Any:
    raise SystemExit(request.command)


TEXT: Any = ("10.0.0.1/24",)


@pytest.mark.parametrize(
    "do", [returns({"ips": []}), returns(Result(ips=TEXT)), returns(None), fails]
)
@pytest.mark.parametrize(
    ("kinds", "ipam"), [(("bridge", "mine", "tuning"), ""), (("bridge",), "mine")]
)
def test_an_add_that_it_fails_leaves_nothing(
    sandbox: Sandbox,
    tmp_path: Path,
    do: Callable[[Request], Any],
    kinds: tuple[str, ...],
    ipam: str,
) -> None:
    network = network_of(tmp_path, Mine("ADD", do), *kinds, ipam=ipam)
    box = sandbox()
    with pytest.raises(PluginError, match="fault of the plugin of type mine") as caught:
        network.add("c", box.path)
    assert "could be undone" not in str(caught.value)
    assert left(tmp_path) == []
    assert [link["ifname"] for link in ip_json("link", "show", netns=box)] == ["lo"]


@pytest.mark.parametrize("command", ["ADD", "DEL", "GC"])
def test_a_thread_left_in_a_container_comes_back(
    sandbox: Sandbox, tmp_path: Path, command: str
) -> None:
    box = sandbox()
    network = network_of(tmp_path, Mine(command, goes_into(box)), "bridge", "mine", "tuning")
    perform: Callable[[], object] = lambda: network.add("c", box.path)  # noqa: E731
    if command != "ADD":
        perform()
        perform = (lambda: network.delete("c")) if command == "DEL" else (lambda: network.gc([]))
    with pytest.raises(CNIError, match=r"mine.* changed the thread's network namespace"):
        perform()
    assert veths() == []
    assert Way("", tmp_path, tmp_path).leases("n") == {}
    assert [link["ifname"] for link in ip_json("link", "show", netns=box)] == ["lo"]


def test_in_namespaces_of_its_own_making_too(sandbox: Sandbox, tmp_path: Path) -> None:
    def leave(request: Request) -> Result:
        namespace.unshare(namespace.CLONE_NEWNET)
        assert request.prev_result is not None
        return request.prev_result

    network = network_of(tmp_path, Mine("ADD", leave), "bridge", "mine")
    with pytest.raises(PluginError, match="the thread's network namespace"):
        network.add("c", sandbox().path)
    assert left(tmp_path) == []


def test_an_address_plugin_that_stays_inside(sandbox: Sandbox, tmp_path: Path) -> None:
    """The bridge that asked it goes on where it was."""
    box = sandbox()
    network = network_of(tmp_path, Mine("ADD", goes_into(box)), "bridge", ipam="mine")
    with pytest.raises(PluginError, match="the thread's network namespace"):
        network.add("c", box.path)
    assert left(tmp_path) == []


def test_a_delete_that_exits(sandbox: Sandbox, tmp_path: Path) -> None:
    network = network_of(tmp_path, Mine("DEL", fails), "bridge", "tuning", "mine")
    box = sandbox()
    network.add("c", box.path)
    with pytest.raises(PluginError, match=r"fault of the plugin of type mine .*SystemExit: DEL"):
        network.delete("c")
    assert [link["ifname"] for link in ip_json("link", "show", netns=box)] == ["lo"]
    assert len(network.attachments()) == 1  # so that it can be tried again


class Wire(Mine):
    """Makes the interface, and says so as pycni's own do."""

    makes_link = True

    def add(self, request: Request) -> Result:
        with namespace.open_path(request.netns) as space:
            found = _names(space)
            if request.ifname in found:
                raise CNIError(ALREADY_EXISTS, f"{request.ifname} is there")
        _ip(request, "link", "add", request.ifname, "type", "bridge")
        return super().add(request)

    def delete(self, request: Request) -> None:
        super().delete(request)
        with namespace.open_path(request.netns) as space:
            if request.ifname in _names(space):
                _ip(request, "link", "delete", request.ifname)


def _names(space: namespace.Namespace) -> list[str]:
    with space.enter():
        return [link["ifname"] for link in ip_json("link", "show")]


def _ip(request: Request, *argv: str) -> None:
    with namespace.open_path(request.netns) as space, space.enter():
        assert os.waitstatus_to_exitcode(os.system(f"ip {' '.join(argv)}")) == 0


def test_an_interface_of_its_own_is_undone(sandbox: Sandbox, tmp_path: Path) -> None:
    """No one knows that it takes back what it did, as pycni's own do."""
    box = sandbox()
    network = network_of(tmp_path, Wire("ADD", returns({})), "mine")
    with pytest.raises(PluginError, match="a dict"):
        network.add("c", box.path)
    assert [link["ifname"] for link in ip_json("link", "show", netns=box)] == ["lo"]
    network = network_of(tmp_path, Wire("ADD", lambda _: Result()), "mine")
    network.add("c", box.path)
    with pytest.raises(PluginError, match="eth0 is there"):
        network.add("c", box.path)
    assert len(ip_json("link", "show", netns=box)) == 2
    network.delete("c")


def test_a_document_that_it_changes_is_its_own(sandbox: Sandbox, tmp_path: Path) -> None:
    """Also where a plugin of pycni's calls it with the document that it works with."""

    def change(request: Request) -> Result:
        document: Any = request.document
        document["bridge"] = "br1"
        document["ipam"].clear()
        address = address_of(request.container_id)
        return Result(ips=(IPConfig(address=address),))

    network = network_of(tmp_path, Mine("ADD", change), "bridge", ipam="mine")
    for name in ("2", "3"):
        network.add(name, sandbox().path)
    assert len(ip_json("link", "show", "master", "br0")) == 2
    for name in ("2", "3"):
        network.delete(name)
    assert left(tmp_path) == []


def address_of(number: str) -> Any:
    return parse_network(f"10.66.0.{number}/24")


class Plain:
    """No `Plugin`, but its methods."""

    found: Any = None

    def add(self, request: Request) -> Result:
        assert request.prev_result is not None
        return request.prev_result

    def check(self, request: Request) -> None:
        if self.found is None:
            raise CNIError(CHECK_FAILED, "something is missing")

    def delete(self, request: Request) -> None:
        pass


class Repairing(Plain):
    def repair(self, request: Request, *, dry_run: bool, remake: bool) -> Any:
        return self.found


@pytest.mark.parametrize(
    ("mine", "found", "words"),
    [
        (Plain(), None, "something is missing"),
        (Repairing(), None, "repair returned None"),
        (Repairing(), ["eth0 is down"], "repair returned a list with a str"),
    ],
)
def test_a_repair_goes_through_the_guard(
    sandbox: Sandbox, tmp_path: Path, mine: Any, found: Any, words: str
) -> None:
    network = network_of(tmp_path, mine, "bridge", "mine")
    network.add("c", sandbox().path)
    mine.found = found
    (report,) = network.repair()
    assert [finding.plugin for finding in report.findings] == ["mine"]
    assert words in report.findings[0].what
    assert "fault in pycni" not in str(report)
    network.delete("c")
