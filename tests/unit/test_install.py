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
from harness.agent import PYCNI
from pycni.agent.executables import changeable

ROOT = Path(pycni.__file__).parents[1]
FORMS = ["script", "launcher"] if (ROOT / "pycni/agent/launcher").is_file() else ["script"]
INSTALL = """\
import sys
from pathlib import Path
from pycni.agent.executables import install
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
    (package / "sdk/planned.py").write_text("def parse(\n")


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


# --- who may write to what is installed --------------------------------------------------------


@pytest.mark.parametrize("umask", ["000", "077"])
def test_no_one_else_writes_to_what_is_installed(tmp_path: Path, umask: str) -> None:
    """Whatever the umask: `install` and `init` write what root will run and read."""
    script = f"""
        umask {umask}
        '{PYCNI}' install bin/deep || exit
        '{PYCNI}' init bridge --subnet 10.9.0.0/16 --conf-dir net/d || exit
        '{PYCNI}' new-plugin mine
    """
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True, capture_output=True)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o022 == 0, path
    assert (tmp_path / "bin/deep/bridge").stat().st_mode & 0o777 == 0o755
    if umask == "000":
        assert (tmp_path / "net/d/10-bridge.conflist").stat().st_mode & 0o777 == 0o644


def test_a_package_that_others_can_change(tmp_path: Path) -> None:
    """As in a home or a shared folder: who may write there is root soon."""
    safe = tmp_path / "package"
    (safe / "pycni").mkdir(parents=True)
    (safe / "pycni/file.py").touch()
    known = changeable([tmp_path])  # what is above the test's own folder is not its business

    def found() -> list[str]:
        return [text for text in changeable((safe / "pycni").rglob("*")) if text not in known]

    assert found() == []
    (safe / "pycni/file.py").chmod(0o666)
    assert found() == [f"anybody may write to {safe}/pycni/file.py"]
    (safe / "pycni/file.py").chmod(0o644)
    safe.chmod(0o777)
    assert found() == [f"anybody may write to {safe}"]
    safe.chmod(0o1777)
    assert found() == []
    safe.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(safe / "pycni", 65534, 0)
        assert found() == [f"{safe}/pycni belongs to user 65534"]
        os.chown(safe / "pycni", 0, 65534)
        (safe / "pycni").chmod(0o775)
        assert found() == [f"group 65534 may write to {safe}/pycni"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_install_warns_of_it(tmp_path: Path) -> None:
    copy = tmp_path / "src"
    shutil.copytree(ROOT / "pycni", copy / "pycni", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", "from pycni.cli.main import main; main()", "install"]
    environ = {**os.environ, "PYTHONPATH": str(copy)}

    def said() -> str:
        done = subprocess.run(
            [*command, tmp_path / "bin"], env=environ, capture_output=True, text=True, check=True
        )
        return done.stderr

    assert str(copy) not in said()
    os.chown(copy / "pycni/sdk", 65534, 65534)
    assert f"others can change what the plugins will run: {copy}/pycni/sdk belongs to" in said()
