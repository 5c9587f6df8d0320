"""Leases of containers that have gone are freed, those of living ones never are.

A start of the machine is what it is on disk: namespaces and /run are gone, /var/lib/cni is as it
was, and older than the machine's uptime.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Namespace, Sandbox, run_in
from harness.agent import PYCNI
from harness.configs import host_local
from harness.host import forget_attachments
from pycni.runtime import Network
from pycni.runtime import reclaim as reclaiming
from pycni.runtime.lease_evidence import Evidence, machine_started
from pycni.runtime.reclaim import Reclaimed

# No one else on the machine has these: what is set in any namespace is in use.
SUBNET = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"


class Node:
    """A network, its state below a folder, and containers attached to it."""

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        self.folder = folder
        self.sandbox = sandbox
        self.cache_dir = folder / "cni"
        self.data_dir = folder / "cni/networks"
        self.conf_dir = folder / "net.d"
        self.conf_dir.mkdir()
        (self.conf_dir / "net.conflist").write_text(
            json.dumps(
                {
                    "cniVersion": "1.1.0",
                    "name": "net",
                    "plugins": [
                        {
                            "type": "bridge",
                            "bridge": "br0",
                            "isDefaultGateway": True,
                            "ipam": host_local(self.data_dir, f"{SUBNET}.0/24"),
                        }
                    ],
                }
            )
        )

    @property
    def network(self) -> Network:
        return Network.load("net", conf_dir=self.conf_dir, cache_dir=self.cache_dir)

    def attach(self, container: str) -> Namespace:
        netns = self.sandbox()
        self.network.add(container, netns.path)
        return netns

    def leases(self) -> set[str]:
        """Who has an address."""
        files = (self.data_dir / "net").glob(f"{SUBNET}.*")
        return {path.read_bytes().decode().split("\r\n")[0] for path in files}

    def age(self) -> None:
        """Have leases be from before the machine was started."""
        then = machine_started() - 3600
        for path in (self.data_dir / "net").glob(f"{SUBNET}.*"):
            os.utime(path, (then, then))

    def forget(self) -> None:
        """Have no cache and no notes, as after a lost /var/lib/cni/results and /run."""
        forget_attachments()
        for path in (self.cache_dir / "results").iterdir():
            path.unlink()

    def reclaim(self, *options: str, code: int = 0, stdin: str = "") -> tuple[Any, str]:
        """What it printed as freed, by container with the reason, and its words."""
        done = subprocess.run(
            [PYCNI, "ipam", "reclaim", "-o", "json", "--conf-dir", self.conf_dir,
             "--cache-dir", self.cache_dir, *options],
            capture_output=True, text=True, input=stdin, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        freed = json.loads(done.stdout) if done.stdout else []
        return {item["containerID"]: item["reason"] for item in freed}, done.stderr


@pytest.fixture
def node(host: Host, sandbox: Sandbox, tmp_path: Path) -> Node:
    return Node(tmp_path, sandbox)


def test_lost_del(node: Node) -> None:
    """One container's namespace is gone, and no one has called DEL."""
    node.attach("alive")
    gone = node.attach("gone")
    gone.delete()
    wanted = {"gone": f"its namespace {gone.path} has gone"}
    freed, words = node.reclaim("--dry-run")
    assert freed == wanted
    assert "1 address would be freed" in words
    assert node.leases() == {"alive", "gone"}
    assert node.reclaim()[0] == wanted
    assert node.leases() == {"alive"}
    assert node.reclaim()[0] == {}
    # The index beside the leases knows of it: the address is the next one to be had.
    assert node.network.check("alive", None) is None


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "cache lost"])
def test_start_of_the_machine(node: Node, cached: bool) -> None:
    """All that was attached has gone with the machine; what was attached since is there."""
    before = [node.attach(f"before-{number}") for number in range(3)]
    node.age()
    for netns in before:
        netns.delete()
    if not cached:
        node.forget()
    node.attach("since")
    assert node.leases() == {"before-0", "before-1", "before-2", "since"}
    freed, _ = node.reclaim()
    assert set(freed) == {"before-0", "before-1", "before-2"}
    assert set(freed.values()) == {"from before the machine was started"}
    assert node.leases() == {"since"}


def test_the_plugins_notes_know_what_the_cache_does_not(node: Node) -> None:
    """Of containers that a runtime with another cache has attached."""
    node.attach("alive")
    gone = node.attach("gone")
    gone.delete()
    for path in (node.cache_dir / "results").iterdir():
        path.unlink()
    assert node.reclaim()[0] == {"gone": f"its namespace {gone.path} has gone"}
    assert node.leases() == {"alive"}


def test_living_are_kept_whatever_speaks_against_them(node: Node) -> None:
    """A clock that was wrong, a lost cache, a list that lacks it: its address is set."""
    node.attach("alive")
    node.age()
    node.forget()
    assert node.reclaim()[0] == {}
    assert node.reclaim("--none")[0] == {}
    assert node.reclaim("--keep", "other/eth0")[0] == {}
    assert node.leases() == {"alive"}


