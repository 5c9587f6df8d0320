"""What plugin authors are given: the tutorial, `pycni new-plugin`, and the executable of a plugin.

The tutorial's code blocks and commands are taken from the page and run.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.conformance import PYCNI, outcomes, report
from pycni.sdk import testing

ROOT = Path(__file__).parents[2]
PAGE = re.MULTILINE | re.DOTALL
TUTORIAL = (ROOT / "docs/plugin-tutorial.md").read_text()


def environ(project: Path) -> dict[str, str]:
    """As after `pip install -e .`, without the environment that it would take."""
    return {
        **os.environ,
        "PATH": f"{PYCNI.parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{project / 'src'}:{ROOT / 'src'}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run(command: str, folder: Path, project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, shell=True, cwd=folder, env=environ(project), capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def succeed(command: str, folder: Path, project: Path) -> str:
    done = run(command, folder, project)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.usefixtures("host")
def test_the_tutorial_works_as_it_is_written(tmp_path: Path) -> None:
    project = tmp_path / "egress-allow"
    blocks = re.findall(r"^```(?:python|json)\n(.*?)^```$", TUTORIAL, PAGE)
    plugin, test, config, _own_step = blocks
    begin, _enter, tests, install, conformance = re.findall(
        r"^    \$ (.*)$", TUTORIAL, re.MULTILINE
    )
    code = [line for line in plugin.splitlines() if line.strip()]
    assert len(code) < 60

    succeed(begin, tmp_path, project)
    (project / "src/egress_allow/__init__.py").write_text(plugin)
    (project / "tests/test_plugin.py").write_text(test)
    (project / "egress-allow.conf").write_text(config)
    said = succeed(f"{sys.executable} -m {tests} -p no:cacheprovider", project, project)
    assert "3 passed" in said
    assert "installed egress-allow" in succeed(install, project, project)
    said = succeed(conformance, project, project)
    assert " 0 failed" in said
    _, document = report(
        project / "bin/egress-allow", "--config", str(project / "egress-allow.conf")
    )
    assert outcomes(document) == {}


@pytest.mark.usefixtures("host")
def test_a_plugin_may_declare_steps_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The executor finds what realises them in the author's package."""
    package = tmp_path / "egress_allow"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "no_ping.py").write_text(re.findall(r"^```python\n(.*?)^```$", TUTORIAL, PAGE)[2])
    monkeypatch.syspath_prepend(tmp_path)
    plugin = importlib.import_module("egress_allow.no_ping").plugin
    with testing.lab() as lab:
        attachment = lab.attach(plugin, {})
        attachment.after("192.0.2.2/24", gateway="192.0.2.1")
        inside = attachment.container
        lab.run("ping", "-c1", "-W2", "192.0.2.2")
        attachment.add()
        with pytest.raises(testing.PluginError):
            lab.run("ping", "-c1", "-W1", "192.0.2.2")
        attachment.check()
        lab.run("nft", "delete", "table", "inet", "no-ping", netns=inside)
        assert "No such file" in attachment.drift()
        attachment.delete()
        lab.run("ping", "-c1", "-W2", "192.0.2.2")
        lab.remove(inside)
        attachment.delete()


@pytest.mark.usefixtures("host")
def test_the_interface_project_of_new_plugin_works_as_it_is(
    tmp_path: Path, plugin_dir: Path
) -> None:
    project = tmp_path / "my-wire"
    succeed("pycni new-plugin my-wire --kind interface", tmp_path, project)
    said = succeed(f"{sys.executable} -m pytest -q -p no:cacheprovider", project, project)
    assert "2 passed" in said
    succeed("pycni install bin --plugin my_wire", project, project)
    config = ["--config", str(project / "my-wire.conf"), "--plugin-dir", str(plugin_dir)]
    code, document = report(project / "bin/my-wire", *config)
    assert (code, outcomes(document)) == (0, {})
    assert {"add.second-interface", "del.netns-missing", "delegation.add-error"} <= set(
        outcomes(document, "passed")
    )


@pytest.mark.usefixtures("host")
def test_the_project_of_new_plugin_works_as_it_is(tmp_path: Path) -> None:
    project = tmp_path / "my-mtu"
    succeed("pycni new-plugin my-mtu", tmp_path, project)
    said = succeed(f"{sys.executable} -m pytest -q -p no:cacheprovider", project, project)
    assert "2 passed" in said
    succeed("pycni install bin --plugin my_mtu", project, project)
    done = subprocess.run(
        [project / "bin/my-mtu"], env={"CNI_COMMAND": "VERSION"}, capture_output=True, check=True
    )
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]
    with testing.lab() as lab:
        attachment = lab.attach(project / "bin/my-mtu", {"mtu": 1400})
        attachment.after("192.0.2.2/24")
        attachment.add()
        (link,) = lab.show("link", "show", "dev", "eth0", netns=attachment.container)
        assert link["mtu"] == 1400
        attachment.check()
        attachment.delete()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("bridge", "has a plugin called bridge already"),
        ("../escape", "not fit for a plugin's name"),
        ("7up", "not fit for a plugin's name"),
        ("class", "not fit for a plugin's name"),
        ("fine taken", "taken is there already, and not empty"),
    ],
)
def test_new_plugin_refuses(tmp_path: Path, arguments: str, message: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    done = run(f"pycni new-plugin {arguments}", tmp_path, tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_plugin_that_is_not_there_cannot_be_installed(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/half.py").write_text("plugin = 1")
    for reference, message in (
        ("no_such_module", "cannot import no_such_module"),
        ("half", "half has no plugin object called plugin"),
        ("half:other", "half has no plugin object called other"),
    ):
        done = run(f"pycni install bin --plugin {reference}", tmp_path, tmp_path)
        assert done.returncode == 1
        assert message in done.stderr
    assert not (tmp_path / "bin").exists()


def test_an_executable_whose_plugin_is_gone_says_so(tmp_path: Path) -> None:
    succeed("pycni new-plugin my-mtu .", tmp_path, tmp_path)
    succeed("pycni install bin --plugin my_mtu", tmp_path, tmp_path)
    module = tmp_path / "src/my_mtu/__init__.py"
    module.write_text("import no_such_module\n")
    error = json.loads(run("bin/my-mtu", tmp_path, tmp_path).stdout)
    assert error["code"] == 999
    assert "No module named 'no_such_module'" in error["msg"]
    module.unlink()
    done = run("bin/my-mtu", tmp_path, tmp_path)
    assert done.returncode == 1
    assert "cannot start" in json.loads(done.stdout)["msg"]


@pytest.mark.usefixtures("host")
def test_the_lab_sees_what_is_left() -> None:
    with testing.lab() as lab:
        with pytest.raises(testing.PluginError, match="left0"), lab.nothing_left():
            lab.ip("link", "add", "left0", "type", "veth", "peer", "name", "left1")
        with lab.nothing_left():
            attachment = lab.attach(lab.plugins + "/ptp", {"ipam": {"type": "static"}})
            attachment.config = {
                "ipam": {"type": "static", "addresses": [{"address": "192.0.2.9/24"}]}
            }
            attachment.add()
            attachment.check()
            attachment.delete()
        assert attachment.refused("CHECK")["code"] == 102
        with pytest.raises(testing.PluginError, match="CHECK ended with 1"):
            attachment.check()
