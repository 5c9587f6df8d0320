"""Compare with the reference plugins, by what both print."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.attachment import Attachment
from harness.host import Snapshot, ip_json, snapshot
from harness.plugin import run_plugin

# Debian's release 1.1.1 of the plugins speaks the specification up to this version.
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0")
WITH_CHECK = VERSIONS[4:]

_RANDOM = re.compile(r"veth[0-9a-f]+")


def comparable(result: Any) -> Any:
    """A result without what is random (names of host ends, hardware addresses).

    An empty dns is left out of a 1.0.0 result: the reference did so later, too.
    """
    result = copy.deepcopy(result)
    for interface in result.get("interfaces", ()):
        if _RANDOM.fullmatch(interface["name"]):
            interface["name"] = "veth"
        if "mac" in interface:
            interface["mac"] = re.sub("[0-9a-f]", "x", interface["mac"])
    if result["cniVersion"] == "1.0.0" and not result.get("dns"):
        result.pop("dns", None)
    return result


def exchange(one: Attachment, reference_dir: Path, effect: Callable[[], object]) -> None:
    """ADD by ours and by the reference's plugin, with equal results and effect; DEL by the other.

    Where the version has it, CHECK by both in between. Afterwards nothing is left.
    """
    ours = replace(one, call=run_plugin)
    theirs = replace(ours, plugin=reference_dir / ours.plugin.name)
    results = []
    for adder, deleter in ((ours, theirs), (theirs, ours)):
        before, within = _host(), _links(one)
        result = adder.add()
        deleter.result = result
        results.append(comparable(result))
        effect()
        if one.config["cniVersion"] in WITH_CHECK:
            adder.check()
            deleter.check()
        deleter.delete()
        after = _host()
        changed = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
        assert not changed, changed
        assert _links(one) == within
        ours.result = theirs.result = None
    assert results[0] == results[1]


def _host() -> Snapshot:
    """What the host holds. This release of host-device leaves its alias behind."""
    found = snapshot()
    for link in found["links"]:
        link.pop("ifalias", None)
    return found


def _links(one: Attachment) -> list[str]:
    return [item["ifname"] for item in ip_json("link", netns=one.sandbox)]
