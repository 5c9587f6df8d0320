"""Attachments that other runtimes noted: without their namespace, in directories of their own, in
files that cannot be read. What could not be looked at is never called sound.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Sandbox, ip_json, run_in
from harness.agent import PYCNI
from harness.host import forget_attachments
from harness.ways import Way
from pycni.agent.metrics import Metrics
from pycni.agent.watch import Watch
from pycni.runtime import Network
from pycni.runtime.repair import inspect_all, repair_all

MULTUS = "/var/lib/cni/multus"
POD = {"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web"}


@pytest.fixture
def way(way: Way) -> Iterator[Way]:
    yield way
    shutil.rmtree(MULTUS, ignore_errors=True)


def bridge(way: Way) -> dict[str, Any]:
    keys = {"bridge": "br0", "isDefaultGateway": True, "ipMasq": True}
    return {"type": "bridge", **keys, "ipam": way.host_local("10.77.0.0/24")}


def network_of(way: Way, version: str = "1.0.0") -> Network:
    return way.network("lab", bridge(way), version=version)


def cache_file(way: Way, name: str = "lab-one-eth0") -> Path:
    return way.folder / "cni/results" / name


def as_older_libcni_notes_it(path: Path) -> None:
    """libcni before 1.2.0 notes no namespace."""
    document = json.loads(path.read_text())
    del document["netns"]
    path.write_text(json.dumps(document))


def flush() -> None:
    run_in(None, ["nft", "flush", "ruleset"])


def masqueraded() -> bool:
    return "10.77.0.2" in run_in(None, ["nft", "list", "ruleset"]).stdout


def pycni(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([PYCNI, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return done


# --- no namespace is noted -----------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0.0", "0.2.0"])
def test_no_namespace_is_noted(way: Way, sandbox: Sandbox, version: str) -> None:
    """The result lists it; one of 0.2.0 lists no interfaces, and pycni's own note does."""
    box = sandbox()
    network_of(way, version).add("one", box.path, args=POD)
    as_older_libcni_notes_it(cache_file(way))
    cache_dir = way.folder / "cni"
    (inspected,) = inspect_all(cache_dir=cache_dir, plugin_dirs=way.plugins)
    assert (inspected.skipped, inspected.endpoint.path) == ("", box.path)
    assert inspected.pod == "shop/web"
    assert inspected.steps
    flush()
    (report,) = repair_all(cache_dir=cache_dir, plugin_dirs=way.plugins)
    assert (report.skipped, report.endpoint.path) == ("", box.path)
    assert report.ok
    assert masqueraded()
    network_of(way, version).delete("one")
    assert [link["ifname"] for link in ip_json("link", netns=box)] == ["lo"]
    assert way.leases("lab") == {}


def test_the_agent_watches_where_no_namespace_is_noted(way: Way, sandbox: Sandbox) -> None:
    network_of(way).add("one", sandbox().path, args=POD)
    as_older_libcni_notes_it(cache_file(way))
    flush()
    lines: list[str] = []
    cache_dir = way.folder / "cni"
    Watch(
        lambda _: repair_all(cache_dir=cache_dir, plugin_dirs=way.plugins, remake=False),
        Metrics(),
        lines.append,
    )._pass({"rules"})
    assert masqueraded()
    assert any("lab/one/eth0 (shop/web): " in line for line in lines), lines


def test_reclaim_where_no_namespace_is_noted(way: Way, sandbox: Sandbox) -> None:
    gone = sandbox()
    network_of(way).add("gone", gone.path, args=POD)
    network_of(way).add("alive", sandbox().path)
    for name in ("gone", "alive"):
        as_older_libcni_notes_it(cache_file(way, f"lab-{name}-eth0"))
    forget_attachments()
    gone.delete()
    where = ("--cache-dir", str(way.folder / "cni"), "--conf-dir", str(way.folder))
    leases = ("--data-dir", str(way.folder / "cni/networks"), "--plugin-dir", str(way.plugins))
    done = pycni("ipam", "reclaim", *where, *leases, "-o", "json")
    assert [(item["containerID"], item["pod"]) for item in json.loads(done.stdout)] == [
        ("gone", "shop/web")
    ]
    assert sorted(way.leases("lab").values()) == ["alive/eth0"]


