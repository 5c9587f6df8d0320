"""Repair on the kernel: what others took comes back, once, and what is sound is left alone."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from harness import ask, inside, ip_json, run_in, service
from harness.machines import CLIENT, HOST
from harness.topics import repair as kit
from harness.topics.repair import (
    MASQUERADED,
    Lab,
    bandwidth,
    drift,
    findings,
    firewall,
    flush_ruleset,
    host_end,
    must_be_repaired,
    must_be_sound,
    portmap,
    ports,
    reported,
    ruleset,
)
from pycni.kernel.netlink import socket as netlink_socket
from pycni.kernel.netlink.codec import NetlinkRequest
from pycni.plan.difference import MISSING
from pycni.runtime import Endpoint

lab = kit.lab


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the kernel from now on that is not just a look."""
    seen: list[str] = []

    def note(request: NetlinkRequest) -> None:
        if not request.what.startswith(("get ", "list ", "read ", "look ", "find ")):
            seen.append(request.what)

    monkeypatch.setattr(netlink_socket, "before_send", note)
    return seen


def delete_tables() -> None:
    run_in(None, ["nft", "delete table inet pycni; delete table bridge pycni"])


def flush_iptables() -> None:
    for program in ("iptables", "ip6tables"):
        for table in ("filter", "nat"):
            run_in(None, [program, "-t", table, "-F"])


def delete_iptables() -> None:
    flush_iptables()
    for program in ("iptables", "ip6tables"):
        for table in ("filter", "nat"):
            run_in(None, [program, "-t", table, "-X"])


@pytest.mark.parametrize(
    ("backend", "flush", "words"),
    [
        ("nftables", flush_ruleset, "chain inet pycni masquerade-postrouting is not there"),
        ("nftables", delete_tables, "chain inet pycni masquerade-postrouting is not there"),
        ("iptables", flush_ruleset, "table nat lacks the rule: -A CNI-"),
        ("iptables", flush_iptables, "table nat lacks the rule: -A CNI-"),
        ("iptables", delete_iptables, "table nat lacks the rule: -A CNI-"),
    ],
)
def test_flushed_rules_come_back(
    lab: Lab, backend: str, flush: Callable[[], None], words: str
) -> None:
    network = lab.network(portmap(backend), firewall(backend), backend=backend, macspoofchk=True)
    own = {name: lab.add(network, name, **ports(number))
           for number, name in enumerate(("one", "two"))}  # fmt: skip
    client, before, handles = lab.machines.client, ruleset(), ruleset(handles=True)
    must_be_sound(network)
    assert ruleset(handles=True) == handles
    for number, name in enumerate(own):
        assert ask(client, HOST[4], 8080 + number) == f"{name} {CLIENT[4]}"
        assert lab.reaches(name) == MASQUERADED

    flush()
    assert words in str(drift(network, "one"))
    assert not ask(client, HOST[4], 8080, timeout=0.3)
    dry = network.repair(dry_run=True)
    assert {state for _, state in findings(dry)} == {MISSING}
    assert words in reported(dry)
    assert not ask(client, HOST[4], 8080, timeout=0.3)

    reports = must_be_repaired(network)
    assert {plugin for plugin, _ in findings(reports)} == {"bridge", "portmap", "firewall"}
    for number, name in enumerate(own):
        assert ask(client, HOST[4], 8080 + number) == f"{name} {CLIENT[4]}"
        assert ask(client, HOST[6], 8080 + number) == f"{name} {CLIENT[6]}"
        assert lab.reaches(name) == MASQUERADED
    assert ruleset() == before
    for name in own:
        network.delete(name)
    assert "one" not in json.dumps(ruleset())


def ifb() -> str:
    return next(
        link["ifname"] for link in ip_json("link", "show") if link["ifname"].startswith("bwp")
    )


