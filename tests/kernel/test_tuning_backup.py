"""tuning: the backup of what there was before, and DEL and GC by it."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from harness import Attach, Attachment, run_in
from harness.topics import tuning as kit
from harness.topics.tuning import ALL, attributes, backup, sysctl
from pycni.kernel import namespace
from pycni.plugins import tuning
from pycni.sdk.request import Request
from pycni.spec.errors import CNIError

attach = kit.attach


# --- the backup ----------------------------------------------------------------------------------


def test_backup_has_the_reference_s_name_and_keys(attach: Attach, tmp_path: Path) -> None:
    one = attach(**ALL)
    before = attributes(one)
    one.add()
    file = backup(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    found = json.loads(file.read_text())
    ours = {name: found.pop(name) for name in ("network", "containerID", "ifname", "applied")}
    assert found == before
    assert ours == {
        "network": "net",
        "containerID": "pycni-test",
        "ifname": "eth0",
        "applied": ALL,
    }
    assert file.read_text().startswith('{\n "mac":')


def test_second_add_keeps_what_there_was_before_the_first(attach: Attach, tmp_path: Path) -> None:
    one = attach(**ALL, sysctl={"net.core.somaxconn": "500"})
    before, queue = attributes(one), sysctl(one, "net/core/somaxconn")
    one.add()
    one.add()
    one.delete()
    assert (attributes(one), sysctl(one, "net/core/somaxconn")) == (before, queue)


def test_delete_that_cannot_put_something_back(attach: Attach, tmp_path: Path) -> None:
    """It says, and puts back the rest; the next one tries again, and does not fail for it."""
    one = attach(mtu=1400, sysctl={"net.core.somaxconn": "500"})
    queue = sysctl(one, "net/core/somaxconn")
    one.add()
    (file,) = (tmp_path / "tuning").iterdir()
    file.write_text(file.read_text().replace('"mtu": 1500', '"mtu": 1'))
    run = one.run("DEL")
    assert run.code == 1
    assert "mtu 1" in run.result["msg"]
    assert sysctl(one, "net/core/somaxconn") == queue
    assert one.run("DEL").code == 0
    assert not file.exists()


def test_two_tunings_in_one_list(attach: Attach, tmp_path: Path) -> None:
    one = attach(mtu=1400)
    before = attributes(one)
    one.add()
    two = Attachment(one.plugin, {**one.config, "mtu": 0, "txQLen": 7}, one.sandbox)
    two.add()
    two.delete()
    one.delete()
    assert attributes(one) == before


FIRST = {"mtu": 1300, "mac": "02:00:00:00:00:05", "sysctl": {"net.core.somaxconn": "500"}}
SECOND = {"mtu": 1200, "mac": "02:00:00:00:00:06", "sysctl": {"net.core.somaxconn": "600"}}


def test_two_tunings_of_which_one_cannot_put_something_back(attach: Attach, tmp_path: Path) -> None:
    """The DEL of the list, in which both fail, is tried again, and no more."""
    one = attach(mtu=1400)
    two = replace(one, config={**one.config, "mtu": None, "txQLen": 500})
    before = attributes(one)
    one.add()
    two.add()
    path = tmp_path / "tuning/pycni-test_eth0.json"
    sound = json.loads(path.read_text())
    path.write_text(json.dumps({**sound, "mtu": 70000}))
    for each in (two, one):
        assert "mtu" in each.refused("DEL")["msg"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "mtu": sound["mtu"]}))
    two.delete()
    one.delete()
    assert attributes(one) == before
    assert not path.exists()
    one.add()
    two.add()
    path.write_text(json.dumps({**json.loads(path.read_text()), "mtu": 70000}))
    assert [each.run("DEL").code for each in (two, one, two, one)] == [1, 1, 0, 0]
    assert not path.exists()


def test_delete_where_the_namespace_cannot_be_opened(
    attach: Attach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of descriptors, say; which holds no one up for good."""
    one = attach(mtu=1400)
    one.add()
    assert one.sandbox is not None
    path, real = one.sandbox.path, namespace.open_path

    def refuse(asked: str) -> namespace.Namespace:
        if asked == path:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(asked)

    monkeypatch.setattr(namespace, "open_path", refuse)
    request = Request("DEL", one.config, one.container, path, one.ifname)
    with pytest.raises(CNIError, match=os.strerror(errno.EMFILE)):
        tuning.plugin.delete(request)
    tuning.plugin.delete(request)
    assert list((tmp_path / "tuning").iterdir()) == []


