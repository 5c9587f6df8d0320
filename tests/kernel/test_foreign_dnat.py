"""What other software translates is its own: portmap masquerades what its own mappings lead.

The foreign rules are those of a service: an address of no host, and a port of the host, lead to a
container that has a published port of its own.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from harness import ask, inside, nft_list, run_in, service
from harness.lan import Lan, port
from harness.machines import CLIENT, HOST, Machines, commands
from pycni.runtime import PluginError

both_backends = pytest.mark.parametrize("backend", ["nftables", "iptables"])
both_families = pytest.mark.parametrize("version", [4, 6])

SERVICE = {4: "10.96.0.1", 6: "fd00:96::1"}
GATEWAY = {4: "10.30.0.1", 6: "fd00:30::1"}


@pytest.fixture
def lan(machines: Machines, tmp_path: Path) -> Lan:
    return Lan(machines, tmp_path)


def serve(lan: Lan, *containers: str) -> None:
    for container in containers:
        lan.machines.stack.enter_context(service(lan.sandbox(container), container, 80))


def foreign(own: dict[int, str], number: int) -> None:
    """A service at a port of its address, and of the host, that leads to port 80 of a container."""
    commands = ["add table inet others"]
    for hook in ("prerouting", "output"):
        commands.append(f"add chain inet others {hook} {{ type nat hook {hook} priority -100; }}")
        for version, address in own.items():
            family, target = {4: ("ip", address), 6: ("ip6", f"[{address}]")}[version]
            dnat = f"tcp dport {number} dnat {family} to {target}:80"
            commands += [
                f"add rule inet others {hook} {family} daddr {daddr} {dnat}"
                for daddr in (SERVICE[version], HOST[version])
            ]
    run_in(None, ["nft", "; ".join(commands)])


@both_families
@pytest.mark.parametrize("service_port", [80, 8080])
def test_services_keep_their_clients(
    lan: Lan, bridge_calls: None, version: int, service_port: int
) -> None:
    """A neighbour by way of the service's address, whose port may be the published one too."""
    own = lan.add("a", port(8080, 80))
    neighbour = lan.add("b")
    serve(lan, "a", "b")
    foreign(own, service_port)
    seen = ask(lan.sandbox("b"), SERVICE[version], service_port)
    # Without br_netfilter the answer takes the short way, and is not recognised.
    assert seen in ("", f"a {neighbour[version]}")
    if bridges_call_rules():
        assert seen
    # The published port still leads there, and the answers come back.
    if service_port != 8080:
        assert ask(lan.sandbox("b"), HOST[version], 8080) == f"a {GATEWAY[version]}"
    assert ask(lan.machines.client, HOST[version], 8080) == f"a {CLIENT[version]}"


def bridges_call_rules() -> bool:
    return Path("/proc/sys/net/bridge/bridge-nf-call-iptables").read_text() == "1\n"


@both_families
def test_node_ports_keep_their_clients(lan: Lan, bridge_calls: None, version: int) -> None:
    """Although everything that portmap leads to this container is masqueraded."""
    lan.network(portmap={"masqAll": True})
    own = lan.add("a", port(8080, 80))
    serve(lan, "a")
    foreign(own, 30080)
    client = lan.machines.client
    assert ask(client, HOST[version], 30080) == f"a {CLIENT[version]}"
    assert ask(client, HOST[version], 8080) == f"a {GATEWAY[version]}"
    commands(f"route add {SERVICE[version]} via {HOST[version]}\n", client)
    assert ask(client, SERVICE[version], 30080) == f"a {CLIENT[version]}"


@both_families
@pytest.mark.parametrize("keys", [{}, {"masqAll": True}, {"snat": False}])
def test_the_mark_goes_no_further(lan: Lan, version: int, keys: dict[str, Any]) -> None:
    """Packets that others count by their marks: only what may be masqueraded has this one."""
    lan.network(portmap=keys)
    lan.add("a", port(8080, 80))
    serve(lan, "a")
    lan.machines.stack.enter_context(service(None, "host", 9090))
    for hook, name in (("input", "host"), ("forward", "forwarded")):
        for line in (
            "add table inet seen",
            f"add set inet seen {name} {{ type mark; flags dynamic; }}",
            f"add chain inet seen {name} {{ type filter hook {hook} priority 0; }}",
            f"add rule inet seen {name} meta mark != 0 add @{name} {{ meta mark }}",
        ):
            run_in(None, ["nft", line])
    assert ask(lan.machines.client, HOST[version], 8080)
    assert ask(lan.machines.client, HOST[version], 9090)
    assert ask(lan.sandbox("a"), GATEWAY[version], 9090)
    marks = {
        entry["set"]["name"]: entry["set"].get("elem", [])
        for entry in nft_list()
        if entry.get("set", {}).get("table") == "seen"
    }
    assert marks == {"host": [], "forwarded": [0x1000] if "masqAll" in keys else []}


