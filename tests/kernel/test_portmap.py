"""portmap on the kernel: which packets reach the container, and what is left afterwards."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, ask, call_plugin, inside, run_in, run_plugin, service
from harness.frames import sctp_init
from harness.kernel_state import ruleset
from harness.lan import port as mapping
from harness.machines import BRIDGE, CLIENT, FAR, HOST, LOCAL, SECOND, Machines, addresses, commands
from harness.threads import at_once
from harness.topics.portmap import both_backends, portmap_for
from harness.ways import WAYS, way_of

both_families = pytest.mark.parametrize("version", [4, 6])


# --- packets -------------------------------------------------------------------------------------


@both_families
@both_backends
def test_ports_answer(machines: Machines, bridge_calls: None, backend: str, version: int) -> None:
    one, two = machines.container("one"), machines.container("two")
    portmap = portmap_for(
        machines, one, mapping(8080, 80), mapping(5300, 81, "udp"), backend=backend
    )
    own, neighbour = addresses(one)[version], addresses(two)[version]
    assert not ask(machines.client, HOST[version], 8080)
    assert portmap.add() == one.result
    portmap.check()

    # From another host, which is seen as it is.
    client = CLIENT[version]
    assert ask(machines.client, HOST[version], 8080) == f"one {client}"
    assert ask(machines.client, HOST[version], 5300, "udp") == f"one {client}"
    assert ask(machines.client, SECOND[version], 8080) == f"one {client}"
    # From the host, by each of its addresses.
    assert ask(None, HOST[version], 8080) == f"one {HOST[version]}"
    assert ask(None, BRIDGE[version], 8080) == f"one {BRIDGE[version]}"
    assert ask(None, HOST[version], 5300, "udp")
    if version == 4:
        for local in ("127.0.0.1", *(["127.9.9.9"] if backend == "nftables" else [])):
            assert ask(None, local, 8080) == f"one {BRIDGE[4]}"
        assert ask(None, "127.0.0.1", 5300, "udp") == f"one {BRIDGE[4]}"
    # From the container itself, and from its neighbour: by way of the host, who answers for it.
    for where in (one.sandbox, two.sandbox):
        for address in (HOST[version], BRIDGE[version]):
            assert ask(where, address, 8080) == f"one {BRIDGE[version]}"
            assert ask(where, address, 5300, "udp") == f"one {BRIDGE[version]}"
    # Nothing else answers, and what is not for the host passes.
    assert not ask(machines.client, HOST[version], 80)
    assert not ask(machines.client, HOST[version], 8080, "udp", timeout=0.3)
    assert ask(two.sandbox, own, 80) == f"one {neighbour}"

    portmap.delete()
    for where, address in ((machines.client, HOST[version]), (None, LOCAL[version])):
        assert not ask(where, address, 8080)
        assert not ask(where, address, 5300, "udp", timeout=0.3)


@both_families
@both_backends
def test_transit_is_left_alone(machines: Machines, backend: str, version: int) -> None:
    """CVE-2025-67499: only what is for the host is caught, whatever port it is for."""
    one = machines.container("one")
    portmap_for(machines, one, mapping(8080, 80), mapping(5300, 80, "udp"), backend=backend).add()
    with service(machines.far, "far", 8080, 5300):
        for where in (machines.client, one.sandbox, None):
            assert ask(where, FAR[version], 8080).startswith("far ")
            assert ask(where, FAR[version], 5300, "udp").startswith("far ")


@both_backends
def test_localhost_is_for_the_host(machines: Machines, backend: str) -> None:
    """route_localnet lets the host's packets out, and must not let those of others in."""
    one = machines.container("one")
    portmap_for(machines, one, mapping(8080, 80), backend=backend).add()
    commands(f"route add 127.0.0.77/32 via {HOST[4]} dev eth0\n", machines.client)
    assert one.sandbox is not None
    run_in(one.sandbox, ["ip", "route", "add", "127.0.0.77/32", "via", BRIDGE[4]])
    for machine in (machines.client, one.sandbox):
        with inside(machine):
            Path("/proc/sys/net/ipv4/conf/eth0/route_localnet").write_text("1")
    with service(None, "host", 9090, only="127.0.0.77"):
        assert ask(None, "127.0.0.77", 9090) == "host 127.0.0.1"
        assert not ask(machines.client, "127.0.0.77", 9090)
        if backend == "nftables":
            assert not ask(one.sandbox, "127.0.0.77", 9090)


