"""Which flows that the kernel tracks are forgotten: those that lead elsewhere than they should.

By what real clients get. The names: containers `a`, `b`; `client` asks the host from outside, `far`
is asked by containers.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest

from harness import inside, run_in
from harness.frames import sctp_init
from harness.lan import Lan, connection, port, received, tracked, udp
from harness.machines import FAR, HOST, LOCAL, SECOND
from harness.topics import flows as kit
from harness.topics.flows import OUTSIDE, Session, both_families, each_way, leave, lose_result
from pycni.plan.steps import Masquerade, PortMap, PortMapping
from pycni.runtime import PluginError
from pycni.spec.ip import parse_network
from pycni.spec.owner import Owner, Owners
from pycni.steps import masquerade, port_map
from pycni.steps.namespaces import HostAndSandbox

lan = kit.lan


CONDITIONAL = {"conditionsV4": ["ip", "ttl", "1-255"], "conditionsV6": ["ip6", "hoplimit", "1-255"]}


def published(lan: Lan, version: int, container: str = "a") -> Session:
    """A session of the client with port 443 of a container by port 8443 of the host."""
    return Session(
        udp(lan.machines.client, version, 40000),
        udp(lan.sandbox(container), version, 443),
        HOST[version],
        8443,
    )


def refuse(lan: Lan, container: str, *ports: dict[str, object]) -> None:
    with pytest.raises(PluginError) as refused:
        lan.add(container, *ports)
    assert refused.value.code == 101


# --- what lives goes on --------------------------------------------------------------------------


@both_families
def test_a_refused_add_forgets_nothing(lan: Lan, version: int) -> None:
    lan.add("a", port(8443, 443, "udp"))
    session = published(lan, version)
    before = tracked(version)
    refuse(lan, "b", port(8443, 443, "udp"))
    assert tracked(version) == before
    assert session.goes_on()


@both_families
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_repair_keeps_what_is_on_its_way(lan: Lan, version: int, backend: str) -> None:
    network = lan.network(portmap={"backend": backend})
    lan.add("a", port(8443, 443, "udp"))
    session = published(lan, version)
    before = tracked(version)
    assert all(report.is_sound for report in network.repair())
    assert tracked(version) == before
    run_in(None, ["nft", "flush ruleset"])
    assert not any(report.is_sound for report in network.repair())
    assert tracked(version) == before
    assert session.goes_on()


@both_families
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("stays", [True, False])
def test_the_port_s_second_network_keeps_what_is_on_its_way(
    lan: Lan, version: int, backend: str, stays: bool
) -> None:
    """Also where the first one's rules were lost meanwhile."""
    lan.network(portmap={"backend": backend})
    other = lan.network(
        "m", bridge="br1", subnets=("10.31.0.0/24", "fd00:31::/64"), portmap={"backend": backend}
    )
    lan.add("a", port(8443, 443, "udp"))
    session = published(lan, version)
    before = tracked(version, "dport=8443")
    run_in(None, ["nft", "flush ruleset"])
    lan.add("a", port(8443, 443, "udp"), network="m", ifname="eth1")
    if not stays:
        other.delete("a", ifname="eth1")
    lan.network().repair()
    assert tracked(version, "dport=8443") == before
    # While it stays, the container answers by its default route.
    assert stays or session.goes_on()


@both_families
def test_another_mapping_keeps_what_is_on_its_way(lan: Lan, version: int) -> None:
    """To another address of the host, another container, or an ADD repeated."""
    lan.add("a", port(8443, 443, "udp", hostIP=HOST[version]))
    session = published(lan, version)
    lan.add("b", port(8443, 443, "udp", hostIP=SECOND[version]), port(8444, 443, "udp"))
    assert session.goes_on()
    lan.network().delete("b")
    assert session.goes_on()


