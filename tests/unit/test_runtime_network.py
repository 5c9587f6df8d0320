"""What libcni's rules make of a list of plugins, by both engines: three noops write down each call.

The first reports a result, the second hands it on, the third adds a name server. Expectations are
those of the specification and of the facts that the reference's own tests pin.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from harness.topics import noop_network as kit
from harness.topics.noop_network import (
    ADDRESS,
    ARGS,
    CAPABILITIES,
    CONTAINER,
    IFNAME,
    NETNS,
    Lab,
    add,
)
from pycni.runtime import Network, PluginError, SeveralErrors
from pycni.spec.errors import CNIError
from pycni.spec.result import encode_result

lab = kit.lab


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


def test_what_could_not_be_undone_is_reported(lab: Lab) -> None:
    network = lab.network()
    # No result, so the second cannot hand it on; nor can it be asked to clean up.
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


def test_delete_goes_on_after_a_failure_and_says_all(lab: Lab) -> None:
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
