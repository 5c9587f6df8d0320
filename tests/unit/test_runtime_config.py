"""Reading networks from files: SPEC 1.1.0, "Network configuration format"; libcni's search."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from pycni.runtime import ConfigError, Network, NetworkNotFound
from pycni.runtime.config import parse_network, parse_plugin, read_network

NOOP = {"type": "noop"}


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def a_list(name: str = "lab", **keys: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": name, "plugins": [NOOP], **keys}


def types(network: Network) -> list[str]:
    return [plugin.type for plugin in network.config.plugins]


# --- a list ------------------------------------------------------------------------------------


def test_list_keeps_the_bytes_it_was_read_from() -> None:
    text = b'{ "name": "lab",\n "plugins": [ {"type": "noop"} ] }'
    config = parse_network(text)
    assert (config.name, config.version, config.source) == ("lab", "", text)
    assert not config.at_least("0.2.0")  # no version means 0.1.0


def test_all_faults_are_reported_at_once_with_their_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "10-lab.conflist",
        '{\n  "cniVersion": 1,\n  "name": "a b",\n  "disableCheck": "perhaps",\n  "plugins": [\n'
        '    {"type": "noop"},\n    {"name": "x"},\n    {"type": "../noop"},\n'
        '    {"type": "noop",\n     "capabilities": {"mac": "yes"}}\n  ]\n}\n',
    )
    with pytest.raises(ConfigError) as caught:
        read_network(str(path))
    assert caught.value.code == 7
    assert [(fault.line, fault.path) for fault in caught.value.faults] == [
        (2, "cniVersion"),
        (4, "disableCheck"),
        (3, "name"),
        (7, "plugins[1].type"),
        (8, "plugins[2].type"),
        (10, "plugins[3].capabilities.mac"),
    ]
    assert all(fault.file == str(path) for fault in caught.value.faults)
    assert str(caught.value).startswith("error parsing configuration list: ")
    assert f"{path}:7: plugins[1].type: missing" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "a list is not valid"),
        ('{"plugins": [{"type": "noop"}]}', "name: missing"),
        ('{"name": "lab"}', "plugins: missing"),
        ('{"name": "lab", "plugins": []}', "plugins: is empty"),
        ('{"name": "lab", "plugins": {}}', "plugins: an object is not valid"),
        ('{"name": "lab", "type": "noop"}', "plugins: missing"),
        ('{"name": "lab", "plugins": ["noop"]}', 'plugins[0]: "noop" is not valid'),
        ('{"name": "lab" "plugins": []}', "line 1"),
        ("", ""),
    ],
)
def test_what_is_no_list(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_network(text)
    assert problem in str(caught.value)
    assert caught.value.details


@pytest.mark.parametrize("value", [True, "true", "TRUE"])
def test_switches_are_booleans_or_their_words(value: Any) -> None:
    config = parse_network(json.dumps(a_list(disableCheck=value, disableGC=value)))
    assert config.disable_check
    assert config.disable_gc


@pytest.mark.parametrize(
    ("version", "offered", "chosen"),
    [
        ("1.0.0", None, "1.0.0"),
        ("0.3.1", ["0.4.0", "1.0.0"], "1.0.0"),
        ("1.1.0", ["0.4.0", "1.0.0"], "1.1.0"),
        (None, ["0.4.0", "1.1.0", "1.0.0"], "1.1.0"),
        ("0.4.0", ["8.0.0", "1.0.0"], "1.0.0"),  # too new: passed over
        ("9.0.0", ["1.0.0"], "1.0.0"),
        ("9.0.0", None, "9.0.0"),  # the only one: its plugins judge
        ("0.4.0", [], "0.4.0"),
    ],
)
def test_the_newest_version_that_is_known_is_chosen(
    version: str | None, offered: list[str] | None, chosen: str
) -> None:
    document = a_list()
    document.pop("cniVersion")
    if version is not None:
        document["cniVersion"] = version
    if offered is not None:
        document["cniVersions"] = offered
    assert parse_network(json.dumps(document)).version == chosen


@pytest.mark.parametrize("offered", [["x"], ["1.2.3.4"], ["8.0.0"], "1.0.0", [1]])
def test_versions_that_cannot_be_chosen_from(offered: Any) -> None:
    with pytest.raises(ConfigError, match="cniVersions"):
        parse_network(json.dumps(a_list(cniVersion="", cniVersions=offered)))


# --- plugins beside a list ---------------------------------------------------------------------


def test_plugins_of_the_directory_follow_the_inlined_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "lab.conflist", a_list(plugins=[{"type": "bridge"}]))
    write(tmp_path / "lab" / "20-b.conf", {"type": "tuning"})
    write(tmp_path / "lab" / "10-a.conf", {"type": "portmap"})
    write(tmp_path / "lab" / "30-c.json", {"type": "never"})
    config = read_network(str(path))
    assert [plugin.type for plugin in config.plugins] == ["bridge", "portmap", "tuning"]


def test_plugins_of_the_directory_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "lab.conflist", {"cniVersion": "1.1.0", "name": "lab"})
    with pytest.raises(ConfigError, match="plugins: missing"):
        read_network(str(path))
    write(tmp_path / "lab" / "10-a.conf", NOOP)
    assert [plugin.type for plugin in read_network(str(path)).plugins] == ["noop"]


@pytest.mark.parametrize("switch", [True, "true"])
def test_only_inlined_plugins(tmp_path: Path, switch: Any) -> None:
    path = write(tmp_path / "lab.conflist", a_list(loadOnlyInlinedPlugins=switch))
    write(tmp_path / "lab" / "10-a.conf", {"type": "tuning"})
    assert [plugin.type for plugin in read_network(str(path)).plugins] == ["noop"]
    write(path, {"name": "lab", "loadOnlyInlinedPlugins": switch})
    with pytest.raises(ConfigError, match="plugins: missing"):
        read_network(str(path))


def test_a_fault_beside_the_list_is_reported_where_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "lab.conflist", a_list())
    beside = write(tmp_path / "lab" / "10-a.conf", '{\n"name": "x"}')
    with pytest.raises(ConfigError) as caught:
        read_network(str(path))
    (fault,) = caught.value.faults
    assert (fault.file, fault.path) == (str(beside), "type")


# --- one plugin --------------------------------------------------------------------------------


def test_a_single_plugin_is_a_list_of_one() -> None:
    config = parse_plugin('{"type": "noop", "name": "lab", "cniVersion": "1.0.0", "mtu": 1}')
    assert (config.name, config.version) == ("lab", "1.0.0")
    assert config.plugins[0].document["mtu"] == 1
    assert json.loads(config.source) == {
        "name": "lab",
        "cniVersion": "1.0.0",
        "plugins": [{"type": "noop", "name": "lab", "cniVersion": "1.0.0", "mtu": 1}],
    }


def test_switches_of_a_list_mean_nothing_in_a_single_plugin() -> None:
    config = parse_plugin('{"type": "noop", "name": "lab", "disableCheck": true}')
    assert not config.disable_check


def test_a_list_in_a_file_for_one_plugin(tmp_path: Path) -> None:
    write(tmp_path / "lab.conf", a_list())
    with pytest.raises(ConfigError) as caught:
        Network.load("lab", conf_dir=tmp_path)
    assert "name its file .conflist" in caught.value.details


# --- directories -------------------------------------------------------------------------------


def test_lists_go_before_single_plugins_and_the_first_name_wins(tmp_path: Path) -> None:
    write(tmp_path / "10-lab.conf", {"name": "lab", "type": "single"})
    write(tmp_path / "30-lab.conflist", a_list(plugins=[{"type": "third"}]))
    write(tmp_path / "20-lab.conflist", a_list(plugins=[{"type": "second"}]))
    assert types(Network.load("lab", conf_dir=tmp_path)) == ["second"]
    (tmp_path / "20-lab.conflist").unlink()
    assert types(Network.load("lab", conf_dir=tmp_path)) == ["third"]
    (tmp_path / "30-lab.conflist").unlink()
    assert types(Network.load("lab", conf_dir=tmp_path)) == ["single"]


def test_conf_and_json_in_one_order(tmp_path: Path) -> None:
    write(tmp_path / "20.conf", {"name": "lab", "type": "conf"})
    write(tmp_path / "10.json", {"name": "lab", "type": "json"})
    write(tmp_path / "00.yaml", {"name": "lab", "type": "yaml"})
    write(tmp_path / "deeper" / "00.conf", {"name": "lab", "type": "deeper"})
    (tmp_path / "05.conf").mkdir()
    assert types(Network.load("lab", conf_dir=tmp_path)) == ["json"]


def test_several_directories(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    write(one / "10.conf", {"name": "lab", "type": "one"})
    write(other / "10.conflist", a_list(plugins=[{"type": "other"}]))
    assert types(Network.load("lab", conf_dir=[one, other])) == ["one"]
    assert types(Network.load("lab", conf_dir=f"{other}:{one}")) == ["other"]
    assert types(Network.load("lab", conf_dir=[tmp_path / "none", other])) == ["other"]


def test_a_broken_file_hides_no_other_network(tmp_path: Path) -> None:
    write(tmp_path / "10-broken.conflist", "{")
    write(tmp_path / "20-stray.json", {"hello": 1})
    write(tmp_path / "30-lab.conf", {"name": "lab", **NOOP})
    network = Network.load("lab", conf_dir=tmp_path)
    files = [Path(error.faults[0].file).name for error in network.skipped]
    assert files == ["10-broken.conflist", "20-stray.json"]


def odd_files(folder: Path, extension: str) -> list[str]:
    """Files of a directory that cannot be read in one way or another; returns their names."""
    folder.mkdir(exist_ok=True)
    targets = {
        "loop": "loop" + extension,
        "nothing": "/nowhere",
        "below-a-file": "/etc/hostname/x",
        "long": "x" * 300,
        "long-path": "/x" * 2000,
        "memory": "/dev/zero",
    }
    for name, target in targets.items():
        (folder / f"{name}{extension}").symlink_to(target)
    (folder / f"directory{extension}").symlink_to("/etc")  # which is none of them
    os.mkfifo(folder / f"fifo{extension}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / f"socket{extension}"))
    return sorted(f"{name}{extension}" for name in (*targets, "fifo", "socket"))


@pytest.mark.parametrize("extension", [".conflist", ".conf", ".json"])
def test_odd_files_hide_no_network(tmp_path: Path, extension: str) -> None:
    odd = odd_files(tmp_path, extension)
    document = a_list() if extension == ".conflist" else {"name": "lab", **NOOP}
    write(tmp_path / f"zz{extension}", document)
    network = Network.load("lab", conf_dir=tmp_path)
    assert types(network) == ["noop"]
    assert [Path(error.faults[0].file).name for error in network.skipped] == odd


def test_a_fifo_that_somebody_writes_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "10.conf")
    write(tmp_path / "20.conf", {"name": "lab", **NOOP})
    reader = os.open(tmp_path / "10.conf", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(tmp_path / "10.conf", os.O_WRONLY)
    try:
        network = Network.load("lab", conf_dir=tmp_path)
    finally:
        os.close(reader)
        os.close(writer)
    assert len(network.skipped) == 1


def test_odd_files_beside_a_list(tmp_path: Path) -> None:
    """They are the network's own, and hide no other one."""
    write(tmp_path / "10.conflist", a_list("odd"))
    write(tmp_path / "20.conflist", a_list())
    (tmp_path / "odd").symlink_to(tmp_path / "odd")
    assert len(Network.load("lab", conf_dir=tmp_path).skipped) == 1
    with pytest.raises(ConfigError, match="cannot be read"):
        Network.load("odd", conf_dir=tmp_path)
    (tmp_path / "odd").unlink()
    odd_files(tmp_path / "odd", ".conf")
    assert len(Network.load("lab", conf_dir=tmp_path).skipped) == 1
    with pytest.raises(ConfigError, match="cannot be read"):
        Network.load("odd", conf_dir=tmp_path)


