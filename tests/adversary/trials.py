"""One attack each: what was tried, and what did not hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adversary import invariants
from adversary.container import attack, clear
from harness.plugin import PluginRun, run_plugin
from harness.worlds import Case, World
from pycni.runtime import Network
from pycni.runtime.repair import repair_all
from pycni.spec.errors import INTERNAL, CNIError

Call = Callable[..., PluginRun]
Attempt = Callable[[Case, Path, Path, str, Call], "Trial"]


@dataclass(frozen=True)
class Trial:
    """wrong: what did not hold, "" if all did."""

    what: str
    seed: str
    wrong: str

    def __str__(self) -> str:
        return f"{self.what}, seed {self.seed}: {self.wrong or 'held'}"


def container(case: Case, plugins: Path, folder: Path, seed: str, call: Call = run_plugin) -> Trial:
    """A container's administrator against each operation of its plugin."""
    with World(case, plugins, folder, shared=True, call=call) as world:
        other = world.sandbox()
        one = world.one
        assert one.sandbox is not None
        one.add()  # what all attachments share is there from now on
        one.delete()
        one.result = None
        neighbour = _neighbour(world)
        before = invariants.seen(world, neighbour)
        wrong: list[str] = []
        with attack(one.sandbox, other, seed):
            added = one.run("ADD")
            wrong += invariants.ended("ADD", added)
            previous: dict[str, Any] = {"prevResult": added.result} if not added.code else {}
            if previous:
                wrong += invariants.ended("CHECK", one.run("CHECK", **previous))
            wrong += invariants.ended("GC", one.run("GC", **_keeping("one", "neighbour")))
            wrong += invariants.ended("DEL", one.run("DEL", **previous))
        again = one.run("DEL", **previous)
        if again.code:
            wrong.append(f"DEL of a quiet container: {again.result}")
        if not case.chained:  # whose interface is another plugin's, which is not called
            wrong += invariants.unanswered((one.sandbox, other))
        clear(one.sandbox, other)
        wrong += invariants.untouched(world, before, neighbour=neighbour)
        wrong += _neighbour_is_sound(world)
        return Trial(f"{case.name}: container", seed, "\n".join(wrong))


def two_callers(
    case: Case, plugins: Path, folder: Path, seed: str, call: Call = run_plugin
) -> Trial:
    """Two operations on one attachment at once, in a random order of random ones."""
    choice = random.Random(seed)
    with World(case, plugins, folder, shared=True, call=call) as world:
        one = world.one
        one.add()
        one.delete()
        one.result = None
        neighbour = _neighbour(world)
        before = invariants.seen(world, neighbour)
        wrong: list[str] = []
        keys = {"GC": _keeping("neighbour")}
        for _ in range(3):
            pair = [choice.choice(("ADD", "DEL", "DEL", "CHECK", "GC")) for _ in range(2)]
            pair[choice.randint(0, 1)] = "ADD"
            with ThreadPoolExecutor(2) as pool:  # in the world's namespace, as this thread is
                runs = [pool.submit(one.run, each, **keys.get(each, {})) for each in pair]
            for each, other, run in zip(pair, reversed(pair), runs, strict=True):
                wrong += invariants.ended(f"{each} beside {other}", run.result())
            deleted = one.run("DEL")
            if deleted.code:
                wrong.append(f"DEL after {pair}: {deleted.result}")
        assert one.sandbox is not None
        wrong += invariants.untouched(world, before, neighbour=neighbour)
        wrong += _neighbour_is_sound(world)
        return Trial(f"{case.name}: two callers", seed, "\n".join(wrong))


def network(case: Case, plugins: Path, folder: Path, seed: str, call: Call = run_plugin) -> Trial:
    """A container's administrator against a network's operations, and against repair.

    call: `run_plugin` for executables, else in process.
    """
    with World(case, plugins, folder, shared=False) as world:
        cache_dir = world.folder / "cache"
        dirs: dict[str, Any] = {"plugin_dirs": plugins, "engine": "exec"}
        way = dirs if call is run_plugin else {}
        document = {"cniVersion": "1.1.0", "name": "net", "plugins": _plugins(world.folder)}
        net = Network.from_dict(document, cache_dir=cache_dir, **way)
        ports = _published(8080)
        space, other, quiet = world.sandbox(), world.sandbox(), world.sandbox()
        net.add("quiet", quiet.path, capabilities=_published(9080))
        net.add("one", space.path, capabilities=ports)
        net.delete("one")
        before = invariants.seen(world, quiet)
        wrong: list[str] = []
        operations: tuple[tuple[str, Callable[[], Any]], ...] = (
            ("ADD", lambda: net.add("one", space.path, capabilities=ports)),
            ("CHECK", lambda: net.check("one")),
            ("repair", lambda: repair_all(cache_dir=str(cache_dir))),
            ("GC", lambda: net.gc([("one", "eth0"), ("quiet", "eth0")])),
            ("DEL", lambda: net.delete("one")),
        )
        with attack(space, other, seed):
            for what, operation in operations:
                wrong += _foreseen(what, operation)
        net.delete("one", space.path)
        wrong += invariants.unanswered((space, other))
        clear(space, other)
        wrong += invariants.untouched(world, before, neighbour=quiet)
        wrong += _foreseen("CHECK of the neighbour", lambda: net.check("quiet"))
        return Trial("a network: container", seed, "\n".join(wrong))


def _published(port: int) -> dict[str, Any]:
    return {"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]}


def _plugins(folder: Path) -> list[dict[str, Any]]:
    rates = {"ingressRate": 8_000_000, "ingressBurst": 8_000_000,
             "egressRate": 8_000_000, "egressBurst": 8_000_000}  # fmt: skip
    ipam = {"type": "host-local", "subnet": "10.8.0.0/24", "dataDir": str(folder / "leases")}
    return [
        {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True, "ipam": ipam},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
         "dataDir": str(folder / "tuning")},
        {"type": "bandwidth", **rates},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall", "backend": "nftables"},
    ]  # fmt: skip


def _foreseen(what: str, operation: Callable[[], Any]) -> Iterator[str]:
    try:
        operation()
    except CNIError as error:
        if error.code == INTERNAL:
            yield f"{what} did not foresee what it found: {error}"


def _neighbour(world: World) -> Any:
    """The namespace of the attachment that is there all the time; None if there is none."""
    return world.neighbour.sandbox if world.shared else None


def _neighbour_is_sound(world: World) -> Iterator[str]:
    if world.shared:
        checked = world.neighbour.run("CHECK", prevResult=world.neighbour.result)
        if checked.code:
            yield f"CHECK of the neighbour: {checked.result}"


def _keeping(*containers: str) -> dict[str, Any]:
    living = [{"containerID": container, "ifname": "eth0"} for container in containers]
    return {"cni.dev/valid-attachments": living}
