"""What is noted of attachments stays true: whatever fails, is killed, or comes in between.

Each sequence by all three ways of calling plugins, where these make a difference.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Namespace, Sandbox, ip_json, nft_list, run_in
from harness.host import forget_attachments
from harness.ways import Way, notes, ports_of, way_of
from pycni.kernel import namespace
from pycni.plugins import firewall, loopback
from pycni.runtime import Network
from pycni.sdk.collection import remove_leftovers
from pycni.sdk.delegate import process_environ
from pycni.sdk.netns import find_sandbox, open_sandbox
from pycni.sdk.request import Request
from pycni.spec.errors import IO_FAILURE, KERNEL_REFUSED, CNIError
from pycni.spec.identity import now
from pycni.spec.owner import Owner
from pycni.spec.result import encode_result
from pycni.state import attachments
from pycni.state.attachments import AttachmentLock
from pycni.steps import executor, ownership
from pycni.steps.namespaces import HostAndSandbox

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables"}


def bridge(way: Way, **keys: Any) -> dict[str, Any]:
    """A bridge with one address to give."""
    ipam = way.host_local("10.66.0.0/24")
    ipam["ranges"][0][0] |= {"rangeStart": "10.66.0.2", "rangeEnd": "10.66.0.2"}
    return {"type": "bridge", "bridge": "br1", "isDefaultGateway": True, "ipam": ipam, **keys}


def tuning(way: Way) -> dict[str, Any]:
    return {"type": "tuning", "mtu": 1300, "dataDir": str(way.folder / "tuning")}


def reuse(netns: Namespace) -> None:
    """The namespace goes, and another one gets its path."""
    run_in(None, ["ip", "netns", "delete", netns.name])
    run_in(None, ["ip", "netns", "add", netns.name])


# --- files that plugins keep for their DEL -------------------------------------------------------


def make_immovable(path: Path) -> None:
    """Put something in a file's place that cannot be unlinked."""
    path.unlink()
    (path / "in the way").mkdir(parents=True)


@pytest.mark.parametrize("case", ["evict", "supersede"])
def test_files_that_cannot_be_removed_stay_noted(way: Way, sandbox: Sandbox, case: str) -> None:
    first = bridge(way) if case == "evict" else {"type": "bridge", "bridge": "br1"}
    network = way.network("n", first, tuning(way))
    box = sandbox()
    network.add("a", box.path)
    (backup,) = (way.folder / "tuning").iterdir()
    make_immovable(backup)
    next_one = "a"
    if case == "evict":
        next_one = "b"
        box.delete()
        (way.folder / "cni/networks/n/10.66.0.2").unlink()
        box = sandbox()
    else:
        reuse(box)
    before = notes()
    with pytest.raises(CNIError, match=f"cannot remove {backup}"):
        network.add(next_one, box.path)
    assert [{**note, "detaching": False} for note in notes()] == before
    shutil.rmtree(backup)
    network.add(next_one, box.path)
    assert [note["containerID"] for note in notes()] == [next_one]


# --- repair --------------------------------------------------------------------------------------


def test_repair_notes_what_it_made_again(way: Way, sandbox: Sandbox) -> None:
    network = way.network("n", bridge(way))
    box = sandbox()
    network.add("a", box.path)
    run_in(box, ["ip", "link", "delete", "eth0"])
    network.repair()
    (inner,) = (link for link in ip_json("link", netns=box) if link["ifname"] == "eth0")
    (outer,) = ip_json("link", "show", "type", "veth")
    (note,) = notes()
    assert note["links"] == [
        ["host", outer["ifname"], outer["ifindex"]],
        ["sandbox", "eth0", inner["ifindex"]],
    ]
    with pytest.raises(CNIError, match="is attached to network n"):
        network.add("a", sandbox().path)
    network.check("a")


# --- an interface of which nothing is noted ------------------------------------------------------


def note_file(container: str, network: str = "n") -> Path:
    return Path(attachments.path_of(Owner(network, container, "eth0").tag))


def to_another_host(container: str) -> str:
    """Have a note be of an attachment to a host's network that shares /run; returns it."""
    path = note_file(container)
    text = json.dumps({**json.loads(path.read_text()), "host": [1, 2, 3]})
    path.write_text(text)
    return text


def killed(*, adding: bool = False) -> None:
    """An operation on attachment a that is killed once it has the lock."""
    code = (
        "import os; from pycni.state.attachments import AttachmentLock;"
        "from pycni.spec.owner import Owner;"
        f"AttachmentLock(Owner('n', 'a', 'eth0'), adding={adding}).__enter__();"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)


