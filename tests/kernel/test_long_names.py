"""Container ids of any length, in whatever is named by them: files, comments, aliases, chains.

Ids have no limit in the specification; files, comments and names of chains have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import Sandbox, ip_json, nft_list, run_in
from harness.ways import Way, notes, ports_of
from pycni.runtime import Network
from pycni.spec.errors import CNIError

LENGTHS = [239, 240, 255, 4000]


def everything(way: Way, backend: str) -> Network:
    """A list in which each kind of thing that outlives an interface is made."""
    main = {
        "type": "bridge", "bridge": "br0", "isDefaultGateway": True, "ipMasq": True,
        "ipMasqBackend": backend, "macspoofchk": True, "portIsolation": True,
        "ipam": way.host_local("10.77.0.0/24"),
    }  # fmt: skip
    return way.network(
        "n",
        main,
        {"type": "portmap", "capabilities": {"portMappings": True}, "backend": backend},
        {"type": "firewall", "backend": backend, "ingressPolicy": "same-bridge"},
        {"type": "bandwidth", "ingressRate": 10**6, "ingressBurst": 10**6,
         "egressRate": 10**6, "egressBurst": 10**6},
        {"type": "tuning", "mtu": 1400, "dataDir": str(way.folder / "tuning"),
         "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
    )  # fmt: skip


def of_containers() -> list[str]:
    """What rules and elements of the host there are of containers."""
    saved = run_in(None, ["iptables-save"]).stdout + run_in(None, ["ip6tables-save"]).stdout
    found = [line for line in saved.splitlines() if "aaaa" in line or "10.77.0." in line]
    return found + [str(entry) for entry in nft_list() if "aaaa" in str(entry)]


def files(way: Way) -> list[str]:
    found = [*(way.folder / "tuning").glob("*"), *(way.folder / "cni/results").glob("*")]
    return [*way.leases("n"), *(path.name for path in found), *map(str, notes())]


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_attached_and_detached(way: Way, sandbox: Sandbox, backend: str, length: int) -> None:
    """Two containers whose ids begin alike, for as long as most names are."""
    network = everything(way, backend)
    before = run_in(None, ["ip", "-br", "link"]).stdout
    ids = ["a" * (length - 1) + end for end in "xy"]
    spaces = [sandbox(), sandbox()]
    for number, (one, space) in enumerate(zip(ids, spaces, strict=True)):
        network.add(one, space.path, capabilities=ports_of((8080 + number, 80)))
    assert sorted(way.leases("n").values()) == [f"{one}/eth0" for one in ids]
    for one, space in zip(ids, spaces, strict=True):
        network.check(one, space.path)
    assert sorted(item.container_id for item in network.attachments()) == ids
    network.delete(ids[0], spaces[0].path)
    network.check(ids[1], spaces[1].path)
    with pytest.raises(CNIError):
        network.check(ids[0], spaces[0].path)
    network.delete(ids[1], spaces[1].path)
    assert of_containers() == []
    assert files(way) == []
    run_in(None, ["ip", "link", "del", "br0"])
    assert run_in(None, ["ip", "-br", "link"]).stdout == before


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS[1::2])
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("noted", [True, False])
def test_collected(way: Way, sandbox: Sandbox, backend: str, length: int, *, noted: bool) -> None:
    """GC keeps the one that is listed, whole, and nothing of the other."""
    network = everything(way, backend)
    ids = ["a" * (length - 1) + end for end in "xy"]
    spaces = [sandbox(), sandbox()]
    for number, (one, space) in enumerate(zip(ids, spaces, strict=True)):
        network.add(one, space.path, capabilities=ports_of((8080 + number, 80)))
    if not noted:
        for path in Path("/run/pycni/attachments").iterdir():
            if json.loads(path.read_text())["containerID"] == ids[0]:
                path.unlink()
        spaces[0].delete()
    network.gc([(ids[1], "eth0")])
    network.check(ids[1], spaces[1].path)
    assert not [line for line in of_containers() if "10.77.0.2" in line]
    assert list(way.leases("n").values()) == [f"{ids[1]}/eth0"]
    network.gc([])
    assert of_containers() == []
    assert files(way) == []


@pytest.mark.parametrize("length", LENGTHS)
def test_flannel(way: Way, sandbox: Sandbox, length: int) -> None:
    environment = way.folder / "subnet.env"
    environment.write_text(
        "FLANNEL_NETWORK=10.240.0.0/16\nFLANNEL_SUBNET=10.240.5.1/24\n"
        "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    )
    folder = way.folder / "flannel"
    ipam = {"dataDir": str(way.folder / "cni/networks")}
    config = {
        "type": "flannel", "subnetFile": str(environment), "dataDir": str(folder), "ipam": ipam,
    }  # fmt: skip
    network = way.network("n", config)
    one, space = "a" * length, sandbox()
    network.add(one, space.path)
    network.add(one, space.path, ifname="eth1")
    assert len(list(folder.iterdir())) == 2
    network.check(one, space.path)
    network.gc([(one, "eth0")])
    assert len(list(folder.iterdir())) == 1
    network.check(one, space.path)
    network.delete(one, space.path)
    assert list(folder.iterdir()) == []
    assert way.leases("n") == {}
    assert [link["ifname"] for link in ip_json("link", netns=space)] == ["lo"]


def test_reference_s_name_while_it_fits(way: Way, sandbox: Sandbox) -> None:
    """tuning's and the cache's files of an id that fits are called as the reference's are."""
    network = way.network(
        "n", {"type": "loopback"}, {"type": "tuning", "mtu": 1400, "dataDir": f"{way.folder}/t"}
    )
    config: dict[str, Any] = {"ifname": "lo"}
    one = "a" * 240
    network.add(one, sandbox().path, **config)
    assert [path.name for path in (way.folder / "t").iterdir()] == [f"{one}_lo.json"]
    assert way.cached() == [f"n-{one}-lo"]
    network.delete(one, **config)
