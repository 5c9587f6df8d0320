"""What must hold, whatever a container, a tenant or a second caller does.

1. Each operation ends: in success, or with an error object that is about what was found.
2. No link, address, route, rule, lease or file of another is touched: the host and the neighbour's
   namespace are as before, and the neighbour's CHECK finds nothing.
3. Nothing of the attacker's stays once it was deleted and is quiet.
4. An address is not free while somebody can still answer for it: no namespace of the attacker's has
   an interface that leads to the host's network any more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from harness.host import Snapshot, ip_json, run_in
from harness.namespaces import Namespace
from harness.plugin import PluginRun
from harness.worlds import World, difference
from pycni.spec.errors import INTERNAL

# Of the host's network, or of a part of it, wherever they are.
_LOWER = ("macvlan", "macvtap", "ipvlan", "ipvtap", "vlan")
_PATIENCE = 5.0  # seconds for the kernel to take links apart


def ended(what: str, run: PluginRun) -> Iterator[str]:
    """1."""
    if not run.code:
        return
    error = run.result
    if error["code"] == INTERNAL or "internal error" in error["msg"] or not error["msg"]:
        yield f"{what} did not foresee what it found: {error}"


def untouched(world: World, before: Snapshot, *, neighbour: Namespace | None) -> Iterator[str]:
    """2 and 3. before: `seen` of the time before the attack."""
    until = time.monotonic() + _PATIENCE
    while True:
        now = seen(world, neighbour)
        wrong = [
            f"{place} {section}: {difference(before[place].get(section), now[place].get(section))}"
            for place in before
            for section in {**before[place], **now[place]}
            if before[place].get(section) != now[place].get(section)
        ]
        if not wrong or time.monotonic() > until:
            yield from wrong
            return
        time.sleep(0.05)


def seen(world: World, neighbour: Namespace | None) -> Snapshot:
    """All that is not the attacker's own."""
    found = world.look()
    mine = world.tied  # links that are one with the attacker's namespace
    host = {section: _without(items, mine) for section, items in found["host"].items()}
    whole: Snapshot = {"host": host, "files": found["files"]}
    if neighbour is not None:
        whole["neighbour"] = {
            "links": [_lasting(link) for link in ip_json("link", netns=neighbour)],
            "addresses": run_in(neighbour, ["ip", "-o", "address"]).stdout.split("valid_lft")[0],
            "routes": ip_json("route", netns=neighbour),
        }
    return whole


def unanswered(spaces: Iterable[Namespace]) -> Iterator[str]:
    """4."""
    theirs = {space.name: _with_another_end(space) for space in spaces}
    between = _ends(link for links in theirs.values() for link in links)
    on_host = _ends(_with_another_end(None))
    for name, links in theirs.items():
        for link in links:
            kind = link.get("linkinfo", {}).get("info_kind", "")
            other_end = link["link_index"], link["ifindex"]
            if kind in _LOWER or (other_end in on_host and other_end not in between):
                yield f"{kind} {link['ifname']} in {name} still leads to the host's network"


def _ends(links: Iterable[dict[str, Any]]) -> set[tuple[int, int]]:
    return {(link["ifindex"], link["link_index"]) for link in links}


def _with_another_end(space: Namespace | None) -> list[dict[str, Any]]:
    """Links whose other end, or lower one, is in another namespace."""
    found = ip_json("-d", "link", netns=space)
    return [link for link in found if "link_netnsid" in link and link.get("link_index")]


def _without(items: Any, mine: set[str]) -> Any:
    if not isinstance(items, list):
        return items
    kept = [
        item
        for item in items
        if not (isinstance(item, dict) and {item.get("ifname"), item.get("dev")} & mine)
    ]
    return [_lasting(item) if isinstance(item, dict) else item for item in kept]


def _lasting(item: dict[str, Any]) -> dict[str, Any]:
    """Without what the kernel changes by itself when a peer comes and goes."""
    moving = ("operstate", "flags", "linkinfo", "link_index", "ifindex")
    return {key: value for key, value in item.items() if key not in moving}
