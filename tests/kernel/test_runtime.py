"""Networks on the real kernel, by both engines: lists, undoing, many at once, asyncio."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Namespace, Sandbox, ip_json, run_in
from harness.configs import host_local
from harness.reference import comparable
from pycni.runtime import Canceled, Cancellation, Endpoint, Network, PluginError, namespaces
from pycni.runtime.aio import AsyncNetwork
from pycni.sdk.plugin import Plugin
from pycni.sdk.request import Request
from pycni.spec.errors import CNIError
from pycni.spec.ip import parse_network
from pycni.spec.result import IPConfig, Result, encode_result

Make = Callable[..., Network]

MAC = "0a:58:0a:01:02:03"


class Lab:
    """Networks whose files are in a folder of the test's own."""

    def __init__(self, folder: Path, plugin_dir: Path, engine: str) -> None:
        self.folder = folder
        self.plugin_dir = plugin_dir
        self.engine = engine

    def network(self, *more: dict[str, Any], name: str = "lab", **settings: Any) -> Network:
        """bridge + host-local, then more plugins."""
        bridge = {
            "type": "bridge",
            "bridge": "br0",
            "isDefaultGateway": True,
            "ipMasq": True,
            "capabilities": {"mac": True},
            "ipam": host_local(self.folder / "leases", "10.1.0.0/16", "fd00:1::/64"),
        }
        return Network.from_dict(
            {"cniVersion": "1.1.0", "name": name, "plugins": [bridge, *more]},
            plugin_dirs=self.plugin_dir,
            engine=self.engine,
            cache_dir=self.folder / "cache",
            **settings,
        )

    def tuning(self, **keys: Any) -> dict[str, Any]:
        return {"type": "tuning", "dataDir": str(self.folder / "tuning"), **keys}

    def left(self) -> list[str]:
        """Files that speak of an attachment."""
        return sorted(
            path.name
            for path in self.folder.rglob("*")
            if path.is_file()
            and not re.search(r"^lock$|^pycni\.lock$|^last_reserved|\.index$", path.name)
        )


BANDWIDTH = {
    "type": "bandwidth",
    "ingressRate": 10**8,
    "ingressBurst": 10**7,
    "egressRate": 10**8,
    "egressBurst": 10**7,
}


@pytest.fixture(params=["auto", "exec"])
def lab(request: pytest.FixtureRequest, host: Host, tmp_path: Path, plugin_dir: Path) -> Lab:
    return Lab(tmp_path, plugin_dir, request.param)


def ports() -> list[str]:
    """What is plugged into the bridge."""
    return [link["ifname"] for link in ip_json("link") if link.get("master") == "br0"]


def links(netns: Namespace | str) -> list[str]:
    return [link["ifname"] for link in ip_json("link", netns=netns)]


# --- one attachment ----------------------------------------------------------------------------


def test_a_list_of_three(lab: Lab, sandbox: Sandbox) -> None:
    network = lab.network(lab.tuning(sysctl={"net.core.somaxconn": "500"}), BANDWIDTH)
    box = sandbox()
    result = network.add("box", box.path, capabilities={"mac": MAC})
    assert [str(entry.address) for entry in result.ips] == ["10.1.0.2/16", "fd00:1::2/64"]
    (link,) = ip_json("link", "show", "dev", "eth0", netns=box)
    assert link["address"] == MAC
    assert run_in(box, ["sysctl", "-n", "net.core.somaxconn"]).stdout == "500\n"
    network.check("box", box.path)
    network.gc([("box", "eth0")])
    network.check("box")
    network.status()
    run_in(box, ["ip", "address", "del", "10.1.0.2/16", "dev", "eth0"])
    with pytest.raises(PluginError) as caught:
        network.check("box")
    assert (caught.value.plugin_type, caught.value.code) == ("bridge", 102)
    network.delete("box")
    assert links(box) == ["lo"]
    assert ports() == []
    assert lab.left() == []
    network.delete("box")