# What is done to host or container ({box}), by `ip` unless it says otherwise; the plugins that
# repair it; words of what CHECK finds.
BREAKAGES = {
    "link down": ("-n {box} link set eth0 down", "bridge", "interface eth0 is down"),
    "host end down": ("link set {veth} down", "bridge", "host interface {veth} is down"),
    "bridge down": ("link set cni0 down", "bridge", "bridge cni0 is down"),
    "bridge gone": ("link delete cni0", "bridge portmap", "bridge cni0 is missing"),
    "unplugged": ("link set {veth} nomaster", "bridge", "is not plugged into bridge cni0"),
    "pair gone": ("link delete {veth}", "bridge tuning bandwidth", "eth0 is missing"),
    "renamed away": ("-n {box} link delete eth0", "bridge tuning bandwidth", "eth0 is missing"),
    "another MAC": (
        "-n {box} link set eth0 address 02:00:00:00:00:99",
        "bridge",
        "has the MAC address 02:00:00:00:00:99",
    ),
    "no address": (
        "-n {box} -4 address flush dev eth0",
        "bridge",
        "address {four}/16 is missing on interface eth0",
    ),
    "no IPv6 address": (
        "-n {box} address delete {six}/64 dev eth0",
        "bridge",
        "address {six}/64 is missing on interface eth0",
    ),
    "no default route": (
        "-n {box} route delete default",
        "bridge",
        "route 0.0.0.0/0 via 10.1.0.1 is missing",
    ),
    "no route at all": (
        "-n {box} route flush table main",
        "bridge",
        "route 0.0.0.0/0 via 10.1.0.1",
    ),
    "no gateway": ("address flush dev cni0", "bridge", "gateway address 10.1.0.1/16 is missing"),
    "no forwarding": (
        "sysctl -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
        "bridge",
        "net/ipv4/ip_forward is 0",
    ),
    "no localhost": (
        "sysctl -w net.ipv4.conf.cni0.route_localnet=0",
        "portmap",
        "route_localnet is 0",
    ),
    "tuned back": (
        "ip netns exec {box} sysctl -w net.ipv4.conf.eth0.rp_filter=0",
        "tuning",
        "rp_filter is 0, expected 2",
    ),
    "another MTU": ("-n {box} link set eth0 mtu 1400", "tuning", "MTU of eth0 is 1400"),
    "no ingress limit": (
        "tc qdisc delete dev {veth} root",
        "bandwidth",
        "nothing limits what {veth} sends",
    ),
    "no egress limit": ("tc qdisc delete dev {ifb} root", "bandwidth", "limits what {ifb} sends"),
    "no redirection": (
        "tc qdisc delete dev {veth} ingress",
        "bandwidth",
        "what {veth} receives is not redirected",
    ),
    "no ifb": ("link delete {ifb}", "bandwidth", "{ifb} is missing: no egress limit"),
    "no spoof guard": (
        "nft delete table bridge pycni",
        "bridge",
        "chain bridge pycni spoof-guard-prerouting lacks the rule",
    ),
    "no element": ("nft flush map inet pycni port-map4", "portmap", "is not in map inet pycni"),
    "no chain's rule": (
        "nft flush chain inet pycni firewall-forward",
        "firewall",
        "chain inet pycni firewall-forward is empty",
    ),
}
PROGRAMS = ("sysctl", "tc", "nft", "ip")


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_missing_part_comes_back(lab: Lab, name: str) -> None:
    command, plugins, words = BREAKAGES[name]
    tuning = {
        "type": "tuning",
        "dataDir": str(lab.folder / "tuning"),
        "mtu": 1450,
        "sysctl": {"net.ipv4.conf.IFNAME.rp_filter": "2"},
    }
    network = lab.network(
        portmap("nftables"), firewall("nftables"), tuning, bandwidth(), macspoofchk=True
    )
    own = lab.add(network, "one", **ports(0))
    names = {
        "box": lab.sandboxes["one"].name,
        "veth": host_end(lab),
        "ifb": ifb(),
        "four": own[4],
        "six": own[6],
    }
    must_be_sound(network)
    links, rules = link_state(lab), ruleset()

    words_of = command.format(**names).split()
    program = [] if words_of[0] in PROGRAMS else ["ip"]
    run_in(None, [*program, *words_of])
    assert words.format(**names) in str(drift(network, "one"))
    reports = must_be_repaired(network)
    assert {plugin for plugin, _ in findings(reports)} == set(plugins.split()), reported(reports)

    assert ask(lab.machines.client, HOST[4], 8080) == f"one {CLIENT[4]}"
    assert ask(lab.machines.client, HOST[6], 8080) == f"one {CLIENT[6]}"
    assert ask(None, "127.0.0.1", 8080) == "one 10.1.0.1"
    assert lab.reaches("one") == MASQUERADED
    assert link_state(lab) == links
    assert ruleset() == rules
    network.delete("one")


