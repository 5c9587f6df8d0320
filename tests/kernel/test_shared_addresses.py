"""An address that several networks give out: masquerading, and what firewall lets through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness import ask, ipset_elements, nft_list, run_in, service
from harness.kernel_state import ruleset
from harness.lan import Lan
from harness.machines import FAR, Machines
from harness.topics import sharing as kit
from harness.topics.sharing import TWO, both_families, collect, leaving
from pycni.kernel.netlink import socket as netlink_socket
from pycni.plan.steps import Firewall, Masquerade
from pycni.spec.ip import parse_address, parse_network
from pycni.spec.owner import Owner, Owners
from pycni.steps import firewall, masquerade
from pycni.steps.namespaces import HostAndSandbox

lan = kit.lan


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
    return ask(lan.sandbox(container), FAR[version], 80, timeout=0.5).startswith("far ")


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
