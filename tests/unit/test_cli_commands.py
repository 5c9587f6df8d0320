"""The command: init, plugins, completion."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from harness.agent import PYCNI
from pycni.cli.main import main
from pycni.runtime import Network

# --- other commands ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["bridge"],
        ["bridge", "--subnet", "10.7.0.0/16", "--subnet", "fd00:7::/64"],
        ["ptp", "--subnet", "10.7.0.0/16"],
        ["macvlan", "--master", "eth1"],
        ["ipvlan", "--master", "eth1", "--subnet", "10.7.0.0/16"],
        ["vlan", "--master", "eth1", "--vlan", "7"],
        ["host-device", "--device", "eth1"],
        ["tap"],
        ["dummy"],
        ["loopback"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_init_writes_what_lint_finds_sound(tmp_path: Path, words: list[str]) -> None:
    conf_dir = tmp_path / "new" / "net.d"
    done = CliRunner().invoke(main, ["init", *words, "--conf-dir", str(conf_dir)])
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    path = conf_dir / f"10-{words[0]}.conflist"
    assert f"wrote {path}" in done.stderr
    assert CliRunner().invoke(main, ["lint", str(path)]).exit_code == 0
    Network.load(words[0], conf_dir=conf_dir).validate()
    again = CliRunner().invoke(main, ["init", *words, "--conf-dir", str(conf_dir)])
    assert again.exit_code == 1
    assert "--force" in again.stderr
    assert (
        CliRunner().invoke(main, ["init", *words, "--conf-dir", str(conf_dir), "--force"]).exit_code
        == 0
    )


def test_init_takes_subnets_that_no_one_uses(tmp_path: Path) -> None:
    subnets = []
    for name in ("a", "b"):
        command = ["init", "bridge", "--name", name, "--conf-dir", str(tmp_path)]
        assert CliRunner().invoke(main, command).exit_code == 0
        document = json.loads((tmp_path / f"10-{name}.conflist").read_text())
        subnets.append(document["plugins"][0]["ipam"]["ranges"][0][0]["subnet"])
    assert subnets[0] != subnets[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["brigde"], "'brigde' is not one of"),
        (["vlan", "--master", "eth1"], "--vlan is needed"),
        (["host-device"], "--device is needed"),
        (["bridge", "--name", "a b"], "invalid characters found in network name"),
        (["bridge", "--subnet", "10.7.0.0"], "--subnet 10.7.0.0"),
        (["bridge", "--subnet", "10.7.1.2/16"], "expected the network itself: 10.7.0.0/16"),
        (["bridge", "--subnet", "10.7.0.0/16", "--subnet", "10.7.9.0/24"], "overlaps with another"),
        (["bridge", "--vlan", "7"], "--vlan is of no use to a network of type bridge"),
        (["bridge", "--master", "eth1"], "--master is of no use to a network of type bridge"),
        (["dummy", "--device", "eth1"], "--device is of no use to a network of type dummy"),
        (["loopback", "--subnet", "10.7.0.0/16"], "--subnet is of no use to a network of type"),
    ],
)
def test_init_refuses(tmp_path: Path, words: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["init", *words, "--conf-dir", str(tmp_path)])
    assert done.exit_code == 1
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def init(folder: Path, *words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["init", *words, "--conf-dir", str(folder)])
    assert done.exit_code == code, done.stderr
    return done


def written(folder: Path, file: str) -> dict[str, Any]:
    plugins: list[dict[str, Any]] = json.loads((folder / file).read_text())["plugins"]
    return plugins[0]


def test_init_takes_no_subnet_that_others_take_by_default(tmp_path: Path) -> None:
    init(tmp_path, "bridge", "--force")
    subnet = written(tmp_path, "10-bridge.conflist")["ipam"]["ranges"][0][0]["subnet"]
    number = int(subnet.split(".")[1])
    assert subnet == f"10.{number}.0.0/16"
    # Below podman's 10.88 and kubeadm's 10.96 and 10.244, above k3s' and Weave's 10.32 to 10.47.
    assert 48 <= number < 88


def test_init_refuses_a_subnet_of_another_network(tmp_path: Path) -> None:
    init(tmp_path, "bridge", "--subnet", "10.7.0.0/16")
    words = init(tmp_path, "ptp", "--subnet", "10.7.3.0/24", code=1).stderr
    path = tmp_path / "10-bridge.conflist"
    assert f"10.7.3.0/24 overlaps with 10.7.0.0/16 of the network bridge in {path}" in words
    assert "--force" in words
    init(tmp_path, "ptp", "--subnet", "10.7.3.0/24", "--force")
    # Its own subnet is no one else's.
    init(tmp_path, "bridge", "--subnet", "10.7.0.0/17", "--force")
    assert len(list(tmp_path.iterdir())) == 2


def test_init_gives_each_network_a_bridge_of_its_own(tmp_path: Path) -> None:
    names = ("production-a", "production-b", "bridge", "short")
    (tmp_path / "05-other.conf").write_text('{"name": "other", "type": "bridge"}')  # cni0
    for name in names:
        init(tmp_path, "bridge", "--name", name)
    files = sorted(tmp_path.glob("*.conflist"))
    bridges = [written(tmp_path, file.name)["bridge"] for file in files]
    assert len({*bridges, "cni0"}) == len(names) + 1
    assert all(len(bridge) <= 15 and bridge.startswith("cni-") for bridge in bridges)
    assert "cni-short" in bridges


def test_init_comes_behind_what_is_there(tmp_path: Path) -> None:
    """Runtimes take the first file."""
    init(tmp_path, "bridge", "--name", "pods")
    done = init(tmp_path, "bridge", "--name", "blue")
    assert "warning" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "10-pods.conflist", "11-blue.conflist"
    ]  # fmt: skip
    init(tmp_path, "bridge", "--name", "blue", "--force")
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "10-pods.conflist").rename(tmp_path / "pods.conflist")
    (tmp_path / "11-blue.conflist").unlink()
    done = init(tmp_path, "bridge", "--name", "blue")
    assert "99-blue.conflist comes before pods.conflist: runtimes that take" in done.stderr


def test_init_to_stdout(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["init", "tap", "--stdout", "--conf-dir", str(tmp_path)])
    assert json.loads(done.stdout)["plugins"] == [{"type": "tap"}]
    assert list(tmp_path.iterdir()) == []


def test_plugins_of_our_own() -> None:
    done = CliRunner().invoke(main, ["plugins", "-o", "json"], env={"CNI_PATH": ""})
    rows = {row["plugin"]: row for row in json.loads(done.stdout)}
    assert rows["portmap"]["capabilities"] == ["portMappings"]
    assert rows["bridge"]["versions"][-1] == "1.1.0"
    done = CliRunner().invoke(main, ["plugins"], env={"CNI_PATH": ""})
    assert "portmap      0.1.0 to 1.1.0" in done.stdout


def test_plugins_on_a_path(tmp_path: Path, plugin_dir: Path) -> None:
    other = tmp_path / "other"
    other.write_text(
        '#!/bin/sh\necho \'{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}\'\n'
    )
    other.chmod(0o755)
    (tmp_path / "broken").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "broken").chmod(0o755)
    (tmp_path / "README").touch()
    command = ["plugins", "-o", "json", "--plugin-dir", str(tmp_path)]
    done = CliRunner().invoke(main, [*command, "--plugin-dir", str(plugin_dir)])
    rows = {row["plugin"]: row for row in json.loads(done.stdout)}
    assert rows["other"]["versions"] == ["0.4.0", "1.0.0"]
    assert "exit status 3" in rows["broken"]["error"]
    assert "README" not in rows
    assert rows["bridge"]["where"] == f"pycni, {plugin_dir}/bridge"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert "_PYCNI_COMPLETE" in done.stdout


def test_completion_in_bash() -> None:
    script = (
        'eval "$(pycni completion bash)"; COMP_WORDS=(pycni ad); COMP_CWORD=1; '
        '_pycni_completion pycni; echo "${COMPREPLY[@]}"'
    )
    environ = {**os.environ, "PATH": f"{PYCNI.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout == "add\n", done.stderr
