"""ADD of what is attached already: refused or not, nothing that was there before is taken back.

Each sequence by all three ways of calling plugins. The first plugin accepts the repetition, a later
one refuses it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Namespace, Sandbox, ip_json, run_in
from harness.host import forget_attachments
from harness.ways import Way, notes, ports_of
from pycni.runtime import Network, PluginError

LOOPBACK = {"type": "loopback"}
IDEMPOTENT = {"type": "idempotent"}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables"}
RATES = {"type": "bandwidth", "egressRate": 10**7, "egressBurst": 10**6}

# A plugin of another project: its ADD succeeds however often it is called.
_IDEMPOTENT = f"""#!{sys.executable}
import json, os, subprocess, sys
given = json.load(sys.stdin)
env = os.environ
space, inner = os.path.basename(env.get("CNI_NETNS", "")), env.get("CNI_IFNAME", "")
name = space[-8:]
inside = ["ip", "netns", "exec", space]
there = not subprocess.run([*inside, "test", "-e", "/sys/class/net/" + inner]).returncode
def do(*words):
    subprocess.run(words, check=True)
if env["CNI_COMMAND"] == "ADD":
    if not there:
        do("ip", "link", "add", name, "type", "veth", "peer", "name", inner, "netns", space)
        do(*inside, "ip", "addr", "add", "10.64.0.2/24", "dev", inner)
        do(*inside, "ip", "link", "set", inner, "up")
        do("ip", "addr", "add", "10.64.0.1/24", "dev", name)
        do("ip", "link", "set", name, "up")
    print(json.dumps({{
        "cniVersion": given["cniVersion"],
        "interfaces": [{{"name": name}}, {{"name": inner, "sandbox": env["CNI_NETNS"]}}],
        "ips": [{{"address": "10.64.0.2/24", "interface": 1}}],
    }}))
elif env["CNI_COMMAND"] == "DEL" and there:
    do(*inside, "ip", "link", "del", inner)
"""


@pytest.fixture
def plugin_dir(plugin_dir: Path, tmp_path: Path) -> Path:
    """A directory of the test's own, from which it can take plugins away."""
    own = tmp_path / "bin"
    shutil.copytree(plugin_dir, own, symlinks=True)
    return own


@pytest.fixture
def way(way: Way) -> Way:
    add_idempotent(way)
    return way


def add_idempotent(way: Way) -> None:
    path = way.plugins / "idempotent"
    path.write_text(_IDEMPOTENT)
    path.chmod(0o755)


def network(way: Way, name: str, *plugins: dict[str, Any], cache: str = "cni") -> Network:
    document = {"cniVersion": "1.1.0", "name": name, "plugins": list(plugins)}
    engine = "auto" if way.name == "in process" else "exec"
    cache_dir = way.folder / cache
    return Network.from_dict(document, cache_dir=cache_dir, plugin_dirs=way.plugins, engine=engine)


def bridge(way: Way, **keys: Any) -> dict[str, Any]:
    return {
        "type": "bridge", "bridge": "br1", "isDefaultGateway": True, "ipMasq": True,
        "ipam": way.host_local("10.61.0.0/24"), **keys,
    }  # fmt: skip


def links(netns: Namespace) -> dict[str, tuple[int, bool]]:
    """Index of each interface of a namespace, and whether it is up."""
    found = ip_json("link", "show", netns=netns)
    return {link["ifname"]: (link["ifindex"], "UP" in link["flags"]) for link in found}


def queues() -> list[dict[str, Any]]:
    return sorted(json.loads(run_in(None, ["tc", "-j", "qdisc", "show"]).stdout), key=str)


LOSSES = ("nothing", "notes", "cache", "both")


def lose(what: str) -> str:
    """Lose what says of the attachment; returns the cache directory of the next ADD."""
    if what in ("notes", "both"):
        forget_attachments()
    return "other" if what in ("cache", "both") else "cni"


@pytest.mark.slow
@pytest.mark.parametrize("lost", LOSSES)
def test_the_interfaces_plugin_refuses(way: Way, sandbox: Sandbox, lost: str) -> None:
    """As loopback accepts it before."""
    plugins = (LOOPBACK, bridge(way), PORTMAP)
    box = sandbox()
    network(way, "n", *plugins).add("a", box.path, capabilities=ports_of((8080, 80)))
    before, leases, cached = links(box), way.leases("n"), way.cached()
    again = network(way, "n", *plugins, cache=lose(lost))
    with pytest.raises(PluginError):
        again.add("a", box.path, capabilities=ports_of((8080, 80)))
    assert links(box) == before
    assert (way.leases("n"), way.cached()) == (leases, cached)
    network(way, "n", *plugins).check("a")
    network(way, "n", *plugins).delete("a", box.path)
    assert (list(links(box)), way.leases("n"), way.cached(), notes()) == (["lo"], {}, [], [])


@pytest.mark.slow
@pytest.mark.parametrize("lost", LOSSES)
@pytest.mark.parametrize(
    "refuses", [RATES, {"type": "nonsense"}, {"type": "firewall", "backend": "nonsense"}],
    ids=["bandwidth", "another", "firewall"],
)  # fmt: skip
def test_a_later_plugin_refuses(
    way: Way, sandbox: Sandbox, refuses: dict[str, Any], lost: str
) -> None:
    """As the interface's plugin, of another project, accepts it before."""
    nonsense = way.plugins / "nonsense"
    nonsense.write_text("#!/bin/sh\nexit 1\n")
    nonsense.chmod(0o755)
    listed = (IDEMPOTENT, PORTMAP, RATES)
    box = sandbox()
    ports = ports_of((8080, 80))
    network(way, "n", *listed).add("a", box.path, capabilities=ports)
    before, cached, shaped = links(box), way.cached(), queues()
    again = network(way, "n", IDEMPOTENT, PORTMAP, refuses, cache=lose(lost))
    with pytest.raises(PluginError):
        again.add("a", box.path, capabilities=ports)
    assert (links(box), way.cached(), queues()) == (before, cached, shaped)
    network(way, "n", *listed).check("a")


