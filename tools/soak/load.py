"""Attach and detach thousands of containers at once, by ours and by the reference's plugins.

All are on one network: one bridge, one range of addresses, one directory of leases. Some calls go
to our agent (bridge, then portmap), some are processes of ours, some the reference's bridge and
host-local. Callers hold up to two attachments each; CHECK runs in between, and GC, which must take
away attachments whose containers have gone, and nothing else.

Held against: no address is two containers' at any time; after each phase the leases are those of
the attachments there are; at the end no link, address, rule, element, lease, process, file
descriptor or memory of the agent is left over. Run by `tools/soak/run`, in a namespace of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.host import ip_json, nft_list
from harness.namespaces import Namespace
from harness.plugin import run_plugin
from pycni.agent import server
from pycni.agent.executables import install

REFERENCE = Path("/usr/lib/cni")
SUBNET = "10.66.0.0/23"
NETWORK = "soak"
SLOTS = 2  # attachments that a caller holds at once
CHECK_EVERY = 4
MOST_DESCRIPTORS = 40  # of the agent at rest: 6 of its own, and the netfilter sockets that it keeps
# How every ten cycles are made up.
KINDS = ("agent", "agent", "agent", "agent", "process", "process", "reference", "reference",
         "agent", "reference")  # fmt: skip


class Failed(AssertionError):
    """Something was not as it must be."""


@dataclass
class Slot:
    """A place for one attachment: a namespace and a container's name that never change."""

    container: str
    netns: Namespace
    kind: str = ""
    result: Any = None
    chained: Any = None


@dataclass
class Latencies:
    """Of all calls of one sort, in milliseconds, with the cycle they belong to."""

    taken: list[tuple[int, float]] = field(default_factory=list)

    def percentiles(self, first: int = 0, last: int = sys.maxsize) -> dict[str, float]:
        found = sorted(ms for cycle, ms in self.taken if first <= cycle < last)
        if not found:
            return {}
        return {
            name: round(found[min(len(found) - 1, int(len(found) * share))], 1)
            for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
        }


