"""Repair on the kernel: what others took comes back, once, and what is sound is left alone."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Namespace, ask, inside, ip_json, run_in, service
from harness.changes import Watch
from harness.host import forget_attachments
from harness.injection import FULL
from harness.machines import CLIENT, FAR, HOST, Machines, fill_bridge
from pycni.kernel.netlink import socket as netlink_socket
from pycni.kernel.netlink.codec import NetlinkRequest
from pycni.plan.difference import FAILED, MISSING
from pycni.plugins.bridge import BridgePlugin
from pycni.runtime import Endpoint, Network, PluginError
from pycni.runtime.repair import inspect_all, repair_all
from pycni.runtime.report import AttachmentReport


class Lab:
    """A network with all that a container may need of its host, on the fixture's machines."""

    def __init__(self, machines: Machines, folder: Path, plugin_dir: Path) -> None:
        self.machines = machines
        self.folder = folder
        self.plugins = plugin_dir
        self.sandboxes: dict[str, Namespace] = {}

    def network(
        self, *more: dict[str, Any], backend: str = "", version: str = "1.1.0", **bridge: Any
    ) -> Network:
        masquerade = {"ipMasqBackend": backend} if backend else {}
        return Network.from_dict(
            {
                "cniVersion": version,
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

    def reaches(self, name: str, own: dict[int, str] | None = None) -> tuple[str, str]:
        """Whom a machine beyond sees when the container asks it, by IPv4 and IPv6.

        own: the addresses that it asks from, by default of its own choice.
        """
        sources = {version: (address, 0) for version, address in (own or {}).items()}
        with service(self.machines.far, "far", 80):
            answers = [
                ask(
                    self.sandboxes[name],
                    FAR[version],
                    80,
                    source=sources.get(version),
                    patience=3.0,
                )
                for version in (4, 6)
            ]
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

    def note(request: NetlinkRequest) -> None:
        if not request.what.startswith(("get ", "list ", "read ", "look ", "find ")):
            seen.append(request.what)

    monkeypatch.setattr(netlink_socket, "before_send", note)
    return seen


def findings(reports: list[AttachmentReport]) -> list[tuple[str, str]]:
    return [(finding.plugin, finding.state) for report in reports for finding in report.findings]


def told(reports: list[AttachmentReport]) -> str:
    return "\n".join(
        f"{finding.plugin} {finding.state}: {finding.what}; {finding.reason}"
        for report in reports
        for finding in report.findings
    )


def must_be_sound(network: Network) -> None:
    reports = network.repair()
    assert reports, "there is nothing to repair"
    assert all(report.is_sound and not report.skipped for report in reports), told(reports)


def must_be_mended(network: Network) -> list[AttachmentReport]:
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
    return {"capabilities": {"portMappings": [mapping]}}


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
    assert all(report.ok and not report.is_sound for report in reports), told(reports)
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
    must_be_mended(network)
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
            must_be_mended(network)


# --- routing -------------------------------------------------------------------------------------


SBR_BREAKAGES = {
    "rules": ["ip -n {box} rule delete from {four}", "ip -n {box} -6 rule delete from {six}"],
    "table": ["ip -n {box} route flush table 100"],
    "default": ["ip -n {box} route delete default table 100"],
    "link": ["ip -n {box} link set eth0 down", "ip -n {box} link set eth0 up"],
    "all": ["ip -n {box} link delete eth0"],
}


@pytest.mark.parametrize("name", SBR_BREAKAGES)
def test_source_routing(lab: Lab, name: str) -> None:
    network = lab.network({"type": "sbr"})
    own = lab.add(network, "one")
    box = lab.sandboxes["one"].name
    assert lab.reaches("one", own) == MASQUERADED
    before = routing(box)
    for command in SBR_BREAKAGES[name]:
        run_in(None, command.format(box=box, four=own[4], six=own[6]).split())
    drift(network, "one")
    must_be_mended(network)
    assert lab.reaches("one", own) == MASQUERADED
    assert routing(box) == before
    network.delete("one")


def routing(box: str) -> list[Any]:
    """Rules, and routes of all tables but the kernel's own for addresses."""
    found: list[Any] = []
    for family in ("-4", "-6"):
        found += [
            (rule.get("src"), rule["table"], rule["priority"])
            for rule in ip_json(family, "rule", "show", netns=box)
        ]
        found += sorted(
            str((route["dst"], route.get("gateway"), route.get("table", "main")))
            for route in ip_json(family, "route", "show", "table", "all", netns=box)
            if route.get("type") not in ("local", "broadcast", "multicast", "anycast")
            and not route["dst"].startswith("fe80")
        )
    return found


# --- other plugins -------------------------------------------------------------------------------


def test_ptp_and_loopback(lab: Lab) -> None:
    network = Network.from_dict(
        {
            "cniVersion": "1.1.0",
            "name": "lab",
            "plugins": [
                {"type": "loopback"},
                {
                    "type": "ptp",
                    "ipMasq": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(lab.folder / "leases"),
                        "ranges": [[{"subnet": "10.1.0.0/16"}], [{"subnet": "fd00:1::/64"}]],
                        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                    },
                },
            ],
        },
        cache_dir=lab.folder / "cache",
    )
    own = lab.add(network, "one")
    veth, box = host_end(lab), lab.sandboxes["one"].name
    assert lab.reaches("one") == MASQUERADED
    for command in (
        f"ip -n {box} link set lo down",
        f"ip address delete 10.1.0.1/32 dev {veth}",
        f"ip route delete {own[4]} dev {veth}",
        f"ip link set {veth} down",
        f"ip link delete {veth}",
        "nft flush ruleset",
    ):
        run_in(None, command.split())
        with pytest.raises(PluginError):
            network.check("one")
        must_be_mended(network)
        assert lab.reaches("one") == MASQUERADED, command
    assert host_end(lab) == veth


def test_flannel(lab: Lab) -> None:
    """The delegate repairs."""
    environment = lab.folder / "subnet.env"
    environment.write_text(
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_MTU=1450\n"
        "FLANNEL_IPMASQ=false\n"
    )
    network = Network.from_dict(
        {
            "cniVersion": "1.0.0",
            "name": "lab",
            "plugins": [
                {
                    "type": "flannel",
                    "subnetFile": str(environment),
                    "dataDir": str(lab.folder / "flannel"),
                    "ipam": {"dataDir": str(lab.folder / "leases")},
                    "delegate": {"isDefaultGateway": True},
                }
            ],
        },
        cache_dir=lab.folder / "cache",
    )
    lab.add(network, "one")
    assert lab.reaches("one")[0] == MASQUERADED[0]
    flush_ruleset()
    drift(network, "one")
    must_be_mended(network)
    assert lab.reaches("one")[0] == MASQUERADED[0]


def test_plugins_of_others(lab: Lab, reference_dir: Path) -> None:
    """They can be asked only, and what they made is told as lost."""
    plugins = lab.folder / "mixed"
    plugins.mkdir()
    for name in ("bridge", "host-local"):
        (plugins / name).symlink_to(lab.plugins / name)
    (plugins / "firewall").symlink_to(reference_dir / "firewall")
    lab.plugins = plugins
    network = lab.network(firewall("iptables"), version="1.0.0")
    lab.add(network, "one")
    must_be_sound(network)
    flush_ruleset()
    for _ in range(2):
        (report,) = network.repair()
        assert not report.ok
        assert ("firewall", FAILED) in findings([report])
    assert findings([report]) == [("firewall", FAILED)]
    assert "firewall is not pycni's" in told([report])
    assert "delete the attachment and add it again" in told([report])
    assert lab.reaches("one") == MASQUERADED


def test_what_the_reference_made(lab: Lab, reference_dir: Path) -> None:
    """Not repaired by pycni's plugins unless those are the runtime's now."""
    config = network_config(lab)
    made = Network.from_dict(config, plugin_dirs=reference_dir, cache_dir=lab.folder / "cache")
    lab.add(made, "one")
    run_in(lab.sandboxes["one"], ["ip", "route", "delete", "default"])
    (report,) = repair_all(cache_dir=lab.folder / "cache")
    assert "made by a plugin that is not pycni's" in told([report])
    assert "--plugin-dir" in told([report])
    (report,) = made.repair()
    assert ("bridge", FAILED) in findings([report])
    assert "bridge is not pycni's" in told([report])
    # Once pycni's are in their place, they repair what those left.
    moved = Network.from_dict(config, plugin_dirs=lab.plugins, cache_dir=lab.folder / "cache")
    must_be_mended(moved)
    flush_ruleset()
    must_be_mended(moved)
    assert lab.reaches("one")[0] == MASQUERADED[0]
    moved.delete("one")


def network_config(lab: Lab) -> dict[str, Any]:
    ipam = {
        "type": "host-local",
        "dataDir": str(lab.folder / "leases"),
        "ranges": [[{"subnet": "10.1.0.0/16"}]],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isDefaultGateway": True, "ipMasq": True}
    return {"cniVersion": "1.0.0", "name": "lab", "plugins": [{**bridge, "ipam": ipam}]}


# --- what is left alone --------------------------------------------------------------------------


def test_the_namespace_is_gone(lab: Lab) -> None:
    network = lab.network(portmap("nftables"))
    lab.add(network, "one", **ports(0))
    flush_ruleset()
    path = Path(lab.sandboxes["one"].path)
    lab.machines.stack.close()
    lab.sandboxes["one"].delete()
    for _ in ("nothing there", "a file that once was one"):
        (report,) = network.repair()
        assert "is gone" in report.skipped
        assert not report.ok
        path.touch()
    path.unlink()
    path.symlink_to("/proc/self/ns/net")  # as when a process id is used again
    (report,) = network.repair()
    assert "the host's own" in report.skipped
    path.unlink()
    assert "pycni" not in json.dumps(ruleset())
    network.delete("one")
    assert network.repair() == []


def test_the_namespace_is_of_another_container(lab: Lab) -> None:
    network = lab.network(portmap("nftables"))
    for number, name in enumerate(("one", "two")):
        lab.add(network, name, **ports(number))
    one, two = (Path(lab.sandboxes[name].path) for name in ("one", "two"))
    run_in(None, ["umount", str(one)])
    run_in(None, ["mount", "--bind", str(two), str(one)])
    flush_ruleset()
    reports = {report.endpoint.container_id: report for report in network.repair()}
    assert reports["two"].ok
    assert "is another container's by now" in reports["one"].skipped
    assert "8080" not in json.dumps(ruleset())


def test_the_address_is_lost(lab: Lab) -> None:
    """Whoever has it by now keeps it."""
    network = lab.network(portmap("nftables"))
    own = lab.add(network, "one", **ports(0))
    flush_ruleset()
    (lab.folder / "leases" / "lab" / own[4]).unlink()
    (report,) = network.repair()
    assert not report.ok
    assert "its address may be another container's by now" in told([report])
    assert "pycni" not in json.dumps(ruleset())
    leases = [path.name for path in (lab.folder / "leases" / "lab").iterdir()]
    assert own[4] not in leases


def test_an_interface_in_a_process_namespace_is_not_made_again(lab: Lab) -> None:
    """The process id may be another's by now."""
    box = lab.machines.sandbox()
    network = lab.network()
    with inside(box):
        process = subprocess.Popen(["sleep", "60"])
    try:
        network.add("one", f"/proc/{process.pid}/ns/net")
        run_in(box, ["ip", "link", "delete", "eth0"])
        (report,) = network.repair()
        assert "may be another container's by now" in told([report])
        assert [link["ifname"] for link in ip_json("link", "show", netns=box)] == ["lo"]
    finally:
        process.kill()
        process.wait()
    network.delete("one")


def test_detached_meanwhile(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put back for an attachment that another process detaches goes again."""
    network = lab.network(portmap("nftables"))
    lab.add(network, "one", **ports(0))
    empty = ruleset_without_elements()
    flush_ruleset()
    real = BridgePlugin.repair

    def repair(*args: Any, **keys: Any) -> Any:
        found = real(*args, **keys)
        # As the DEL of another runtime leaves it, which came just before.
        (lab.folder / "cache" / "results" / "lab-one-eth0").unlink()
        forget_attachments()
        return found

    monkeypatch.setattr(BridgePlugin, "repair", repair)
    (report,) = network.repair()
    assert report.skipped == "it was detached meanwhile"
    left = ruleset_without_elements()
    assert {name: empty[name] for name in left} == left
    assert "one" not in json.dumps(ruleset())
    assert [link["ifname"] for link in ip_json("link", "show", netns=lab.sandboxes["one"])] == [
        "lo"
    ]


def ruleset_without_elements() -> dict[str, Any]:
    found = ruleset()
    for items in found.values():
        for item in items:
            item.pop("elem", None)
    return found


# --- the command ---------------------------------------------------------------------------------


def test_command(lab: Lab) -> None:
    network = lab.network(portmap("nftables"))
    lab.add(network, "one", **ports(0))

    def pycni(*arguments: str) -> tuple[int, Any, str]:
        program = Path(sys.executable).parent / "pycni"
        where = ["--cache-dir", str(lab.folder / "cache"), "--plugin-dir", str(lab.plugins)]
        done = run_in(None, [str(program), "repair", *arguments, *where], check=False)
        return done.returncode, done.stdout, done.stderr.splitlines()[-1]

    assert pycni("lab") == (0, "", "1 attachment, 1 sound")
    code, output, words = pycni("other")
    assert (code, output) == (1, "")
    assert "which have attachments to lab; " in words
    flush_ruleset()
    code, output, words = pycni("--all", "--dry-run", "-o", "json")
    (report,) = json.loads(output)
    assert code == 1
    assert (report["network"], report["containerID"], report["ifname"]) == ("lab", "one", "eth0")
    assert {finding["state"] for finding in report["findings"]} == {"missing"}
    assert {finding["plugin"] for finding in report["findings"]} == {"bridge", "portmap"}
    assert words.endswith(" missing")
    code, output, words = pycni("lab", "--container-id", "two")
    assert (code, output) == (1, "")
    code, output, words = pycni("lab", "--container-id", "one")
    assert code == 0, output + words
    assert "repaired" in output.splitlines()[1]
    assert ask(lab.machines.client, HOST[4], 8080)
    assert pycni("--all")[0] == 0
    assert pycni("lab", "--all")[0] == 1


def test_inspect(lab: Lab) -> None:
    network = lab.network(portmap("nftables"))
    lab.add(network, "one", **ports(0))
    where = {"cache_dir": lab.folder / "cache", "plugin_dirs": lab.plugins}
    (found,) = inspect_all(**where)
    assert {step.plugin for step in found.steps} == {"bridge", "portmap"}
    assert [step.differences for step in found.steps] == [()] * len(found.steps)
    flush_ruleset()
    before = ruleset()
    (found,) = inspect_all(network="lab", container_id="one", **where)
    wrong = {step.kind for step in found.steps if step.differences}
    assert wrong == {"masquerade", "port_map"}
    assert ruleset() == before
    (step,) = [step for step in found.steps if step.kind == "port_map"]
    assert "mappings (protocol tcp, host port 8080, container port 80)" in step.what
    assert inspect_all(network="other", **where) == []


# --- faults --------------------------------------------------------------------------------------


def test_bridge_that_is_full(lab: Lab) -> None:
    network = lab.network()
    lab.add(network, "one")
    run_in(None, ["ip", "link", "set", host_end(lab), "nomaster"])
    fill_bridge("cni0")
    (report,) = network.repair()
    assert ("bridge", FAILED) in findings([report])
    assert "bridge cni0 is full" in told([report])
    run_in(None, ["ip", "link", "delete", "a0"])
    must_be_mended(network)
    assert lab.reaches("one") == MASQUERADED


@pytest.mark.parametrize(("backend", "step"), [("nftables", 3), ("iptables", 8)])
def test_each_change_refused(lab: Lab, backend: str, step: int) -> None:
    """What fails is told, the rest is mended, and the next repair mends what was left."""
    network = lab.network(
        portmap(backend), firewall(backend), bandwidth(), backend=backend, macspoofchk=True
    )
    lab.add(network, "one", **ports(0))
    before, veth = ruleset(), host_end(lab)
    for position in range(0, 200, 1 if FULL else step):
        flush_ruleset()
        run_in(None, ["tc", "qdisc", "delete", "dev", veth, "root"])
        run_in(None, ["ip", "link", "set", veth, "nomaster"])
        with Watch(position, errno.EBUSY) as watch:
            (report,) = network.repair()
        if watch.disturbed is None:
            assert report.ok, told([report])
            break
        assert not report.ok or report.findings, watch.disturbed
        (report,) = network.repair()
        assert report.ok, f"{watch.disturbed}: {told([report])}"
        assert ruleset() == before, watch.disturbed
    assert position > 5
    assert ask(lab.machines.client, HOST[4], 8080, patience=3.0) == f"one {CLIENT[4]}"
