"""Flows that a firewall let through, when their address is given to the next container."""

from __future__ import annotations

from typing import Any

import pytest

from harness import run_in
from harness.lan import Lan, received, tracked, udp
from harness.machines import FAR
from harness.topics import flows as kit
from harness.topics.flows import OUTSIDE, Session, both_families, each_way, leave
from pycni.kernel.netlink import socket as netlink_socket
from pycni.plan.steps import Firewall, Masquerade
from pycni.spec.ip import parse_address, parse_network
from pycni.spec.owner import Owner, Owners
from pycni.steps import firewall, masquerade
from pycni.steps.namespaces import HostAndSandbox

lan = kit.lan


# --- what a firewall lets through ----------------------------------------------------------------


def drop(backend: str) -> None:
    """Have the chain decide that a backend's rules are for."""
    if backend == "nftables":
        run_in(None, ["nft", "add chain inet pycni firewall-forward { policy drop; }"])
    for program in () if backend == "nftables" else ("iptables", "ip6tables"):
        run_in(None, [program, "-P", "FORWARD", "DROP"])


def let_in(backend: str, *, allowed: bool) -> None:
    """What comes from far, as the administrator has it."""
    if backend == "nftables":
        run_in(None, ["nft", "flush chain inet pycni firewall-admin"])
        if allowed:
            run_in(None, ["nft", "add rule inet pycni firewall-admin iifname far accept"])
    else:
        for program in ("iptables", "ip6tables"):
            change = "-I" if allowed else "-D"
            run_in(None, [program, change, "FORWARD", "-i", "far", "-j", "ACCEPT"])


@both_families
@each_way
@pytest.mark.parametrize("masquerades", [True, False], ids=["masqueraded", "routed"])
@pytest.mark.parametrize("backend", ["nftables", "iptables", ""])
def test_the_firewall_lets_nothing_of_an_earlier_holder_in(
    lan: Lan, version: int, way: str, masquerades: bool, backend: str
) -> None:
    """Neither answers nor what a stranger goes on sending that was allowed to."""
    keys: dict[str, Any] = {"ipMasq": masquerades, "firewall": {"backend": backend}}
    lan.alone(**keys)
    lan.network("other", bridge="br1", subnets=("10.31.0.0/24", "fd00:31::/64"), **keys)
    far = lan.machines.far
    own = lan.add("a")
    lan.add("c", network="other")
    drop(backend)
    let_in(backend, allowed=True)
    server = udp(far, version, 53)
    asked = Session(udp(lan.sandbox("a"), version, 5000), server, FAR[version], 53)
    visited = Session(
        udp(far, version, 6000), udp(lan.sandbox("a"), version, 7000), own[version], 7000
    )
    other = Session(udp(lan.sandbox("c"), version, 5001), server, FAR[version], 53)
    let_in(backend, allowed=False)
    assert asked.goes_on()
    assert visited.goes_on()
    leave(lan, way)
    assert lan.add("b") == own
    if way.endswith("loss"):
        drop(backend)
        lan.network("other").repair()
    successors = [udp(lan.sandbox("b"), version, number) for number in (5000, 7000)]
    server.sendto(b"news", asked.peer)
    visited.opener.send(b"more")
    assert [received(one, 0.3) for one in successors] == [None, None]
    assert other.goes_on()


@both_families
def test_flows_of_an_address_that_another_still_has_go_on(lan: Lan, version: int) -> None:
    network = lan.network(firewall={"backend": "nftables"}, ipMasq=False)
    own = lan.add("a")
    drop("nftables")
    server = udp(lan.machines.far, version, 53)
    session = Session(udp(lan.sandbox("a"), version, 5000), server, FAR[version], 53)
    before = tracked(version, f"src={own[version]}")
    assert before
    owner = Owner("n", "a", "eth0")
    other = Firewall(Owner("m", "b", "eth0"), (parse_address(own[version]),), "nftables")
    with HostAndSandbox(None, is_attached=lambda _, tag: tag == owner.tag) as kernel:
        for leave in (firewall.remove, lambda *_: firewall.collect(kernel, Owners("m"))):
            firewall.apply(other, kernel)
            leave(other, kernel)
            assert tracked(version, f"src={own[version]}") == before
    assert session.goes_on()
    network.delete("a")
    assert tracked(version, f"src={own[version]}") == set()


