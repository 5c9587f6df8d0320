"""Network: CHECK, GC, STATUS and VERSION, by both engines, and cancelling."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

from harness.topics import noop_network as kit
from harness.topics.noop_network import ARGS, CAPABILITIES, CONTAINER, IFNAME, NETNS, Lab, add
from pycni.runtime import Cancellation, Endpoint, Network, PluginError, SeveralErrors
from pycni.spec import versions
from pycni.spec.errors import IO_FAILURE, CNIError

lab = kit.lab


# --- CHECK -------------------------------------------------------------------------------------


def test_check_goes_forward_with_the_whole_result(lab: Lab) -> None:
    network = lab.network()
    add(network)
    lab.entries()
    network.check(CONTAINER, NETNS, IFNAME)
    entries = lab.entries()
    assert [(entry["Command"], stdin["index"]) for entry, stdin in entries] == [
        ("CHECK", 0), ("CHECK", 1), ("CHECK", 2),
    ]  # fmt: skip
    assert all(stdin["prevResult"]["dns"] for _, stdin in entries)
    assert entries[0][0]["CmdArgs"]["Args"] == "A=B;C=D"


def test_check_stops_at_the_first_difference(lab: Lab) -> None:
    network = lab.network()
    add(network)
    lab.entries()
    lab.say(1, ReportError="gone", ReportErrorCode=102)
    with pytest.raises(PluginError) as caught:
        network.check(CONTAINER, NETNS, IFNAME)
    assert (caught.value.code, caught.value.message) == (102, "gone")
    assert lab.calls() == [("CHECK", 0), ("CHECK", 1)]


def test_check_of_what_was_never_added(lab: Lab) -> None:
    with pytest.raises(CNIError) as caught:
        lab.network().check(CONTAINER, NETNS)
    assert caught.value.code == 3
    assert lab.entries() == []


def test_check_is_disabled(lab: Lab) -> None:
    network = lab.network(disableCheck=True)
    network.check(CONTAINER, NETNS)
    assert lab.entries() == []


def test_check_came_with_0_4_0(lab: Lab) -> None:
    network = lab.network("0.3.1")
    add(network)
    lab.entries()
    with pytest.raises(CNIError) as caught:
        network.check(CONTAINER, NETNS, IFNAME)
    assert caught.value.message == (
        'configuration version "0.3.1" does not support the CHECK command'
    )
    assert lab.entries() == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("adsfadsfasdfasfdsafaf", "decoding version from network config"),
        ('{"cniVersion": "0.4567.0"}', 'unsupported CNI result version "0.4567.0"'),
    ],
)
def test_check_refuses_a_damaged_cache(lab: Lab, content: str, message: str) -> None:
    network = lab.network()
    add(network)
    (lab.cache / "results" / lab.cached()[0]).write_text(content)
    with pytest.raises(CNIError) as caught:
        network.check(CONTAINER, NETNS, IFNAME)
    assert 'failed to get network "lab" cached result' in caught.value.message
    assert message in caught.value.message


# --- GC ----------------------------------------------------------------------------------------


def test_gc_deletes_what_is_not_kept_and_asks_the_plugins(lab: Lab) -> None:
    network = lab.network()
    for ifname in ("eth0", "eth1"):
        add(network, ifname)
    lab.entries()
    lab.hush()
    stale = network.gc([(CONTAINER, "eth0"), ("other", "eth7")])
    assert [(item.container_id, item.ifname, item.netns) for item in stale] == [
        (CONTAINER, "eth1", NETNS)
    ]
    entries = lab.entries()
    assert [entry["Command"] for entry, _ in entries] == ["DEL"] * 3 + ["GC"] * 3
    assert all(entry["CmdArgs"]["IfName"] == "eth1" for entry, _ in entries[:3])
    kept = [
        {"containerID": "other", "ifname": "eth7"},
        {"containerID": CONTAINER, "ifname": "eth0"},
    ]
    for entry, stdin in entries[3:]:
        assert stdin["cni.dev/valid-attachments"] == kept
        assert stdin["cni.dev/attachments"] == kept
        assert "prevResult" not in stdin
        assert entry["CmdArgs"]["ContainerID"] == ""
    assert [stdin["index"] for _, stdin in entries[3:]] == [0, 1, 2]
    assert lab.cached() == [f"lab-{CONTAINER}-eth0"]


def test_gc_needs_a_list_and_takes_an_empty_one_at_its_word(lab: Lab) -> None:
    network = lab.network()
    add(network)
    lab.entries()
    with pytest.raises(CNIError, match="GC without the attachments to keep"):
        network.gc(None)
    assert lab.entries() == []
    lab.hush()
    assert len(network.gc([])) == 1
    assert lab.cached() == []
    assert lab.entries()[-1][1]["cni.dev/valid-attachments"] == []


def test_gc_dry_run(lab: Lab) -> None:
    network = lab.network()
    add(network)
    lab.entries()
    assert [item.ifname for item in network.gc([], dry_run=True)] == [IFNAME]
    assert lab.entries() == []
    assert len(lab.cached()) == 1


def test_gc_before_1_1_0_deletes_what_is_cached(lab: Lab) -> None:
    network = lab.network("1.0.0")
    add(network)
    lab.entries()
    network.gc([])
    assert lab.calls() == [("DEL", 2), ("DEL", 1), ("DEL", 0)]


def test_gc_where_there_can_be_no_leases(tmp_path: Path) -> None:
    """It goes on without; host-local says why, if it is asked."""
    (tmp_path / "file").write_text("")
    ipam = {"type": "host-local", "subnet": "10.1.0.0/16", "dataDir": str(tmp_path / "file")}
    document = {"cniVersion": "1.1.0", "name": "lab", "type": "bridge", "ipam": ipam}
    found = Network.from_dict(document, cache_dir=tmp_path).garbage([])
    assert (found.noted, found.leftovers, found.living) == ((), (), ())


def test_gc_leaves_other_networks_alone(lab: Lab) -> None:
    add(lab.network())
    other = lab.network(name="lab-2")
    add(other)
    lab.hush()
    assert len(other.gc([])) == 1
    assert lab.cached() == [f"lab-{CONTAINER}-{IFNAME}"]


def test_gc_is_disabled(lab: Lab) -> None:
    network = lab.network(disableGC=True)
    add(network)
    lab.entries()
    assert network.gc([]) == []
    assert lab.entries() == []


def test_gc_goes_on_after_failures(lab: Lab) -> None:
    network = lab.network()
    for ifname in ("eth0", "eth1"):
        add(network, ifname)
    lab.entries()
    lab.hush()
    lab.say(1, ReportError="stuck", ReportErrorCode=5)
    with pytest.raises(SeveralErrors) as caught:
        network.gc([])
    messages = [error.message for error in caught.value.errors]
    assert [message.partition(":")[0] for message in messages] == [
        f"failed to delete stale attachment {CONTAINER} eth0",
        f"failed to delete stale attachment {CONTAINER} eth1",
        "failed to GC plugin noop",
    ]
    assert len(lab.calls()) == 9


# --- STATUS, VERSION, validate -----------------------------------------------------------------


def test_status_stops_at_the_first_that_is_not_ready(lab: Lab) -> None:
    network = lab.network()
    lab.hush()
    network.status()
    assert lab.calls() == [("STATUS", 0), ("STATUS", 1), ("STATUS", 2)]
    lab.say(1, ReportError="plugin error", ReportErrorCode=50)
    with pytest.raises(PluginError) as caught:
        network.status()
    assert (caught.value.code, caught.value.message) == (50, "plugin error")
    assert lab.calls() == [("STATUS", 0), ("STATUS", 1)]


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_status_before_1_1_0_asks_our_own_plugins(lab: Lab, version: str) -> None:
    network = lab.network(version)
    lab.hush()
    assert network.status() == ()
    assert lab.calls() == [("STATUS", 0), ("STATUS", 1), ("STATUS", 2)]
    lab.say(1, ReportError="plugin error", ReportErrorCode=50)
    with pytest.raises(PluginError) as caught:
        network.status()
    assert (caught.value.code, caught.value.message) == (50, "plugin error")


def test_status_before_1_1_0_names_whom_it_could_not_ask(tmp_path: Path, plugin_dir: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "other").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "other").chmod(0o755)
    places = [tmp_path, plugin_dir]

    def status(*types: str) -> tuple[str, ...]:
        plugins = [{"type": name} for name in types]
        document = {"cniVersion": "1.0.0", "name": "lab", "plugins": plugins}
        return Network.from_dict(document, plugin_dirs=places, cache_dir=tmp_path).status()

    assert status("other", "portmap") == ("other",)
    assert not ran.exists()
    with pytest.raises(PluginError, match='failed to find plugin "nosuch"'):
        status("other", "nosuch")


def test_versions(lab: Lab) -> None:
    assert lab.network().versions() == {
        "noop": ("0.-42.0", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
    }


def test_validate(lab: Lab) -> None:
    assert lab.network().validate() == {"portMappings", "mac"}
    with pytest.raises(CNIError) as caught:
        lab.network("broken").validate()
    assert str(caught.value).count("does not support config version") == 3
    assert 'plugin noop does not support config version "broken"' in str(caught.value)
    with pytest.raises(PluginError, match="failed to find plugin"):
        lab.network(plugins=[{"type": "nowhere"}]).validate()


# --- both --------------------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path: Path, plugin_dir: Path) -> list[Lab]:
    (tmp_path / "one").mkdir()
    return [Lab(tmp_path / "one", plugin_dir, engine) for engine in ("auto", "exec")]


def test_what_one_engine_attaches_the_other_checks_and_detaches(both: list[Lab]) -> None:
    for first, second in (both, reversed(both)):
        add(first.network())
        first.entries()
        network = second.network()
        second.hush()
        network.check(CONTAINER, NETNS, IFNAME)
        network.gc([(CONTAINER, IFNAME)])
        network.delete(CONTAINER, ifname=IFNAME)
        assert [command for command, _ in second.calls()] == (
            ["CHECK"] * 3 + ["GC"] * 3 + ["DEL"] * 3
        )
        assert second.cached() == []


def test_both_engines_ask_and_note_the_same(both: list[Lab]) -> None:
    found = []
    for lab in both:
        network = lab.network()
        result = add(network)
        noted = (lab.cache / "results" / lab.cached()[0]).read_bytes()
        network.check(CONTAINER, NETNS, IFNAME)
        network.delete(CONTAINER, NETNS, IFNAME)
        entries = lab.entries()
        for entry, _ in entries:
            del entry["CmdArgs"]["StdinData"]  # compared as what it says
        found.append((result, noted, entries))
    assert found[0] == found[1]


# --- cancelling --------------------------------------------------------------------------------


def test_a_cancelled_add_is_undone(lab: Lab) -> None:
    cancel = Cancellation()
    done = []

    def on_call(command: str, plugin_type: str) -> None:
        done.append((command, plugin_type))
        if len(done) == 2:
            cancel.cancel()

    document = json.loads(lab.network().config.source)
    network = Network.from_dict(
        document,
        plugin_dirs=lab.plugin_dir,
        engine=lab.engine,
        cache_dir=lab.cache,
        on_call=on_call,
    )
    with pytest.raises(CNIError, match="canceled"):
        add(network, cancel=cancel)
    assert [command for command, _ in done[:3]] == ["ADD", "ADD", "DEL"]
    assert lab.calls()[-2:] == [("DEL", 1), ("DEL", 0)]
    assert lab.cached() == []
    with pytest.raises(CNIError, match="canceled"):
        network.status(cancel=cancel)


def test_the_same_arguments_in_one_object(lab: Lab) -> None:
    network = lab.network()
    endpoint = Endpoint(CONTAINER, NETNS, IFNAME, dict(ARGS), CAPABILITIES)
    result = network.add_endpoint(endpoint)
    assert network.attachments() == [endpoint.replace(args=ARGS)]
    assert network.result(CONTAINER, IFNAME) == result
    network.delete_endpoint(Endpoint(CONTAINER, ifname=IFNAME))
    assert network.attachments() == []


def test_gc_fails_where_the_cache_cannot_be_read(lab: Lab) -> None:
    """What is attached is not known then, so nothing may be said to be collected."""
    network = lab.network("1.1.0")
    add(network)
    results = lab.cache / "results"
    shutil.rmtree(results)
    results.write_text("")
    with pytest.raises(CNIError, match="Not a directory"):
        network.gc([])


def test_a_disabled_check_succeeds_in_every_version(lab: Lab) -> None:
    for version in versions.ALL:
        lab.network(version, disableCheck=True).check(CONTAINER, NETNS)
    assert lab.entries() == []


def test_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without any refuses in words of its own."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    network = Network.from_dict({"name": "n", "type": "noop"}, cache_dir=tmp_path)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(CNIError, match=os.strerror(errno.ENOLCK)) as caught:
        network.add(CONTAINER, NETNS)
    assert caught.value.code == IO_FAILURE