@both_families
def test_flows_to_external_hosts_go_on(lan: Lan, version: int) -> None:
    """Of a container, of the host, and of a client that the host routes for: same port number."""
    machines = lan.machines
    lan.add("a")
    server = udp(machines.far, version, 443)
    sessions = [
        Session(udp(where, version, 5000 + number), server, FAR[version], 443)
        for number, where in enumerate((lan.sandbox("a"), None, machines.client))
    ]

    def must_go_on() -> None:
        assert [session.goes_on() for session in sessions] == [True] * 3

    lan.add("b", port(443, 443, "udp"))
    must_go_on()
    refuse(lan, "c", port(443, 443, "udp"))
    must_go_on()
    run_in(None, ["nft", "delete map inet pycni port-map-nonesuch"], check=False)
    run_in(None, ["nft", "flush map inet pycni port-map4; flush map inet pycni port-map6"])
    assert not all(report.is_sound for report in lan.network().repair())
    must_go_on()
    lan.network().delete("b")
    must_go_on()
    lan.add("b", port(443, 443, "udp"))
    lan.network().gc([("a", "eth0")], force=True)
    must_go_on()


# --- what leads elsewhere does not ---------------------------------------------------------------


@both_families
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_flows_follow_their_port(lan: Lan, version: int, backend: str) -> None:
    """A client that sends all the time reaches the present holder of the port."""
    network = lan.network(portmap={"backend": backend})
    client = udp(lan.machines.client, version, 40000)
    on_host = udp(None, version, 8443, HOST[version])
    listeners = {"host": on_host}
    for container in ("a", "b"):
        listeners[container] = udp(lan.sandbox(container), version, 443)

    def reached() -> str:
        client.sendto(b"hello", (HOST[version], 8443))
        return next((who for who, where in listeners.items() if received(where, 0.2)), "")

    assert reached() == "host"
    lan.add("a", port(8443, 443, "udp"))
    assert reached() == "a"
    network.delete("a")
    assert reached() == "host"
    lan.add("b", port(8443, 443, "udp"))
    assert reached() == "b"
    network.gc([], force=True)
    assert reached() == "host"


def test_localhost_is_an_address_of_the_host(lan: Lan) -> None:
    client = udp(None, 4, 40000)
    on_host = udp(None, 4, 8443, "127.0.0.1")
    client.sendto(b"hello", (LOCAL[4], 8443))
    assert received(on_host)
    lan.add("a", port(8443, 443, "udp"))
    in_container = udp(lan.sandbox("a"), 4, 443)
    client.sendto(b"hello", (LOCAL[4], 8443))
    assert received(in_container)
    lan.network().delete("a")
    client.sendto(b"hello", (LOCAL[4], 8443))
    assert received(on_host)


def test_addresses_that_are_the_host_s_own_keep_their_flows(lan: Lan) -> None:
    """What is for all addresses is not for ::1."""
    on_host = udp(None, 6, 8443, LOCAL[6])
    lan.add("other", port(9000, 80))
    session = Session(udp(None, 6, 40000), on_host, LOCAL[6], 8443)
    before = tracked(6)
    assert before
    lan.add("a", port(8443, 443, "udp"))
    assert tracked(6) == before
    assert session.goes_on()


@both_families
@pytest.mark.parametrize("damage", ["delete table inet pycni", "flush table inet pycni"])
def test_a_repair_takes_along_what_went_astray(lan: Lan, version: int, damage: str) -> None:
    """What began while the rules were gone, whether the elements are still there or not."""
    names = ("a", "b")
    clients = {name: udp(lan.machines.client, version, 40000 + ord(name)) for name in names}
    for number, name in enumerate(names):
        lan.add(name, port(8443 + number, 443, "udp"))
    within = {name: udp(lan.sandbox(name), version, 443) for name in names}
    on_host = [udp(None, version, 8443 + number, HOST[version]) for number in (0, 1)]
    run_in(None, ["nft", damage])
    # Without rules nothing would be tracked.
    run_in(None, ["nft", "add table inet others"])
    run_in(None, ["nft", "add chain inet others in { type filter hook input priority 0; }"])
    run_in(None, ["nft", "add rule inet others in ct state new accept"])
    for number, name in enumerate(names):
        clients[name].sendto(b"hello", (HOST[version], 8443 + number))
        assert received(on_host[number])
    assert len(tracked(version, "udp")) == 2
    assert not all(report.is_sound for report in lan.network().repair())
    for number, name in enumerate(names):
        clients[name].sendto(b"hello", (HOST[version], 8443 + number))
        assert received(within[name]), name


