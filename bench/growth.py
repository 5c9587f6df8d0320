"""What becomes of an operation's time when there is much of something already: ours over ours."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from contenders import (
    FOLDER,
    IN_PROCESS,
    Attachment,
    Contender,
    everyone,
    ours,
    room,
    sandboxes,
    settle,
)
from measure import Measurement, measure
from pods import attach_all, present
from scenarios import HOST_LOCAL, POD, V4, Scenario, bridge, data_dir, portmap

from harness import Namespace, inside
from pycni.runtime import Network
from pycni.state.cache import CachedAttachment, ResultCache

FEW, MANY = "few", "many"

Filling = Callable[[Contender, int], None]


def leases(count: int, peer: Path | None, rounds: int) -> list[Measurement]:
    """host-local, when so many addresses are taken; by everyone."""
    with everyone(peer) as contenders:
        for host in {contender.room for contender in contenders}:
            _write_leases(Path(data_dir(host.name)) / HOST_LOCAL.network, count)
        return measure(HOST_LOCAL, contenders, rounds, f"host-local, {count:,} leases")


def pods(count: int, rounds: int) -> Iterator[Measurement]:
    """A pod's ADD with so many pods on the host, over ADD with one; in all ways."""
    with ExitStack() as stack:
        contenders: list[Contender] = []
        for note, number in ((FEW, 1), (MANY, count)):
            host = stack.enter_context(room(note))
            found = stack.enter_context(ours(host, note=f", {note}"))
            stack.enter_context(present(number, POD, found))
            contenders += found
        for row in measure(POD, contenders, rounds, first=count):
            for way in dict.fromkeys(name.partition(", ")[0] for name in row.values):
                values = {note: row.values[f"{way}, {note}"] for note in (FEW, MANY)}
                yield Measurement(f"{count:,} pods, {way}", row.operation, values)


def mappings(count: int, rounds: int) -> Iterator[Measurement]:
    """portmap with two ports, when so many are mapped already."""
    mapped = Scenario("portmap", lambda number: [_mapping(number + 1, 60_000, 60_001)])
    yield from _compare(f"{count:,} port mappings", mapped, _map_ports, count, rounds)


def ports(count: int, rounds: int) -> Iterator[Measurement]:
    """A bridge that has so many ports already."""
    plain = Scenario("ports", lambda _: [bridge(4)])
    yield from _compare(f"{count:,} ports of a bridge", plain, _add_ports, count, rounds)


def results(count: int, rounds: int) -> Iterator[Measurement]:
    """ADD, CHECK and DEL by the runtime, when its cache holds so many results."""
    document = {"cniVersion": "1.0.0", "name": "cached", "plugins": [{"type": "loopback"}]}
    networks = {}
    for note, known in ((FEW, 0), (MANY, count)):
        folder = FOLDER / f"results-{note}"
        _write_results(folder, known)
        networks[note] = Network.from_dict(document, cache_dir=folder)
    values: dict[str, dict[str, list[float]]] = {"ADD": {}, "CHECK": {}, "DEL": {}}
    with room("results") as host, sandboxes(1, "cached") as (box,), inside(host):
        for number in range(rounds + 1):
            for note, network in networks.items():
                for operation, call in (
                    ("ADD", network.add),
                    ("CHECK", network.check),
                    ("DEL", network.delete),
                ):
                    begin = time.perf_counter()
                    call(box.container_id, box.netns, "lo")
                    elapsed = time.perf_counter() - begin
                    if number > 0:
                        values[operation].setdefault(note, []).append(elapsed)
    for operation, found in values.items():
        yield Measurement(f"{count:,} cached results", operation, found)