@both_backends
@pytest.mark.parametrize("kind", WAYS)
def test_localhost_of_ipv6_is_the_host_s(
    machines: Machines, tmp_path: Path, kind: str, backend: str
) -> None:
    """The kernel takes no answer for ::1 from another link, so it is never mapped."""
    one = machines.container("one")
    asked = [mapping(8080, 80), mapping(8080, 80, "udp"), mapping(8081, 81, hostIP="::")]
    portmap = portmap_for(machines, one, *asked, backend=backend)
    refused = portmap_for(machines, one, mapping(8082, 80, hostIP="::1"), backend=backend)
    with way_of(kind, tmp_path, machines.plugins) as way:
        for each in (portmap, refused):
            each.plugin = way.plugins / "portmap"
            each.call = call_plugin if kind == "in process" else run_plugin
        error = refused.refused()
        assert (error["code"], error["msg"]) == (
            7, "host port 8082/tcp cannot be mapped on ::1",
        )  # fmt: skip
        portmap.add()
        portmap.check()
        for port in (8080, 8081):  # no one there: reported at once, so that clients try 127.0.0.1
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("::1", port), timeout=2)
        with service(None, "host", 8080, 8081):
            assert ask(None, "::1", 8080) == ask(None, "::1", 8081) == "host ::1"
            assert ask(None, "::1", 8080, "udp") == "host ::1"
            assert ask(None, HOST[6], 8080) == ask(None, HOST[6], 8081) == f"one {HOST[6]}"
            assert ask(machines.client, HOST[6], 8080, "udp") == f"one {CLIENT[6]}"
        portmap.delete()
    assert not [line for line in ruleset().splitlines() if "8080" in line or "8081" in line]


@both_families
@both_backends
def test_without_snat(machines: Machines, backend: str, version: int) -> None:
    one, two = machines.container("one"), machines.container("two")
    portmap_for(machines, one, mapping(8080, 80), backend=backend, snat=False).add()
    assert ask(machines.client, HOST[version], 8080).startswith("one ")
    assert not ask(None, "127.0.0.1", 8080)
    assert Path("/proc/sys/net/ipv4/conf/br0/route_localnet").read_text() == "0\n"
    source = ask(two.sandbox, HOST[version], 8080)
    assert source in ("", f"one {addresses(two)[version]}")


@both_families
@both_backends
def test_masq_all(machines: Machines, backend: str, version: int) -> None:
    one = machines.container("one")
    portmap = portmap_for(machines, one, mapping(8080, 80), backend=backend, masqAll=True)
    portmap.add()
    portmap.check()
    for where in (machines.client, None, one.sandbox):
        assert ask(where, HOST[version], 8080) == f"one {BRIDGE[version]}"
    if version == 4:
        assert ask(None, "127.0.0.1", 8080) == f"one {BRIDGE[version]}"