def test_the_networks_own_file_is_broken(tmp_path: Path) -> None:
    write(tmp_path / "10-lab.conflist", {"name": "lab", "plugins": [{}]})
    write(tmp_path / "20-lab.conf", {"name": "lab", **NOOP})
    with pytest.raises(ConfigError, match=r"plugins\[0\].type: missing"):
        Network.load("lab", conf_dir=tmp_path)


def test_there_is_no_such_network(tmp_path: Path) -> None:
    for directory in (tmp_path / "none", tmp_path):
        with pytest.raises(NetworkNotFound) as caught:
            Network.load("lab", conf_dir=directory)
        assert caught.value.message == f"no net configurations found in {directory}"
    write(tmp_path / "10.conflist", a_list("other"))
    write(tmp_path / "20.conflist", "{")
    with pytest.raises(NetworkNotFound) as caught:
        Network.load("lab", conf_dir=tmp_path)
    assert caught.value.message == f'no net configuration with name "lab" in {tmp_path}'
    assert "other" in caught.value.details
    assert "cannot be used: " in caught.value.details
    assert len(caught.value.skipped) == 1


def test_from_a_dict() -> None:
    assert types(Network.from_dict(a_list())) == ["noop"]
    assert Network.from_dict({"name": "lab", "type": "noop"}).name == "lab"
    with pytest.raises(ConfigError, match="JSON"):
        Network.from_dict({"name": "lab", "type": "noop", "mtu": {1, 2}})