def test_both_engines_give_one_result_and_follow_each_other(
    host: Host, sandbox: Sandbox, tmp_path: Path, plugin_dir: Path
) -> None:
    labs = [Lab(tmp_path, plugin_dir, engine) for engine in ("auto", "exec")]
    networks = [lab.network(lab.tuning(promisc=True), BANDWIDTH) for lab in labs]
    networks[0].add("warm-up", sandbox().path)  # makes what stays: the bridge, constant rules
    networks[1].delete("warm-up")

    def rest() -> dict[str, Any]:
        found = host.snapshot(tmp_path / "cache")
        return {key: found[key] for key in ("nft", "iptables", "rules", "sysctls", "files")}

    before = rest()
    found = []
    for first, second in (networks, networks[::-1]):
        box = sandbox()
        result = comparable(encode_result(first.add("box", box.path), "1.1.0"))
        # The next address each time, and another sandbox.
        text = json.dumps(result).replace(box.path, "SANDBOX")
        for entry in result["ips"]:
            text = text.replace(entry["address"], "ADDRESS")
        found.append(text)
        second.check("box")
        second.gc([("box", "eth0")])
        second.delete("box")
        assert links(box) == ["lo"]
        assert (ports(), rest()) == ([], before)
    assert found[0] == found[1]


def test_a_failed_add_leaves_nothing(lab: Lab, sandbox: Sandbox) -> None:
    lab.network().add("warm-up", sandbox().path)
    lab.network().delete("warm-up")
    network = lab.network(BANDWIDTH, lab.tuning(sysctl={"net.core.no_such_thing": "1"}))
    box = sandbox()
    with pytest.raises(PluginError) as caught:
        network.add("box", box.path)
    assert caught.value.message.startswith('plugin type="tuning" failed (add): ')
    assert "no_such_thing" in str(caught.value)
    assert "not all could be undone" not in caught.value.details
    assert links(box) == ["lo"]
    assert ports() == []
    assert lab.left() == []


def test_a_name_that_is_taken_is_not_taken_away(lab: Lab, sandbox: Sandbox) -> None:
    network, box = lab.network(), sandbox()
    network.add("box", box.path)
    with pytest.raises(PluginError):
        network.add("box", box.path)
    network.check("box")
    network.delete("box")
    run_in(box, ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "p"])
    with pytest.raises(PluginError):
        network.add("box", box.path)
    assert lab.left() == []


def test_attached(lab: Lab, sandbox: Sandbox) -> None:
    network, box = lab.network(), sandbox()
    with network.attached("box", box.path, "net1") as result:
        assert links(box) == ["lo", "net1"]
        assert result.interfaces[-1].name == "net1"
    assert links(box) == ["lo"]
    with pytest.raises(RuntimeError, match="work failed"), network.attached("box", box.path):
        raise RuntimeError("work failed")
    assert links(box) == ["lo"]
    assert lab.left() == []


def test_gc_after_a_lost_delete(lab: Lab, sandbox: Sandbox) -> None:
    network = lab.network()
    boxes = [sandbox() for _ in range(3)]
    for number, box in enumerate(boxes):
        network.add(f"box-{number}", box.path)
    boxes[0].delete()
    os.unlink(lab.folder / "cache/results/lab-box-1-eth0")  # the plugins know of it all the same
    stale = network.gc([("box-2", "eth0")])
    assert [item.container_id for item in stale] == ["box-0"]
    assert len(ports()) == 2  # it is there, so it may be another client's
    stale = network.gc([("box-2", "eth0")], force=True)
    assert [item.container_id for item in stale] == ["box-1"]
    network.check("box-2")
    assert len(ports()) == 1
    assert {Path(name).name for name in lab.left()} == {
        "lab-box-2-eth0", *(str(entry.address).split("/")[0] for entry in _ips(network)),
    }  # fmt: skip
    network.gc([])
    assert ports() == []
    assert lab.left() == []


def _ips(network: Network) -> Any:
    result = network.result("box-2")
    assert result is not None
    return result.ips


@pytest.mark.parametrize("installed", [True, False])
def test_plugin_objects_of_ones_own(
    host: Host, tmp_path: Path, plugin_dir: Path, installed: bool
) -> None:
    """They need no executable, and the plugins beside them are found as usual."""

    class Counter(Plugin):
        type = "counter"
        calls: list[str] = []

        def add(self, request: Request) -> Result:
            self.calls.append(request.command)
            assert request.prev_result is not None
            return request.prev_result

        def delete(self, request: Request) -> None:
            self.calls.append(request.command)

    counter = Counter()
    network = Network.from_dict(
        {
            "cniVersion": "1.1.0",
            "name": "mine",
            "plugins": [{"type": "loopback"}, {"type": "counter"}],
        },
        plugin_dirs=[plugin_dir] if installed else (),
        cache_dir=tmp_path,
        resolve={"counter": counter}.get,
    )
    with namespaces.temporary() as netns, network.attached("box", netns, "lo") as result:
        assert [str(entry.address) for entry in result.ips] == ["127.0.0.1/8", "::1/128"]
    assert counter.calls == ["ADD", "DEL"]