# --- rules of earlier releases -------------------------------------------------------------------


EARLIER = """
table inet pycni {
    map port-map4 { type inet_proto . inet_service : ipv4_addr . inet_service; }
    map port-map6 { type inet_proto . inet_service : ipv6_addr . inet_service; }
    map port-map-address4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
    map port-map-address6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }
    set port-map-from-10.30.0.0/24 { type inet_proto . ipv4_addr . inet_service; }
    set port-map-from-fd00_30__/64 { type inet_proto . ipv6_addr . inet_service; }
    chain port-map-conditional { }
    chain port-map-localnet {
        type filter hook prerouting priority raw;
        ip daddr 127.0.0.0/8 iif != "lo" meta iifkind != "vrf" drop comment "martians"
    }
    chain port-map {
        jump port-map-conditional comment "conditional"
        dnat ip to ip daddr . meta l4proto . th dport map @port-map-address4 comment "address IPv4"
        meta nfproto ipv4 dnat ip to meta l4proto . th dport map @port-map4 comment "any IPv4"
        dnat ip6 to ip6 daddr . meta l4proto . th dport map @port-map-address6 \
comment "address IPv6"
        meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @port-map6 comment "any IPv6"
    }
    chain port-map-prerouting {
        type nat hook prerouting priority -99;
        fib daddr type local goto port-map comment "to the host"
    }
    chain port-map-output {
        type nat hook output priority -99;
        fib daddr type local goto port-map comment "to the host"
    }
    chain port-map-postrouting {
        type nat hook postrouting priority srcnat;
        ct status dnat meta l4proto . ip daddr . th dport @port-map-from-10.30.0.0/24 \
ip saddr { 127.0.0.0/8, 10.30.0.0/24 } masquerade comment "10.30.0.0/24"
        ct status dnat meta l4proto . ip6 daddr . th dport @port-map-from-fd00_30__/64 \
ip6 saddr fd00:30::/64 masquerade comment "fd00:30::/64"
    }
}
"""


def replace_by_earlier_rules() -> None:
    """The same elements, with the rules that an earlier release made."""
    elements = []
    for entry in nft_list():
        ((kind, item),) = entry.items()
        if kind in ("set", "map") and "elem" in item and item["name"].startswith("port-map"):
            listing = run_in(None, ["nft", f"list {kind} inet pycni {item['name']}"]).stdout
            body = listing[listing.index("elements = {") + 12 : listing.rindex("}\n\t}")]
            elements.append(f"add element inet pycni {item['name']} {{ {body.strip()} }}")
    assert len(elements) == 4
    run_in(None, ["nft", "delete table inet pycni"])
    text = EARLIER + "\n".join(" ".join(line.split()) for line in elements)
    file = Path("/run/earlier.nft")
    file.write_text(text)
    run_in(None, ["nft", "-f", str(file)])


@both_families
@pytest.mark.parametrize("how", ["ADD", "ADD without snat", "repair"])
def test_rules_of_an_earlier_release_are_replaced(
    lan: Lan, bridge_calls: None, version: int, how: str
) -> None:
    own = lan.add("a", port(8080, 80))
    neighbour = lan.add("b")
    serve(lan, "a")
    foreign(own, 80)
    replace_by_earlier_rules()
    published = (lan.sandbox("b"), HOST[version], 8080)
    assert ask(*published) == f"a {GATEWAY[version]}"
    assert ask(lan.sandbox("b"), SERVICE[version], 80) == f"a {GATEWAY[version]}"
    if how == "repair":
        assert not all(report.is_sound for report in lan.network().repair())
        assert all(report.is_sound for report in lan.network().repair())
    else:
        lan.network(
            "second", bridge="br1", subnets=("10.31.0.0/24", "fd00:31::/64"),
            portmap={"snat": False} if "without" in how else {},
        )  # fmt: skip
        lan.add("c", port(8081, 80), network="second")
    assert ask(*published) == f"a {GATEWAY[version]}"
    assert ask(lan.sandbox("b"), SERVICE[version], 80) in ("", f"a {neighbour[version]}")
    rules = [
        entry["rule"]["comment"]
        for entry in nft_list()
        if entry.get("rule", {}).get("chain") == "port-map-postrouting"
    ]
    subnets = {"10.30.0.0/24", "fd00:30::/64"}
    if how == "ADD":
        subnets |= {"10.31.0.0/24", "fd00:31::/64"}
    assert sorted(rules) == sorted(f"{subnet} marked" for subnet in subnets)


