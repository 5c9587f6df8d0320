"""What is left of an earlier holder of a host port, or of an address."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, ask, run_in, service
from harness.configs import host_local
from harness.host import forget_attachments
from harness.lan import Lan, port, received, udp
from harness.machines import CLIENT, HOST, SECOND, Machines, addresses
from harness.topics import port_holders as kit
from harness.topics.port_holders import (
    ALL,
    CONDITIONAL,
    IPTABLES,
    LEGACY,
    NFTABLES,
    OURS,
    OWN_MAPS,
    REFERENCE,
    REFERENCE_NFTABLES,
    Ports,
    both_families,
    led,
    mapping,
    rules,
)
from pycni.runtime import PluginError

ports = kit.ports


# --- what an earlier one left --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "new"), [pair for pair in product(ALL, OURS) if set(pair) != OWN_MAPS]
)
def test_what_leads_to_an_address_of_its_own_goes(ports: Ports, left: str, new: str) -> None:
    """Its holder is gone, since the address has been given to another container."""
    machines = ports.machines
    one, other = machines.container("one"), machines.container("other")
    ports.hold(left, one, mapping(), mapping(9090, 81), mapping(9091, 81, hostIP=HOST[4]))
    if left != REFERENCE_NFTABLES:
        stays = ports.hold(left, other, mapping(7070, 80))
    again = Attachment(one.plugin, one.config, one.sandbox, "two", result=one.result)
    portmap = ports.portmap(new, again, mapping(8080, 81))
    ports.call(new, portmap.add)
    ports.call(new, portmap.check)
    assert ask(machines.client, HOST[4], 8080) == f"one {CLIENT[4]}"
    assert not ask(machines.client, HOST[4], 9090)
    assert not ask(machines.client, HOST[6], 9090)
    assert not ask(machines.client, HOST[4], 9091)
    assert not any(number in line for line in rules() for number in ("9090", "9091"))
    if left != REFERENCE_NFTABLES:
        if left in OURS:
            ports.call(left, stays.check)
        assert ask(machines.client, HOST[4], 7070) == f"other {CLIENT[4]}"
    ports.call(new, portmap.delete)
    assert not ask(machines.client, HOST[4], 8080)


def lose(lan: Lan, container: str) -> None:
    """A container goes without DEL, what is noted of it goes too, and its lease is freed."""
    run_in(lan.sandbox(container), ["ip", "link", "delete", "eth0"])  # which waits until it is gone
    lan.sandboxes.pop(container).delete()
    forget_attachments()
    for lease in (lan.folder / "leases" / "n").iterdir():
        if lease.name[0].isdigit() or ":" in lease.name:
            lease.unlink()


@pytest.mark.parametrize("new", [NFTABLES, IPTABLES])
def test_what_the_reference_made_for_the_container_stays(ports: Ports, new: str) -> None:
    """It is the container's own, and its DEL removes it."""
    one = ports.machines.container("one")
    ports.hold(REFERENCE_NFTABLES, one, mapping(), mapping(9090), mapping(9091, hostIP=HOST[4]))
    before = set(rules())
    portmap = ports.portmap(new, one)
    portmap.add()
    assert before <= set(rules())
    portmap.delete()
    assert not any('comment "one"' in line for line in rules())


def test_what_the_reference_made_by_another_network_stays(ports: Ports) -> None:
    """Its rules name the container and no network, so addresses say which one's they are."""
    machines = ports.machines
    one = machines.container("one")
    other = Attachment(
        one.plugin, {**one.config, "name": "second", "bridge": "br1"}, one.sandbox, "one", "eth1"
    )
    other.config["ipam"] = {**one.config["ipam"], "ranges": [[subnet] for subnet in SINGLE]}
    other.config |= {"isDefaultGateway": False, "isGateway": True}
    other.add()
    ports.hold(REFERENCE_NFTABLES, one, mapping(), mapping(9090, hostIP=HOST[4]))
    before = reference_rules()
    ports.hold(REFERENCE_NFTABLES, other, mapping(8081), mapping(9091, hostIP=SECOND[4]))
    ports.portmap(NFTABLES, other, mapping(8081)).delete()
    assert reference_rules() == before
    portmap = ports.portmap(NFTABLES, one)
    portmap.config.pop("prevResult")
    one.delete()
    portmap.delete()
    assert reference_rules() == []


