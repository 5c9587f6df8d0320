"""Whole lists through the runtime, and many attachments at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from contenders import FOLDER, IN_PROCESS, REFERENCE, room, sandboxes
from measure import Measurement
from scenarios import bridge, data_dir

from harness import inside
from pycni.runtime import Endpoint, Network

LIST = "bridge, loopback"


def measure_list(rounds: int) -> list[Measurement]:
    """ADD and DEL of a list: our plugins in this process, the reference's as processes.

    The kernel makes the process that removes a veth pair wait, and how long cannot be seen in the
    reference's. So a second DEL is taken too, which does all but remove what is gone by then.
    """
    networks = {
        "reference": _network("ref", plugin_dirs=REFERENCE, engine="exec"),
        IN_PROCESS: _network("own"),
    }
    times: dict[str, dict[str, list[float]]] = {}
    with _endpoints(2) as endpoints:
        for number in range(rounds + 1):
            order = list(networks) if number % 2 else list(networks)[::-1]
            for name, endpoint in zip(order, endpoints, strict=True):
                network = networks[name]
                add = _timed(partial(network.add_endpoint, endpoint))
                delete = _timed(partial(network.delete_endpoint, endpoint))
                again = _timed(partial(network.delete_endpoint, endpoint))
                for operation, spent in (
                    ("ADD", add),
                    ("DEL", delete),
                    ("DEL again", again),
                    ("ADD + DEL again", add + again),
                ):
                    if number > 0:  # the first warms up
                        times.setdefault(operation, {}).setdefault(name, []).append(spent)
    # The order of names changed from round to round.
    return [
        Measurement(LIST, operation, {name: values[name] for name in networks})
        for operation, values in times.items()
    ]


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


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _all_ok(outcomes: list[Any]) -> None:
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
