"""Every plugin and operation, disturbed at every change it makes: by an error, and by a kill.

Here by one error for each change, in turn; with PYCNI_FAULTS=full, as in `make soak`, by all.
tests/harness/injection.py says what must hold.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Host, firewalld
from harness.fault_cases import CASES, DHCP, FIREWALLD
from harness.injection import FULL, OPERATIONS, trials
from harness.worlds import Case

pytestmark = pytest.mark.slow


@pytest.mark.timeout(7200 if FULL else 120)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_disturbance(
    case: Case, operation: str, host: Host, plugin_dir: Path, tmp_path: Path
) -> None:
    found = list(trials(case, operation, plugin_dir, tmp_path))
    assert found
    wrong = [str(trial) for trial in found if trial.wrong]
    assert not wrong, f"{len(wrong)} of {len(found)}:\n" + "\n".join(wrong)


@pytest.mark.timeout(7200 if FULL else 120)
@pytest.mark.parametrize("operation", ["ADD", "DEL"])
@pytest.mark.parametrize(
    ("case", "sort"), [(DHCP, "daemon"), (FIREWALLD, "D-Bus")], ids=["dhcp", "firewalld"]
)
def test_one_disturbance_with_a_server(
    case: Case, sort: str, operation: str, host: Host, plugin_dir: Path, tmp_path: Path
) -> None:
    """What goes to another process is refused, and the plugin killed at it, like all the rest."""
    if case is FIREWALLD and not firewalld.installed():
        pytest.skip("no firewalld")
    found = list(trials(case, operation, plugin_dir, tmp_path))
    assert any(trial.change.startswith(sort) for trial in found)
    wrong = [str(trial) for trial in found if trial.wrong]
    assert not wrong, f"{len(wrong)} of {len(found)}:\n" + "\n".join(wrong)