@pytest.mark.parametrize("left", ["by a killed CHECK", "of another host", "damaged"])
def test_del_does_not_take_an_interface_by_its_name(way: Way, sandbox: Sandbox, left: str) -> None:
    """It has another's macvlan; a file alone says nothing of who made that."""
    run_in(None, ["ip", "link", "add", "up0", "type", "veth"])
    plugin = {"type": "macvlan", "master": "up0"}
    network = way.network("n", plugin)
    box = sandbox()
    if left == "by a killed CHECK":
        killed()
    else:
        network.add("a", box.path)
        run_in(box, ["ip", "link", "delete", "eth0"])
        if left == "of another host":
            to_another_host("a")
        else:
            note_file("a").write_text("?" * 50)
        shutil.rmtree(way.folder / "cni/results")
    run_in(None, ["ip", "link", "add", "link", "up0", "name", "eth0", "netns", box.name,
                  "type", "macvlan"])  # fmt: skip
    network.delete("a", box.path)
    assert [link["ifname"] for link in ip_json("link", netns=box)] == ["lo", "eth0"]
    assert note_file("a").exists() == (left == "of another host")


def test_del_takes_what_a_killed_add_made(way: Way, sandbox: Sandbox) -> None:
    run_in(None, ["ip", "link", "add", "up0", "type", "veth"])
    box = sandbox()
    killed()
    killed(adding=True)
    run_in(None, ["ip", "link", "add", "link", "up0", "name", "eth0", "netns", box.name,
                  "type", "macvlan"])  # fmt: skip
    way.network("n", {"type": "macvlan", "master": "up0"}).delete("a", box.path)
    assert [link["ifname"] for link in ip_json("link", netns=box)] == ["lo"]
    assert not note_file("a").exists()


# --- notes of another host -----------------------------------------------------------------------


@pytest.mark.parametrize("by", ["evict", "remove_leftovers"])
def test_what_another_host_notes_stays(way: Way, sandbox: Sandbox, by: str) -> None:
    """With the files that its plugins keep: hosts may share /run, and have containers of a name."""
    network = way.network("n", bridge(way), tuning(way))
    box, other = sandbox(), sandbox()
    network.add("a", box.path)
    box.delete()
    (way.folder / "cni/networks/n/10.66.0.2").unlink()
    text = to_another_host("a")
    if by == "evict":
        network.add("b", other.path)
    else:
        remove_leftovers(Owner("n", "a", "eth0"), now())
    assert json.loads(note_file("a").read_text()) == json.loads(text)
    assert (way.folder / "tuning/a_eth0.json").exists()


# --- GC ------------------------------------------------------------------------------------------


def test_gc_after_the_clock_was_set_back(way: Way, sandbox: Sandbox) -> None:
    """A date in the future keeps nothing; nor does that in a note of an earlier version."""
    network = way.network("n", bridge(way))
    network.add("a", sandbox().path)
    path = note_file("a")
    later = time.time() + 3600
    path.write_text(json.dumps({**json.loads(path.read_text()), "since": later}))
    (way.folder / "cni/results/n-a-eth0").unlink()
    network.gc([], force=True)
    assert (notes(), way.leases("n")) == ([], {})


def lose_cache(way: Way) -> None:
    """GC is then a matter of the plugins alone."""
    shutil.rmtree(way.folder / "cni/results")


@pytest.mark.parametrize("text", ["", "?" * 5000, "{}\n", "another's"])
def test_gc_collects_what_has_no_readable_note(way: Way, sandbox: Sandbox, text: str) -> None:
    network = way.network("n", bridge(way, ipMasq=True))
    network.add("a", sandbox().path)
    path = note_file("a")
    path.write_text(path.read_text().replace('"a"', '"b"') if text == "another's" else text)
    lose_cache(way)
    network.gc([], force=True)
    assert not path.exists()
    assert attachments.holder("n", "10.66.0.2") == ""
    assert way.leases("n") == {}
    assert "10.66.0.2" not in str(nft_list())


def test_what_fails_at_one_attachment_holds_up_no_other(way: Way, sandbox: Sandbox) -> None:
    first = {**bridge(way), "ipam": way.host_local("10.66.0.0/24")}
    network = way.network("n", first, tuning(way))
    for name in "abc":
        network.add(name, sandbox().path)
    make_immovable(way.folder / "tuning/b_eth0.json")
    lose_cache(way)
    with pytest.raises(CNIError, match=r"cannot remove .*b_eth0"):
        network.gc([], force=True)
    assert [note["containerID"] for note in notes()] == ["b"]
    assert list(way.leases("n").values()) == ["b/eth0"]


