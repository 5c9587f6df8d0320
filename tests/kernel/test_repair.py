"""Repair on the kernel: what others took comes back, once, and what is sound is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Host, Namespace, ask, inside, ip_json, run_in, service
from harness.machines import CLIENT, FAR, HOST, Machines
from pycni.kernel.netlink import socket as netlink_socket
from pycni.kernel.netlink.codec import Request
from pycni.runtime import Network, PluginError
from pycni.runtime.repair import FAILED, MENDED, MISSING, Repaired, repair_all

BACKENDS = ("nftables", "iptables")

PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}


class Lab:
    """A network with all that a container may need of its host, on the fixture's machines."""

    def __init__(self, machines: Machines, folder: Path, plugin_dir: Path) -> None:
        self.machines = machines
        self.folder = folder
        self.plugins = plugin_dir
        self.sandboxes: dict[str, Namespace] = {}

    def network(self, *more: dict[str, Any], backend: str = "", **bridge: Any) -> Network:
        masquerade = {"ipMasqBackend": backend} if backend else {}
        return Network.from_dict(
            {
                "cniVersion": "1.1.0",
                "name": "lab",
                "plugins": [
                    {
                        "type": "bridge",
                        "bridge": "cni0",
                        "isDefaultGateway": True,
                        "hairpinMode": True,
                        "ipMasq": True,
                        **masquerade,
                        "ipam": {
                            "type": "host-local",
                            "dataDir": str(self.folder / "leases"),
                            "ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "fd00:1::/64"}]],
                        },
                        **bridge,
                    },
                    *more,
                ],
            },
            plugin_dirs=self.plugins,
            cache_dir=self.folder / "cache",
        )

    def add(self, network: Network, name: str, **keys: Any) -> dict[int, str]:
        """Attach a container; returns its addresses by version."""
        self.sandboxes[name] = self.machines.sandbox()
        result = network.add(name, self.sandboxes[name].path, **keys)
        self.machines.stack.enter_context(service(self.sandboxes[name], name, 80))
        return {6 if ":" in str(ip.address) else 4: str(ip.address.address) for ip in result.ips}

    def reaches(self, name: str) -> tuple[str, str]:
        """Whom a machine beyond sees when the container asks it, by IPv4 and IPv6."""
        with service(self.machines.far, "far", 80):
            answers = [ask(self.sandboxes[name], FAR[version], 80) for version in (4, 6)]
        four, six = (answer.removeprefix("far ") for answer in answers)
        return four, six


@pytest.fixture
def lab(machines: Machines, tmp_path: Path, plugin_dir: Path) -> Lab:
    return Lab(machines, tmp_path, plugin_dir)


def portmap(backend: str) -> dict[str, Any]:
    return {"type": "portmap", "capabilities": {"portMappings": True}, "backend": backend}


def firewall(backend: str, **keys: Any) -> dict[str, Any]:
    return {"type": "firewall", "backend": backend, **keys}


def bandwidth() -> dict[str, Any]:
    rates = {"ingressRate": 10**9, "ingressBurst": 10**8, "egressRate": 10**9}
    return {"type": "bandwidth", **rates, "egressBurst": 10**8}


# What a host outside sees of a container that is masqueraded.
MASQUERADED = ("198.51.100.1", "2001:db8:f::1")


# --- looking -------------------------------------------------------------------------------------


def ruleset(*, handles: bool = False) -> dict[str, Any]:
    """All rules, by table and chain in their order, and sets with their elements sorted."""
    listing = json.loads(run_in(None, ["nft", "-j", "--stateless", "list", "ruleset"]).stdout)
    found: dict[str, Any] = {}
    for entry in listing["nftables"]:
        ((kind, item),) = entry.items()
        if kind == "metainfo":
            continue
        if not handles:
            item.pop("handle", None)
        if "elem" in item:
            item["elem"].sort(key=json.dumps)
        place = (kind, item["family"], item.get("table", ""), item.get("chain", item.get("name")))
        found.setdefault(" ".join(place), []).append(_without_counters(item))
    return found


