"""Whole lists through the runtime, and many attachments at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from contenders import FOLDER, IN_PROCESS, REFERENCE, room, sandboxes
from measure import Measurement
from scenarios import bridge, data_dir

from harness import inside
from pycni.kernel.netlink import constants
from pycni.kernel.netlink.codec import Request
from pycni.kernel.netlink.socket import NetlinkSocket
from pycni.runtime import Endpoint, Network

LIST = "bridge, loopback"


def measure_list(rounds: int) -> list[Measurement]:
    """ADD and DEL of a list: our plugins in this process, the reference's as processes.

    DEL is taken without the time that the kernel makes the caller wait after it removed the veth
    pair. That is measured in our DEL and taken from both of the round; it is told as a line of its
    own.
    """
    networks = {
        "reference": _network("ref", plugin_dirs=REFERENCE, engine="exec"),
        IN_PROCESS: _network("own"),
    }
    times: dict[str, dict[str, list[float]]] = {
        operation: {name: [] for name in networks} for operation in ("ADD", "DEL", "ADD + DEL")
    }
    waits: list[float] = []
    with _endpoints(2) as endpoints:
        for number in range(rounds + 1):
            spent: dict[str, tuple[float, float]] = {}
            wait = 0.0
            order = list(networks) if number % 2 else list(networks)[::-1]
            for name, endpoint in zip(order, endpoints, strict=True):
                network = networks[name]
                add = _timed(partial(network.add_endpoint, endpoint))
                with _kernel_waits() as seen:
                    delete = _timed(partial(network.delete_endpoint, endpoint))
                wait += sum(seen)  # of a process nothing is seen
                spent[name] = add, delete
            if number == 0:
                continue  # warms up
            waits.append(wait)
            for name, (add, delete) in spent.items():
                times["ADD"][name].append(add)
                times["DEL"][name].append(delete - wait)
                times["ADD + DEL"][name].append(add + delete - wait)
    found = [Measurement(LIST, operation, values) for operation, values in times.items()]
    return [*found, Measurement(LIST, "kernel's wait at DEL", dict.fromkeys(networks, waits))]


def measure_many(count: int, repeats: int) -> list[Measurement]:
    """So many attachments in turn, and at once."""
    network = _network("many")
    times: dict[str, dict[str, list[float]]] = {
        operation: {"in turn": [], "at once": []} for operation in ("ADD", "DEL")
    }
    with _endpoints(count) as endpoints:
        for _ in range(repeats):
            for name, operation, work in (
                ("in turn", "ADD", lambda: list(map(network.add_endpoint, endpoints))),
                ("in turn", "DEL", lambda: list(map(network.delete_endpoint, endpoints))),
                ("at once", "ADD", lambda: _all_ok(network.add_many(endpoints))),
                ("at once", "DEL", lambda: _all_ok(network.delete_many(endpoints))),
            ):
                times[operation][name].append(_timed(work))
    return [
        Measurement(f"{count} attachments", operation, values)
        for operation, values in times.items()
    ]


def _network(name: str, **settings: Any) -> Network:
    plugin = bridge(4)
    plugin["bridge"] = f"br-{name}"
    plugin["ipam"] = {**plugin["ipam"], "dataDir": data_dir("host-runtime")}
    document = {
        "cniVersion": "1.0.0",
        "name": f"list-{name}",
        "plugins": [plugin, {"type": "loopback"}],
    }
    return Network.from_dict(document, cache_dir=FOLDER / "cache", **settings)


@contextmanager
def _endpoints(count: int) -> Iterator[list[Endpoint]]:
    with room("runtime") as host, sandboxes(count, "runtime") as boxes, inside(host):
        yield [Endpoint(box.container_id, box.netns) for box in boxes]


@contextmanager
def _kernel_waits() -> Iterator[list[float]]:
    """The times of removing links in this process, meanwhile."""
    seen: list[float] = []
    batch = NetlinkSocket.batch

    def timed(self: NetlinkSocket, requests: Sequence[Request]) -> Any:
        begin = time.perf_counter()
        try:
            return batch(self, requests)
        finally:
            if any(request.kind == constants.RTM_DELLINK for request in requests):
                seen.append(time.perf_counter() - begin)

    NetlinkSocket.batch = timed  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        NetlinkSocket.batch = batch  # type: ignore[method-assign]


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _all_ok(outcomes: list[Any]) -> None:
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
