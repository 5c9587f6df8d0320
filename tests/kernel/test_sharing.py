"""What two attachments have in common is of both: the one that remains keeps it.

A container `a` in two networks `n` and `m`, with the same port of the host, and two networks that
give out the same addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from harness import ask, nft_list, run_in, service
from harness.lan import Lan, port, received, tracked, udp
from harness.machines import HOST, SECOND, Machines
from harness.topics import sharing as kit
from harness.topics.sharing import TWO, both_families, delete, leaving
from pycni.kernel.netlink import NetlinkRequest
from pycni.kernel.netlink import socket as netlink_socket
from pycni.plan.steps import PortMap, PortMapping
from pycni.runtime import PluginError
from pycni.spec.errors import CNIError
from pycni.spec.ip import parse_network
from pycni.spec.owner import Owner, Owners
from pycni.steps import port_map
from pycni.steps.namespaces import HostAndSandbox
from pycni.steps.port_map import nftables as port_map_nftables

lan = kit.lan


CONDITIONAL = {"conditionsV4": ["ip", "ttl", "1-255"], "conditionsV6": ["ip6", "hoplimit", "1-255"]}


def serve(lan: Lan, *containers: str) -> None:
    for container in containers:
        lan.machines.stack.enter_context(service(lan.sandbox(container), container, 80))


def elements() -> dict[str, int]:
    """How many elements each set and map of port mappings holds, where there are any."""
    found = [entry[kind] for entry in nft_list() for kind in ("set", "map") if kind in entry]
    return {
        item["name"]: len(item["elem"])
        for item in found
        if item["name"].startswith("port-map") and item.get("elem")
    }


def answers(lan: Lan, version: int) -> bool:
    """Whether container `a` is reached by port 8080 of the host, from outside and from the host."""
    asked = (ask(lan.machines.client, HOST[version], 8080), ask(None, HOST[version], 8080))
    assert len({bool(answer) for answer in asked}) == 1
    return asked[0].startswith("a ")


# --- ports of one container in several networks --------------------------------------------------


@both_families
@leaving
def test_the_network_that_remains_keeps_the_port(
    lan: Lan, version: int, leave: Callable[[Lan, str, str], None]
) -> None:
    mapping = port(8080, 80)
    for number, name in enumerate("nmo"):
        lan.add("a", mapping, network=name, ifname=f"eth{number}")
    serve(lan, "a")
    for number, name in enumerate("nmo"):
        lan.network(name).check("a", ifname=f"eth{number}")
    assert answers(lan, version)
    leave(lan, "n", "eth0")
    assert answers(lan, version)
    for number, name in enumerate("mo", 1):
        lan.network(name).check("a", ifname=f"eth{number}")
    with pytest.raises(PluginError, match="is taken by container a"):
        lan.add("b", mapping)
    leave(lan, "o", "eth2")
    assert answers(lan, version)
    lan.network("m").check("a", ifname="eth1")
    leave(lan, "m", "eth1")
    assert elements() == {}
    lan.add("b", mapping)


@both_families
def test_the_second_network_leaves_first(lan: Lan, version: int) -> None:
    for number, name in enumerate("nm"):
        lan.add("a", port(8080, 80, hostIP=HOST[version]), network=name, ifname=f"eth{number}")
    serve(lan, "a")
    delete(lan, "m", "eth1")
    assert answers(lan, version)
    lan.network("n").check("a")
    assert not any("waiting" in name for name in elements())
    delete(lan, "n", "eth0")
    assert elements() == {}


@both_families
def test_flows_follow_to_the_network_that_remains(lan: Lan, version: int) -> None:
    listeners = {}
    for number, name in enumerate("nm"):
        own = lan.add("a", port(8080, 80, "udp"), network=name, ifname=f"eth{number}")
        listeners[name] = udp(lan.sandbox("a"), version, 80, own[version])
    client = udp(lan.machines.client, version, 40000)

    def reached() -> str:
        client.sendto(b"hello", (HOST[version], 8080))
        return next((name for name, where in listeners.items() if received(where, 0.2)), "")

    assert reached() == "n"
    before = tracked(version)
    assert all(report.is_sound for report in lan.network("m").repair())
    lan.add("b", port(8081, 80, "udp"))
    assert tracked(version) == before
    delete(lan, "n", "eth0")
    assert reached() == "m"


@both_families
@pytest.mark.parametrize("keys", [{}, CONDITIONAL], ids=["elements", "conditions"])
def test_by_networks_of_long_names(lan: Lan, version: int, keys: dict[str, Any]) -> None:
    """Comments of nftables take 128 bytes, and are cut before the interface's name ends."""
    names = {}
    for number in range(2):
        names[f"eth{number}-of-15-bytes"[:15]] = name = f"n{number}{'x' * 70}"
        subnets = f"10.4{number}.0.0/24", f"fd00:4{number}::/64"
        lan.network(name, bridge=f"br-{number}", subnets=subnets, portmap=keys)
    for ifname, name in names.items():
        lan.add("a", port(8080, 80, hostIP=HOST[version]), network=name, ifname=ifname)
    serve(lan, "a")
    for ifname, name in names.items():
        lan.network(name).check("a", ifname=ifname)
    assert ask(lan.machines.client, HOST[version], 8080).startswith("a ")
    with pytest.raises(PluginError, match="is taken by container"):
        lan.add("b", port(8080, 80, hostIP=HOST[version]), network=name)


