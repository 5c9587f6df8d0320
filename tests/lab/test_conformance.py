"""The conformance kit on plugins whose links the machine's own kernel may not have.

Python is slow in the lab, so only what depends on the link is tried.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.conformance import outcomes, report

TRIED = ("add.succeeds", "result.interface-exists", "del.undoes", "check.after-add")
FAILING: dict[str, set[str]] = {
    "dummy": set(),
    "ipvlan": set(),
    "vlan": set(),
    "vrf": set(),
}


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("name", FAILING)
def test_ours(name: str, plugin_dir: Path) -> None:
    options = [option for one in TRIED for option in ("--only", one)]
    _, document = report(plugin_dir / name, *options)
    failed = outcomes(document)
    assert set(failed) == FAILING[name], failed
    assert set(outcomes(document, "passed")) >= set(TRIED) - FAILING[name]
