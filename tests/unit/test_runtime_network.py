"""What libcni's rules make of a list of plugins, by both engines: three noops write down each call.

The first reports a result, the second hands it on, the third adds a name server. Expectations are
those of the specification and of the facts that the reference's own tests pin.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycni.runtime import Cancellation, Endpoint, Network, PluginError, SeveralErrors
from pycni.spec import versions
from pycni.spec.errors import IO_FAILURE, CNIError
from pycni.spec.result import encode_result

CONTAINER = "some-container-id"
NETNS = "/some/netns/path"
IFNAME = "some-eth0"
ARGS = (("A", "B"), ("C", "D"))
CAPABILITIES = {"portMappings": [{"hostPort": 8080, "containerPort": 80}], "unasked": 1}
ADDRESS = "10.1.2.3/24"


class Lab:
    """A network of noops, and what they were asked."""

    def __init__(self, folder: Path, plugin_dir: Path, engine: str) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.cache = folder / "cache"
        self.plugin_dir = plugin_dir
        self.engine = engine
        self.log.touch()

    def network(self, version: str = "1.1.0", number: int = 3, **keys: Any) -> Network:
        address = {"address": ADDRESS}
        if version < "1.0.0":
            address["version"] = "4"
        result = {"cniVersion": version, "ips": [address]}
        reports = [json.dumps(result), "PASSTHROUGH", "INJECT-DNS"]
        plugins = []
        for index in range(number):
            self.say(index, ReportResult=reports[index])
            plugins.append(
                {
                    "type": "noop",
                    "debugFile": str(self.debug(index)),
                    "commandLog": str(self.log),
                    "index": index,
                    "capabilities": {"portMappings": index == 0, "mac": True},
                }
            )
        document = {"cniVersion": version, "name": "lab", "plugins": plugins, **keys}
        return Network.from_dict(
            document, plugin_dirs=self.plugin_dir, engine=self.engine, cache_dir=self.cache
        )

    def debug(self, index: int) -> Path:
        return self.folder / f"debug-{index}"

    def say(self, index: int, **keys: Any) -> None:
        """What a noop is to answer from now on, in addition."""
        path = self.debug(index)
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, **keys}))

    def hush(self) -> None:
        """Have the noops answer nothing from now on: GC and STATUS hand them no result."""
        for index in range(3):
            self.say(index, ReportResult="")

    def calls(self) -> list[tuple[str, int]]:
        """Operation and index of each call so far; forgets them."""
        return [(entry["Command"], stdin["index"]) for entry, stdin in self.entries()]

    def entries(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        text = self.log.read_text()
        self.log.write_text("")
        return [
            (entry, json.loads(base64.b64decode(entry["CmdArgs"]["StdinData"])))
            for entry in (json.loads(text) if text else [])
        ]

    def cached(self) -> list[str]:
        folder = self.cache / "results"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture(params=["auto", "exec"])
def lab(request: pytest.FixtureRequest, tmp_path: Path, plugin_dir: Path) -> Lab:
    return Lab(tmp_path, plugin_dir, request.param)


def add(network: Network, ifname: str = IFNAME, **options: Any) -> Any:
    return network.add(CONTAINER, NETNS, ifname, args=ARGS, capabilities=CAPABILITIES, **options)


# --- ADD ---------------------------------------------------------------------------------------


def test_add_goes_forward_each_on_the_result_of_the_one_before(lab: Lab) -> None:
    network = lab.network()
    result = add(network)
    assert [str(entry.address) for entry in result.ips] == [ADDRESS]
    assert result.dns.nameservers == ("1.2.3.4",)
    entries = lab.entries()
    assert [entry["Command"] for entry, _ in entries] == ["ADD"] * 3
    for entry, _ in entries:
        asked = entry["CmdArgs"]
        assert asked["ContainerID"] == CONTAINER
        assert asked["Netns"] == NETNS
        assert asked["IfName"] == IFNAME
        assert asked["Args"] == "A=B;C=D"
        assert asked["Path"] == str(lab.plugin_dir)
    stdins = [stdin for _, stdin in entries]
    assert all((stdin["name"], stdin["cniVersion"]) == ("lab", "1.1.0") for stdin in stdins)
    assert "prevResult" not in stdins[0]
    assert stdins[1]["prevResult"]["ips"] == [{"address": ADDRESS}]
    assert "dns" not in stdins[2]["prevResult"]
    # Settings go to the plugins that declare the capability true, and only those settings.
    assert stdins[0]["runtimeConfig"] == {"portMappings": CAPABILITIES["portMappings"]}
    assert "runtimeConfig" not in stdins[1]


def test_add_is_noted_as_libcni_notes_it(lab: Lab) -> None:
    network = lab.network()
    result = add(network)
    assert lab.cached() == [f"lab-{CONTAINER}-{IFNAME}"]
    document = json.loads((lab.cache / "results" / lab.cached()[0]).read_text())
    assert list(document) == [
        "kind", "containerId", "config", "ifName", "networkName", "netns", "cniArgs",
        "capabilityArgs", "result",
    ]  # fmt: skip
    assert document["kind"] == "cniCacheV1"
    assert base64.b64decode(document["config"]) == network.config.source
    assert document["cniArgs"] == [["A", "B"], ["C", "D"]]
    assert document["capabilityArgs"] == CAPABILITIES
    assert document["result"] == encode_result(result, "1.1.0")
    (endpoint,) = network.attachments()
    assert (endpoint.container_id, endpoint.ifname) == (CONTAINER, IFNAME)
    assert (endpoint.netns, endpoint.args) == (NETNS, ARGS)
    assert network.result(CONTAINER, IFNAME) == result
    assert network.result(CONTAINER, "eth9") is None


def test_two_interfaces_of_one_container(lab: Lab) -> None:
    network = lab.network()
    add(network, "eth0")
    add(network, "eth1")
    assert lab.cached() == [f"lab-{CONTAINER}-eth0", f"lab-{CONTAINER}-eth1"]
    network.delete(CONTAINER, NETNS, "eth0")
    assert lab.cached() == [f"lab-{CONTAINER}-eth1"]


def test_a_failed_add_is_undone_in_reverse(lab: Lab) -> None:
    network = lab.network()
    lab.say(2, ReportError="no more", ReportErrorCode=11, ReportStderr="it said\n")
    with pytest.raises(PluginError) as caught:
        add(network)
    error = caught.value
    assert error.code == 11
    assert error.message == 'plugin type="noop" failed (add): no more'
    assert (error.plugin_type, error.command) == ("noop", "ADD")
    assert lab.calls() == [("ADD", 0), ("ADD", 1), ("ADD", 2), ("DEL", 2), ("DEL", 1), ("DEL", 0)]
    assert lab.cached() == []


def test_what_could_not_be_undone_is_told(lab: Lab) -> None:
    network = lab.network()
    # No result, so the second cannot hand it on; nor can it be told to clean up.
    lab.say(1, ReportError="broken", ReportErrorCode=100)
    lab.say(0, ReportError="")
    with pytest.raises(PluginError, match="broken"):
        add(network)
    assert lab.calls() == [("ADD", 0), ("ADD", 1), ("DEL", 1), ("DEL", 0)]


def test_a_plugin_that_is_not_there_is_found_before_anything_is_done(lab: Lab) -> None:
    plugins = [{"type": "noop", "debugFile": str(lab.debug(0)), "commandLog": str(lab.log)}]
    lab.say(0, ReportResult="{}")
    network = lab.network(plugins=[*plugins, {"type": "nowhere"}])
    with pytest.raises(PluginError) as caught:
        add(network)
    assert 'failed to find plugin "nowhere" in path' in caught.value.message
    assert lab.entries() == []


def test_a_second_add_that_is_refused_leaves_the_first(lab: Lab) -> None:
    network = lab.network()
    add(network)
    lab.calls()
    lab.say(0, ReportError="it exists", ReportErrorCode=101)
    with pytest.raises(PluginError):
        add(network)
    assert lab.calls() == [("ADD", 0)]
    assert len(lab.cached()) == 1


def test_a_cache_that_cannot_be_written_undoes_the_add(lab: Lab) -> None:
    network = lab.network()
    lab.cache.write_text("")  # in the way of the directory
    with pytest.raises(CNIError, match='failed to set network "lab" cached result'):
        add(network)
    assert lab.calls()[3:] == [("DEL", 2), ("DEL", 1), ("DEL", 0)]


@pytest.mark.parametrize(
    ("container_id", "ifname", "code", "message"),
    [
        ("", "eth0", 3, "missing containerID"),
        ("some-%%container", "eth0", 4, "invalid characters in containerID"),
        ("x", "", 4, "interface name is empty"),
        ("x", "1234567890123456", 4, "interface name is too long"),
        ("x", ".", 4, "interface name is . or .."),
        ("x", "a/b", 4, "interface name contains / or : or whitespace characters"),
        ("x", "a b", 4, "interface name contains / or : or whitespace characters"),
    ],
)
def test_bad_names(lab: Lab, container_id: str, ifname: str, code: int, message: str) -> None:
    network = lab.network()
    operations: list[Callable[..., Any]] = [network.add, network.delete, network.check]
    for operation in operations:
        with pytest.raises(CNIError) as caught:
            operation(container_id, NETNS, ifname)
        assert (caught.value.code, caught.value.message) == (code, message)
    assert lab.entries() == []


@pytest.mark.parametrize("args", [{"A": "1;B=2"}, {"": "x"}, {"A=": "x"}, [("A", "x\0")]])
def test_arguments_that_cannot_be_said(lab: Lab, args: Any) -> None:
    with pytest.raises(CNIError, match="CNI_ARGS"):
        lab.network().add(CONTAINER, NETNS, args=args)
    assert lab.entries() == []


def test_an_add_needs_a_namespace(lab: Lab) -> None:
    with pytest.raises(CNIError, match="CNI_NETNS"):
        lab.network().add(CONTAINER, "")


def test_a_result_in_an_older_version_goes_on_in_the_networks(lab: Lab) -> None:
    network = lab.network()
    older = {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": ADDRESS}], "dns": {}}
    lab.say(0, ReportResult=json.dumps(older))
    if lab.engine == "auto":
        older["cniVersion"] = "1.1.0"
        lab.say(0, ReportResult=json.dumps(older))
    assert add(network).cni_version == "1.1.0"
    assert lab.entries()[1][1]["prevResult"]["cniVersion"] == "1.1.0"


# --- DEL ---------------------------------------------------------------------------------------


def test_delete_goes_backward_with_the_whole_result(lab: Lab) -> None:
    network = lab.network()
    add(network)
    lab.entries()
    network.delete(CONTAINER, NETNS, IFNAME)
    entries = lab.entries()
    assert [(entry["Command"], stdin["index"]) for entry, stdin in entries] == [
        ("DEL", 2), ("DEL", 1), ("DEL", 0),
    ]  # fmt: skip
    for entry, stdin in entries:
        assert stdin["prevResult"]["dns"] == {"nameservers": ["1.2.3.4"]}
        assert entry["CmdArgs"]["Args"] == "A=B;C=D"  # given to ADD, and not again
    assert entries[2][1]["runtimeConfig"] == {"portMappings": CAPABILITIES["portMappings"]}
    assert lab.cached() == []


def test_delete_finds_the_namespace_by_itself(lab: Lab) -> None:
    network = lab.network()
    add(network)
    lab.entries()
    network.delete(CONTAINER, ifname=IFNAME)
    assert [entry["CmdArgs"]["Netns"] for entry, _ in lab.entries()] == [NETNS] * 3


def test_delete_of_nothing(lab: Lab) -> None:
    network = lab.network()
    lab.say(1, ReportResult="{}")
    lab.say(2, ReportResult="{}")
    network.delete(CONTAINER, NETNS, IFNAME)
    network.delete(CONTAINER)
    entries = lab.entries()
    assert len(entries) == 6
    assert all("prevResult" not in stdin for _, stdin in entries)


@pytest.mark.parametrize(("version", "handed"), [("0.3.1", False), ("0.4.0", True)])
def test_delete_gets_the_result_since_0_4_0(lab: Lab, version: str, handed: bool) -> None:
    network = lab.network(version)
    add(network)
    lab.entries()
    for index in range(3):
        lab.say(index, ReportResult="{}")
    network.delete(CONTAINER, NETNS, IFNAME)
    assert [("prevResult" in stdin) for _, stdin in lab.entries()] == [handed] * 3
    assert lab.cached() == []


def test_delete_goes_on_after_a_failure_and_tells_all(lab: Lab) -> None:
    network = lab.network()
    add(network)
    lab.entries()
    lab.say(2, ReportError="third", ReportErrorCode=5)
    lab.say(0, ReportError="first", ReportErrorCode=11)
    with pytest.raises(SeveralErrors) as caught:
        network.delete(CONTAINER, NETNS, IFNAME)
    assert [error.message for error in caught.value.errors] == [
        'plugin type="noop" failed (delete): third',
        'plugin type="noop" failed (delete): first',
    ]
    assert lab.calls() == [("DEL", 2), ("DEL", 1), ("DEL", 0)]
    assert len(lab.cached()) == 1  # so that it can be tried again
    lab.say(2, ReportError="")
    lab.say(0, ReportError="")
    network.delete(CONTAINER, NETNS, IFNAME)
    assert lab.cached() == []


@pytest.mark.parametrize("damage", ["adsfasdf", '{"kind": "cniCacheV1", "config": 1}'])
def test_delete_bears_with_a_damaged_cache(lab: Lab, damage: str) -> None:
    network = lab.network()
    add(network)
    lab.entries()
    for index in range(3):
        lab.say(index, ReportResult="{}")
    (lab.cache / "results" / lab.cached()[0]).write_text(damage)
    network.delete(CONTAINER, NETNS, IFNAME)
    assert all("prevResult" not in stdin for _, stdin in lab.entries())
    assert lab.cached() == []


def test_what_an_old_runtime_noted_is_a_bare_result(lab: Lab) -> None:
    network = lab.network()
    results = lab.cache / "results"
    results.mkdir(parents=True)
    old = {"cniVersion": "0.3.1", "ips": [{"version": "4", "address": ADDRESS}], "dns": {}}
    (results / f"lab-{CONTAINER}-{IFNAME}").write_text(json.dumps(old))
    network.check(CONTAINER, NETNS, IFNAME)
    network.delete(CONTAINER, NETNS, IFNAME)
    for _, stdin in lab.entries():
        assert stdin["prevResult"] == {"cniVersion": "1.1.0", "ips": [{"address": ADDRESS}]}
    assert lab.cached() == []


def test_a_network_as_it_was(lab: Lab) -> None:
    network = lab.network()
    add(network)
    lab.entries()
    settings: dict[str, Any] = {
        "cache_dir": lab.cache, "plugin_dirs": lab.plugin_dir, "engine": lab.engine,
    }  # fmt: skip
    assert Network.from_cache("lab", CONTAINER, "eth9", **settings) is None
    found = Network.from_cache("lab", CONTAINER, IFNAME, **settings)
    assert found is not None
    assert found.config.source == network.config.source
    found.delete(CONTAINER, ifname=IFNAME)
    assert lab.calls() == [("DEL", 2), ("DEL", 1), ("DEL", 0)]
    assert lab.cached() == []


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
