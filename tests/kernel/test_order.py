"""What is removed before an address is free, whatever happened to its attachment; and what is not.

Each sequence by all three ways of calling plugins.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import Sandbox, ask, ip_json, nft_list, run_in, service
from harness.agent import PYCNI
from harness.machines import CLIENT, HOST, Machines
from harness.ways import Way, notes, ports_of, way_of
from pycni.runtime import PluginError
from pycni.spec.errors import CNIError

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
RATES = {"type": "bandwidth", "egressRate": 10**7, "egressBurst": 10**6}
PORT = ports_of((8080, 80))


# A plugin of another project, which accepts everything.
ACCEPTS = f"""#!{sys.executable}
import json, os, sys
given = json.load(sys.stdin)
if os.environ["CNI_COMMAND"] == "ADD":
    print(json.dumps(given["prevResult"]))
"""

# One that says of each call, and refuses an ADD as long as a file is there.
TELLS = f"""#!{sys.executable}
import json, os, sys
given = json.load(sys.stdin)
here, name = os.path.split(sys.argv[0])
with open(here + "/calls", "a") as file:
    print(os.environ["CNI_COMMAND"], name, os.environ["CNI_NETNS"], file=file)
if os.environ["CNI_COMMAND"] == "ADD":
    if os.path.exists(here + "/refuse-" + name):
        print(json.dumps({{"cniVersion": "1.1.0", "code": 999, "msg": "refused"}}))
        sys.exit(1)
    empty = {{"cniVersion": "1.1.0", "interfaces": []}}
    print(json.dumps(given.get("prevResult", empty)))
"""

# In process there are no executables to be missing.
as_executables = pytest.mark.parametrize("way", ["cold", "agent"], indirect=True)


@pytest.fixture
def plugin_dir(plugin_dir: Path, tmp_path: Path) -> Path:
    """A directory of the test's own, from which it can take plugins away."""
    own = tmp_path / "bin"
    shutil.copytree(plugin_dir, own, symlinks=True)
    return own


@pytest.fixture
def small(way: Way) -> dict[str, Any]:
    """A bridge with one address to give."""
    return bridge(way)


def bridge(way: Way, name: str = "br1", **keys: Any) -> dict[str, Any]:
    ipam = way.host_local("10.63.0.0/24")
    ipam["ranges"][0][0] |= {"rangeStart": "10.63.0.2", "rangeEnd": "10.63.0.2"}
    return {
        "type": "bridge", "bridge": name, "isDefaultGateway": True, "ipMasq": True, "ipam": ipam,
        **keys,
    }  # fmt: skip


def ruleset() -> str:
    """All elements and rules, without the names of sets."""
    return str(
        [
            (found.get("set") or found.get("map") or {}).get("elem") or found.get("rule") or ""
            for found in nft_list()
        ]
    )


def named() -> bool:
    return "10.63.0.2" in ruleset()


def conf_file(way: Way, *plugins: dict[str, Any]) -> Path:
    folder = way.folder / "net.d"
    folder.mkdir(exist_ok=True)
    document = {"cniVersion": "1.1.0", "name": "n", "plugins": list(plugins)}
    (folder / "n.conflist").write_text(json.dumps(document))
    return folder


def install_strange(way: Way) -> Path:
    """A plugin of others, which accepts everything."""
    path = way.plugins / "strange"
    path.write_text(ACCEPTS)
    path.chmod(0o755)
    return path