def test_names_of_pods_are_shown(way: Way, sandbox: Sandbox) -> None:
    network_of(way).add("one", sandbox().path, args=POD)
    where = ("--cache-dir", str(way.folder / "cni"), "--plugin-dir", str(way.plugins))
    assert pycni("inspect", *where).stdout.splitlines()[0] == "lab one eth0, pod shop/web"
    (shown,) = json.loads(pycni("inspect", *where, "-o", "json").stdout)
    assert shown["pod"] == "shop/web"
    flush()
    lines = pycni("repair", "--all", "--dry-run", *where, code=1).stdout.splitlines()
    assert lines[0].split() == [
        "network", "container", "interface", "pod", "plugin", "state", "what"
    ]  # fmt: skip
    assert lines[1].split()[:4] == ["lab", "one", "eth0", "shop/web"]


# --- what could not be looked at is not sound ----------------------------------------------------


def where(way: Way) -> list[str]:
    return ["--cache-dir", str(way.folder / "cni"), "--plugin-dir", str(way.plugins)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("{", "is damaged: "),
        ('{"kind":"cniCacheV1","netns":7}', "is damaged: "),
        ('{"cniVersion":"0.2.0"}', "does not say whose it is"),
        ('{"kind":"cniCacheV1","networkName":"x"}', "describes another attachment"),
    ],
)
def test_a_file_that_cannot_be_used_shows(
    way: Way, sandbox: Sandbox, damage: str, words: str
) -> None:
    network_of(way).add("one", sandbox().path)
    path = cache_file(way, "lab-two-eth0")
    path.write_text(damage)
    (sound, report) = repair_all(cache_dir=way.folder / "cni", plugin_dirs=way.plugins)
    assert sound.ok
    assert sound.is_sound
    assert not report.ok
    assert not report.is_sound
    assert report.file == str(path)
    assert report.skipped.startswith(f"{path} {words}")
    done = pycni("repair", "--all", *where(way), code=1)
    assert f"{path} {words}" in done.stdout
    assert done.stderr == "2 attachments, 1 sound, 1 left alone\n"
    assert f"{path} {words}" in pycni("inspect", "lab", *where(way), code=1).stdout
    conf = ("--conf-dir", str(way.folder))
    (way.folder / "lab.conflist").write_bytes(network_of(way).config.source)
    done = pycni("gc", "lab", "--keep", "one/eth0", "--cache-dir", str(way.folder / "cni"), *conf)
    assert f"warning: left alone: {path} {words}" in done.stderr


def test_what_is_left_alone_shows(way: Way, sandbox: Sandbox) -> None:
    box = sandbox()
    network_of(way).add("one", box.path)
    box.delete()
    done = pycni("repair", "lab", *where(way), code=1)
    assert "left alone" in done.stdout
    assert done.stderr == "1 attachment, 0 sound, 1 left alone\n"
    assert "is gone" in pycni("inspect", "lab", *where(way), code=1).stdout
    lines: list[str] = []
    cache_dir = way.folder / "cni"
    watch = Watch(lambda _: repair_all(cache_dir=cache_dir), Metrics(), lines.append)
    watch._pass({"rules"})
    watch._pass({"rules"})
    assert [line for line in lines if line.startswith("left alone: lab/one/eth0: ")] == lines[1:]
    assert len(lines) == 2


def test_what_is_nowhere(way: Way, sandbox: Sandbox) -> None:
    network_of(way).add("one", sandbox().path)
    (way.folder / "more.conflist").write_bytes(way.network("more", bridge(way)).config.source)
    conf = ("--conf-dir", str(way.folder))
    for words in (
        ("inspect", "nosuch"),
        ("inspect", "--container-id", "nosuch"),
        ("inspect", "lab", "--ifname", "nosuch"),
        ("repair", "nosuch"),
        ("repair", "--all", "--container-id", "nosuch"),
    ):
        done = pycni(*words, *where(way), *conf, code=1)
        assert "nothing is known to be attached of " in done.stderr
        assert "nosuch" in done.stderr
        assert "which have attachments to lab; " in done.stderr
    # What is configured may have no attachments.
    assert pycni("repair", "more", *where(way), *conf).stderr == "0 attachments, 0 sound\n"
    assert pycni("inspect", "more", *where(way), *conf).stderr == "0 attachments\n"


# --- directories of clients ----------------------------------------------------------------------