def test_an_address_plugin_object_of_ones_own(host: Host, tmp_path: Path) -> None:
    class Pool(Plugin):
        type = "pool"

        def add(self, request: Request) -> Result:
            return Result(ips=(IPConfig(address=parse_network("10.77.0.5/24")),))

    network = Network.from_dict(
        {"cniVersion": "1.1.0", "name": "mine", "type": "bridge", "ipam": {"type": "pool"}},
        cache_dir=tmp_path,
        resolve={"pool": Pool()}.get,
    )
    with namespaces.temporary() as netns, network.attached("box", netns) as result:
        assert [str(entry.address) for entry in result.ips] == ["10.77.0.5/24"]


# --- many --------------------------------------------------------------------------------------


def test_many_at_once(lab: Lab, sandbox: Sandbox) -> None:
    network = lab.network()
    boxes = [sandbox() for _ in range(12)]
    endpoints = [Endpoint(f"box-{number}", box.path) for number, box in enumerate(boxes)]
    endpoints.insert(3, Endpoint("lost", "/run/netns/nowhere"))
    endpoints.insert(7, Endpoint("no good", boxes[0].path))
    outcomes = network.add_many(endpoints, workers=8)
    assert [outcome.endpoint for outcome in outcomes] == endpoints
    assert [number for number, outcome in enumerate(outcomes) if not outcome.ok] == [3, 7]
    assert isinstance(outcomes[3].error, PluginError)
    assert outcomes[7].error is not None
    assert outcomes[7].error.code == 4
    addresses = {
        str(entry.address) for item in outcomes if item.result for entry in item.result.ips
    }
    assert len(addresses) == 24
    assert len(ports()) == 12
    for outcome in outcomes:
        if outcome.ok:
            network.check(outcome.endpoint.container_id)
    for outcome in network.delete_many(endpoints):
        assert outcome.ok == (outcome.endpoint.container_id != "no good")
    assert ports() == []
    assert all(links(box) == ["lo"] for box in boxes)
    assert lab.left() == []


def test_how_many_at_once_by_default(host: Host, tmp_path: Path) -> None:
    """In one process two, for which there is no gain in more; a process each is of no such kind."""
    at_once: list[int] = []
    present: set[int] = set()

    class Slow(Plugin):
        type = "slow"

        def add(self, request: Request) -> Result:
            present.add(threading.get_ident())
            time.sleep(0.02)
            at_once.append(len(present))
            present.discard(threading.get_ident())
            return Result()

    document = {"cniVersion": "1.1.0", "name": "mine", "plugins": [{"type": "slow"}]}
    endpoints = [Endpoint(f"box-{number}", "/run/netns/box") for number in range(8)]
    network = Network.from_dict(document, cache_dir=tmp_path, resolve={"slow": Slow()}.get)
    assert all(outcome.ok for outcome in network.add_many(endpoints))
    assert max(at_once) == 2
    at_once.clear()
    assert all(outcome.ok for outcome in network.add_many(endpoints, workers=5))
    assert max(at_once) == 5
    program = tmp_path / "slow"
    program.write_text(
        "#!/bin/sh\n"
        f"cd {tmp_path}; touch $CNI_CONTAINERID; sleep 0.3; ls | grep -c box >> seen\n"
        'rm $CNI_CONTAINERID; echo \'{"cniVersion": "1.1.0"}\'\n'
    )
    program.chmod(0o755)
    network = Network.from_dict(document, cache_dir=tmp_path / "cache", plugin_dirs=tmp_path)
    assert all(outcome.ok for outcome in network.add_many(endpoints))
    assert max(map(int, (tmp_path / "seen").read_text().split())) > 2


def test_many_of_one_container(lab: Lab, sandbox: Sandbox) -> None:
    """One after the other, as the specification wants it, even if asked for at once."""
    network, box = lab.network(), sandbox()
    endpoints = [Endpoint("box", box.path, f"net{number}") for number in range(6)]
    # Each would be the way out; the second default route is refused, and undone.
    outcomes = network.add_many(endpoints)
    assert sum(outcome.ok for outcome in outcomes) >= 1
    assert len(ports()) == len(network.attachments()) == sum(outcome.ok for outcome in outcomes)
    network.delete_many(endpoints)
    assert lab.left() == []