def link_state(lab: Lab, name: str = "one") -> dict[str, Any]:
    """MAC addresses, MTUs and addresses of host and container, by interface."""
    found = {}
    for box in (None, lab.sandboxes[name]):
        for link in ip_json("address", "show", netns=box):
            own = [
                (item["local"], item["prefixlen"])
                for item in link["addr_info"]
                if item["scope"] == "global"
            ]
            macs = link["address"] if not link["ifname"].startswith("bwp") else ""
            found[f"{box} {link['ifname']}"] = (macs, link["mtu"], sorted(own), link["operstate"])
    return found


@pytest.mark.parametrize(("backend", "count"), [("nftables", 50), ("iptables", 6)])
def test_many_containers_after_one_flush(lab: Lab, backend: str, count: int) -> None:
    """One repair, and each rule is there exactly once."""
    network = lab.network(portmap(backend), firewall(backend), backend=backend, macspoofchk=True)
    endpoints = []
    for number in range(count):
        box = lab.machines.sandbox()
        lab.machines.stack.enter_context(service(box, f"c{number}", 80))
        endpoints.append(
            Endpoint(f"c{number}", box.path, capabilities=ports(number)["capabilities"])
        )
    for endpoint in endpoints:
        network.add_endpoint(endpoint)
    before = ruleset()

    flush_ruleset()
    reports = network.repair()
    assert [report.endpoint.container_id for report in reports] == [
        endpoint.container_id for endpoint in endpoints
    ]  # in the order in which they were attached
    assert all(report.ok and not report.is_sound for report in reports), reported(reports)
    assert ruleset() == before
    handles = ruleset(handles=True)
    must_be_sound(network)
    assert ruleset(handles=True) == handles
    for number in range(count):
        assert ask(lab.machines.client, HOST[4], 8080 + number) == f"c{number} {CLIENT[4]}"


# --- what is sound -------------------------------------------------------------------------------


def test_what_is_sound_is_not_touched(lab: Lab, changes: list[str]) -> None:
    network = lab.network(portmap("nftables"), firewall("nftables"), bandwidth(), macspoofchk=True)
    for number, name in enumerate(("one", "two")):
        lab.add(network, name, **ports(number))
    client = lab.machines.client
    for number in (0, 1):
        assert ask(client, HOST[4], 8080 + number)
    before, sent = ruleset(handles=True), traffic(host_end(lab, "two"))
    assert sent > 0
    changes.clear()
    must_be_sound(network)
    assert changes == []

    element = "tcp . 8080"
    run_in(None, ["nft", f"delete element inet pycni port-map4 {{ {element} }}"])
    must_be_repaired(network)
    assert changes, "the recorder sees nothing"
    assert all("port-map4" in change for change in changes), changes
    assert ruleset(handles=True) == before
    assert traffic(host_end(lab, "two")) >= sent  # the queue that counts is the same
    for number in (0, 1):
        assert ask(client, HOST[4], 8080 + number)


def traffic(link: str) -> int:
    """Bytes that a link's queue has sent since it was made."""
    (queue,) = json.loads(
        run_in(None, ["tc", "-s", "-j", "qdisc", "show", "dev", link, "root"]).stdout
    )
    count: int = queue["bytes"]
    return count


def test_flows_go_on(lab: Lab) -> None:
    """A connection through the host survives the flush and the repair."""
    network = lab.network(portmap("nftables"))
    mapping = {"hostPort": 8080, "containerPort": 81, "protocol": "tcp"}
    lab.add(network, "one", capabilities={"portMappings": [mapping]})
    with inside(lab.sandboxes["one"]):
        server = socket.create_server(("::", 81), family=socket.AF_INET6, dualstack_ipv6=True)
    with inside(lab.machines.client):
        mine = socket.create_connection((HOST[4], 8080), timeout=2)
    with server, mine, server.accept()[0] as theirs:
        theirs.settimeout(2)
        for text in (b"before", b"afterwards"):
            mine.sendall(text)
            assert theirs.recv(20) == text
            flush_ruleset()
            must_be_repaired(network)
