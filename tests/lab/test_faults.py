"""vlan, ipvlan, dummy and vrf, disturbed: see tests/kernel/test_faults.py.

Here at a few changes of ADD, since Python is slow in the emulator; PYCNI_FAULTS=full: at each of
every operation.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Host
from harness.fault_cases import LAB_CASES
from harness.injection import FULL, OPERATIONS, trials
from harness.worlds import Case


@pytest.mark.timeout(7200 if FULL else 300)
@pytest.mark.parametrize("operation", OPERATIONS if FULL else OPERATIONS[:1])
@pytest.mark.parametrize("case", LAB_CASES, ids=lambda case: case.name)
def test_one_disturbance(
    case: Case, operation: str, host: Host, plugin_dir: Path, tmp_path: Path
) -> None:
    few = {} if FULL else {"first": 4, "every": 12}
    found = list(trials(case, operation, plugin_dir, tmp_path, **few))
    assert found
    wrong = [str(trial) for trial in found if trial.wrong]
    assert not wrong, f"{len(wrong)} of {len(found)}:\n" + "\n".join(wrong)