def as_multus_does(way: Way, name: str, path: str) -> Network:
    """Attach by a client whose cache is elsewhere."""
    settings: dict[str, Any] = {"cache_dir": MULTUS}
    if way.name != "in process":
        settings |= {"plugin_dirs": way.plugins, "engine": "exec"}
    network = Network(network_of(way, "1.1.0").config, **settings)
    network.add(name, path, args=POD)
    return network


@pytest.fixture
def configured(way: Way) -> tuple[str, ...]:
    """The options for a network lab, plugins and the usual caches."""
    folder = way.folder / "net.d"
    folder.mkdir()
    (folder / "lab.conflist").write_bytes(network_of(way, "1.1.0").config.source)
    return ("--conf-dir", str(folder), "--plugin-dir", str(way.plugins))


def test_caches_of_clients_are_looked_through(
    way: Way, sandbox: Sandbox, configured: tuple[str, ...]
) -> None:
    box = sandbox()
    as_multus_does(way, "one", box.path)
    place = ("lab", box.path, "--container-id", "one", *configured)
    assert pycni("check", *place).stderr == ""
    flush()
    assert "pycni repair lab puts it back" in pycni("check", *place, code=1).stderr
    assert "repaired" in pycni("repair", "lab", *configured).stdout
    assert pycni("check", *place).stderr == ""
    assert pycni("inspect", "lab", *configured).stdout.startswith("lab one eth0, pod shop/web\n")
    flush()
    (report,) = repair_all(plugin_dirs=way.plugins)
    assert report.ok
    assert masqueraded()
    pycni("del", *place)
    assert list(Path(MULTUS, "results").iterdir()) == []
    assert way.leases("lab") == {}


def test_reclaim_looks_through_caches_of_clients(
    way: Way, sandbox: Sandbox, configured: tuple[str, ...]
) -> None:
    box = sandbox()
    as_multus_does(way, "one", box.path)
    box.delete()
    forget_attachments()
    leases = ("--data-dir", str(way.folder / "cni/networks"))
    done = pycni("ipam", "reclaim", *leases, *configured, "-o", "json")
    assert [item["containerID"] for item in json.loads(done.stdout)] == ["one"]
    assert list(Path(MULTUS, "results").iterdir()) == []


@pytest.mark.parametrize("knows", ["notes", "cache", "lease"])
def test_gc_keeps_what_is_alive_and_in_no_list(
    way: Way, sandbox: Sandbox, configured: tuple[str, ...], knows: str
) -> None:
    alive, dead = sandbox(), sandbox()
    as_multus_does(way, "alive", alive.path)
    as_multus_does(way, "dead", dead.path)
    dead.delete()
    if knows != "notes":
        forget_attachments()
    if knows != "cache":
        for path in Path(MULTUS, "results").iterdir():
            path.unlink()
    for options in (("--dry-run",), ()):
        done = pycni("gc", "lab", "--none", *options, *configured, code=1)
        assert json.loads(done.stdout) == [{"containerID": "dead", "ifname": "eth0"}]
        assert "warning: lab: alive/eth0" in done.stderr
        assert "it is in no list, and kept" in done.stderr
        assert "--keep alive/eth0" in done.stderr
        assert "--force" in done.stderr
        assert "eth0" in [link["ifname"] for link in ip_json("link", netns=alive)]
    assert sorted(way.leases("lab").values()) == ["alive/eth0"]
    assert masqueraded()
    done = pycni("gc", "lab", "--keep", "alive/eth0", *configured)
    assert json.loads(done.stdout) == []
    done = pycni("gc", "lab", "--none", "--force", *configured)
    assert json.loads(done.stdout) == [{"containerID": "alive", "ifname": "eth0"}]
    assert way.leases("lab") == {}
    assert [link["ifname"] for link in ip_json("link", netns=alive)] == ["lo"]


def test_gc_by_the_library_keeps_what_is_alive(way: Way, sandbox: Sandbox) -> None:
    as_multus_does(way, "alive", sandbox().path)
    network = network_of(way, "1.1.0")
    network.add("own", sandbox().path)
    (survivor,) = network.garbage([]).living
    assert survivor.endpoint.container_id == "alive"
    assert [item.container_id for item in network.gc([], dry_run=True)] == ["own"]
    assert [item.container_id for item in network.gc([])] == ["own"]
    assert sorted(way.leases("lab").values()) == ["alive/eth0"]
    assert [item.container_id for item in network.gc([], force=True)] == ["alive"]
    assert way.leases("lab") == {}
