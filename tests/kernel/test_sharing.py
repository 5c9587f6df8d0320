"""What two attachments have in common is of both: the one that remains keeps it.

A container `a` in two networks `n` and `m`, with the same port of the host, and two networks that
give out the same addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from harness import ask, ipset_elements, nft_list, run_in, service
from harness.kernel_state import ruleset
from harness.lan import Lan, port, received, tracked, udp
from harness.machines import FAR, HOST, SECOND, Machines
from pycni.kernel.netlink import NetlinkRequest
from pycni.kernel.netlink import socket as netlink_socket
from pycni.plan.steps import Firewall, Masquerade, PortMap, PortMapping
from pycni.runtime import PluginError
from pycni.spec.errors import CNIError
from pycni.spec.ip import parse_address, parse_network
from pycni.spec.owner import Owner, Owners
from pycni.steps import firewall, masquerade, port_map
from pycni.steps.namespaces import HostAndSandbox
from pycni.steps.port_map import nftables as port_map_nftables

CONDITIONAL = {"conditionsV4": ["ip", "ttl", "1-255"], "conditionsV6": ["ip6", "hoplimit", "1-255"]}

both_families = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def lan(machines: Machines, tmp_path: Path) -> Lan:
    """Networks n, m and o, and a container `a` that answers on port 80."""
    lan = Lan(machines, tmp_path)
    lan.network("n")
    for number, name in enumerate("mo", 1):
        lan.network(
            name,
            bridge=f"br{number}",
            subnets=(f"10.3{number}.0.0/24", f"fd00:3{number}::/64"),
        )
    return lan


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


def delete(lan: Lan, network: str, ifname: str) -> None:
    lan.network(network).delete("a", ifname=ifname)


def collect(lan: Lan, network: str, ifname: str) -> None:
    del ifname
    lan.network(network).gc([], force=True)


leaving = pytest.mark.parametrize("leave", [delete, collect])


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


def test_check_tells_where_the_second_network_would_lose_the_port(lan: Lan) -> None:
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
    # The other way round nobody loses what he has.
    lan.add("b", port(9090, 80, hostIP=SECOND[version]))
    lan.add("c", port(9090, 80))
    serve(lan, "b", "c")
    assert ask(lan.machines.client, SECOND[version], 9090).startswith("b ")
    assert ask(lan.machines.client, HOST[version], 9090).startswith("c ")


# --- an address that two networks give out -------------------------------------------------------


TWO = {4: ("10.30.0.2/24", "10.30.0.2/16"), 6: ("fd00:30::2/64", "fd00:30::2/48")}


def masqueraded(name: str, *addresses: str) -> Masquerade:
    owner = Owner(f"net-{name}", name, "eth0")
    return Masquerade(owner, tuple(map(parse_network, addresses)), "nftables")


def holders(version: int) -> dict[str, list[str]]:
    """Whose element an address is in the sets of masquerading, by the name of the set."""
    found: dict[str, list[str]] = {}
    for entry in nft_list():
        item = entry.get("set", {})
        if item.get("name", "").startswith("masquerade-"):
            for element in item.get("elem", ()):
                value = element["elem"]["val"]
                if (":" in str(value)) == (version == 6) or "waiting" in item["name"]:
                    owner = element["elem"]["comment"].rpartition("id: ")[2]
                    found.setdefault(item["name"], []).append(owner)
    return found


@both_families
@pytest.mark.parametrize("other", [0, 1], ids=["the same subnet", "another one"])
def test_an_address_of_two_networks_stays_masqueraded(
    machines: Machines, version: int, other: int
) -> None:
    mine, theirs = TWO[version][0], TWO[version][other]
    a, b = masqueraded("a", mine), masqueraded("b", theirs)
    attached = {a.owner.tag, b.owner.tag}
    with HostAndSandbox(None, is_attached=lambda _, tag: tag in attached) as kernel:
        for first, last in ((a, b), (b, a)):
            masquerade.apply(a, kernel)
            masquerade.apply(b, kernel)
            for one in (a, b):
                assert masquerade.check(one, kernel) == []
                assert masquerade.apply(one, kernel) is None
            masquerade.remove(first, kernel)
            assert masquerade.check(last, kernel) == []
            masquerade.remove(last, kernel)
            assert holders(version) == {}


@both_families
def test_gc_hands_an_address_on(machines: Machines, version: int) -> None:
    a, b, c = (masqueraded(name, TWO[version][0]) for name in "abc")
    attached = {one.owner.tag for one in (a, b, c)}
    with HostAndSandbox(None, is_attached=lambda _, tag: tag in attached) as kernel:
        for one in (a, b, c):
            masquerade.apply(one, kernel)
        masquerade.collect(kernel, Owners("net-a"))
        assert masquerade.check(b, kernel) == masquerade.check(c, kernel) == []
        # Without addresses too.
        masquerade.remove(b.replace(addresses=()), kernel)
        assert masquerade.check(c, kernel) == []
        masquerade.collect(kernel, Owners("net-c"))
        assert holders(version) == {}
        assert not any("waiting" in entry.get("set", {}).get("name", "") for entry in nft_list())


@both_families
def test_undo_of_the_second_leaves_the_first(machines: Machines, version: int) -> None:
    a, b = (masqueraded(name, TWO[version][0]) for name in "ab")
    with HostAndSandbox(
        None, is_attached=lambda _, tag: tag in (a.owner.tag, b.owner.tag)
    ) as kernel:
        masquerade.apply(a, kernel)
        before = holders(version)
        undo = masquerade.apply(b, kernel)
        assert undo is not None
        undo()
        assert holders(version) == before
        masquerade.remove(a, kernel)
        assert holders(version) == {}


@both_families
def test_who_is_not_attached_any_more_gives_way(machines: Machines, version: int) -> None:
    """Of another network; within one an address is given out once, so there anyone does."""
    gone, new = masqueraded("gone", TWO[version][0]), masqueraded("new", TWO[version][0])
    crashed = Masquerade(Owner("net-new", "crashed", "eth0"), new.addresses, "nftables")
    attached = {crashed.owner.tag, new.owner.tag}
    with HostAndSandbox(None, is_attached=lambda _, tag: tag in attached) as kernel:
        for left in (gone, crashed):
            masquerade.apply(left, kernel)
            masquerade.apply(new, kernel)
            (names,) = holders(version).values()
            assert names == ["new"]
            masquerade.remove(left, kernel)
            assert masquerade.check(new, kernel) == []
            masquerade.remove(new, kernel)


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
        assert not made.replaced
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


# --- an address that firewall lets through for two networks --------------------------------------


each_backend = pytest.mark.parametrize(
    "backend", ["nftables", "iptables", ""], ids=["nftables", "iptables", "chosen"]
)


def drop(backend: str) -> None:
    """Have the chain decide that a backend's rules are for."""
    if backend == "nftables":
        run_in(None, ["nft", "add chain inet pycni firewall-forward { policy drop; }"])
    for program in () if backend == "nftables" else ("iptables", "ip6tables"):
        run_in(None, [program, "-P", "FORWARD", "DROP"])


