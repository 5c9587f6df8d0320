"""A plugin's executable when pycni is damaged: an error object, not a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pycni

ROOT = Path(pycni.__file__).parents[1]
FORMS = ["script", "launcher"] if (ROOT / "pycni/agent/launcher").is_file() else ["script"]
INSTALL = """\
import sys
from pathlib import Path
from pycni.cli.install import install
install(Path(sys.argv[1]), socket=None, native=sys.argv[2] == "launcher")
"""


@pytest.fixture(params=FORMS)
def installed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the package, and the executable of bridge that `pycni install` made from it."""
    copy = tmp_path / "a place" / "src"
    shutil.copytree(ROOT / "pycni", copy / "pycni", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-c", INSTALL, tmp_path / "bin", request.param],
        check=True,
        env={**os.environ, "PYTHONPATH": str(copy)},
    )
    return copy / "pycni", tmp_path / "bin/bridge"


def remove_package(package: Path) -> None:
    shutil.rmtree(package)


def remove_room(package: Path) -> None:
    shutil.rmtree(package / "sdk")


def remove_plugins(package: Path) -> None:
    shutil.rmtree(package / "plugins")


def damage_module(package: Path) -> None:
    (package / "plugins/bridge.py").write_text('raise RuntimeError("a \\"quoted\\" \\\\ word")\n')


def cut_module(package: Path) -> None:
    (package / "kernel/link.py").write_text("def parse(\n")


@pytest.mark.parametrize(
    "damage", [remove_package, remove_room, remove_plugins, damage_module, cut_module]
)
def test_damaged_package_is_an_error_object(
    installed: tuple[Path, Path], damage: Callable[[Path], None]
) -> None:
    package, executable = installed
    assert call(executable).returncode == 0
    damage(package)
    run = call(executable)
    assert run.returncode == 1
    error = json.loads(run.stdout)
    assert (error["cniVersion"], error["code"]) == ("1.1.0", 999)
    assert error["msg"].startswith("the plugin bridge cannot start: ")
    assert "pycni install" in error["details"]
    assert run.stderr == ""


def call(executable: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [executable],
        env={"CNI_COMMAND": "VERSION"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("stdin", "version"), [(b'{"cniVersion": "0.4.0"}', "0.4.0"), (b"", "1.1.0"), (None, "1.1.0")]
)
def test_version_is_answered_in_the_version_asked_with(
    installed: tuple[Path, Path], stdin: bytes | None, version: str
) -> None:
    """None: a caller by hand, who leaves stdin open and says nothing."""
    _, plugin = installed
    reader, writer = os.pipe()
    try:
        if stdin is not None:
            os.write(writer, stdin)
            os.close(writer)
        done = subprocess.run(
            [plugin], stdin=reader, env={"CNI_COMMAND": "VERSION"}, capture_output=True, check=True
        )
    finally:
        os.close(reader)
        if stdin is None:
            os.close(writer)
    assert json.loads(done.stdout)["cniVersion"] == version
