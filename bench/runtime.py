"""Whole lists through the runtime, and many attachments at once."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import Measurement
from scenarios import V4

from pycni.kernel.netlink import constants
from pycni.kernel.netlink.codec import Request
from pycni.kernel.netlink.socket import NetlinkSocket
from pycni.runtime import Endpoint, Network

FOLDER = Path("/run/pycni-bench/runtime")
MANY = 200
LIST = "bridge + host-local, loopback"


def measure_list(reference: Path, rounds: int) -> list[Measurement]:
    """ADD and DEL of a list: our plugins in this process, the reference's as processes.

    DEL is taken without the time that the kernel makes the caller wait after it removed the veth
    pair. That is measured in our DEL and taken from both of the round; it is told as a line of its
    own.
    """
    networks = {
        "reference": _network("ref", plugin_dirs=reference, engine="exec"),
        "in process": _network("own"),
    }
    times: dict[str, dict[str, list[float]]] = {
        operation: {name: [] for name in networks} for operation in ("ADD", "DEL", "ADD + DEL")
    }
    waits: list[float] = []
    for number in range(rounds + 1):
        spent: dict[str, tuple[float, float]] = {}
        wait = 0.0
        with _namespaces(2, f"list-{number}") as endpoints:
            order = list(networks) if number % 2 else list(networks)[::-1]
            for name, endpoint in zip(order, endpoints, strict=True):
                network = networks[name]
                add = _timed(lambda n=network, e=endpoint: n.add_endpoint(e))
                with _kernel_waits() as seen:
                    delete = _timed(lambda n=network, e=endpoint: n.delete_endpoint(e))
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


def measure_many(repeats: int) -> list[Measurement]:
    """Two hundred attachments in turn, and at once."""
    network = _network("many")
    times: dict[str, dict[str, list[float]]] = {
        operation: {"in turn": [], "at once": []} for operation in ("ADD", "DEL")
    }
    for number in range(repeats):
        with _namespaces(MANY, f"many-{number}") as endpoints:
            for name, operation, work in (
                ("in turn", "ADD", lambda e=endpoints: [network.add_endpoint(one) for one in e]),
                ("in turn", "DEL", lambda e=endpoints: [network.delete_endpoint(one) for one in e]),
                ("at once", "ADD", lambda e=endpoints: _all_ok(network.add_many(e))),
                ("at once", "DEL", lambda e=endpoints: _all_ok(network.delete_many(e))),
            ):
                times[operation][name].append(_timed(work))
    return [
        Measurement(f"{MANY} attachments", operation, values) for operation, values in times.items()
    ]


def _network(name: str, **settings: Any) -> Network:
    ipam = {"type": "host-local", "ranges": [[V4]], "dataDir": str(FOLDER / name)}
    bridge = {"type": "bridge", "bridge": f"br-{name}", "isGateway": True, "ipam": ipam}
    document = {
        "cniVersion": "1.0.0",
        "name": f"bench-{name}",
        "plugins": [bridge, {"type": "loopback"}],
    }
    return Network.from_dict(document, cache_dir=FOLDER / "cache", **settings)


@contextmanager
def _namespaces(number: int, name: str) -> Iterator[list[Endpoint]]:
    names = [f"{name}-{index}" for index in range(number)]
    for each in names:
        subprocess.run(["ip", "netns", "add", each], check=True)
    yield [Endpoint(each, f"/run/netns/{each}") for each in names]
    for each in names:
        subprocess.run(["ip", "netns", "delete", each], check=True)


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
