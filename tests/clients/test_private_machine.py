"""What the other tests here rely on: leftovers of an engine do not go unseen, and do not stay."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from harness import Host
from harness.clients import ENGINE_FOLDERS, private_machine
from harness.namespaces import bound


def test_a_process_that_stays(host: Host, tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="processes are left"),
        private_machine(tmp_path, timeout=0.1),
    ):
        stray = subprocess.Popen(["setsid", "sleep", "1000"])
    assert stray.wait(10) == -signal.SIGKILL


def test_a_container_that_stays(host: Host, tmp_path: Path) -> None:
    """Its mounts are its own, and are in the test's folder."""
    with (
        pytest.raises(AssertionError, match="processes are left"),
        private_machine(tmp_path, timeout=0.1),
    ):
        stray = _contained(tmp_path)
    assert stray.wait(10) == -signal.SIGKILL


def test_a_mount_that_stays(host: Host, tmp_path: Path) -> None:
    mount = bound(tmp_path, str(tmp_path))
    with pytest.raises(AssertionError), private_machine(tmp_path):
        mount.__enter__()
    mount.__exit__(None, None, None)


def test_the_machine_s_folders_stay_as_they_were(host: Host, tmp_path: Path) -> None:
    before = {folder: _names(folder) for folder in ENGINE_FOLDERS}
    with private_machine(tmp_path):
        for folder in ENGINE_FOLDERS:
            assert os.listdir(folder) == []
            Path(folder, "left").touch()
    assert {folder: _names(folder) for folder in ENGINE_FOLDERS} == before


def _contained(folder: Path) -> subprocess.Popen[str]:
    script = 'mount --bind "$0" "$0" && echo mounted && exec sleep 1000'
    argv = ["unshare", "--mount", "sh", "-c", script, folder]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == "mounted\n"
    return process


def _names(folder: str) -> list[str] | None:
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else None