def collection(count: int, rounds: int, few: int = 50) -> Iterator[Measurement]:
    """GC by a pod's plugins, with all to keep, with one stale, and with all stale.

    In seconds for each attachment there is, since it has to look at them all.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for note, number in ((FEW, few), (MANY, count)):
        with ExitStack() as stack:
            host = stack.enter_context(room("gc"))
            (contender,) = stack.enter_context(ours(host, IN_PROCESS))
            boxes = stack.enter_context(sandboxes(number, "stale"))
            stack.enter_context(inside(host))
            attach_all(contender, POD, boxes)
            for name, kept in (
                ("GC, all kept", [boxes] * rounds),
                ("GC, one stale", [boxes[number + 1 :] for number in range(rounds)]),
                ("GC, all stale", [[]]),
            ):
                seconds = [collect(contender, POD, keep) / number for keep in kept]
                values.setdefault(name, {})[note] = seconds
        settle()
    for name, found in values.items():
        yield Measurement(f"{count:,} attachments, each", name, found)


def collect(contender: Contender, scenario: Scenario, kept: Sequence[Attachment]) -> float:
    """Seconds of GC by all plugins of a list. The thread must be in the contender's room."""
    keep = [{"containerID": one.container_id, "ifname": "eth0"} for one in kept]
    elapsed = 0.0
    for config in scenario.configured(0, contender.room.name, version="1.1.0"):
        asked = {**config, "cni.dev/valid-attachments": keep}
        elapsed += contender.call("GC", asked, Attachment("", ""))[1]
    return elapsed


def _compare(
    work: str, scenario: Scenario, fill: Filling, count: int, rounds: int
) -> Iterator[Measurement]:
    """Two hosts, one of which is filled, in turn; in this process."""
    with ExitStack() as stack:
        contenders: list[Contender] = []
        for note, number in ((FEW, 0), (MANY, count)):
            host = stack.enter_context(room(note))
            (contender,) = stack.enter_context(ours(host, IN_PROCESS))
            contender.name = note
            fill(contender, number)
            contenders.append(contender)
        yield from measure(scenario, contenders, rounds, work)


def _map_ports(contender: Contender, count: int, each: int = 100) -> None:
    # The way to the containers, which would be a bridge.
    _ip_batch(
        contender.room,
        ["link add net0 up type bridge", "address add 10.201.255.1/16 dev net0"],
    )
    with sandboxes(1, f"mapped-{count}") as (box,), inside(contender.room):
        for number in range(count // each):
            first = 10_000 + number * each
            config = _mapping(1_000 + number, *range(first, first + each))
            config.update(cniVersion="1.0.0", name="portmap")
            contender.call("ADD", config, Attachment(f"mapped-{number}", box.netns))


def _mapping(number: int, *ports: int) -> dict[str, Any]:
    address = f"10.201.{number >> 8}.{number & 255}/16"
    return {**portmap(*ports), "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": address}]}}


def _add_ports(contender: Contender, count: int) -> None:
    lines = ["link add br0 up type bridge"]
    for number in range(count):
        lines.append(f"link add port{number} up master br0 type veth peer name peer{number}")
        lines.append(f"link set peer{number} up")
    # Else a thousand interfaces would look for routers all the time.
    ipv6 = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    with inside(contender.room):
        ipv6.write_text("1")
        _ip_batch(contender.room, lines)
        ipv6.write_text("0")


def _ip_batch(host: Namespace, lines: Sequence[str]) -> None:
    argv = ["ip", "-n", host.name, "-batch", "-"]
    subprocess.run(argv, input="\n".join(lines), text=True, check=True)


def _write_leases(folder: Path, count: int) -> None:
    """As host-local leaves them; .1 is the gateway's."""
    folder.mkdir(parents=True)
    network = V4["subnet"].rpartition(".0.0/16")[0]
    for number in range(2, count + 2):
        name = f"{network}.{number >> 8}.{number & 255}"
        (folder / name).write_text(f"pod-{number}\r\neth0")
        if number == count + 1:
            (folder / "last_reserved_ip.0").write_text(name)


def _write_results(folder: Path, count: int) -> None:
    cache = ResultCache(str(folder))
    result = {"cniVersion": "1.0.0", "ips": [{"address": "10.200.0.2/16"}]}
    for number in range(count):
        name = f"known-{number}"
        cache.write(CachedAttachment("cached", name, "eth0", b"{}", "/run/netns/x", result=result))