@both_families
@pytest.mark.parametrize("held", ["iptables", "the reference"])
@pytest.mark.parametrize("way", ["DEL", "GC", "undo"])
def test_masqueraded_flows_of_an_address_that_another_still_has_go_on(
    lan: Lan, version: int, held: str, way: str
) -> None:
    """Whose masquerading is in other tables than that of who leaves; unless it is gone as well."""
    if held == "iptables":
        lan.network(ipMasqBackend="iptables")
    else:
        lan.network(ipMasq=False)
    own = lan.add("a")[version]
    if held != "iptables":
        ip, subnet = {4: ("ip", "10.30.0.0/24"), 6: ("ip6", "fd00:30::/64")}[version]
        comment = Owner("n", "a", "eth0").comment
        text = f"""
        table inet cni_plugins_masquerade {{
          chain masq_checks {{
            {ip} saddr == {own} {ip} daddr != {subnet} masquerade comment "{comment}"
          }}
          chain postrouting {{ type nat hook postrouting priority srcnat; goto masq_checks; }}
        }}
        """
        run_in(None, ["nft", text])
    server = udp(lan.machines.far, version, 53)
    session = Session(udp(lan.sandbox("a"), version, 5000), server, FAR[version], 53)
    assert session.peer[0] == OUTSIDE[version]
    before = tracked(version, f"src={own}")
    prefix = {4: 24, 6: 64}[version]
    step = Masquerade(Owner("m", "b", "eth0"), (parse_network(f"{own}/{prefix}"),), "nftables")
    with HostAndSandbox(None) as kernel:

        def leave() -> None:
            undo = masquerade.apply(step, kernel)
            assert undo is not None
            if way == "DEL":
                masquerade.remove(step, kernel)
            elif way == "GC":
                masquerade.collect(kernel, Owners("m"))
            else:
                undo()

        leave()
        assert tracked(version, f"src={own}") == before
        assert session.goes_on()
        run_in(lan.sandbox("a"), ["ip", "link", "delete", "eth0"])
        leave()
        assert tracked(version, f"src={own}") == set()


@both_families
def test_an_address_taken_over_has_no_flows(lan: Lan, version: int) -> None:
    """Its earlier holder went without DEL."""
    lan.network(firewall={"backend": "nftables"}, ipMasq=False)
    own, other = lan.add("a"), lan.add("b")
    server = udp(lan.machines.far, version, 53)
    for container in ("a", "b"):
        Session(udp(lan.sandbox(container), version, 5000), server, FAR[version], 53)
    kept = tracked(version, f"src={other[version]}")
    step = Firewall(Owner("n", "new", "eth0"), (parse_address(own[version]),), "nftables")
    with HostAndSandbox(None) as kernel:
        firewall.apply(step, kernel)
    assert tracked(version, f"src={own[version]}") == set()
    assert tracked(version, f"src={other[version]}") == kept != set()


@pytest.mark.parametrize("backend", ["nftables", "iptables", ""])
@pytest.mark.parametrize("way", ["DEL", "GC"])
def test_flows_are_looked_for_once(
    lan: Lan, monkeypatch: pytest.MonkeyPatch, backend: str, way: str
) -> None:
    """By masquerading and firewall together; where nothing is tracked, one question does."""
    network = lan.network(firewall={"backend": backend})
    lan.network("other", bridge="br1", subnets=("10.31.0.0/24", "fd00:31::/64"))
    lan.add("c", network="other")
    asked: list[str] = []
    monkeypatch.setattr(netlink_socket, "before_send", lambda request: asked.append(request.what))

    def leave() -> list[str]:
        lan.add("a")
        if not is_busy:
            run_in(None, ["conntrack", "-F"])
        asked.clear()
        if way == "DEL":
            network.delete("a")
        else:
            network.gc([], force=True)
        return [what for what in asked if "flows" in what]

    is_busy = False
    assert leave() == ["read how many flows are tracked"]
    is_busy = True
    for version in (4, 6):
        server = udp(lan.machines.far, version, 53)
        Session(udp(lan.sandbox("c"), version, 5001), server, FAR[version], 53)
    assert sorted(leave()) == [
        "forget IPv4 flows source 10.30.0.3",
        "forget IPv4 flows target 10.30.0.3",
        "list tracked flows",
        "read how many flows are tracked",
        "read how many flows are tracked",
    ]