@pytest.mark.parametrize("reported_by", ["notes and cache", "notes", "cache"])
def test_a_lease_that_looks_old_of_a_namespace_that_is_there(node: Node, reported_by: str) -> None:
    """The clock was set since; and the address is not seen, as inside a virtual machine."""
    alive = node.attach("alive")
    run_in(alive, ["ip", "address", "flush", "dev", "eth0"])
    node.age()
    if reported_by == "cache":
        forget_attachments()
    elif reported_by == "notes":
        for path in (node.cache_dir / "results").iterdir():
            path.unlink()
    assert node.reclaim()[0] == {}
    assert node.leases() == {"alive"}
    alive.delete()
    assert set(node.reclaim()[0]) == {"alive"}


def test_a_data_dir_that_is_not_allowed_is_left(node: Node) -> None:
    """Anyone who writes a configuration does not lead root to other directories by it."""
    elsewhere = Path("/var/lib/cni-elsewhere")
    config = {"cniVersion": "1.1.0", "name": "else", "plugins": [
        {"type": "bridge", "ipam": {"type": "host-local", "dataDir": str(elsewhere)}}]}  # fmt: skip
    (node.conf_dir / "else.conflist").write_text(json.dumps(config))
    node.attach("gone").delete()
    freed, words = node.reclaim()
    assert set(freed) == {"gone"}
    assert f'else: dataDir: "{elsewhere}" is not where' in words
    assert not elsewhere.exists()


@pytest.mark.parametrize("by", ["this runtime", "another runtime"])
def test_what_is_attached_again_meanwhile_stays(
    node: Node, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """With the same address, under the same id, after it was found to be gone."""
    node.attach("gone").delete()
    other = node.network
    if by == "another runtime":
        for path in (node.cache_dir / "results").iterdir():
            path.unlink()
        other = Network.load("net", conf_dir=node.conf_dir, cache_dir=node.folder / "other")
    space = node.sandbox()

    delete = reclaiming._delete

    def late(*args: Any) -> Any:
        other.delete("gone")
        other.add("gone", space.path)
        return delete(*args)

    def evidence(_: object) -> Evidence:
        return Evidence({}, frozenset(), True, lambda _: "", lambda *_: False, time.time(), 0.0)

    monkeypatch.setattr(reclaiming, "_delete", late)
    outcome = reclaiming.reclaim_network(
        "net", str(node.data_dir), evidence, cache_dirs=[str(node.cache_dir)], note=print
    )
    assert outcome == Reclaimed()
    other.check("gone")
    assert node.leases() == {"gone"}


def test_no_one_knows(node: Node) -> None:
    """Neither cached nor listed, and from today: it stays, and the way out is reported."""
    gone = node.attach("gone")
    gone.delete()
    node.forget()
    freed, words = node.reclaim(code=1)
    assert freed == {}
    assert f"{SUBNET}.2 of gone stays: the cache does not know its container" in words
    assert "--keep-file" in words
    assert node.leases() == {"gone"}
    # Somebody may be just about to list it.
    assert node.reclaim("--keep", "alive/eth0")[0] == {}
    past = time.time() - 600
    os.utime(node.data_dir / "net" / f"{SUBNET}.2", (past, past))
    if past < machine_started():
        pytest.fail("the machine has been up for less than ten minutes")
    assert node.reclaim("--keep-file", "-", stdin="# mine\ngone/eth0\n")[0] == {}
    assert node.reclaim("--keep", "alive/eth0")[0] == {"gone": "is not among the living"}
    assert node.leases() == set()


def test_none_is_alive(node: Node) -> None:
    node.attach("gone").delete()
    node.forget()
    assert node.reclaim("--none")[0] == {"gone": "is not among the living"}


def test_what_names_no_container_stays(node: Node) -> None:
    node.attach("gone").delete()
    (node.data_dir / "net" / f"{SUBNET}.77").write_text("# the printer has it")
    node.age()
    node.reclaim("--none")
    assert node.leases() == {"# the printer has it"}


def test_not_without_root(node: Node) -> None:
    node.attach("alive")
    prefix = ["setpriv", "--reuid", "1", "--regid", "1", "--clear-groups"]
    for path in (node.folder, *node.folder.parents, PYCNI.parent):
        if not os.stat(path).st_mode & 1:
            path.chmod(0o755)
    done = run_in(
        None,
        [*prefix, str(PYCNI), "ipam", "reclaim", "--data-dir", str(node.data_dir),
         "--conf-dir", str(node.conf_dir), "--cache-dir", str(node.folder / "none")],
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "run it as root" in done.stderr
    assert "Traceback" not in done.stderr
    assert node.leases() == {"alive"}


def test_network_that_is_not_there(node: Node) -> None:
    assert "no leases of a network typo" in node.reclaim("typo")[1]


@pytest.mark.parametrize("keep", [True, False], ids=["one lives", "none lives"])
def test_gc_after_the_start_of_the_machine(node: Node, keep: bool) -> None:
    """GC frees them as well, and with them what is left in the cache."""
    for number in range(2):
        node.attach(f"before-{number}").delete()
    node.age()
    run_in(None, ["ip", "link", "delete", "br0"])
    run_in(None, ["nft", "flush", "ruleset"])
    since = node.attach("since") if keep else None
    node.network.gc([("since", "eth0")] if keep else [])
    assert node.leases() == ({"since"} if keep else set())
    assert [one.container_id for one in node.network.attachments()] == ["since"] * keep
    if since is not None:
        node.network.check("since", since.path)