@both_families
def test_sctp_follows_its_port(lan: Lan, version: int) -> None:
    """By hand, since this kernel has no SCTP of its own: an association that is asked for again."""
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[version]
    with inside(lan.machines.client):
        client = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_SCTP)
    with inside(lan.sandbox("a")):
        server = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_SCTP)
    server.settimeout(2)
    run_in(None, ["nft", "add table inet others"])
    run_in(None, ["nft", "add chain inet others in { type filter hook input priority 0; }"])
    run_in(None, ["nft", "add rule inet others in ct state new accept"])
    with client, server:
        client.sendto(sctp_init(36422), (HOST[version], 0))
        client.sendto(sctp_init(36422), (FAR[version], 0))
        assert len(tracked(version, "sctp")) == 2
        elsewhere = tracked(version, f"dst={FAR[version]}")
        lan.add("a", port(36422, 80, "sctp"))
        client.sendto(sctp_init(36422), (HOST[version], 0))
        data = server.recv(200)[20 if version == 4 else 0 :]
        assert struct.unpack(">HH", data[:4]) == (40000, 80)
        assert tracked(version, f"dst={FAR[version]}") == elsewhere != set()
        lan.network().delete("a")
        assert tracked(version, "sctp") == elsewhere


@both_families
@pytest.mark.parametrize(
    "way", ["DEL", "GC", "DEL without the elements", "DEL without elements and result"]
)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_nothing_is_translated_any_more(lan: Lan, version: int, way: str, protocol: str) -> None:
    """An established connection too: the next container with the address would get it."""
    own = lan.add("a", port(8443, 443, protocol))
    other = lan.add("b", port(8444, 443, protocol))
    connections: list[socket.socket] = []
    for container, number in (("a", 8443), ("b", 8444)):
        if protocol == "udp":
            udp(lan.machines.client, version, 40000).sendto(b"hello", (HOST[version], number))
        else:
            connections += connection(
                lan.sandbox(container), lan.machines.client, HOST[version], number, 443
            )
    assert tracked(version, protocol, f"src={own[version]}", "dport=8443")
    kept = tracked(version, protocol, f"src={other[version]}", "dport=8444")
    assert kept
    if "without" in way:
        run_in(None, ["nft", "delete table inet pycni"])
    if "result" in way:
        lose_result(lan)
    if way == "GC":
        lan.network().gc([("b", "eth0")], force=True)
    else:
        ports = [port(8443, 443, protocol)]  # the runtime has them from elsewhere too
        lan.network().delete("a", capabilities={"portMappings": ports})
    assert tracked(version, f"src={own[version]}") == set()
    assert tracked(version, protocol, f"src={other[version]}", "dport=8444") == kept


# --- masquerading --------------------------------------------------------------------------------


@both_families
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("damage", ["flush ruleset", "flush table inet pycni"])
def test_a_repair_masquerades_what_began_without(
    lan: Lan, version: int, backend: str, damage: str
) -> None:
    if backend == "iptables" and damage != "flush ruleset":
        damage = "flush table ip nat; flush table ip6 nat"
    network = lan.network(ipMasqBackend=backend)
    machines, containers = lan.machines, ("a", "b")
    own = {container: lan.add(container)[version] for container in containers}
    server, on_host = udp(machines.far, version, 53), udp(None, version, 53, HOST[version])
    clients = {name: udp(lan.sandbox(name), version, 5000) for name in containers}
    run_in(None, ["nft", damage])
    # NAT of others has the kernel settle for each flow at its first packet.
    run_in(None, ["nft", "add table inet others"])
    run_in(None, ["nft", "add chain inet others out { type nat hook postrouting priority 101; }"])
    run_in(None, ["nft", "add rule inet others out oifname nowhere masquerade"])
    for name, client in clients.items():
        client.sendto(b"hello", (FAR[version], 53))
        assert received(server) == ("hello", own[name], 5000)
        client.sendto(b"hello", (HOST[version], 53))
        assert received(on_host)
    near, far = connection(machines.far, lan.sandbox("a"), FAR[version], 80, 80)
    right = tracked(version, "dport=80") | tracked(version, f"dst={HOST[version]}")
    assert len(right) == 3

    assert not all(report.is_sound for report in network.repair())
    for client in clients.values():
        client.sendto(b"hello", (FAR[version], 53))
        seen = received(server)
        assert seen is not None
        assert seen[1] == OUTSIDE[version]
    assert tracked(version, "dport=80") | tracked(version, f"dst={HOST[version]}") == right
    with near, far:
        near.sendall(b"still here")
        assert far.recv(20) == b"still here"