def reference_rules() -> list[str]:
    return [line.strip() for line in rules() if 'comment "one"' in line and "net: " not in line]


SINGLE = (
    {"subnet": "10.30.0.0/24", "rangeStart": "10.30.0.2", "rangeEnd": "10.30.0.2"},
    {"subnet": "fd00:30::/64", "rangeStart": "fd00:30::2", "rangeEnd": "fd00:30::2"},
)


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "not noted"])
@pytest.mark.parametrize("new", [NFTABLES, IPTABLES])
@pytest.mark.parametrize("held", [IPTABLES, LEGACY, REFERENCE, REFERENCE_NFTABLES])
def test_two_networks_with_one_address_keep_their_ports(
    ports: Ports, held: str, new: str, noted: bool
) -> None:
    """Whatever the other one's interface is called, as long as it is there."""
    machines = ports.machines
    one, two, three = (
        Attachment(
            machines.plugins / "bridge",
            {
                "cniVersion": "1.0.0",
                "name": network,
                "type": "bridge",
                "bridge": f"br-{network}",
                "isGateway": True,
                "ipam": host_local(machines.folder, ranges=[[subnet] for subnet in SINGLE]),
            },
            machines.sandbox(),
            container,
            ifname,
        )
        for network, container, ifname in (
            ("first", "one", "eth1"),
            ("second", "two", "eth0"),
            ("second", "three", "eth0"),
        )
    )
    one.add()
    ports.hold(held, one)
    if not noted:
        forget_attachments()
    for version, subnet in enumerate(SINGLE):  # no ADD is let in beside another bridge with it
        words = ["route", "delete", subnet["subnet"], "dev", "br-first"]
        run_in(None, ["ip", ("-4", "-6")[version], *words])
    two.add()
    assert addresses(two) == addresses(one)
    before = led()
    ports.call(new, ports.portmap(new, two, mapping(8081)).add)
    assert before <= led()
    assert one.sandbox is not None
    one.sandbox.delete()
    two.delete()
    three.add()
    assert addresses(three) == addresses(one)
    ports.call(new, ports.portmap(new, three, mapping(8082)).add)
    assert not before & led()


@pytest.mark.parametrize("keys", [{}, CONDITIONAL], ids=["elements", "conditions"])
@pytest.mark.parametrize("own", [(7070, 81), None], ids=["with a port", "without"])
@both_families
def test_check_and_repair_see_strangers_ports(
    machines: Machines, tmp_path: Path, version: int, own: tuple[int, int] | None, keys: Any
) -> None:
    """Of somebody of whom nothing is noted, and who had the address."""
    lan = Lan(machines, tmp_path)
    network = lan.alone(portmap=keys)
    address = lan.add("left", port(8080, 80), port(9090, 82, "udp"), port(9091, 80, "sctp"))
    lose(lan, "left")
    assert lan.add("new", *([port(*own)] if own else [])) == address
    machines.stack.enter_context(service(lan.sandbox("new"), "new", 80, 81))
    client = udp(machines.client, version, 40000)
    reached = udp(lan.sandbox("new"), version, 82)
    client.sendto(b"hello", (HOST[version], 9090))
    assert received(reached)
    assert ask(machines.client, HOST[version], 8080).startswith("new ")
    with pytest.raises(PluginError) as caught:
        network.check("new")
    words = f"host port 8080/tcp (IPv{version}) leads here, left by container left ("
    assert words in str(caught.value)
    found = {report.endpoint.container_id: report.ok for report in network.repair()}
    assert found["new"]
    network.check("new")
    assert not ask(machines.client, HOST[version], 8080, timeout=0.3)
    client.sendto(b"hello", (HOST[version], 9090))
    assert received(reached, 0.3) is None
    if own:
        assert ask(machines.client, HOST[version], 7070).startswith("new ")


def test_an_add_that_meets_an_earlier_holder_takes_all_of_it(
    machines: Machines, tmp_path: Path
) -> None:
    """By the container's port, which most have in common, or by one of the host's."""
    lan = Lan(machines, tmp_path)
    lan.alone()
    for number, asked in enumerate((port(7070, 80), port(8080, 81))):
        left = f"left{number}"
        address = lan.add(left, port(8080, 80), port(9090, 82))
        lose(lan, left)
        assert lan.add("new", asked) == address
        assert not any(f"id: {left}" in line and "9090" in line for line in rules())
        lan.network().check("new")
        lan.network().delete("new")