@both_families
def test_overlapping_subnets(machines: Machines, version: int) -> None:
    """Who is in a container's own subnet is masqueraded, not who is in one that overlaps."""
    one, two = machines.container("one"), machines.container("two")
    near = machines.container("near", bridge="br1")
    for ip in two.result["ips"]:
        address = ip["address"].partition("/")[0]
        ip["address"] = f"{address}/{32 if ':' in address else 16}"
    first = portmap_for(machines, one, mapping(8080, 80), backend="nftables")
    second = portmap_for(machines, two, mapping(8081, 80), backend="nftables")
    for portmap in (first, second):
        portmap.add()
    own = addresses(near)[version]
    for portmap in (first, second):
        portmap.check()
    assert ask(near.sandbox, HOST[version], 8080) == f"one {own}"
    assert ask(near.sandbox, HOST[version], 8081) == f"two {BRIDGE[version]}"
    assert ask(one.sandbox, HOST[version], 8081) == f"two {BRIDGE[version]}"
    assert ask(two.sandbox, HOST[version], 8080) == f"one {BRIDGE[version]}"

    # Then all are, and then the container's own subnet again.
    every = portmap_for(machines, one, mapping(8080, 80), backend="nftables", masqAll=True)
    every.add()
    assert first.drift()
    assert ask(near.sandbox, HOST[version], 8080) == f"one {BRIDGE[version]}"
    first.add()
    first.check()
    assert ask(near.sandbox, HOST[version], 8080) == f"one {own}"
    assert ask(near.sandbox, HOST[version], 8081) == f"two {BRIDGE[version]}"


@both_families
@both_backends
def test_one_address_of_the_host(machines: Machines, backend: str, version: int) -> None:
    one, two = machines.container("one"), machines.container("two")
    first = portmap_for(machines, one, mapping(8080, 80, hostIP=HOST[version]), backend=backend)
    second = portmap_for(machines, two, mapping(8080, 80, hostIP=SECOND[version]), backend=backend)
    first.add()
    assert not ask(machines.client, SECOND[version], 8080)
    second.add()
    for portmap in (first, second):
        portmap.check()
    assert ask(machines.client, HOST[version], 8080).startswith("one ")
    assert ask(machines.client, SECOND[version], 8080).startswith("two ")
    assert not ask(machines.client, HOST[10 - version], 8080)
    first.delete()
    assert not ask(machines.client, HOST[version], 8080)
    assert ask(machines.client, SECOND[version], 8080).startswith("two ")


@both_backends
@pytest.mark.parametrize(("host_ip", "version"), [("0.0.0.0", 4), ("::", 6)])
def test_all_addresses_of_one_family(
    machines: Machines, backend: str, host_ip: str, version: int
) -> None:
    one = machines.container("one")
    portmap_for(machines, one, mapping(8080, 80, hostIP=host_ip), backend=backend).add()
    assert ask(machines.client, SECOND[version], 8080).startswith("one ")
    assert not ask(machines.client, HOST[10 - version], 8080)


def test_an_address_wins_over_all(machines: Machines) -> None:
    one, two = machines.container("one"), machines.container("two")
    portmap_for(machines, two, mapping(8080, 80, hostIP=HOST[4])).add()
    portmap_for(machines, one, mapping(8080, 80)).add()
    assert ask(machines.client, HOST[4], 8080).startswith("two ")
    assert ask(machines.client, SECOND[4], 8080).startswith("one ")


@both_backends
def test_many_ports(machines: Machines, backend: str) -> None:
    """More than fit into one rule of iptables, and several ports that lead to one."""
    one = machines.container("one")
    ports = range(9000, 9040)
    portmap = portmap_for(machines, one, *(mapping(port, 80) for port in ports), backend=backend)
    portmap.add()
    portmap.check()
    for port in (9000, 9014, 9015, 9039):
        assert ask(machines.client, HOST[4], port).startswith("one ")
    portmap.delete()
    assert not ask(machines.client, HOST[4], 9020)


@both_families
@both_backends
def test_sctp(machines: Machines, backend: str, version: int) -> None:
    """This kernel has no SCTP of its own, so packets are made and received by hand."""
    one = machines.container("one")
    portmap_for(machines, one, mapping(8080, 80, "SCTP"), backend=backend).add()
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with inside(one.sandbox):
        receiver = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_SCTP)
    with inside(machines.client):
        sender = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_SCTP)
    with receiver, sender:
        receiver.settimeout(2)
        sender.sendto(sctp_init(8080), (HOST[version], 0))
        data = receiver.recv(200)[20 if version == 4 else 0 :]
        assert struct.unpack(">HH", data[:4]) == (40000, 80)
        assert data[12] == 1


