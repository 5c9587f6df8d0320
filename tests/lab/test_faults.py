"""vlan, ipvlan, dummy and vrf, disturbed at every third change; see tests/kernel/test_faults.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Host
from harness.fault_cases import LAB_CASES
from harness.injection import trials
from harness.worlds import Case


@pytest.mark.timeout(600)
@pytest.mark.parametrize("operation", ["ADD", "DEL"])
@pytest.mark.parametrize("case", LAB_CASES, ids=lambda case: case.name)
def test_one_disturbance(
    case: Case, operation: str, host: Host, plugin_dir: Path, tmp_path: Path
) -> None:
    found = list(trials(case, operation, plugin_dir, tmp_path, full=False, every=3))
    assert found
    wrong = [str(trial) for trial in found if trial.wrong]
    assert not wrong, f"{len(wrong)} of {len(found)}:\n" + "\n".join(wrong)