@both_families
@pytest.mark.parametrize("way", ["DEL", "GC"])
@pytest.mark.parametrize(
    "keys",
    [{"backend": "nftables"}, {"backend": "iptables"}, CONDITIONAL],
    ids=["nftables", "iptables", "conditions"],
)
def test_an_earlier_holder_takes_no_flows_along(
    lan: Lan, version: int, keys: dict[str, Any], way: str
) -> None:
    """Of who has its address and its port by now; what nothing leads there any more goes."""
    lan.network(portmap=keys)
    own = lan.add("a", port(8443, 443, "udp"))[version]
    session = published(lan, version)
    before = tracked(version, "dport=8443")
    owner = Owner("m", "gone", "eth0")
    mappings = PortMapping("udp", 8443, 443), PortMapping("udp", 8444, 443)
    with HostAndSandbox(None) as kernel:
        if way == "DEL":
            step = PortMap(owner, mappings, (parse_network(f"{own}/24"),), "nftables")
            port_map.remove(step, kernel)
        else:
            noted = {"port_map": (own,)}
            port_map.collect(kernel, Owners("m", (owner.attachment,), addresses=noted))
        assert tracked(version, "dport=8443") == before
        assert session.goes_on()
        lan.network().delete("a")
        assert tracked(version, "dport=8443") == set()


def test_gc_forgets_what_nothing_leads_to_an_address(lan: Lan) -> None:
    lan.network()
    own = lan.add("a", port(8443, 443, "udp"), port(8444, 444, "udp"))
    sessions = [
        Session(
            udp(lan.machines.client, 4, 40000 + number),
            udp(lan.sandbox("a"), 4, 443 + number),
            HOST[4],
            8443 + number,
        )
        for number in range(2)
    ]
    run_in(None, ["nft", "delete element inet pycni port-map4 { udp . 8444 }"])
    noted = {"port_map": (own[4],)}
    owners = Owners("m", (Owner("m", "gone", "eth0").attachment,), addresses=noted)
    with HostAndSandbox(None) as kernel:
        port_map.collect(kernel, owners)
    assert sessions[0].goes_on()
    assert not tracked(4, "dport=8444")


@both_families
@each_way
def test_the_next_holder_of_an_address_gets_no_answers(lan: Lan, version: int, way: str) -> None:
    lan.alone()
    lan.network("other", bridge="br1", subnets=("10.31.0.0/24", "fd00:31::/64"))
    machines = lan.machines
    own = lan.add("a")
    lan.add("c", network="other")
    server = udp(machines.far, version, 53)
    session = Session(udp(lan.sandbox("a"), version, 5000), server, FAR[version], 53)
    other = Session(udp(lan.sandbox("c"), version, 5001), server, FAR[version], 53)
    leave(lan, way)
    assert lan.add("b") == own
    successor = udp(lan.sandbox("b"), version, 5000)
    server.sendto(b"news", session.peer)
    assert received(successor, 0.3) is None
    assert other.goes_on()


@both_families
def test_a_lost_del_leaves_the_next_holder_no_answers(lan: Lan, version: int) -> None:
    """The element is still there, and replaced; what is another's flow stays."""
    lan.network()
    own, other = lan.add("a"), lan.add("b")
    server = udp(lan.machines.far, version, 53)
    for container in ("a", "b"):
        Session(udp(lan.sandbox(container), version, 5000), server, FAR[version], 53)
    kept = tracked(version, f"src={other[version]}")
    assert tracked(version, f"src={own[version]}")
    prefix = {4: 24, 6: 64}[version]
    step = Masquerade(
        Owner("n", "new", "eth0"), (parse_network(f"{own[version]}/{prefix}"),), "nftables"
    )
    with HostAndSandbox(None) as kernel:
        masquerade.apply(step, kernel)
    assert tracked(version, f"src={own[version]}") == set()
    assert tracked(version, f"src={other[version]}") == kept != set()
