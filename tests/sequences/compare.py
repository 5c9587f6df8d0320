"""Compare the world with the model: a `Difference` for each thing that is not as it must be.

Nothing names what is not attached, and what is attached has what it needs. `kind` of a difference
is what a run can be asked to pass over (see the package's documentation).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from sequences.lab import SYSCTL, first_value
from sequences.model import ALIVE, ORPHAN, REFERENCE, Attachment, Model, chains_of
from sequences.world import Mark, World

_LASTING = {"lo", "out", "far"}
# By what a mark's place says, the setting that has it.
_NEEDS = {"masquerade": "masquerade", "firewall": "firewall", "FORWARD": "firewall"}


@dataclass(frozen=True)
class Difference:
    """One. kind: what is wrong, in a word or two; text: what exactly."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"[{self.kind}] {self.text}"


def compare(model: Model, world: World) -> list[Difference]:
    """All that is wrong with the world."""
    found: list[Difference] = []
    for kind, check in _CHECKS.items():
        found += (Difference(kind, text) for text in check(model, world))
    return found


# --- leases, and what names an address -----------------------------------------------------------


def _leases_of_no_one(model: Model, world: World) -> Iterator[str]:
    for (network, address), (container, interface) in world.leases.items():
        one = model.attachments.get((network, container, interface))
        if one is None:
            yield f"{address} of {network} is leased to {container} {interface}, not attached"
        elif one.state == ALIVE and one.address != address:
            yield f"{address} is leased to {one.name}, which has {one.address}"


def _leases_missing(model: Model, world: World) -> Iterator[str]:
    for one in model.living():
        if "lease" not in one.lost:
            holder = world.leases.get((one.net.name, one.address))
            if holder != (one.container, one.interface):
                yield f"the lease of {one.address} is {holder}, not {one.name}'s"


def _marks(model: Model, world: World) -> Iterator[str]:
    by_tag = {one.tag: one for one in model.attachments.values()}
    for mark in world.marks:
        if mark.chain:
            owners = [one for one in model.attachments.values()
                      if mark.chain in chains_of(one.net.name, one.container)]  # fmt: skip
            if not owners:
                yield f"of no one: {mark.place} {mark.text}"
        elif mark.tag and mark.tag not in by_tag:
            yield f"of no one: {mark.text}"
        else:
            yield from _named(model, world, mark, by_tag.get(mark.tag))


def _named(model: Model, world: World, mark: Mark, owner: Attachment | None) -> Iterator[str]:
    for address in mark.addresses:
        holders = [one for one in model.attachments.values() if _may_have(one, address, world)]
        if owner is not None:
            holders = [one for one in holders if one is owner]
        if mark.owner is not None:
            holders = [one for one in holders if (one.net.name, one.container) == mark.owner]
        if not holders:
            whose = f"{owner.state} {owner.name}" if owner is not None else "no one"
            yield f"{address} is not (any more) {whose}'s: {mark.text}"
        elif not any(_may_own(one, mark) for one in holders):
            yield f"{holders[0].name} has no use for it: {mark.text}"


def _may_have(one: Attachment, address: str, world: World) -> bool:
    """Whether an address may be named as this one's."""
    if one.state == ALIVE:
        return one.address == address
    if "lease" in one.lost:
        return one.address in ("", address)
    holder = world.leases.get((one.net.name, address))
    return holder == (one.container, one.interface)


def _may_own(one: Attachment, mark: Mark) -> bool:
    if one.state != ALIVE:
        return True
    for word, needed in _NEEDS.items():
        if word in mark.place:
            return one.net.has(needed)
    return not mark.port or mark.port in one.ports


# --- the host's links ----------------------------------------------------------------------------


def _links(model: Model, world: World) -> Iterator[str]:
    names = {link.name: link for link in world.links.values()}
    expected = _LASTING | model.bridges
    tags = {one.tag: one for one in model.attachments.values()}
    living = model.living()
    expected |= {one.outer for one in living}
    for link in world.links.values():
        if link.name in expected:
            continue
        owner = tags.get(link.alias[:33])
        kept = owner is not None and (
            owner.state != ALIVE or (link.kind == "ifb" and owner.net.bandwidth)
        )
        if (
            link.kind == "ifb"
            and not link.alias
            and any(one.by == REFERENCE and one.net.bandwidth for one in living)
        ):
            continue
        # The reference's, or one that was not marked yet, may be a remaining one's.
        if not kept and (link.alias or not model.remains()):
            yield f"{link.kind} {link.name} {link.alias} belongs to no one"
    for one in living:
        outer, bridge = names.get(one.outer), names.get(one.net.bridge)
        if outer is None:
            yield f"the host's end {one.outer} of {one.name} is missing"
        elif bridge is None or outer.master != bridge.index:
            yield f"{one.outer} of {one.name} is not plugged into {one.net.bridge}"


def _qdiscs(model: Model, world: World) -> Iterator[str]:
    by_link: dict[str, set[str]] = {}
    for qdisc in world.qdiscs:
        if qdisc.index in world.links:
            by_link.setdefault(world.links[qdisc.index].name, set()).add(qdisc.kind)
    for one in model.living():
        found = by_link.get(one.outer, set()) & {"tbf", "ingress", "htb", "clsact"}
        wanted = {"tbf", "ingress"} if one.net.bandwidth else set()
        if found != wanted:
            yield f"{one.outer} of {one.name} has {sorted(found)}, expected {sorted(wanted)}"