@pytest.mark.parametrize("lost", LOSSES)
def test_a_port_that_is_taken(way: Way, sandbox: Sandbox, lost: str) -> None:
    one, two = sandbox(), sandbox()
    network(way, "m", bridge(way), PORTMAP).add("b", two.path, capabilities=ports_of((8080, 80)))
    again = network(way, "n", IDEMPOTENT, PORTMAP)
    again.add("a", one.path)
    before, cached = links(one), way.cached()
    again = network(way, "n", IDEMPOTENT, PORTMAP, cache=lose(lost))
    with pytest.raises(PluginError, match="8080"):
        again.add("a", one.path, capabilities=ports_of((8080, 80)))
    assert (links(one), way.cached()) == (before, cached)
    network(way, "n", IDEMPOTENT, PORTMAP).check("a")


def test_a_first_add_is_taken_back(way: Way, sandbox: Sandbox) -> None:
    one, two = sandbox(), sandbox()
    network(way, "m", bridge(way), PORTMAP).add("b", two.path, capabilities=ports_of((8080, 80)))
    first = network(way, "n", LOOPBACK, IDEMPOTENT, PORTMAP)
    with pytest.raises(PluginError, match="8080"):
        first.add("a", one.path, capabilities=ports_of((8080, 80)))
    assert list(links(one)) == ["lo"]
    assert [note["network"] for note in notes()] == ["m"]


def test_an_add_to_the_next_namespace_is_taken_back(way: Way, sandbox: Sandbox) -> None:
    """What is noted is of a namespace that has gone."""
    nonsense = way.plugins / "nonsense"
    nonsense.write_text("#!/bin/sh\nexit 1\n")
    nonsense.chmod(0o755)
    box = sandbox()
    network(way, "n", IDEMPOTENT).add("a", box.path)
    run_in(None, ["ip", "netns", "delete", box.name])
    run_in(None, ["ip", "netns", "add", box.name])
    with pytest.raises(PluginError):
        network(way, "n", IDEMPOTENT, {"type": "nonsense"}).add("a", box.path)
    assert list(links(box)) == ["lo"]


def test_a_refused_add_of_another_network_and_its_del(way: Way, sandbox: Sandbox) -> None:
    """What loopback finds in the container is not the interface of its own network."""
    first = network(way, "n", bridge(way))
    second = network(way, "m", LOOPBACK, bridge(way, bridge="br2"))
    box = sandbox()
    run_in(box, ["ip", "link", "set", "lo", "up"])
    first.add("a", box.path)
    before = links(box)
    with pytest.raises(PluginError):
        second.add("a", box.path)
    assert links(box) == before
    first.check("a")
    second.delete("a", box.path)
    assert list(links(box)) == list(before)
    first.check("a")
    assert (list(way.leases("n").values()), way.leases("m")) == (["a/eth0"], {})
    first.delete("a")
    assert (list(links(box)), notes()) == (["lo"], [])


CHAINED = [
    RATES,
    {"type": "bandwidth", "ingressRate": 10**7, "ingressBurst": 10**6},
    {"type": "firewall", "backend": "nftables"},
    {"type": "firewall", "backend": "iptables"},
    {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables"},
    {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "iptables"},
    {"type": "tuning", "mtu": 1300, "sysctl": {"net.ipv4.conf.IFNAME.log_martians": "1"}},
]


@pytest.mark.slow
@pytest.mark.parametrize("chained", CHAINED, ids=lambda keys: "-".join(map(str, keys.values())))
def test_a_plugin_is_called_twice(
    way: Way, sandbox: Sandbox, host: Host, chained: dict[str, Any]
) -> None:
    """Whether it accepts that or not: what it made stays as it was, and goes with the DEL."""
    nonsense = way.plugins / "nonsense"
    nonsense.write_text("#!/bin/sh\nexit 1\n")
    nonsense.chmod(0o755)
    box = sandbox()
    ports = ports_of((8080, 80))
    warm_up = sandbox()
    first = network(way, "n", IDEMPOTENT, chained)
    first.add("warm-up", warm_up.path, capabilities=ports_of((8081, 80)))
    first.delete("warm-up", warm_up.path)
    clean = state(host, box)
    first.add("a", box.path, capabilities=ports)
    before = state(host, box)
    with pytest.raises(PluginError):
        network(way, "n", IDEMPOTENT, chained, {"type": "nonsense"}).add(
            "a", box.path, capabilities=ports
        )
    assert state(host, box) == before
    first.check("a")
    first.delete("a", box.path)
    assert state(host, box) == clean


def state(host: Host, netns: Namespace) -> dict[str, Any]:
    """What can be seen on the host and in a namespace."""
    inside = {
        words: ip_json(*words.split(), netns=netns)
        for words in ("link", "rule", "route show table all")
    }
    for link in inside["link"]:
        for key in ("link_index", "address"):
            link.pop(key, None)
    return {**host.snapshot(), "queues": queues(), "inside": inside}
