"""The template of a plugin: real files, which are copied with other names. What a project does on
the kernel is in kernel/test_plugin_authors.py."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pycni import __version__
from pycni.agent import bundling
from pycni.sdk.new_plugin import KINDS, TEMPLATE, new_plugin


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_has_its_own_name_everywhere(tmp_path: Path, kind: str) -> None:
    written = new_plugin("red-line", tmp_path / "here", kind=kind)
    assert {str(path.relative_to(tmp_path / "here")) for path in written} == {
        "README.md", "pyproject.toml", "red-line.conf", "src/red_line/__init__.py",
        "src/red_line/py.typed", "tests/test_plugin.py",
    }  # fmt: skip
    texts = "".join(path.read_text() for path in written)
    assert "RedLine" in texts
    for other in KINDS.values():
        for word in (other, other.replace("-", "_"), other.title().replace("-", "")):
            assert word not in texts
    project = tomllib.loads((tmp_path / "here/pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [f"pycni[cli]>={__version__}"]


def test_both_kinds_are_built_alike() -> None:
    texts = []
    for kind, name in KINDS.items():
        text = (TEMPLATE / kind / "pyproject.toml").read_text()
        texts.append(text.replace(name, "").replace(name.replace("-", "_"), ""))
    assert texts[0] == texts[1]


def test_what_tools_leave_in_the_template_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pycni.sdk.new_plugin.TEMPLATE", tmp_path / "template")
    for file in ("__pycache__/a.pyc", "src/my_mtu/__pycache__/b.pyc", ".pytest_cache/c", "d"):
        path = tmp_path / "template/chained" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff" if file != "d" else b"")
    assert new_plugin("mine", tmp_path / "mine") == [tmp_path / "mine/d"]


@pytest.mark.parametrize("name", ["bridge", "../escape", "7up", "class", ""])
def test_names_that_no_new_plugin_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"not fit|already"):
        new_plugin(name, tmp_path / "project")
    assert not (tmp_path / "project").exists()


def test_a_directory_that_is_not_empty_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        new_plugin("mine", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_template_is_in_no_import_path() -> None:
    done = subprocess.run([sys.executable, "-c", "import my_mtu"], capture_output=True, check=False)
    assert b"No module named 'my_mtu'" in done.stderr
    bundled = bundling._sources()
    assert "sdk/plugin.py" in bundled
    assert not [file for file in bundled if "template" in file]
