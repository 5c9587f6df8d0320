"""The benchmark runs, and what it compares is comparable. Says nothing of seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.namespaces import inside

pytestmark = pytest.mark.slow

BENCH = Path(__file__).parents[2] / "bench"
WAYS = {"reference", "cold", "agent", "in process"}


def run(*argv: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, BENCH / "run.py", *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("host", "reference_dir")
def test_measures_everyone(tmp_path: Path) -> None:
    values = tmp_path / "values.json"
    text = run("--only", "plugins: bridge + ipMasq", "--rounds", "2", "--json", values)
    document = json.loads(values.read_text())
    (table,) = document["tables"]
    assert [row["operation"] for row in table["rows"]] == ["ADD", "CHECK", "DEL"]
    for row in table["rows"]:
        assert set(row["values"]) == WAYS
        assert all(len(found) == 2 and min(found) > 0 for found in row["values"].values())
        assert f"{row['work']} {row['operation']}, ms" in text
    assert 0 <= document["machine"]["stolen"] < 1
    assert document["machine"]["slowdown"] >= 1
    assert "Other guests of the host had" in text
    assert run("--from", values) == text
    del document["machine"]["stolen"], document["machine"]["slowdown"]  # as before it looked
    values.write_text(json.dumps(document))
    assert run("--from", values).splitlines()[:-1] == text.splitlines()[:-1]


@pytest.mark.usefixtures("host")
def test_rules_copied_for_pods_are_those_of_the_reference(
    reference_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    import contenders
    import measure
    import pods
    import scenarios

    with contenders.room("copied") as host:
        one = contenders.Processes("reference", host, reference_dir)
        with pods.present(3, scenarios.POD, [one]), inside(host):
            copied = pods.rules()
    with contenders.room("copied") as host, contenders.sandboxes(3, "pod-host-copied") as boxes:
        one = contenders.Processes("reference", host, reference_dir)
        with inside(host):
            for number, box in enumerate(boxes):
                measure.attach(one, scenarios.POD.configured(number, host.name), box)
            attached = pods.rules()
    assert copied == attached
    assert len(attached["nat"]) > 3 * 10
