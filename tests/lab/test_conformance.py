"""The conformance kit on plugins whose links the machine's own kernel may not have.

Python is slow in the lab, so what depends on the link is tried, and some of the rest. With
PYCNI_CONFORMANCE=full all of it is, which takes half an hour.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.conformance import outcomes, report

FULL = os.environ.get("PYCNI_CONFORMANCE") == "full"

TRIED = ("add.succeeds", "result.interface-exists", "del.undoes", "check.after-add")
BESIDES = {
    "dummy": ("add.interface-exists", "add.prev-result", "check.interface-missing"),
    "ipvlan": ("add.second-interface", "check.later-address", "delegation.add-error"),
    "vlan": ("add.prev-result", "check.address-missing", "del.interface-missing"),
    "vrf": ("add.prev-result", "del.interface-missing", "del.prev-result-empty"),
}


@pytest.mark.timeout(1800 if FULL else 600)
@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("name", BESIDES)
def test_ours(name: str, plugin_dir: Path) -> None:
    tried = () if FULL else (*TRIED, *BESIDES[name])
    code, document = report(plugin_dir / name, *(f"--only={one}" for one in tried))
    assert outcomes(document) == {}
    assert code == 0
    assert set(outcomes(document, "passed")) >= {*TRIED, *BESIDES[name]}
