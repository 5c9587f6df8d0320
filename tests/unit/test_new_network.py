"""New networks for programs. What the command makes of them is in test_cli_network.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycni import CNIError, Network
from pycni.runtime.lint import lint
from pycni.runtime.new_network import KINDS, new_network, second_file, write_network

NEEDED = {
    "macvlan": {"master": "eth1"},
    "ipvlan": {"master": "eth1"},
    "vlan": {"master": "eth1", "vlan": 7},
    "host-device": {"device": "eth1"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_sound(tmp_path: Path, kind: str) -> None:
    path = write_network(new_network(kind, conf_dir=tmp_path, **NEEDED.get(kind, {})), tmp_path)
    assert lint([path]) == []
    assert Network.load(kind, conf_dir=tmp_path).config.plugins[0].type == kind


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(CNIError, match='no network of type "brigde"'):
        new_network("brigde", conf_dir=tmp_path)
    with pytest.raises(CNIError, match="is of no use"):
        new_network("bridge", master="eth1", conf_dir=tmp_path)
    document = new_network("bridge", conf_dir=tmp_path)
    write_network(document, tmp_path)
    with pytest.raises(CNIError, match="there is a network bridge already"):
        write_network(document, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_single_plugin_s_file_is_replaced_by_the_list(tmp_path: Path) -> None:
    (tmp_path / "05-net.conf").write_text('{"name": "net", "type": "bridge"}')
    path = write_network(new_network("bridge", "net", conf_dir=tmp_path), tmp_path, force=True)
    assert list(tmp_path.iterdir()) == [path]
    assert second_file(path) == ""
    (tmp_path / "zz.conflist").write_text("{}")
    assert second_file(path) == "zz.conflist"