def test_two_tunings_of_the_same_settings(attach: Attach, tmp_path: Path) -> None:
    """The last one's count while the container is attached, and those before the first after."""
    one = attach(**FIRST)
    before = attributes(one), sysctl(one, "net/core/somaxconn")
    one.add()
    two = Attachment(one.plugin, {**one.config, **SECOND}, one.sandbox)
    two.config["prevResult"] = one.result
    two.add()
    one.result = two.result
    assert (attributes(one)["mtu"], sysctl(one, "net/core/somaxconn")) == (1200, "600")
    one.check()
    two.check()
    two.delete()
    one.delete()
    assert (attributes(one), sysctl(one, "net/core/somaxconn")) == before
    assert not backup(tmp_path).exists()


def test_two_tunings_of_which_the_second_fails(attach: Attach, tmp_path: Path) -> None:
    one = attach(**FIRST)
    before = attributes(one), sysctl(one, "net/core/somaxconn")
    one.add()
    within = attributes(one), sysctl(one, "net/core/somaxconn")
    two = Attachment(one.plugin, {**one.config, **SECOND, "mtu": 70000}, one.sandbox)
    two.refused()
    assert (attributes(one), sysctl(one, "net/core/somaxconn")) == within
    one.check()
    one.delete()
    assert (attributes(one), sysctl(one, "net/core/somaxconn")) == before
    assert not backup(tmp_path).exists()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_containers_whose_ids_begin_alike(attach: Attach, order: tuple[int, int]) -> None:
    """`web` and `web_1` are two containers, though `web_1_eth0.json` begins with `web_`."""
    first = attach(sysctl={"net.core.somaxconn": "500"})
    second = attach(sysctl={"net.core.somaxconn": "500"})
    first.container, second.container = "web", "web_1"
    before = []
    for one, value in ((first, "111"), (second, "222")):
        run_in(one.sandbox, ["sysctl", "-q", "-w", f"net.core.somaxconn={value}"])
        before.append(value)
        one.add()
    for number in order:
        (first, second)[number].delete()
    assert [sysctl(one, "net/core/somaxconn") for one in (first, second)] == before


def test_attachments_with_one_file_name(attach: Attach, tmp_path: Path) -> None:
    first, second = attach(mtu=1300), attach(mtu=1400, ifname="1_eth0")
    first.container, second.container = "web_1", "web"
    before = attributes(first), attributes(second)
    first.add()
    second.add()
    assert len(list((tmp_path / "tuning").iterdir())) == 2
    first.delete()
    second.delete()
    assert (attributes(first), attributes(second)) == before
    assert list((tmp_path / "tuning").iterdir()) == []


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_attachments_with_one_sysctl(attach: Attach, order: tuple[int, int]) -> None:
    first = attach(sysctl={"net.core.somaxconn": "500"})
    second = attach(netns=first.sandbox, ifname="net1", sysctl={"net.core.somaxconn": "600"})
    before = sysctl(first, "net/core/somaxconn")
    first.add()
    second.add()
    (first, second)[order[0]].delete()
    # What the other one asked for is in force still, or again.
    assert sysctl(first, "net/core/somaxconn") == ("600" if order[0] == 0 else "500")
    (first, second)[order[1]].delete()
    assert sysctl(first, "net/core/somaxconn") == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"mtu": "x", "mac": 5, "sysctl": [1]}'])
def test_damaged_backup_is_no_obstacle(attach: Attach, tmp_path: Path, content: str) -> None:
    one = attach(**ALL)
    one.add()
    backup(tmp_path).write_text(content)
    one.delete()
    assert not backup(tmp_path).exists()


def test_delete_without_namespace_or_interface(attach: Attach, tmp_path: Path) -> None:
    """The reference leaves the file for ever."""
    one, two, three = attach(**ALL), attach(**ALL), attach(**ALL)
    for number, each in enumerate((one, two, three)):
        each.container = f"container-{number}"
        each.add()
    run_in(one.sandbox, ["ip", "link", "delete", "eth0"])
    one.delete()
    assert two.sandbox is not None
    two.sandbox.delete()
    two.delete()
    three.sandbox = None
    three.result = None
    del three.config["prevResult"]
    three.delete()
    assert list((tmp_path / "tuning").iterdir()) == []


def test_gc_removes_files_of_its_network_that_are_not_kept(attach: Attach, tmp_path: Path) -> None:
    kept, stale, other = attach(mtu=1400), attach(mtu=1400), attach(mtu=1400)
    for number, each in enumerate((kept, stale, other)):
        each.container = f"container_{number}"
    other.config["name"] = "other"
    for each in (kept, stale, other):
        each.add()
    foreign = backup(tmp_path, "container_9_eth0.json")
    foreign.write_text('{"mtu": 1500}')  # the reference's: of what network, no one knows
    valid = [{"containerID": "container_0", "ifname": "eth0"}]
    run = kept.run("GC", **{"cni.dev/valid-attachments": valid})
    assert (run.code, run.stdout) == (0, "")
    left = {file.name for file in (tmp_path / "tuning").iterdir()}
    assert left == {"container_0_eth0.json", "container_2_eth0.json", "container_9_eth0.json"}