@pytest.mark.parametrize("way", ["cold", "agent"], indirect=True)
def test_gc_waits_for_one_attachment_while_it_holds_no_other(way: Way, sandbox: Sandbox) -> None:
    first = {**bridge(way), "ipam": way.host_local("10.66.0.0/24")}
    network = way.network("n", first)
    for name in "abc":
        network.add(name, sandbox().path)
    busy = max("abc", key=lambda name: Owner("n", name, "eth0").tag)
    document = {**first, "name": "n", "cniVersion": "1.1.0", "cni.dev/valid-attachments": []}
    with AttachmentLock(Owner("n", busy, "eth0")):
        collecting = subprocess.Popen(
            [way.plugins / "bridge"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "CNI_COMMAND": "GC", "CNI_PATH": str(way.plugins)},
        )  # fmt: skip
        assert collecting.stdin is not None
        collecting.stdin.write(json.dumps(document).encode())
        collecting.stdin.close()
        give_up = time.monotonic() + 30
        while len(notes()) > 1 and time.monotonic() < give_up:
            time.sleep(0.05)
        assert [note["containerID"] for note in notes()] == [busy]
        assert collecting.poll() is None
    assert collecting.wait(60) == 0
    assert notes() == []


@pytest.mark.parametrize("gone", [1, 2])
def test_gc_hands_on_to_who_is_attached(way: Way, sandbox: Sandbox, gone: int) -> None:
    """A port of one container in three networks, of which one has lost its interface."""
    box = sandbox()
    networks = []
    for number in range(3):
        plugin = {
            **bridge(way, bridge=f"br{number}"),
            "ipam": way.host_local(f"10.{67 + number}.0.0/24"),
        }
        networks.append(way.network(f"n{number}", plugin, PORTMAP))
        networks[number].add("a", box.path, f"eth{number}", capabilities=ports_of((8080, 80)))
    run_in(box, ["ip", "link", "delete", f"eth{gone}"])
    (way.folder / "cni/results/n0-a-eth0").unlink()
    networks[0].gc([], force=True)
    (element,) = (
        value
        for found in nft_list()
        for (key, value) in (found.get("map") or {}).get("elem", ())
        if "8080" in str(key) and (found.get("map") or {})["name"] == "port-map4"
    )
    assert f"10.{67 + 3 - gone}.0.2" in str(element)