@both_families
def test_by_two_interfaces_of_one_network(lan: Lan, version: int) -> None:
    for ifname in ("eth0", "eth1"):
        lan.add("a", port(8080, 80), ifname=ifname)
    serve(lan, "a")
    delete(lan, "n", "eth0")
    assert answers(lan, version)
    lan.network("n").check("a", ifname="eth1")


def test_a_failed_add_takes_its_claim_back(lan: Lan) -> None:
    lan.add("a", port(8080, 80))
    before = elements()
    lan.network(
        "bad",
        bridge="br3",
        subnets=("10.33.0.0/24", "fd00:33::/64"),
        portmap={"conditionsV6": ["x"]},
    )
    with pytest.raises(PluginError, match="refuses the conditions"):
        lan.add("a", port(8080, 80), network="bad", ifname="eth3")
    assert elements() == before


@pytest.mark.parametrize("damage", ["delete table inet pycni", "flush map inet pycni port-map4"])
def test_repair_restores_both_claims(lan: Lan, damage: str) -> None:
    for number, name in enumerate("nm"):
        lan.add("a", port(8080, 80), network=name, ifname=f"eth{number}")
    serve(lan, "a")
    before = elements()
    run_in(None, ["nft", damage])
    with pytest.raises(PluginError):
        lan.network("m").check("a", ifname="eth1")
    for name in "mn":  # the second one comes first now
        assert not all(report.is_sound for report in lan.network(name).repair())
    for number, name in enumerate("nm"):
        lan.network(name).check("a", ifname=f"eth{number}")
        assert all(report.is_sound for report in lan.network(name).repair())
    assert elements().keys() == before.keys()
    delete(lan, "m", "eth1")
    assert answers(lan, 4)
    delete(lan, "n", "eth0")
    assert elements() == {}


def test_check_says_where_the_second_network_would_lose_the_port(lan: Lan) -> None:
    """As an earlier release, which did not note it, has left it."""
    for number, name in enumerate("nm"):
        lan.add("a", port(8080, 80), network=name, ifname=f"eth{number}")
    before = elements()
    for family in "46":
        run_in(None, ["nft", f"flush map inet pycni port-map{family}-waiting"])
    with pytest.raises(PluginError, match="would be lost with that"):
        lan.network("m").check("a", ifname="eth1")
    lan.network("n").check("a")
    assert not all(report.is_sound for report in lan.network("m").repair())
    assert elements() == before


def test_nothing_shared_costs_nothing(lan: Lan) -> None:
    """No set is made beside the maps until two attachments have something in common."""
    lan.add("a", port(8080, 80))
    lan.add("b", port(8081, 80))
    assert not any("waiting" in entry.get(kind, {}).get("name", "")
                   for entry in nft_list() for kind in ("set", "map"))  # fmt: skip
    lan.add("a", port(8080, 80), network="m", ifname="eth1")
    lan.network("m").gc([], force=True)
    assert not any("waiting" in entry.get(kind, {}).get("name", "")
                   for entry in nft_list() for kind in ("set", "map"))  # fmt: skip


# --- one address of the host, and all ------------------------------------------------------------


@both_families
def test_one_address_is_not_taken_from_who_has_all(lan: Lan, version: int) -> None:
    lan.add("a", port(8080, 80))
    serve(lan, "a")
    with pytest.raises(PluginError, match=r"host port 8080/tcp of .* is taken by container a"):
        lan.add("b", port(8080, 80, hostIP=SECOND[version]))
    assert ask(lan.machines.client, SECOND[version], 8080).startswith("a ")
    # The same container may: as docs/plugins/portmap.md has it, one address wins over all.
    lan.add("a", port(8080, 81, hostIP=SECOND[version]), network="m", ifname="eth1")
    # The other way round no one loses what he has.
    lan.add("b", port(9090, 80, hostIP=SECOND[version]))
    lan.add("c", port(9090, 80))
    serve(lan, "b", "c")
    assert ask(lan.machines.client, SECOND[version], 9090).startswith("b ")
    assert ask(lan.machines.client, HOST[version], 9090).startswith("c ")


def mapped(name: str, host: int, address: str, container: int = 80) -> PortMap:
    owner = Owner(f"net-{name}", name, "eth0")
    mapping = PortMapping("tcp", host, container)
    return PortMap(owner, (mapping,), (parse_network(address),), "nftables")


@both_families
def test_ports_of_an_address_of_two_networks(machines: Machines, version: int) -> None:
    """Each has its port; both are in the set of who is masqueraded on the way there."""
    a, b = mapped("a", 8080, TWO[version][0]), mapped("b", 8081, TWO[version][0])
    with HostAndSandbox(
        None, is_attached=lambda _, tag: tag in (a.owner.tag, b.owner.tag)
    ) as kernel:
        for one in (a, b):
            port_map.apply(one, kernel)
        with pytest.raises(CNIError, match=r"host port 8080/tcp .* is taken by container a"):
            port_map.apply(mapped("b", 8080, TWO[version][0]), kernel)
        for one in (a, b):
            assert port_map.check(one, kernel) == []
        port_map.remove(a, kernel)
        assert port_map.check(b, kernel) == []
        port_map.remove(b, kernel)
        assert elements() == {}