def passes(lan: Lan, container: str, version: int) -> bool:
    """Whether the host lets a container's packets through, and the answers."""
    return ask(lan.sandbox(container), FAR[version], 80, patience=0.5).startswith("far ")


def lead(bridge: str, version: int) -> None:
    """Have packets to the subnet that two bridges share leave by one of them."""
    subnet = {4: "10.30.0.0/24", 6: "fd00:30::/64"}[version]
    for name in ("br-a", "br-b"):
        run_in(None, ["ip", f"-{version}", "route", "delete", subnet, "dev", name], check=False)
    if bridge:
        run_in(None, ["ip", f"-{version}", "route", "add", subnet, "dev", bridge])


def registered() -> dict[str, list[str]]:
    """Whose elements the sets of firewall hold, by their names."""
    found: dict[str, list[str]] = {}
    for entry in nft_list():
        item = entry.get("set", {})
        if item.get("name", "").startswith(("firewall4", "firewall6")) and item.get("elem"):
            comments = [element["elem"]["comment"] for element in item["elem"]]
            found[item["name"]] = [comment.rpartition("id: ")[2] for comment in comments]
    return found


@both_families
@each_backend
@leaving
@pytest.mark.parametrize("first", ["a", "b"])
def test_an_address_of_two_networks_is_let_through(
    machines: Machines,
    tmp_path: Path,
    version: int,
    backend: str,
    leave: Callable[[Lan, str, str], None],
    first: str,
) -> None:
    lan = Lan(machines, tmp_path)
    machines.stack.enter_context(service(machines.far, "far", 80))
    for name in "ab":
        lan.network(f"net-{name}", bridge=f"br-{name}", firewall={"backend": backend})
    own = []
    for name in "ab":
        own.append(lan.add(name, network=f"net-{name}")[version])
        for every in (4, 6):  # no ADD is let in beside another bridge with the subnet
            lead("", every)
    assert own[0] == own[1]
    drop(backend)
    lead("br-a", version)
    lan.network("net-a").check("a")
    assert passes(lan, "a", version)
    last = "b" if first == "a" else "a"
    if leave is collect:
        lan.network(f"net-{first}").gc([], force=True)
    else:
        lan.network(f"net-{first}").delete(first)
    lead(f"br-{last}", version)
    assert passes(lan, last, version)
    lan.network(f"net-{last}").check(last)
    lan.network(f"net-{last}").delete(last)
    assert naming(own[0]) == []