@both_families
@both_backends
def test_udp_follows_its_port(machines: Machines, backend: str, version: int) -> None:
    """A flow that goes on all the time goes to the container that has the port now."""
    one, two = machines.container("one"), machines.container("two")
    source = ("", 40000)

    def reached() -> str:
        answer = ask(machines.client, HOST[version], 5300, "udp", source=source, timeout=0.5)
        return answer.partition(" ")[0]

    with service(None, "host", 5300, only=HOST[version]):
        assert reached() == "host"
        first = portmap_for(machines, one, mapping(5300, 80, "udp"), backend=backend)
        first.add()
        assert reached() == "one"
        first.delete()
        assert reached() == "host"
        second = portmap_for(machines, two, mapping(5300, 80, "udp"), backend=backend)
        second.add()
        assert reached() == "two"
        if backend == "iptables":
            return
        # The port is known from the rules, if the DEL says nothing.
        second.config = {key: second.config[key] for key in ("cniVersion", "name", "type")}
        second.result = None
        second.delete()
        assert reached() == "host"


@both_backends
def test_conditions(machines: Machines, backend: str) -> None:
    one, two = machines.container("one"), machines.container("two")
    words = {"nftables": "ip saddr 192.0.2.2", "iptables": "-s 192.0.2.2/32"}[backend].split()
    other = {"nftables": "ip saddr != 192.0.2.2", "iptables": "! -s 192.0.2.2/32"}[backend].split()
    words6 = {"nftables": "ip6 saddr 2001:db8::2", "iptables": "-s 2001:db8::2"}[backend].split()
    # The backend follows from the words.
    first = portmap_for(machines, one, mapping(8080, 80), conditionsV4=words, conditionsV6=words6)
    second = portmap_for(machines, two, mapping(8080, 80), conditionsV4=other)
    first.config["runtimeConfig"]["portMappings"].append(mapping(8081, 81, hostIP=HOST[4]))
    second.config["runtimeConfig"]["portMappings"][0]["hostIP"] = "0.0.0.0"
    for portmap in (first, second):
        portmap.add()
        portmap.check()
    assert ask(machines.client, HOST[4], 8080) == "one 192.0.2.2"
    assert ask(machines.client, HOST[6], 8080) == "one 2001:db8::2"
    assert ask(machines.client, HOST[4], 8081) == "one 192.0.2.2"
    assert not ask(machines.client, SECOND[4], 8081)
    assert ask(None, HOST[4], 8080) == f"two {HOST[4]}"
    assert not ask(None, HOST[6], 8080)
    first.delete()
    assert not ask(machines.client, HOST[4], 8080)
    assert ask(None, HOST[4], 8080) == f"two {HOST[4]}"
    second.add()
    second.check()
    second.delete()
    assert "two" not in ruleset()


# --- whose a port is -----------------------------------------------------------------------------


def test_a_taken_port_is_refused(machines: Machines) -> None:
    one, two = machines.container("one"), machines.container("two")
    first = portmap_for(machines, one, mapping(8080, 80), mapping(443, 80, "udp", hostIP=HOST[6]))
    first.add()
    before = ruleset()
    second = portmap_for(machines, two, mapping(8079, 80), mapping(8080, 81))
    error = second.refused()
    assert error["code"] == 101
    assert error["msg"] == (
        "host port 8080/tcp (IPv4) is taken by container one"
        " (network first, interface eth0, 10.15.20.2 port 80)"
    )
    assert "hostPort" in error["details"]
    assert ruleset() == before
    third = portmap_for(machines, two, mapping(443, 81, "udp", hostIP=HOST[6]))
    assert "host port 443/udp of 2001:db8::1 is taken by container one" in third.refused()["msg"]
    # Another protocol, or another address, is another port.
    portmap_for(
        machines, two, mapping(8080, 81, "udp"), mapping(443, 81, "udp", hostIP=SECOND[6])
    ).add()
    first.delete()
    second.add()
    assert ask(machines.client, HOST[4], 8080).startswith("two ")


