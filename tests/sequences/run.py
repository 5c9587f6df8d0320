"""Run sequences: seeded ones, or one given as a list; and make what fails small.

A sequence's seed decides all of it, so it is the same again. What fails is made small by leaving
out operations, then plugins and options, as long as the same kind of thing is wrong at its end.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from harness.agent import socket_in
from sequences.compare import Difference
from sequences.generate import Generator, ending, setup
from sequences.lab import Lab
from sequences.model import IPTABLES, NFTABLES, Key, Model
from sequences.operations import Operation
from sequences.stage import Setup, Stage
from sequences.ways import ByAgent, ByLibcni, InProcess, Programs, Way
from sequences.world import Observer

# How operations are done: see `ways`.
WAYS = ("in process", "exec", "agent", "libcni", "mixed")


@dataclass
class Failure:
    """A sequence at whose end something is wrong."""

    setup: Setup
    operations: list[Operation]
    found: list[Difference]
    seed: str = ""
    first: str = ""  # what was found before it was made small

    @property
    def kind(self) -> str:
        return self.found[0].kind

    def __str__(self) -> str:
        lines = [f"seed {self.seed}" if self.seed else "", f"{self.setup!r}"]
        lines += (f"    {operation!r}," for operation in self.operations)
        lines += (f"  {one}" for one in self.found[:6])
        lines.append(f"  at first {self.first}" if self.first else "")
        return "\n".join(line for line in lines if line)


class Runner:
    """Runs sequences in one process. without: what is left out, and what is passed over."""

    def __init__(self, folder: Path, base: str, without: frozenset[str] = frozenset()) -> None:
        self._folder = folder
        self._lab = Lab(base)
        self._programs = Programs(folder / "bin")
        # Their launchers ask an agent, which runs in one way only.
        self._asking = Programs(folder / "asking", socket=socket_in(folder / "agent"))
        self._by_agent = ByAgent(self._asking.folder, folder / "agent")
        self._observer = Observer(self._lab)
        self.without = without
        self.operations = 0
        self.current: list[Any] = []  # the sequence under way, for who finds that it hangs

    def seeded(
        self,
        seed: str,
        length: int,
        way: str,
        *,
        settings: Iterable[tuple[str, Any]] = (),
        often: tuple[str, ...] = (),
    ) -> Failure | None:
        """A sequence of a seed, not made small.

        settings: of each network, instead of random ones; often: see `Generator`.
        """
        random = Random(seed)
        start = setup(random, way, self.without)
        nets = tuple(replace(net, **dict(settings)) for net in start.nets)
        start = replace(start, nets=nets)
        generator = Generator(random, way, self.without, often)
        with self._stage(start) as stage:
            done: list[Operation] = []
            self.current = [start, done]
            for number in range(length + 1):
                ops = [generator.next(stage.model)] if number < length else ending(stage.model)
                for operation in ops:
                    done.append(operation)
                    self.operations += 1
                    found = stage.step(operation)
                    if found:
                        return Failure(start, done, found, seed)
            found = stage.remaining()
            return Failure(start, done, found, seed) if found else None

    def given(self, start: Setup, operations: Sequence[Operation]) -> Failure | None:
        """A sequence of operations; whatever is attached is detached at its end.

        Those that are not to be tried where they stand are passed over.
        """
        with self._stage(start) as stage:
            done: list[Operation] = []
            self.current = [start, done]
            for is_end in (False, True):
                for operation in ending(stage.model) if is_end else operations:
                    if not operation.is_tried(stage.model):
                        continue
                    done.append(operation)
                    self.operations += 1
                    found = stage.step(operation)
                    if found:
                        return Failure(start, done, found)
            found = stage.remaining()
            return Failure(start, done, found) if found else None

    def minimised(self, failure: Failure, seconds: float = 60.0) -> Failure:
        """The same fault by fewer operations and simpler ones."""
        deadline = time.monotonic() + seconds
        best = failure

        def attempt(start: Setup, operations: Sequence[Operation]) -> bool:
            nonlocal best
            if time.monotonic() > deadline:
                return False
            found = self.given(start, operations)
            if found is None or found.kind != failure.kind:
                return False
            if _size(found) >= _size(best):
                return False
            best = replace(found, seed=failure.seed, first=str(failure.found[0]))
            return True

        shrinking = True
        while shrinking and time.monotonic() < deadline:
            shrinking = False
            size = max(1, len(best.operations) // 2)
            while size:
                index = len(best.operations) - size
                while index >= 0:
                    rest = best.operations[:index] + best.operations[index + size :]
                    if attempt(best.setup, rest):
                        shrinking = True
                        index = min(index, len(best.operations)) - size
                    else:
                        index -= size
                size //= 2
            for start in _simpler_setups(best.setup):
                names = {net.name for net in start.nets}
                possible = [one for one in best.operations if _network(one) in ("", *names)]
                shrinking |= attempt(start, possible)
            for simpler in _simpler(best.operations):
                if attempt(best.setup, simpler):
                    shrinking = True
                    break
        return best

    @contextmanager
    def _stage(self, start: Setup) -> Iterator[Stage]:
        lab = self._lab
        lab.clear()
        programs = self._asking if start.way == "agent" else self._programs
        for plugin in ("bridge", "host-local", "portmap", "firewall", "tuning", "bandwidth"):
            programs.fix(plugin)
        model = Model(lab.base, {net.name: net for net in start.nets}, start.drops)
        stage = Stage(
            lab, model, programs, self._way(start.way), self._folder, self._observer,
            is_libcni=start.way in ("libcni", "mixed"), without=self.without,
        )  # fmt: skip
        stage.boot()
        try:
            for slot in start.slots:
                lab.appear(slot)
                model.appear(slot)
            yield stage
        finally:
            stage.end()

    def _way(self, name: str) -> Way:
        if name in ("libcni", "mixed"):
            return ByLibcni(self._programs.folder)
        if name == "agent":
            return self._by_agent
        return InProcess(self._programs.folder, "auto" if name == "in process" else "exec")


def _size(failure: Failure) -> tuple[int, int]:
    """What is to become small: operations, then what they and the networks ask for."""
    start = failure.setup
    asked = 2 * start.drops + 4 * (start.way != "in process")
    for net in start.nets:
        asked += net.bandwidth + net.tuning + 1
        asked += sum(
            ("", NFTABLES, IPTABLES).index(kind)
            for kind in (net.masquerade, net.portmap, net.firewall)
        )
    return len(failure.operations), asked + sum(map(_asked, failure.operations))


def _asked(operation: Operation) -> int:
    inner = _parts(operation)
    if inner:
        return sum(map(_asked, inner.values())) + 1
    interface, ports = getattr(operation, "interface", "eth0"), getattr(operation, "ports", ())
    others = getattr(operation, "leaving", ""), getattr(operation, "by", "")
    return (interface != "eth0") + len(ports) + sum(map(bool, others))


def _network(operation: Operation) -> str:
    """The network that it is about, "" if it is about none."""
    about = next(iter(_parts(operation).values()), operation)
    name: str = getattr(about, "net", "")
    return name


def _parts(operation: Operation) -> dict[str, Operation]:
    """The operations that one is made of, by the names that it has them by."""
    named = ((name, getattr(operation, name, None)) for name in ("what", "one", "two"))
    return {name: part for name, part in named if isinstance(part, Operation)}


def _simpler_setups(start: Setup) -> Iterator[Setup]:
    for index, net in enumerate(start.nets):
        if len(start.nets) > 1:
            yield replace(start, nets=start.nets[:index] + start.nets[index + 1 :])
        for setting, value in (
            ("bandwidth", False), ("tuning", False), ("firewall", ""), ("masquerade", ""),
            ("portmap", ""), ("firewall", NFTABLES), ("masquerade", NFTABLES),
            ("portmap", NFTABLES),
        ):  # fmt: skip
            if value == NFTABLES and start.way == "mixed":
                continue
            if getattr(net, setting) not in (value, ""):
                nets = [*start.nets]
                nets[index] = replace(net, **{setting: value})  # type: ignore[arg-type]
                yield replace(start, nets=tuple(nets))
    if start.drops:
        yield replace(start, drops=False)
    if start.way not in ("in process", "mixed"):
        yield replace(start, way="in process")


def _simpler(operations: list[Operation]) -> Iterator[list[Operation]]:
    """The same with one argument simpler: in all operations about one attachment."""
    every = [one for each in operations for one in (each, *_parts(each).values())]
    keys = dict.fromkeys(filter(None, map(_key, every)))
    for key in keys:
        for setting, value in (("ports", ()), ("ports", (8080,)), ("interface", "eth0")):
            changed = [_changed(one, setting, value, key) for one in operations]
            if changed != operations:
                yield changed
    for index, operation in enumerate(operations):
        for part in _parts(operation).values():
            yield [*operations[:index], part, *operations[index + 1 :]]
    for setting, value in (("leaving", ""), ("by", "")):
        changed = [_changed(one, setting, value) for one in operations]
        if changed != operations:
            yield changed


def _key(operation: Operation) -> Key | None:
    """The attachment that it is about, None if it is about none."""
    key: Key | None = getattr(operation, "key", None)
    return key


def _changed(operation: Operation, setting: str, value: Any, key: Key | None = None) -> Operation:
    inner = _parts(operation)
    if inner:
        inner = {part: _changed(one, setting, value, key) for part, one in inner.items()}
        return replace(operation, **inner)
    if key is not None and _key(operation) != key:
        return operation
    current = getattr(operation, setting, value)
    if current == value or (isinstance(value, tuple) and len(current) <= len(value)):
        return operation
    return replace(operation, **{setting: value})