def let_through(name: str, version: int, backend: str, container: str = "") -> Firewall:
    address = parse_address(TWO[version][0].partition("/")[0])
    owner = Owner(f"net-{name}", container or name, "eth0")
    return Firewall(owner, (address,), backend)


def naming(address: object) -> list[str]:
    """All that speaks of an address: rules, and elements of sets."""
    lines = ruleset().splitlines()
    return [line.strip() for line in (*lines, *ipset_elements()) if str(address) in line]


@both_families
@each_backend
def test_undo_of_the_second_leaves_it_let_through(
    machines: Machines, version: int, backend: str
) -> None:
    a, b = (let_through(name, version, backend) for name in "ab")
    with HostAndSandbox(
        None, is_attached=lambda _, tag: tag in (a.owner.tag, b.owner.tag)
    ) as kernel:
        firewall.apply(a, kernel)
        before = naming(a.addresses[0])
        undo = firewall.apply(b, kernel)
        assert undo is not None
        assert firewall.check(b, kernel) == firewall.repairable(b, kernel) == []
        undo()
        assert naming(a.addresses[0]) == before
        assert firewall.check(a, kernel) == []
        firewall.remove(a, kernel)
        assert naming(a.addresses[0]) == []


@both_families
@each_backend
def test_who_is_gone_gives_way_in_the_firewall(
    machines: Machines, version: int, backend: str
) -> None:
    """Of another network; within one an address is given out once, so there anyone does."""
    gone, new = let_through("gone", version, backend), let_through("new", version, backend)
    crashed = let_through("new", version, backend, "crashed")
    attached = {crashed.owner.tag, new.owner.tag}
    with HostAndSandbox(None, is_attached=lambda _, tag: tag in attached) as kernel:
        for left in (gone, crashed):
            firewall.apply(left, kernel)
            firewall.apply(new, kernel)
            assert registered() == {f"firewall{version}": ["new"]}
            firewall.remove(left, kernel)
            assert firewall.check(new, kernel) == []
            firewall.remove(new, kernel)
            assert registered() == {}


@both_families
@each_backend
def test_three_networks_with_one_address(machines: Machines, version: int, backend: str) -> None:
    a, b, c = (let_through(name, version, backend) for name in "abc")
    attached = {one.owner.tag for one in (a, b, c)}
    with HostAndSandbox(None, is_attached=lambda _, tag: tag in attached) as kernel:
        for one in (a, b, c):
            firewall.apply(one, kernel)
        firewall.remove(b, kernel)
        firewall.collect(kernel, Owners("net-a"))
        assert registered() == {f"firewall{version}": ["c"]}
        assert firewall.check(c, kernel) == firewall.repairable(c, kernel) == []
        # One that is noted, but gone by now, gets nothing more; its note goes with its own DEL.
        firewall.apply(a, kernel)
        attached.remove(a.owner.tag)
        firewall.remove(c, kernel)
        firewall.remove(a, kernel)
        assert registered() == {}
        assert firewall.check(c, kernel) != []


@each_backend
def test_repair_notes_the_second_network(machines: Machines, backend: str) -> None:
    """As an earlier release, which did not, has left it."""
    a, b = (let_through(name, 4, backend) for name in "ab")
    with HostAndSandbox(
        None, is_attached=lambda _, tag: tag in (a.owner.tag, b.owner.tag)
    ) as kernel:
        for one in (a, b):
            firewall.apply(one, kernel)
        run_in(None, ["nft", "flush set inet pycni firewall4-waiting"])
        (difference,) = firewall.check(b, kernel) + firewall.repairable(b, kernel)
        assert "would be closed with that" in difference
        firewall.repair(b, kernel)
        assert firewall.check(b, kernel) == firewall.repairable(b, kernel) == []
        firewall.remove(a, kernel)
        assert registered() == {"firewall4": ["b"]}
        assert firewall.check(b, kernel) == []


def test_a_new_container_asks_for_no_more(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not shared needs no look at who else may have it, and no further set."""
    a, b = let_through("a", 4, "nftables"), let_through("b", 6, "nftables")
    with HostAndSandbox(None) as kernel:
        firewall.apply(a, kernel)
        asked: list[str] = []
        monkeypatch.setattr(
            netlink_socket, "before_send", lambda request: asked.append(request.what)
        )
        firewall.apply(b, kernel)
    assert not any("waiting" in what for what in asked)
    assert not any("waiting" in entry.get("set", {}).get("name", "") for entry in nft_list())