def test_two_at_once_never_get_the_same_port(machines: Machines) -> None:
    attachments = [
        portmap_for(machines, machines.container(f"c{number}"), mapping(8080, 80))
        for number in range(6)
    ]
    codes: list[int] = []
    assert at_once(lambda portmap: codes.append(portmap.run("ADD").code), attachments) == []
    assert sorted(codes) == [0] + [1] * 5
    assert ruleset().count("tcp . 8080 comment") == 2  # a family each


@both_backends
@pytest.mark.parametrize("kind", WAYS)
def test_ports_that_the_host_listens_on_are_reported(
    machines: Machines,
    tmp_path: Path,
    kind: str,
    backend: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """They lead to the container from then on, and anyone who wonders finds it in the log."""
    asked = [mapping(number, 80) for number in (8080, 8081, 8082, 8084)]
    asked += [mapping(8080, 80, "udp"), mapping(8083, 80, hostIP=HOST[6])]
    one = machines.container("one")
    portmap = portmap_for(machines, one, *asked, backend=backend)
    with (
        way_of(kind, tmp_path, machines.plugins) as way,
        service(None, "host", 8080),
        service(None, "host", 8081, only="127.0.0.1"),
        service(None, "host", 8082, only="::1"),
        service(None, "host", 8083, only=HOST[6]),
        service(one.sandbox, "one", 8084),
    ):
        portmap.plugin = way.plugins / "portmap"
        portmap.call = call_plugin if kind == "in process" else run_plugin
        capfd.readouterr()
        done = portmap.run("ADD")
        assert done.code == 0, done.stdout
        reported = done.stderr + capfd.readouterr().err
    lines = [line.split("host port ")[1] for line in reported.splitlines() if "(user 0)" in line]
    own = addresses(one)
    assert sorted(lines) == sorted(
        f"{key}: what comes in for it goes to {own[version]} now"
        for key, version in (
            ("8080/tcp", 4), ("8080/tcp", 6), ("8080/udp", 4), ("8080/udp", 6),
            ("8081/tcp", 4), ("8083/tcp", 6),
        )
    )  # fmt: skip


def test_address_used_again(machines: Machines) -> None:
    """A container whose DEL never came gives way to the next one at its address."""
    one = machines.container("one")
    portmap_for(machines, one, mapping(8080, 80), mapping(8081, 80)).add()
    again = Attachment(one.plugin, one.config, one.sandbox, "two", result=one.result)
    new = portmap_for(machines, again, mapping(8080, 81))
    new.add()
    new.check()
    assert ask(machines.client, HOST[4], 8080)
    # The late DEL of the one spares what is the other's now.
    portmap_for(machines, one, mapping(8080, 80), mapping(8081, 80)).delete()
    new.check()
    assert "id: one" not in ruleset()


def test_two_networks_of_one_container(machines: Machines) -> None:
    """Runtimes give the same mappings to each network of a container: the first has the ports."""
    one = machines.container("one")
    first = portmap_for(machines, one, mapping(8080, 80))
    first.add()
    run_in(None, ["ip", "address", "add", "10.16.0.1/24", "dev", "br0"])
    other = Attachment(
        one.plugin, {**one.config, "name": "second"}, one.sandbox, "one", "eth1",
        result=moved(one.result),
    )  # fmt: skip
    second = portmap_for(machines, other, mapping(8080, 80))
    second.add()
    first.check()
    second.check()
    assert ask(machines.client, HOST[4], 8080).startswith("one ")
    second.delete()
    first.check()
    assert ask(machines.client, HOST[4], 8080).startswith("one ")


def moved(result: dict[str, Any]) -> dict[str, Any]:
    """A result for another interface of the container, with another address."""
    interfaces = [
        {**each, "name": "eth1"} if each.get("sandbox") else each for each in result["interfaces"]
    ]
    ips = [{"interface": len(interfaces) - 1, "address": "10.16.0.2/24"}]
    return {**result, "interfaces": interfaces, "ips": ips}