def test_many_interrupted_leave_nothing(lab: Lab, sandbox: Sandbox) -> None:
    begun = threading.Semaphore(0)
    network = lab.network(on_call=lambda *_: begun.release())
    boxes = [sandbox() for _ in range(8)]
    cancel = Cancellation()

    def cancel_soon() -> None:
        begun.acquire()
        begun.acquire()
        cancel.cancel()

    thread = threading.Thread(target=cancel_soon)
    thread.start()
    endpoints = [Endpoint(f"box-{number}", box.path) for number, box in enumerate(boxes)]
    outcomes = network.add_many(endpoints, workers=2, cancel=cancel)
    thread.join()
    failed = [outcome for outcome in outcomes if not outcome.ok]
    assert failed
    assert all(isinstance(outcome.error, Canceled) for outcome in failed)
    assert len(ports()) == len(network.attachments()) == len(boxes) - len(failed)
    network.delete_many(endpoints)
    assert lab.left() == []


# --- asyncio -----------------------------------------------------------------------------------


def test_asyncio(lab: Lab, sandbox: Sandbox) -> None:
    boxes = [sandbox() for _ in range(4)]

    async def work() -> None:
        network = AsyncNetwork(lab.network())
        await network.status()
        results = await asyncio.gather(
            *(network.add(f"box-{number}", box.path) for number, box in enumerate(boxes))
        )
        assert len({str(result.ips[0].address) for result in results}) == 4
        await network.check("box-0")
        await network.gc([("box-0", "eth0"), ("box-1", "eth0")])
        await network.delete("box-0")
        await network.delete("box-1")
        async with network.attached("box-2", boxes[2].path):
            assert links(boxes[2]) == ["lo", "eth0"]
        endpoints = [Endpoint(f"box-{number}", box.path) for number, box in enumerate(boxes)]
        assert all(outcome.ok for outcome in await network.add_many(endpoints))
        assert all(outcome.ok for outcome in await network.delete_many(endpoints))
        with pytest.raises(CNIError):
            await network.check("box-0")

    asyncio.run(work())
    assert ports() == []
    assert lab.left() == []


def test_the_loop_goes_on_and_a_cancelled_task_leaves_nothing(lab: Lab, sandbox: Sandbox) -> None:
    entered: Future[None] = Future()
    leave = threading.Event()

    def on_call(command: str, plugin_type: str) -> None:
        if plugin_type == "tuning" and command == "ADD":
            entered.set_result(None)
            leave.wait()

    network = AsyncNetwork(lab.network(lab.tuning(), BANDWIDTH, on_call=on_call))
    box = sandbox()

    async def work() -> None:
        task = asyncio.create_task(network.add("box", box.path))
        await asyncio.wrap_future(entered)  # the loop runs while the operation does
        assert links(box) == ["lo", "eth0"]
        task.cancel()
        await asyncio.sleep(0)
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert links(box) == ["lo"]

    asyncio.run(work())
    assert ports() == []
    assert lab.left() == []


def test_cancelled_too_late_is_undone_too(lab: Lab, sandbox: Sandbox) -> None:
    entered: Future[None] = Future()
    leave = threading.Event()

    def on_call(command: str, _: str) -> None:
        if command == "ADD":
            entered.set_result(None)
            leave.wait()

    network = AsyncNetwork(lab.network(on_call=on_call))
    box = sandbox()

    async def work() -> None:
        task = asyncio.create_task(network.add_many([Endpoint("box", box.path)], workers=1))
        await asyncio.wrap_future(entered)
        task.cancel()
        await asyncio.sleep(0)
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert links(box) == ["lo"]
    assert lab.left() == []


# --- namespaces --------------------------------------------------------------------------------


def test_namespaces(host: Host) -> None:
    path = namespaces.create("runtime-test")
    assert path == namespaces.path("runtime-test") == "/run/netns/runtime-test"
    assert links("runtime-test") == ["lo"]
    with pytest.raises(CNIError) as caught:
        namespaces.create("runtime-test")
    assert caught.value.code == 101
    namespaces.delete("runtime-test")
    assert not os.path.exists(path)
    with pytest.raises(CNIError) as caught:
        namespaces.delete("runtime-test")
    assert caught.value.code == 8
    for name in ("", "a/b", ".."):
        with pytest.raises(CNIError):
            namespaces.create(name)
        with pytest.raises(CNIError):
            namespaces.delete(name)


def test_temporary_namespaces(host: Host) -> None:
    with namespaces.temporary() as one, namespaces.temporary("runtime-test") as other:
        assert one != other == "/run/netns/runtime-test"
        assert os.path.exists(one)
    assert not os.path.exists(one)
    assert not os.path.exists(other)
