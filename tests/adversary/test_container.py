"""A container's administrator against every plugin, and against a network of several."""

from __future__ import annotations

from pathlib import Path

import pytest

from adversary import trials
from harness import Host
from harness.fault_cases import CASES
from harness.plugin import call_plugin, run_plugin
from harness.worlds import Case

# Executables and the same plugins in process, each with a seed of its own.
WAYS: tuple[tuple[str, trials.Call], ...] = (("1", run_plugin), ("2", call_plugin))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("attempt", [trials.container, trials.two_callers])
def test_held(
    attempt: trials.Attempt, case: Case, host: Host, plugin_dir: Path, tmp_path: Path
) -> None:
    for seed, call in WAYS:
        found = attempt(case, plugin_dir, tmp_path, seed, call)
        assert not found.wrong, str(found)


@pytest.mark.timeout(120)
def test_a_network_held(host: Host, plugin_dir: Path, tmp_path: Path) -> None:
    for seed, call in WAYS:
        found = trials.network(CASES[0], plugin_dir, tmp_path, seed, call)
        assert not found.wrong, str(found)