@both_families
@pytest.mark.parametrize("backends", [*product(("nftables", "iptables"), repeat=2)])
def test_no_port_of_a_shared_address_is_left_by_somebody(
    machines: Machines, version: int, backends: tuple[str, str]
) -> None:
    """Both are there: neither an ADD nor a repair takes the other's."""
    a, b = (
        mapped(name, port, TWO[version][0]).replace(backend=backend)
        for name, port, backend in zip("ab", (8080, 8081), backends, strict=True)
    )
    with HostAndSandbox(
        None, is_attached=lambda _, tag: tag in (a.owner.tag, b.owner.tag)
    ) as kernel:
        for one in (a, b):
            port_map.apply(one, kernel)
        for one in (a, b, a):
            assert port_map.check(one, kernel) == []
            port_map.repair(one, kernel)
        for one in (a, b):
            assert port_map.check(one, kernel) == []


def test_a_repair_looks_once_for_what_was_left(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, new = mapped("left", 8080, "10.30.0.2/24"), mapped("new", 8080, "10.30.0.2/24")
    with HostAndSandbox(None) as kernel:
        port_map.apply(left, kernel)
        asked: list[str] = []
        monkeypatch.setattr(
            netlink_socket, "before_send", lambda request: asked.append(request.what)
        )
        port_map.repair(new, kernel)
        monkeypatch.undo()
        assert asked.count("list the elements of inet pycni port-map-address4") == 1
        assert port_map.check(new, kernel) == []


def test_what_somebody_else_has_removed_meanwhile_was_not_replaced(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction fails, and is built again from what is there then."""
    left, new = mapped("left", 8080, "10.30.0.2/24"), mapped("new", 8080, "10.30.0.2/24")
    new = new.replace(snat=False)
    left = left.replace(snat=False)
    with HostAndSandbox(None) as kernel:
        port_map.apply(left, kernel)
        asked: list[str] = []

        def come_before(request: NetlinkRequest) -> None:
            if request.what.startswith("delete ") and asked.count(request.what) == 0:
                run_in(None, ["nft", "flush map inet pycni port-map4"])
            asked.append(request.what)

        monkeypatch.setattr(netlink_socket, "before_send", come_before)
        made = port_map_nftables.apply(new, kernel)
        monkeypatch.undo()
        assert any(what.startswith("delete ") for what in asked)
        assert made.undo is not None
        assert not made.has_replaced
        assert port_map.check(new, kernel) == []


@both_families
@pytest.mark.parametrize("by", ["DEL", "GC", "undo"])
def test_who_is_gone_does_not_get_the_port(machines: Machines, version: int, by: str) -> None:
    """Its address may be another container's by now; who comes behind it gets the port."""
    first, gone, last = (
        PortMap(
            Owner(network, "a", ifname),
            (PortMapping("tcp", 8080, 80),),
            (parse_network(address),),
            "nftables",
        )
        for network, ifname, address in (
            ("n", "eth0", ("10.30.0.2/24", "fd00:30::2/64")[version == 6]),
            ("m", "eth1", ("10.31.0.2/24", "fd00:31::2/64")[version == 6]),
            ("o", "eth2", ("10.32.0.2/24", "fd00:32::2/64")[version == 6]),
        )
    )
    attached = {first.owner.tag: True, gone.owner.tag: True, last.owner.tag: True}
    with HostAndSandbox(None, is_attached=lambda _, tag: attached.get(tag)) as kernel:
        for followers in ((gone,), (gone, last)):
            undo = port_map.apply(first, kernel)
            assert undo is not None
            for one in followers:
                port_map.apply(one, kernel)
            attached[gone.owner.tag] = False
            if by == "DEL":
                port_map.remove(first, kernel)
            elif by == "GC":
                port_map.collect(kernel, Owners("n"))
            else:
                undo()
            if last in followers:
                assert port_map.check(last, kernel) == []
                port_map.remove(last, kernel)
            # What it has of its own, its DEL or GC removes.
            assert not [name for name in elements() if "-from-" not in name]
            attached[gone.owner.tag] = True


@pytest.mark.parametrize("own", ["10.30.0.2", "10.30.0.3"])
def test_a_port_of_a_container_that_is_gone(machines: Machines, own: str) -> None:
    """Left with an address that is another's by now, it gives way to that one only."""
    left, new = mapped("left", 8080, "10.30.0.2/24"), mapped("new", 8080, f"{own}/24")
    with HostAndSandbox(None) as kernel:
        port_map.apply(left, kernel)
        if own == "10.30.0.2":
            port_map.apply(new, kernel)
            assert port_map.check(new, kernel) == []
        else:
            with pytest.raises(CNIError, match="is taken by container left"):
                port_map.apply(new, kernel)