def _without_counters(item: Any) -> Any:
    if isinstance(item, dict):
        return {key: _without_counters(value) for key, value in item.items() if key != "counter"}
    if isinstance(item, list):
        return [_without_counters(value) for value in item]
    return item


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the kernel from now on that is not just a look."""
    seen: list[str] = []

    def note(request: Request) -> None:
        if not request.what.startswith(("get ", "list ", "read ", "find ")):
            seen.append(request.what)

    monkeypatch.setattr(netlink_socket, "before_send", note)
    return seen


def findings(reports: list[Repaired]) -> list[tuple[str, str]]:
    return [(finding.plugin, finding.state) for report in reports for finding in report.findings]


def told(reports: list[Repaired]) -> str:
    return "\n".join(
        f"{finding.plugin} {finding.state}: {finding.what}; {finding.reason}"
        for report in reports
        for finding in report.findings
    )


def must_be_sound(network: Network) -> None:
    reports = network.repair()
    assert reports, "there is nothing to repair"
    assert all(report.is_sound and not report.skipped for report in reports), told(reports)


def must_be_mended(network: Network) -> list[Repaired]:
    """Repair finds something, and mends all of it; then CHECK finds nothing, nor does repair."""
    reports = network.repair()
    assert all(report.ok and not report.skipped for report in reports), told(reports)
    assert not all(report.is_sound for report in reports), "repair found nothing"
    for endpoint in network.attachments():
        network.check(endpoint.container_id, ifname=endpoint.ifname)
    must_be_sound(network)
    return reports


def drift(network: Network, name: str) -> PluginError:
    with pytest.raises(PluginError) as caught:
        network.check(name)
    assert f"pycni repair {network.name} puts it back" in caught.value.details
    return caught.value


# --- rules that are flushed ----------------------------------------------------------------------


def flush_ruleset() -> None:
    run_in(None, ["nft", "flush", "ruleset"])


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
    lab: Lab, backend: str, flush: Callable[[], None], words: str, bridge_calls: None
) -> None:
    network = lab.network(portmap(backend), firewall(backend), backend=backend, macspoofchk=True)
    own = {name: lab.add(network, name, capabilities=ports(number))
           for number, name in enumerate(("one", "two"))}  # fmt: skip
    client, before, handles = lab.machines.client, ruleset(), ruleset(handles=True)
    must_be_sound(network)
    assert ruleset(handles=True) == handles
    for number, name in enumerate(own):
        assert ask(client, HOST[4], 8080 + number) == f"{name} {CLIENT[4]}"
        assert lab.reaches(name) == MASQUERADED

    flush()
    assert words in str(drift(network, "one"))
    assert not ask(client, HOST[4], 8080, patience=0.3)
    dry = network.repair(dry_run=True)
    assert {state for _, state in findings(dry)} == {MISSING}
    assert words in told(dry)
    assert not ask(client, HOST[4], 8080, patience=0.3)

    reports = must_be_mended(network)
    assert {plugin for plugin, _ in findings(reports)} == {"bridge", "portmap", "firewall"}
    for number, name in enumerate(own):
        assert ask(client, HOST[4], 8080 + number) == f"{name} {CLIENT[4]}"
        assert ask(client, HOST[6], 8080 + number) == f"{name} {CLIENT[6]}"
        assert lab.reaches(name) == MASQUERADED
    assert ruleset() == before
    for name in own:
        network.delete(name)
    assert "one" not in json.dumps(ruleset())


def ports(number: int) -> dict[str, Any]:
    mapping = {"hostPort": 8080 + number, "containerPort": 80, "protocol": "tcp"}
    return {"portMappings": [mapping]}


# --- single things that are missing ------------------------------------------------------------


def host_end(lab: Lab, name: str = "one") -> str:
    """The host's end of a container's veth."""
    (inner,) = ip_json("link", "show", "eth0", netns=lab.sandboxes[name])
    return next(
        link["ifname"] for link in ip_json("link", "show") if link["ifindex"] == inner["link_index"]
    )


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
    own = lab.add(network, "one", capabilities=PORTS)
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
    reports = must_be_mended(network)
    assert {plugin for plugin, _ in findings(reports)} == set(plugins.split()), told(reports)

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
