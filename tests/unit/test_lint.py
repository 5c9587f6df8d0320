"""`pycni lint`: all forty seeded faults, each at its line and key, and none where none is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.faulty_configs import FAULTY, Faulty
from harness.sound_configs import SOUND
from pycni.cli.linter import lint_file
from pycni.cli.main import main


@pytest.mark.parametrize("file", SOUND)
def test_sound(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    path.write_text(json.dumps(SOUND[file], indent=2))
    assert lint_file(str(path)) == []


@pytest.mark.parametrize("case", FAULTY, ids=lambda case: case.file)
def test_faulty(tmp_path: Path, case: Faulty) -> None:
    path = tmp_path / case.file
    path.write_text(case.text)
    (fault,) = lint_file(str(path))
    assert (fault.line, fault.path) == (case.line, case.key)
    assert case.word in f"{fault}; {fault.expected}"
    assert str(fault).startswith(f"{path}:{case.line}: ")


def test_there_are_forty_of_each() -> None:
    assert len(SOUND) == len(FAULTY) == 40


SEVERAL = """{
  "cniVersion": "1.0.0",
  "name": "my net",
  "plugins": [
    {
      "type": "bridge",
      "isGatway": true,
      "mtu": "1500",
      "ipam": {"type": "host-local", "subnet": "10.1.0.0/33"}
    },
    {"type": "portmap", "capabilities": {"portMapping": true}},
    {"type": "unheard-of", "whatever": 1}
  ]
}
"""


def test_all_faults_at_once(tmp_path: Path) -> None:
    path = tmp_path / "10-net.conflist"
    path.write_text(SEVERAL)
    done = CliRunner().invoke(main, ["lint", str(path)])
    assert done.exit_code == 1
    assert [line.split(": ")[0:2] for line in done.stdout.splitlines()] == [
        [f"{path}:3", "name"],
        [f"{path}:7", "plugins[0].isGatway"],
        [f"{path}:8", "plugins[0].mtu"],
        [f"{path}:9", "plugins[0].ipam.subnet"],
        [f"{path}:11", "plugins[1].capabilities.portMapping"],
    ]
    assert 'did you mean "isGateway"?' in done.stdout
    assert done.stderr == "5 faults in 1 file\n"


def test_json_and_directories(tmp_path: Path) -> None:
    (tmp_path / "10-net.conflist").write_text(SEVERAL)
    (tmp_path / "20-lo.conf").write_text('{"name": "lo", "type": "loopback"}')
    (tmp_path / "notes.txt").write_text("{")
    done = CliRunner().invoke(main, ["lint", "-o", "json", str(tmp_path)])
    assert done.exit_code == 1
    faults = json.loads(done.stdout)
    assert len(faults) == 5
    assert faults[1] == {
        "file": str(tmp_path / "10-net.conflist"),
        "line": 7,
        "key": "plugins[0].isGatway",
        "problem": "unknown key",
        "expected": 'did you mean "isGateway"?',
    }
    done = CliRunner().invoke(main, ["lint", str(tmp_path / "20-lo.conf")])
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "0 faults in 1 file\n")
    assert CliRunner().invoke(main, ["lint", str(tmp_path / "none")]).exit_code == 1


def test_plugins_beside_the_list(tmp_path: Path) -> None:
    (tmp_path / "net.conflist").write_text('{"cniVersion": "1.0.0", "name": "net"}')
    (tmp_path / "net").mkdir()
    (tmp_path / "net/10-bridge.conf").write_text('{"type": "bridge",\n"isGatway": true}')
    (tmp_path / "net/20-tuning.conf").write_text('{\n"type": 7}')
    (tmp_path / "net/30-broken.conf").write_text("{")
    found = lint_file(str(tmp_path / "net.conflist"))
    assert [(Path(fault.file).name, fault.line, fault.path) for fault in found] == [
        ("10-bridge.conf", 2, "isGatway"),
        ("20-tuning.conf", 2, "type"),
        ("30-broken.conf", 1, ""),
    ]