class Load:
    """A host with an agent, and the callers."""

    def __init__(self, folder: Path, callers: int, gc_every: int) -> None:
        self.folder = folder
        self.data_dir = folder / "leases"
        self.with_agent = folder / "agent-bin"
        self.as_process = folder / "bin"
        socket = folder / "agent/agent.sock"
        install(self.with_agent, socket=socket)
        install(self.as_process, socket=folder / "none.sock")
        self.agent = subprocess.Popen(
            [Path(sys.executable).parent / "pycni", "agent", "--socket", socket]
        )
        _eventually(lambda: _answers(socket), "the agent does not answer")
        self.callers = [
            [
                Slot(f"c{caller}-{number}", Namespace.create(f"soak-{caller}-{number}"))
                for number in range(SLOTS)
            ]
            for caller in range(callers)
        ]
        self.living: dict[str, str] = {}
        self.lock = threading.Lock()
        self.gate = threading.Lock()  # one GC at a time
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()
        self.latencies: dict[str, Latencies] = {}
        self.cycles = itertools.count()
        self.done = 0
        self.gc_every = gc_every
        self.collections = itertools.count()
        self.stale = itertools.count()

    # --- the calls ---------------------------------------------------------------------------

    def call(
        self, cycle: int, plugin: Path, command: str, config: dict[str, Any], slot: Slot
    ) -> Any:
        """One call of a plugin; what it printed, parsed. Raises Failed."""
        began = time.monotonic()
        run = run_plugin(
            plugin, command, config, CNI_CONTAINERID=slot.container, CNI_NETNS=slot.netns.path
        )
        taken = (time.monotonic() - began) * 1000
        with self.lock:
            self.counts[f"{slot.kind} {command}"] += 1
            sort = f"{slot.kind} {command}" if plugin.name == "bridge" else ""
            if sort:
                self.latencies.setdefault(sort, Latencies()).taken.append((cycle, taken))
        if run.code != 0:
            raise Failed(f"{slot.kind} {plugin.name} {command} {slot.container}: {run.stdout}"
                         f"{run.stderr}")  # fmt: skip
        return run.result

    def config(self, kind: str, **keys: Any) -> dict[str, Any]:
        return {
            "cniVersion": "1.0.0" if kind == "reference" else "1.1.0",
            "name": NETWORK,
            "type": "bridge",
            "bridge": "soak0",
            "isGateway": True,
            "ipMasq": kind != "reference",  # its iptables would be most of what is measured
            "ipam": {"type": "host-local", "subnet": SUBNET, "dataDir": str(self.data_dir)},
            **keys,
        }

    def portmap(self, slot: Slot, previous: Any) -> dict[str, Any]:
        port = (
            20000
            + int(previous["ips"][0]["address"].split("/")[0].split(".")[3])
            + (256 * int(previous["ips"][0]["address"].split(".")[2]))
        )
        mappings = [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]
        return {
            "cniVersion": "1.1.0",
            "name": NETWORK,
            "type": "portmap",
            "runtimeConfig": {"portMappings": mappings},
            "prevResult": previous,
        }

    def plugins(self, kind: str) -> Path:
        return {"agent": self.with_agent, "process": self.as_process, "reference": REFERENCE}[kind]

    def add(self, cycle: int, slot: Slot, kind: str) -> None:
        slot.kind = kind
        folder = self.plugins(kind)
        slot.result = self.call(cycle, folder / "bridge", "ADD", self.config(kind), slot)
        address = slot.result["ips"][0]["address"]
        with self.lock:
            other = self.living.setdefault(address, slot.container)
        if other != slot.container:
            raise Failed(f"{address} was given to {slot.container}, and {other} has it")
        if kind == "agent":
            config = self.portmap(slot, slot.result)
            slot.chained = self.call(cycle, folder / "portmap", "ADD", config, slot)

    def check(self, cycle: int, slot: Slot) -> None:
        config = self.config(slot.kind, prevResult=slot.result)
        self.call(cycle, self.plugins(slot.kind) / "bridge", "CHECK", config, slot)

    def delete(self, cycle: int, slot: Slot) -> None:
        if slot.result is None:
            return
        folder = self.plugins(slot.kind)
        if slot.chained is not None:
            self.call(cycle, folder / "portmap", "DEL", self.portmap(slot, slot.result), slot)
        with self.lock:
            del self.living[slot.result["ips"][0]["address"]]
        config = self.config(slot.kind, prevResult=slot.result)
        self.call(cycle, folder / "bridge", "DEL", config, slot)
        slot.result = slot.chained = None

    def collect(self, cycle: int) -> None:
        """A container goes without DEL, and GC takes away what it left."""
        kind = ("agent", "process")[next(self.collections) % 2]
        name = f"stale-{next(self.stale)}"
        lost = Slot(name, Namespace.create(name))
        try:
            self.add(cycle, lost, kind)
        finally:
            lost.netns.delete()
        address = lost.result["ips"][0]["address"]
        with self.lock:
            del self.living[address]
        keep = [
            {"containerID": slot.container, "ifname": "eth0"}
            for slots in self.callers
            for slot in slots
        ]
        gc = {"cni.dev/valid-attachments": keep}
        self.call(cycle, self.plugins(kind) / "bridge", "GC", self.config(kind, **gc), lost)
        if kind == "agent":
            config = {**self.portmap(lost, lost.result), **gc}
            del config["prevResult"]
            self.call(cycle, self.with_agent / "portmap", "GC", config, lost)

    # --- the callers -------------------------------------------------------------------------

    def caller(self, slots: list[Slot], last: int) -> None:
        """Cycles one after the other, until `last` have been begun by all callers together."""
        try:
            for number in itertools.count():
                with self.lock:
                    if self.done >= last or self.failures:
                        return
                    self.done += 1
                    cycle = self.done - 1
                slot = slots[number % SLOTS]
                self.delete(cycle, slot)
                self.add(cycle, slot, KINDS[cycle % len(KINDS)])
                if cycle % CHECK_EVERY == 0:
                    self.check(cycle, slot)
                if cycle % self.gc_every == self.gc_every - 1:
                    with self.gate:
                        self.collect(cycle)
        except Exception as error:  # noqa: BLE001 - reported by the thread that waits
            with self.lock:
                self.failures.append(f"{type(error).__name__}: {error}")

    def phase(self, callers: int, cycles: int) -> dict[str, Any]:
        """So many cycles by so many callers; then the leases must be those of the living."""
        first, began = self.done, time.monotonic()
        threads = [
            threading.Thread(target=self.caller, args=(slots, first + cycles))
            for slots in self.callers[:callers]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = time.monotonic() - began
        if self.failures:
            raise Failed("\n".join(self.failures))
        self.require_leases()
        return {
            "callers": callers,
            "cycles": self.done - first,
            "per second": round((self.done - first) / taken, 1),
            **{
                f"{sort} {name}": value
                for sort in ("agent ADD", "process ADD", "reference ADD")
                for name, value in self.latencies.get(sort, Latencies())
                .percentiles(first, self.done)
                .items()
                if name in ("p50", "p99")
            },
        }

    def require_leases(self) -> None:
        expected = {address.partition("/")[0]: owner for address, owner in self.living.items()}
        found = {
            path.name: path.read_bytes().decode().split("\r\n")[0]
            for path in (self.data_dir / NETWORK).iterdir()
            if path.name[0].isdigit()
        }
        if found != expected:
            raise Failed(f"leases without a container, or that are missing: "
                         f"{set(found.items()) ^ set(expected.items())}")  # fmt: skip

    def drain(self) -> None:
        for slots in self.callers:
            for slot in slots:
                self.delete(self.done, slot)

    # --- what is left ------------------------------------------------------------------------

    def footprint(self) -> dict[str, int]:
        """The agent's memory (KiB), descriptors and threads, once it rests."""
        folder = f"/proc/{self.agent.pid}/fd"
        counts = []
        for _ in range(20):
            counts.append(len(os.listdir(folder)))
            time.sleep(0.05)
        status = Path(f"/proc/{self.agent.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return {
            "memory": int(fields["VmRSS"].split()[0]),
            "descriptors": min(counts),
            "threads": int(fields["Threads"]),
        }

    def require_nothing_left(self) -> None:
        left = {
            "links": [link["ifname"] for link in ip_json("link", "show")
                      if link["ifname"] not in ("lo", "soak0")],
            "addresses": [one["local"] for link in ip_json("-4", "address", "show")
                          for one in link["addr_info"] if link["ifname"] != "lo"
                          and one["local"] != "10.66.0.1"],
            "elements": [entry for entry in nft_list() for kind in ("set", "map")
                         if entry.get(kind, {}).get("elem")],
            "leases": [path.name for path in (self.data_dir / NETWORK).iterdir()
                       if path.name[0].isdigit() or path.name.endswith(".new")],
            "in containers": [link["ifname"] for slots in self.callers for slot in slots
                              for link in ip_json("link", "show", netns=slot.netns)
                              if link["ifname"] != "lo"],
        }  # fmt: skip
        if any(left.values()):
            raise Failed(f"left over: { {name: found for name, found in left.items() if found} }")

    def close(self) -> None:
        for slots in self.callers:
            for slot in slots:
                slot.netns.delete()
        self.agent.terminate()
        self.agent.wait(30)


def run(folder: Path, cycles: int, phases: list[int]) -> dict[str, Any]:
    """The whole of it; a report. Raises Failed."""
    load = Load(folder, max(phases), max(10, cycles // 40))
    try:
        each = cycles // len(phases)
        report: dict[str, Any] = {"phases": []}
        began = time.monotonic()
        for number, callers in enumerate(phases):
            phase = load.phase(callers, each)
            rest = load.footprint()
            report["phases"].append({**phase, "agent memory": rest["memory"]})
            _say(json.dumps(report["phases"][-1]))
            if number == 0:
                early = rest
            if callers == max(phases):
                busiest = rest
        load.drain()
        load.require_nothing_left()
        late = load.footprint()
        report |= {
            "cycles": load.done,
            "seconds": round(time.monotonic() - began),
            "calls": dict(sorted(load.counts.items())),
            "duplicate addresses": 0,
            "agent": {"early": early, "late": late},
            "first": {},
            "last": {},
        }
        for sort, latencies in sorted(load.latencies.items()):
            if sort.split()[1] in ("ADD", "DEL", "CHECK"):
                report["first"][sort] = latencies.percentiles(0, each)
                report["last"][sort] = latencies.percentiles(load.done - each)
        _require_steady(early, late)
        if late["memory"] > busiest["memory"] * 1.1 + 1024:
            raise Failed(f"the agent's memory grew: {busiest} {late}")
    finally:
        load.close()
    return report


def _require_steady(early: dict[str, int], late: dict[str, int]) -> None:
    """The agent may have started more threads, each with what it keeps; it may not have grown."""
    threads = late["threads"] - early["threads"]
    if late["descriptors"] > max(early["descriptors"], MOST_DESCRIPTORS):
        raise Failed(f"the agent's descriptors grew: {early} {late}")
    if late["memory"] > early["memory"] * 1.2 + 512 * threads + 2048:
        raise Failed(f"the agent's memory grew: {early} {late}")


def _answers(socket: Path) -> bool:
    try:
        server.ask(socket)
    except OSError:
        return False
    return True


def _eventually(what: Callable[[], bool], why: str) -> None:
    for _ in range(1000):
        if what():
            return
        time.sleep(0.02)
    raise Failed(why)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