def test_remove_leftovers_sweeps_all_that_is_noted(
    host: Host, tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of kinds of other packages, too, with the addresses that they are known by."""
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "step.py").write_text(
        "seen = []\n"
        "def collect(kernel, owners):\n    seen.extend(owners.addresses('theirs.step'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with way_of("in process", tmp_path / "way", tmp_path) as way:
        way.network("n", bridge(way)).add("a", sandbox().path)
        path = note_file("a")
        note = json.loads(path.read_text())
        note["parts"].append({"plugin": "theirs", "kinds": ["theirs.step"], "files": []})
        path.write_text(json.dumps(note))
        remove_leftovers(Owner("n", "a", "eth0"), now())
    assert import_module("theirs.step").seen == ["10.66.0.2"]
    assert notes() == []


# --- attached again meanwhile --------------------------------------------------------------------


def test_what_was_attached_since_is_no_leftover(way: Way, sandbox: Sandbox) -> None:
    began = now()
    network = way.network("n", bridge(way, ipMasq=True))
    network.add("a", sandbox().path)
    remove_leftovers(Owner("n", "a", "eth0"), began)
    network.check("a")
    assert [note["containerID"] for note in notes()] == ["a"]


# --- a plugin that calls another one, with the lock ----------------------------------------------


@pytest.mark.parametrize("way", ["cold", "agent"], indirect=True)
def test_a_plugin_that_another_one_calls_waits_for_no_lock(way: Way, sandbox: Sandbox) -> None:
    owner = Owner("n", "a", "eth0")
    document = {**bridge(way), "name": "n", "cniVersion": "1.1.0"}
    box = sandbox()
    with AttachmentLock(owner, adding=True):
        for command in ("ADD", "DEL"):
            request = Request(command, document, "a", box.path, "eth0", path=(str(way.plugins),))
            environ = {**os.environ, **process_environ(request)}
            done = subprocess.run(
                [way.plugins / "bridge"], input=json.dumps(document).encode(), env=environ,
                capture_output=True, timeout=30, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout
            there = [link["ifname"] for link in ip_json("link", netns=box)]
            assert there == (["lo", "eth0"] if command == "ADD" else ["lo"])
    assert not note_file("a").exists()


# --- what fails leaves nothing open --------------------------------------------------------------


@pytest.fixture
def attached(host: Host, tmp_path: Path, sandbox: Sandbox) -> Iterator[Request]:
    """A DEL of something attached; afterwards as many descriptors are open as before."""
    with way_of("in process", tmp_path / "way", tmp_path) as way:
        network = way.network("n", bridge(way))
        box = sandbox()
        network.add("a", box.path)
        document = {**bridge(way), "name": "n", "cniVersion": "1.1.0"}
        before = len(os.listdir("/proc/self/fd"))
        yield Request("DEL", document, "a", box.path, "eth0")
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
        assert not attachments.is_held(Owner("n", "a", "eth0").tag)


def fail(*_: object) -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("opened", [open_sandbox, find_sandbox])
@pytest.mark.parametrize("place", [(ownership, "is_of_host"), (namespace, "current")])
def test_opening_that_fails(
    attached: Request,
    monkeypatch: pytest.MonkeyPatch,
    opened: Callable[[Request], HostAndSandbox],
    place: tuple[Any, str],
) -> None:
    monkeypatch.setattr(*place, fail)
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        opened(attached)


def test_closing_that_fails(attached: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = find_sandbox(attached)
    with monkeypatch.context() as patch:
        patch.setattr(namespace.Namespace, "close", fail)
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)), kernel:
            pass
    kernel.host.close()


def test_links_that_cannot_be_looked_for_are_reported(
    attached: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = attachments.read(attached.owner.tag)
    assert identity is not None
    identity = identity.replace(links=())
    for name in ("open_path", "current"):
        with monkeypatch.context() as patch:
            patch.setattr(namespace, name, fail)
            (failure,) = executor.remove_own_links(identity)
            assert os.strerror(errno.EMFILE) in str(failure)
    assert executor.remove_own_links(identity.replace(path="/run/netns/none")) == []


# --- whatever fails is reported ------------------------------------------------------------------


def test_del_says_what_failed_first(
    host: Host, tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that it could not be noted."""

    def refuse(*_: object) -> None:
        raise CNIError(IO_FAILURE, "cannot note it")

    with way_of("in process", tmp_path / "way", tmp_path) as way:
        network = way.network("n", bridge(way), tuning(way))
        network.add("a", sandbox().path)
        make_immovable(way.folder / "tuning/a_eth0.json")
        with monkeypatch.context() as patch:
            patch.setattr(ownership, "note_failed_delete", refuse)
            with pytest.raises(CNIError) as caught:
                way.network("n", bridge(way)).delete("a")
        assert "cannot remove" in str(caught.value)
        assert "cannot note it" in str(caught.value)


def test_add_whose_interface_goes_before_it_is_noted(
    host: Host, tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = ownership.note

    def late(kernel: HostAndSandbox, *args: Any) -> None:
        monkeypatch.undo()
        kernel.host.forget(ip_json("link", "show", "type", "veth")[0]["ifname"])
        run_in(box, ["ip", "link", "delete", "eth0"])
        note(kernel, *args)

    monkeypatch.setattr(ownership, "note", late)
    with way_of("in process", tmp_path / "way", tmp_path) as way:
        network = way.network("n", bridge(way))
        box = sandbox()
        with pytest.raises(CNIError) as caught:
            network.add("a", box.path)
        assert caught.value.code == KERNEL_REFUSED
        assert (notes(), way.leases("n")) == ([], {})


def test_gc_of_a_plugin_under_another_name(host: Host, tmp_path: Path, sandbox: Sandbox) -> None:
    """What a caller's own plugin is called in a configuration is what its part is noted as."""
    document = {"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "mine"}]}
    network = Network.from_dict(document, cache_dir=tmp_path, resolve={"mine": loopback.plugin}.get)
    network.add("a", sandbox().path)
    shutil.rmtree(tmp_path / "results")
    assert [part["plugin"] for part in notes()[0]["parts"]] == ["mine"]
    network.gc([], force=True)
    assert notes() == []


def test_an_alias_that_names_no_owner_says_nothing(
    host: Host, tmp_path: Path, sandbox: Sandbox, reference_dir: Path
) -> None:
    """Someone has given the reference's link an alias of their own."""
    with way_of("in process", tmp_path / "way", tmp_path) as way:
        plugins = [bridge(way), {"type": "firewall", "backend": "iptables"}]
    document = {"cniVersion": "1.0.0", "name": "n", "plugins": plugins}
    theirs = Network.from_dict(document, plugin_dirs=reference_dir, cache_dir=tmp_path)
    box = sandbox()
    result = theirs.add("a", box.path)
    forget_attachments()
    (link,) = ip_json("link", "show", "type", "veth")
    run_in(None, ["ip", "link", "set", link["ifname"], "alias", "web server"])
    assert "10.66.0.2" in run_in(None, ["iptables-save"]).stdout
    previous = {"prevResult": encode_result(result, "1.0.0")}
    own = {**plugins[1], "name": "n", "cniVersion": "1.0.0", **previous}
    firewall.plugin.delete(Request("DEL", own, "a", box.path, "eth0"))
    assert "10.66.0.2" not in run_in(None, ["iptables-save"]).stdout
