"""Choose what a sequence begins with, and its next operation, by a seeded generator.

The model is looked at, so that most operations mean something: an ADD goes where there is room, a
DEL to who is there. Some are wrong on purpose: a second ADD, a DEL of a stranger's.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from sequences.disturbances import (
    Appear,
    Break,
    Edit,
    Fix,
    Kill,
    Lose,
    Reboot,
    Refuse,
    Together,
    Vanish,
)
from sequences.model import ALIVE, IPTABLES, NFTABLES, PORTS, REFERENCE, Attachment, Model, Net
from sequences.operations import GC, Add, Check, Del, Operation, Reclaim, Repair
from sequences.stage import Setup

CONTAINERS = ("a", "b", "c", "d")
INTERFACES = ("eth0", "eth1")

# How often each kind is chosen, and what it is called where kinds are left out.
WEIGHTS = {
    "Add": 34, "Del": 20, "Check": 3, "GC": 5, "Repair": 5, "Reclaim": 2, "Edit": 3, "Lose": 5,
    "Reboot": 1, "Break": 2, "Fix": 4, "Vanish": 4, "Appear": 8, "Kill": 3, "Refuse": 3,
    "Together": 4,
}  # fmt: skip


def setup(random: Random, way: str, without: frozenset[str]) -> Setup:
    """The networks and the host of a sequence."""

    def backend() -> str:
        if way == "mixed":
            return IPTABLES
        kinds = [NFTABLES] if "iptables" in without else [NFTABLES, NFTABLES, IPTABLES]
        return random.choice(kinds)

    def net(name: str, bridge: str) -> Net:
        return Net(
            name,
            bridge,
            masquerade=backend() if random.random() < 0.9 else "",
            portmap=backend(),
            firewall=backend() if random.random() < 0.6 else "",
            bandwidth=random.random() < 0.2,
            tuning=random.random() < 0.4 and way != "mixed",
            version="1.0.0" if way == "mixed" else "1.1.0",
        )

    nets = [net("n", "br-n")]
    if "two networks" not in without and random.random() < 0.5:
        nets.append(net("n2", "br-n2"))
    drops = "iptables" not in without and random.random() < 0.3
    return Setup(tuple(nets), way, drops=drops)


class Generator:
    """Operations for one sequence. without: what is left out, kinds of operations among it; often:
    the kinds that are chosen more often than others."""

    def __init__(
        self, random: Random, way: str, without: frozenset[str], often: tuple[str, ...] = ()
    ) -> None:
        self._random = random
        self._way = way
        self._without = without
        self._weights = {kind: weight for kind, weight in WEIGHTS.items() if kind not in without}
        for kind in often:
            self._weights[kind] *= 6
        if way != "in process":
            for kind in ("Kill", "Refuse", "Together"):
                self._weights.pop(kind, None)

    def next(self, model: Model) -> Operation:
        """One that can be done now."""
        while True:
            (kind,) = self._random.choices(
                list(self._weights), weights=list(self._weights.values())
            )
            make: Callable[[Model], Operation | None] = getattr(self, f"_{kind.lower()}")
            found = make(model)
            if found is not None:
                return found

    def _add(self, model: Model) -> Add | None:
        random = self._random
        slots = [slot for slot, generation in model.slots.items() if generation is not None]
        if not slots:
            return None
        slot = random.choice(slots)
        net = random.choice(list(model.nets))
        there = [one for one in model.living() if one.slot == slot]
        if there and random.random() < 0.6:
            return None
        interface = "eth0"
        container = CONTAINERS[list(model.slots).index(slot)]
        if there:
            container = there[0].container
            if "two interfaces" not in self._without and random.random() < 0.8:
                interface = "eth1"
            if self._way == "mixed" and any(one.net.name == net for one in there):
                return None  # the reference's clash: its names are of network and container
        elif random.random() < 0.2 and "other ids" not in self._without:
            container = random.choice(CONTAINERS)
        if "taken" in self._without and any(one.interface == interface for one in there):
            return None
        if "second" in self._without and (net, container, interface) in model.attachments:
            return None
        ports: tuple[int, ...] = ()
        if model.nets[net].portmap and random.random() < 0.6:
            ports = tuple(port for port in PORTS if random.random() < 0.6)
            taken = {port for one in model.attachments.values() for port in one.ports}
            if random.random() < 0.7 or "taken ports" in self._without:
                ports = tuple(port for port in ports if port not in taken)
        by = REFERENCE if self._way == "mixed" and random.random() < 0.5 else ""
        made = Add(net, container, slot, interface, ports, by)
        return made if made.is_tried(model) else None

    def _known(self, model: Model) -> Attachment | None:
        known = list(model.attachments.values())
        return self._random.choice(known) if known else None

    def _del(self, model: Model) -> Del | None:
        random = self._random
        one = self._known(model)
        if one is None or random.random() < 0.1:
            if "strangers" in self._without or not model.slots:
                return None
            slot, net = random.choice(list(model.slots)), random.choice(list(model.nets))
            return Del(net, random.choice(CONTAINERS), slot)
        by = REFERENCE if self._is_for_reference(one, model) and random.random() < 0.5 else ""
        return Del(one.net.name, one.container, one.slot, one.interface, one.ports, by)

    def _is_for_reference(self, one: Attachment, model: Model) -> bool:
        """Whether the reference may delete it: it lives, and is configured as it was."""
        return self._way == "mixed" and one.is_sound() and one.net == model.nets[one.net.name]

    def _check(self, model: Model) -> Check | None:
        one = self._known(model)
        if one is None:
            return None
        return Check(one.net.name, one.container, one.slot, one.interface, one.ports)

    def _gc(self, model: Model) -> GC:
        keep = "empty" if self._random.random() < 0.2 else "right"
        return GC(self._random.choice(list(model.nets)), keep)

    def _repair(self, model: Model) -> Repair | None:
        return Repair() if model.attachments else None

    def _reclaim(self, model: Model) -> Reclaim | None:
        return Reclaim() if model.attachments else None

    def _edit(self, model: Model) -> Edit | None:
        random = self._random
        net = model.nets[random.choice(list(model.nets))]
        backends = ["", NFTABLES] if "iptables" in self._without else ["", NFTABLES, IPTABLES]
        if self._way == "mixed":
            backends = ["", IPTABLES]
        setting = random.choice(
            ["masquerade", "portmap", "firewall", "bandwidth", "tuning", "bridge", "prefix"]
        )
        if setting in ("tuning", "bridge") and self._way == "mixed":
            return None  # the reference notes no sysctl, and has one subnet on two bridges
        if setting in ("bandwidth", "tuning"):
            return Edit(net.name, setting, not getattr(net, setting))
        if setting == "bridge":
            return Edit(net.name, setting, random.choice([f"br-{net.name}", f"br-{net.name}x"]))
        if setting == "prefix":
            return Edit(net.name, setting, random.choice([28, 29]))
        return Edit(net.name, setting, random.choice(backends))

    def _lose(self, model: Model) -> Lose | None:
        kinds = ["nftables", "nftables", "cache", "leases", "run"]
        if any(IPTABLES in one.backends for one in model.living()):
            kinds.append("iptables")
        kinds = [kind for kind in kinds if f"Lose {kind}" not in self._without]
        possible = [Lose(kind) for kind in kinds if Lose(kind).is_tried(model)]
        return self._random.choice(possible) if possible and model.living() else None

    def _reboot(self, model: Model) -> Reboot | None:
        return Reboot() if model.attachments else None

    def _break(self, model: Model) -> Break | None:
        if model.broken:
            return None
        net = model.nets[self._random.choice(list(model.nets))]
        how = self._random.choice(["missing", "before", "after"])
        return Break(self._random.choice(net.plugins), how)

    def _fix(self, model: Model) -> Fix | None:
        return Fix() if model.broken else None

    def _vanish(self, model: Model) -> Vanish | None:
        there = [slot for slot, generation in model.slots.items() if generation is not None]
        leaving = "a file" if self._random.random() < 0.2 else ""
        if "a file" in self._without:
            leaving = ""
        return Vanish(self._random.choice(there), leaving) if there else None

    def _appear(self, model: Model) -> Appear | None:
        missing = [slot for slot, generation in model.slots.items() if generation is None]
        if "reuse" in self._without:
            left = {one.slot for one in model.remains()}
            missing = [slot for slot in missing if slot not in left]
        return Appear(self._random.choice(missing)) if missing else None

    def _kill(self, model: Model) -> Kill | None:
        made = self._either(model)
        return Kill(made, self._random.randint(1, 40)) if made is not None else None

    def _refuse(self, model: Model) -> Refuse | None:
        made = self._either(model)
        return Refuse(made, self._random.randint(1, 40)) if made is not None else None

    def _together(self, model: Model) -> Together | None:
        one, two = self._either(model), self._either(model)
        if one is None or two is None or one.container == two.container or one.slot == two.slot:
            return None
        return Together(one, two)

    def _either(self, model: Model) -> Add | Del | None:
        return self._add(model) if self._random.random() < 0.6 else self._del(model)


def ending(model: Model) -> list[Operation]:
    """What ends a sequence: everything is detached, and nothing may be left."""
    operations: list[Operation] = [Fix()] if model.broken else []
    operations += (
        Del(one.net.name, one.container, one.slot, one.interface, one.ports)
        for one in model.attachments.values()
    )
    operations += (GC(name, "empty") for name in model.nets)
    return operations


__all__ = ["ALIVE", "Generator", "ending", "setup"]