def pycni(way: Way, *words: str, code: int = 0) -> str:
    directories = [] if way.name == "in process" else ["--plugin-dir", str(way.plugins)]
    done = subprocess.run(
        [PYCNI, *words, "--cache-dir", way.folder / "cni", *directories],
        capture_output=True, text=True, check=False, env={**os.environ, "CNI_PATH": ""},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


# --- G1: an address is free only when nothing names it -------------------------------------------


def test_reclaim_of_a_container_with_a_published_port(
    way: Way, small: dict[str, Any], sandbox: Sandbox
) -> None:
    network = way.network("n", small, PORTMAP)
    box, other = sandbox(), sandbox()
    network.add("gone", box.path, capabilities=PORT)
    box.delete()
    conf_dir = conf_file(way, small, PORTMAP)
    pycni(way, "ipam", "reclaim", "--conf-dir", str(conf_dir))
    assert (named(), way.leases("n"), way.cached(), notes()) == (False, {}, [], [])
    network.add("next", other.path)
    assert "8080" not in ruleset()
    network.check("next")


@as_executables
def test_reclaim_that_cannot_delete_keeps_the_lease(
    way: Way, small: dict[str, Any], sandbox: Sandbox
) -> None:
    strange = install_strange(way)
    network = way.network("n", small, {"type": "strange"})
    box = sandbox()
    network.add("gone", box.path)
    box.delete()
    strange.unlink()
    conf_dir = conf_file(way, small)
    words = pycni(way, "ipam", "reclaim", "--conf-dir", str(conf_dir), code=1)
    assert "10.63.0.2 of gone stays" in words
    assert "strange" in words
    assert list(way.leases("n")) == ["10.63.0.2"]


def test_port_map_that_was_dropped_from_the_list(
    way: Way, small: dict[str, Any], sandbox: Sandbox
) -> None:
    """By a runtime that passes today's list, too: the bridge's DEL removes what it finds noted."""
    network = way.network("n", small, PORTMAP)
    box = sandbox()
    network.add("a", box.path, capabilities=PORT)
    shutil.rmtree(way.folder / "cni/results")
    way.network("n", small).delete("a", box.path)
    assert (named(), way.leases("n"), notes()) == (False, {}, [])


@as_executables
def test_port_map_that_is_missing_at_del(way: Way, small: dict[str, Any], sandbox: Sandbox) -> None:
    network = way.network("n", small, PORTMAP)
    box = sandbox()
    network.add("a", box.path, capabilities=PORT)
    (way.plugins / "portmap").unlink()
    network.delete("a")
    assert (named(), way.leases("n"), way.cached(), notes()) == (False, {}, [], [])


@as_executables
def test_a_plugin_of_others_that_is_missing_at_del(
    way: Way, small: dict[str, Any], sandbox: Sandbox
) -> None:
    """What it made may name the address, which therefore stays reserved until it is there again."""
    strange = install_strange(way)
    network = way.network("n", small, {"type": "strange"})
    box = sandbox()
    network.add("a", box.path)
    strange.unlink()
    with pytest.raises(CNIError) as caught:
        network.delete("a")
    assert "strange" in str(caught.value)
    assert "stay reserved" in caught.value.details
    assert list(way.leases("n")) == ["10.63.0.2"]
    install_strange(way)
    network.delete("a")
    assert (way.leases("n"), way.cached(), notes()) == ({}, [], [])


@as_executables
def test_port_map_that_is_missing_beside_a_plugin_of_others(
    way: Way, small: dict[str, Any], sandbox: Sandbox
) -> None:
    """The runtime notes that one's part until all of the list is done."""
    install_strange(way)
    network = way.network("n", small, PORTMAP, {"type": "strange"})
    network.add("a", sandbox().path, capabilities=PORT)
    (way.plugins / "portmap").unlink()
    network.delete("a")
    assert (named(), way.leases("n"), way.cached(), notes()) == (False, {}, [], [])


@as_executables
def test_port_map_that_is_missing_at_a_del_that_is_tried_again(
    way: Way, small: dict[str, Any], sandbox: Sandbox
) -> None:
    """The first time another plugin fails, after which the bridge has removed the port map."""
    tuning = {"type": "tuning", "mtu": 1300, "dataDir": str(way.folder / "tuning")}
    network = way.network("n", small, PORTMAP, tuning)
    network.add("a", sandbox().path, capabilities=PORT)
    (backup,) = (way.folder / "tuning").iterdir()
    backup.write_text(json.dumps({**json.loads(backup.read_text()), "mtu": 70000}))
    (way.plugins / "portmap").unlink()
    with pytest.raises(CNIError) as caught:
        network.delete("a")
    assert "tuning" in str(caught.value)
    assert "portmap" not in str(caught.value)
    assert (named(), way.leases("n")) == (False, {})
    network.delete("a")
    assert (way.cached(), notes()) == ([], [])


@as_executables
def test_add_in_another_namespace_that_fails_is_undone(way: Way, sandbox: Sandbox) -> None:
    """After a DEL that was lost; what is noted is of the namespace before."""
    for name in ("one", "two"):
        (way.plugins / name).write_text(TELLS)
        (way.plugins / name).chmod(0o755)
    network = way.network("n", {"type": "one"}, {"type": "two"})
    box, other = sandbox(), sandbox()
    network.add("a", box.path)
    box.delete()
    (way.plugins / "refuse-two").touch()
    with pytest.raises(PluginError, match="refused"):
        network.add("a", other.path)
    calls = (way.plugins / "calls").read_text().splitlines()
    ours = [call.rpartition(" ")[0] for call in calls if call.endswith(other.path)]
    assert ours == ["ADD one", "ADD two", "DEL two", "DEL one"]
    assert [note["path"] for note in notes()] == [box.path]


def test_refused_add_in_another_namespace_undoes_nothing(way: Way, sandbox: Sandbox) -> None:
    """The container is attached to the network in its first one, by plugins that are the same."""
    network = way.network("n", {"type": "loopback"}, {"type": "bridge", "bridge": "br1"})
    box, other = sandbox(), sandbox()
    network.add("a", box.path)
    with pytest.raises(CNIError, match="attached to network n"):
        network.add("a", other.path)
    assert "UP" in ip_json("link", "show", "lo", netns=box)[0]["flags"]
    network.check("a")


@as_executables
def test_add_whose_result_cannot_be_cached_leaves_no_note(
    way: Way, small: dict[str, Any], sandbox: Sandbox
) -> None:
    install_strange(way)
    network = way.network("n", small, {"type": "strange"})
    results = way.folder / "cni/results"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text("no directory")
    with pytest.raises(CNIError, match="cached result"):
        network.add("a", sandbox().path)
    assert (notes(), way.leases("n")) == ([], {})


def test_a_repair_revives_nothing_whose_del_has_failed(
    way: Way, small: dict[str, Any], sandbox: Sandbox
) -> None:
    network = way.network("n", small, PORTMAP)
    box = sandbox()
    network.add("a", box.path, capabilities=PORT)
    data_dir = way.folder / "cni/networks"
    data_dir.rename(way.folder / "away")
    data_dir.write_text("no directory")
    with pytest.raises(PluginError):
        network.delete("a")
    assert not named()
    (report,) = network.repair()
    assert not report.ok
    assert "DEL has begun" in str(report.findings)
    assert not named()
    data_dir.unlink()
    (way.folder / "away").rename(data_dir)
    network.delete("a")
    assert (way.leases("n"), way.cached(), notes()) == ({}, [], [])


def test_lost_leases_are_made_again_for_who_is_alive(way: Way, sandbox: Sandbox) -> None:
    network = way.network("n", {**bridge(way), "ipam": way.host_local("10.63.0.0/24")})
    one, two = sandbox(), sandbox()
    network.add("one", one.path)
    shutil.rmtree(way.folder / "cni/networks")
    result = network.add("two", two.path)
    assert str(result.ips[0].address.address) == "10.63.0.3"
    assert way.leases("n") == {"10.63.0.2": "one/eth0", "10.63.0.3": "two/eth0"}


def test_what_a_released_address_left_is_evicted(
    way: Way, small: dict[str, Any], sandbox: Sandbox
) -> None:
    """Its lease was removed by hand, its container is gone, and its port still leads there."""
    network = way.network("n", small, PORTMAP)
    box, other = sandbox(), sandbox()
    network.add("gone", box.path, capabilities=PORT)
    box.delete()
    (way.folder / "cni/networks/n/10.63.0.2").unlink()
    network.add("next", other.path)
    assert "8080" not in ruleset()
    network.check("next")


# --- G2: a configuration that changed ------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False], ids=["cached list", "today's list"])
def test_what_was_switched_off_meanwhile(way: Way, sandbox: Sandbox, cached: bool) -> None:
    first = way.network("n", bridge(way, macspoofchk=True), {"type": "firewall"}, RATES)
    box = sandbox()
    first.add("a", box.path)
    if not cached:
        shutil.rmtree(way.folder / "cni/results")
    way.network("n", bridge(way, ipMasq=False)).delete("a", box.path)
    assert (named(), "id: a" in ruleset(), notes(), way.leases("n")) == (False, False, [], {})
    links = ip_json("link", "show")
    assert [link["ifname"] for link in links if link["ifname"].startswith("bwp")] == []


def test_a_bridge_that_was_renamed(way: Way, sandbox: Sandbox) -> None:
    box = sandbox()
    first = way.network("n", bridge(way))
    first.add("a", box.path)
    first.delete("a")
    second = way.network("n", bridge(way, "br9"))
    second.add("a", box.path)
    run_in(box, ["ping", "-qc1", "-W2", "10.63.0.1"])
    run_in(None, ["ping", "-qc1", "-W2", "10.63.0.2"])
    assert ip_json("link", "show", "type", "bridge")[0]["ifname"] == "br9"
    second.check("a")


def test_a_bridge_that_was_renamed_in_use(way: Way, sandbox: Sandbox) -> None:
    ipam = {"ipam": way.host_local("10.63.0.0/24")}
    one, two = sandbox(), sandbox()
    first = way.network("n", {**bridge(way), **ipam})
    first.add("a", one.path)
    with pytest.raises(CNIError, match="leave by br1, not by br9"):
        way.network("n", {**bridge(way, "br9"), **ipam}).add("b", two.path)
    assert [link["ifname"] for link in ip_json("link", "show", "type", "bridge")] == ["br1"]
    first.check("a")
    run_in(None, ["ping", "-qc1", "-W2", "10.63.0.2"])


def test_two_bridges_with_one_subnet(way: Way, sandbox: Sandbox) -> None:
    """CHECK compares where packets go, not only what was made."""
    box = sandbox()
    network = way.network("n", bridge(way))
    network.add("a", box.path)
    run_in(None, ["ip", "link", "add", "br9", "up", "type", "bridge"])
    run_in(None, ["ip", "address", "add", "10.63.0.1/24", "dev", "br9", "metric", "0"])
    run_in(None, ["ip", "route", "delete", "10.63.0.0/24", "dev", "br1"])
    with pytest.raises(CNIError, match="leave by br9, not by br1"):
        network.check("a")


def test_gc_of_a_network_that_is_not_configured_any_more(
    way: Way, small: dict[str, Any], sandbox: Sandbox
) -> None:
    box = sandbox()
    way.network("n", small).add("a", box.path)
    (way.folder / "net.d").mkdir()
    words = pycni(way, "gc", "n", "--none", "--conf-dir", str(way.folder / "net.d"))
    assert "not configured any more" in words
    assert (way.leases("n"), way.cached(), notes()) == ({}, [], [])


def test_gc_that_names_an_attachment_without_interface(
    way: Way, small: dict[str, Any], sandbox: Sandbox
) -> None:
    network = way.network("n", small)
    network.add("a", sandbox().path)
    with pytest.raises(CNIError):
        network.gc([("a", "")])
    network.check("a")


def test_a_repair_of_forced_addresses_ends(way: Way, sandbox: Sandbox) -> None:
    """Two attachments, made before and after the subnet was edited, both keep their gateway."""
    old = way.network("n", {**bridge(way), "forceAddress": True})
    one, two = sandbox(), sandbox()
    old.add("a", one.path)
    other = {**bridge(way), "forceAddress": True, "ipam": way.host_local("10.64.0.0/24")}
    new = way.network("n", other)
    new.add("b", two.path)
    new.repair()
    assert all(report.is_sound for report in new.repair())
    for box, gateway in ((one, "10.63.0.1"), (two, "10.64.0.1")):
        run_in(box, ["ping", "-qc1", "-W2", gateway])


# --- two interfaces in one subnet ----------------------------------------------------------------


def test_del_of_the_second_interface_leaves_the_first_reachable(way: Way, sandbox: Sandbox) -> None:
    network = way.network("n", {**bridge(way), "ipam": way.host_local("10.63.0.0/24")})
    box = sandbox()
    network.add("a", box.path)
    network.add("a", box.path, "eth1")
    # The container asks on eth1 who the gateway is, in the name of eth0's address.
    mac = ip_json("link", "show", "eth1", netns=box)[0]["address"]
    run_in(None, ["ip", "neigh", "replace", "10.63.0.2", "lladdr", mac, "dev", "br1",
                  "nud", "reachable"])  # fmt: skip
    network.delete("a", ifname="eth1")
    run_in(None, ["ping", "-qc1", "-W1", "10.63.0.2"])


# --- a stranger's traffic ------------------------------------------------------------------------


def test_next_holder_of_an_address_gets_none_of_its_traffic(
    machines: Machines, tmp_path: Path
) -> None:
    """From outside, by a port that the earlier container had published."""
    with way_of("in process", tmp_path / "way", machines.plugins) as way:
        network = way.network("n", bridge(way), PORTMAP)
        box, other = machines.sandbox(), machines.sandbox()
        network.add("gone", box.path, capabilities=PORT)
        with service(box, "gone", 80):
            assert ask(machines.client, HOST[4], 8080) == f"gone {CLIENT[4]}"
        box.delete()
        (way.folder / "cni/networks/n/10.63.0.2").unlink()
        network.add("next", other.path)
        with service(other, "next", 80):
            assert ask(machines.client, HOST[4], 8080) == ""