def _routes(model: Model, world: World) -> Iterator[str]:
    for route in world.routes:
        if not route.by_kernel:
            name = world.links[route.index].name if route.index in world.links else "?"
            yield f"route {route.destination} by {name} {route.gateway}"


def _neighbours(model: Model, world: World) -> Iterator[str]:
    if model.theirs:
        return
    living = {one.address: one for one in model.living() if "address" not in one.lost}
    for neighbour in world.neighbours:
        one = living.get(neighbour.address)
        link = world.links.get(neighbour.index)
        if one is None or link is None or link.name != one.net.bridge:
            continue
        if neighbour.mac != one.mac:
            yield f"{one.address} is {neighbour.mac}, and {one.name} has {one.mac}"


# --- connection tracking -------------------------------------------------------------------------


def _tracked_in(model: Model, world: World) -> Iterator[str]:
    """Entries that lead what comes from outside to a free address."""
    for entry in world.tracked:
        address = entry.reply[0]
        if address != entry.original[1] and _is_free(model, world, address):
            yield f"leads to {address}, which is free: {entry.text}"


def _tracked_out(model: Model, world: World) -> Iterator[str]:
    """Entries that lead answers to a free address, by a translation or past the firewall."""
    for entry in world.tracked:
        address = entry.original[0]
        earlier = model.freed.get(address)
        is_translated = address != entry.reply[1]
        leads = earlier and (earlier.firewall or (is_translated and earlier.masquerade))
        if leads and _is_free(model, world, address):
            yield f"leads answers to {address}, which is free: {entry.text}"


def _is_free(model: Model, world: World, address: str) -> bool:
    if not address.startswith(f"{model.base}.") or address.rpartition(".")[2] in ("0", "1"):
        return False
    if address in model.untracked:
        return False
    return not any(_may_have(one, address, world) for one in model.attachments.values())


# --- files, and what is inside -------------------------------------------------------------------


def _cached(model: Model, world: World) -> Iterator[str]:
    expected = {"-".join(key): one for key, one in model.attachments.items()}
    for name in world.cached:
        if name not in expected:
            yield f"{name} is noted as attached"
    for name, one in expected.items():
        if one.state == ALIVE and "cache" not in one.lost and name not in world.cached:
            yield f"{name} is not noted as attached"


def _files(model: Model, world: World) -> Iterator[str]:
    expected = {
        f"{name}_{one.interface}.json"
        for one in model.attachments.values()
        for name in (one.container, one.tag)  # the second where another network's has the first
        if one.state != ALIVE or one.net.tuning
    }
    for path in world.files:
        folder, name = os.path.split(path)
        if folder.endswith("tuning") and name not in expected:
            yield f"{path} is of nothing that is attached"


def _inside(model: Model, world: World) -> Iterator[str]:
    for slot, sandbox in world.sandboxes.items():
        there = [one for one in model.attachments.values()
                 if one.slot == slot and one.generation == model.slots[slot]]  # fmt: skip
        known = {one.interface: one for one in there}
        halves = {one.interface for one in model.remains() if slot in one.also}
        for name in sandbox.interfaces:
            if name not in known and name not in halves:
                yield f"{slot} has {name}, which no one attached"
        for one in there:
            if one.state != ALIVE:
                continue
            link = sandbox.interfaces.get(one.interface)
            if link is None:
                yield f"{one.interface} of {one.name} is missing in {slot}"
            elif not link.is_up:
                yield f"{one.interface} of {one.name} is down"
            elif sandbox.addresses[one.interface] != [one.address]:
                found = sandbox.addresses[one.interface]
                yield f"{one.interface} of {one.name} has {found}, not {one.address}"
            elif one.interface not in sandbox.defaults:
                yield f"{one.name} has no default route"


def _settings(model: Model, world: World) -> Iterator[str]:
    for slot, sandbox in world.sandboxes.items():
        wanted = model.value(slot)
        if wanted is not None and sandbox.value != (wanted or first_value(slot)):
            yield f"{SYSCTL} of {slot} is {sandbox.value}, not {wanted or first_value(slot)}"


def _addresses(model: Model, world: World) -> Iterator[str]:
    seen: dict[tuple[str, str], Attachment] = {}
    for one in model.living():
        other = seen.setdefault((one.net.name, one.address), one)
        if other is not one and "address" not in one.lost:
            yield f"{one.address} is {other.name}'s and {one.name}'s"
    for address in world.addresses:
        link = world.links.get(address.index)
        gateway = address.address.startswith(f"{model.base}.")
        if link is not None and gateway and link.name not in model.bridges:
            yield f"{address.address} is on {link.name}"


_CHECKS = {
    "lease": _leases_of_no_one,
    "no lease": _leases_missing,
    "mark": _marks,
    "link": _links,
    "queue": _qdiscs,
    "route": _routes,
    "neighbour": _neighbours,
    "tracked in": _tracked_in,
    "tracked out": _tracked_out,
    "cache": _cached,
    "file": _files,
    "inside": _inside,
    "setting": _settings,
    "address": _addresses,
}

__all__ = ["ORPHAN", "Difference", "compare"]