def test_rules_go_with_their_subnets(lan: Lan) -> None:
    """In each of their chains, once another subnet is new."""
    for number, name in enumerate("nmo"):
        lan.network(name, bridge=f"br{number}", subnets=(f"10.3{number}.0.0/24",))
    lan.add("a", port(8080, 80))
    lan.add("b", port(8081, 80), network="m")
    lan.network("m").delete("b")
    lan.add("c", port(8082, 80), network="o")
    comments: dict[str, list[str]] = {"port-map-marks": [], "port-map-postrouting": []}
    for entry in nft_list():
        rule = entry.get("rule", {})
        comments.setdefault(rule.get("chain", ""), []).append(rule.get("comment", ""))
    left = ["10.30.0.0/24 marked", "10.32.0.0/24 marked"]
    assert comments["port-map-marks"] == comments["port-map-postrouting"] == left
    run_in(None, ["nft", "flush chain inet pycni port-map-marks"])
    with pytest.raises(PluginError, match="port-map-marks is empty"):
        lan.network().check("a")
    assert not all(report.is_sound for report in lan.network().repair())
    lan.network().check("a")


# --- addresses that are the host's own -----------------------------------------------------------


@both_backends
@pytest.mark.parametrize("asked", [{}, {"hostIP": "::"}], ids=["all", "all of IPv6"])
def test_a_port_of_all_addresses_is_none_of_the_host_s_own(
    lan: Lan, backend: str, asked: dict[str, str]
) -> None:
    """::1 cannot be sent on from, and by a link-local address neighbours mean the host."""
    lan.network(portmap={"backend": backend})
    lan.add("a", port(8080, 80, **asked))
    serve(lan, "a")
    commands("address add fe80::1/64 dev out nodad\n")
    lan.machines.stack.enter_context(service(None, "host", 8080))
    assert ask(None, "::1", 8080) == "host ::1"
    with inside(lan.machines.client), socket.socket(socket.AF_INET6) as client:
        client.settimeout(2)
        client.connect(("fe80::1", 8080, 0, socket.if_nametoindex("eth0")))
        assert client.recv(100).startswith(b"host fe80::")
    assert ask(lan.machines.client, HOST[6], 8080).startswith("a ")
    v4 = "host " if asked else "a "
    assert ask(None, "127.0.0.1", 8080).startswith(v4)
    assert ask(lan.machines.client, HOST[4], 8080).startswith(v4)


@both_backends
def test_a_port_of_a_link_local_address(lan: Lan, backend: str) -> None:
    """Anyone who names one gets it: it leads on what comes from an address that routers know."""
    lan.network(portmap={"backend": backend})
    commands("address add fe80::1/64 dev out nodad\n")
    lan.add("a", port(8080, 80, hostIP="fe80::1"), port(8081, 80))
    serve(lan, "a")
    assert lan.network().check("a", lan.sandbox("a").path) is None
    with inside(lan.machines.client), socket.socket(socket.AF_INET6) as client:
        client.settimeout(2)
        client.bind((CLIENT[6], 0))
        client.connect(("fe80::1", 8080, 0, socket.if_nametoindex("eth0")))
        assert client.recv(100) == f"a {CLIENT[6]}".encode()


def test_repair_has_what_is_the_host_s_own_again(lan: Lan) -> None:
    """CHECK does without, as it is not there where the reference made the rules."""
    network = lan.network(portmap={"backend": "iptables"})
    lan.add("a", port(8080, 80))
    serve(lan, "a")
    lan.machines.stack.enter_context(service(None, "host", 8080))
    before = own_rules()
    for line in before:
        if line.endswith("-j RETURN"):
            run_in(None, ["ip6tables", "-t", "nat", "-D", *line.split()[1:]])
    assert own_rules() != before
    assert not ask(None, "::1", 8080)
    network.check("a", lan.sandbox("a").path)
    (report,) = network.repair()
    assert report.ok, report.findings
    assert {finding.plugin for finding in report.findings} == {"portmap"}
    assert own_rules() == before
    assert ask(None, "::1", 8080) == "host ::1"
    assert network.repair()[0].is_sound


def own_rules() -> list[str]:
    """The rules of containers' own chains in ip6tables."""
    lines = run_in(None, ["ip6tables-save", "-t", "nat"]).stdout.splitlines()
    return [line for line in lines if line.startswith("-A CNI-DN-")]
