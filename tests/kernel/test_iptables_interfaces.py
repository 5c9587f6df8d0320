"""Two interfaces of one container in one network, where iptables maps ports and masquerades.

The chains are the reference's, of the container: addresses show what is of which interface.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, ask, run_in, run_plugin
from harness.configs import host_local
from harness.host import forget_attachments
from harness.kernel_state import iptables_saved
from harness.machines import BRIDGE, CLIENT, FAR, HOST, Machines, addresses
from harness.services import service
from pycni.kernel.netfilter import iptables
from pycni.runtime import Network
from pycni.spec.owner import Owner

both_families = pytest.mark.parametrize("version", [4, 6])
PORTS = {"eth0": (8080, 80), "eth1": (8081, 81)}


@pytest.fixture(params=["nft", "legacy"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Which iptables the host has; `run_in` finds the same one."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for family in ("iptables", "ip6tables"):
        for end in ("", "-save", "-restore"):
            found = shutil.which(f"{family}-{request.param}{end}", path=iptables.SYSTEM_PATH)
            if found is None:
                pytest.skip(f"no iptables-{request.param}")
            (folder / f"{family}{end}").symlink_to(os.path.realpath(found))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return str(request.param)


def saved(version: int = 4) -> list[str]:
    """The rules and chains of table nat that are not empty or of the kernel, sorted."""
    program = {4: "iptables-save", 6: "ip6tables-save"}[version]
    return sorted(line for line in iptables_saved("nat", program) if "CNI-" in line)


def own_lines(version: int = 4) -> list[str]:
    """Those of `saved` that are a container's."""
    shared = ("CNI-HOSTPORT-DNAT -", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ")
    return [
        line
        for line in saved(version)
        if "CNI-DN-" in line or ("id: " in line and not any(word in line for word in shared))
    ]


class Container:
    """A container with eth0 and eth1 on br0, and the plugins for each of them."""

    def __init__(self, machines: Machines, **keys: Any) -> None:
        self.machines = machines
        first = machines.container("one", isDefaultGateway=False, isGateway=True, **keys)
        config = {**first.config, "isDefaultGateway": False, "isGateway": True}
        second = Attachment(first.plugin, config, first.sandbox, "one", "eth1")
        self.bridges = {"eth0": first, "eth1": second}
        for version in addresses(first):
            route = ["route", "add", "default", "via", BRIDGE[version]]
            run_in(first.sandbox, ["ip", f"-{version}", *route])

    def add(self, ifname: str) -> None:
        self.bridges[ifname].add()

    def portmap(self, ifname: str, *ports: tuple[int, int], **keys: Any) -> Attachment:
        mappings = [
            {"hostPort": host, "containerPort": port, "protocol": "tcp"}
            for host, port in ports or (PORTS[ifname],)
        ]
        return self.machines.chained(
            "portmap", self.bridges[ifname], backend="iptables",
            runtimeConfig={"portMappings": mappings}, **keys,
        )  # fmt: skip

    def reference(self, folder: Path, portmap: Attachment) -> Attachment:
        """The same portmap, done by the reference."""
        portmap.plugin, portmap.path, portmap.call = folder / "portmap", str(folder), run_plugin
        return portmap

    def answers(self, port: int, version: int = 4) -> bool:
        return ask(self.machines.client, HOST[version], port) == f"one {CLIENT[version]}"


@pytest.fixture
def container(machines: Machines, kind: str) -> Container:
    found = Container(machines)
    found.add("eth1")
    return found


# --- ports ---------------------------------------------------------------------------------------


@both_families
def test_each_interface_has_its_ports(container: Container, version: int) -> None:
    portmaps = {ifname: container.portmap(ifname) for ifname in PORTS}
    before = saved(version)
    for portmap in portmaps.values():
        portmap.add()
        portmap.check()
    portmaps["eth0"].check()
    for port in (8080, 8081):
        assert container.answers(port, version)
        assert ask(None, HOST[version], port).startswith("one ")
    both = saved(version)
    # Again, as repair does where CHECK finds something.
    for portmap in portmaps.values():
        portmap.add()
    assert saved(version) == both
    portmaps["eth1"].delete()
    portmaps["eth0"].check()
    assert container.answers(8080, version)
    assert not container.answers(8081, version)
    assert not any("8081" in line for line in saved(version))
    portmaps["eth1"].add()
    assert saved(version) == both
    portmaps["eth0"].delete()
    portmaps["eth1"].check()
    assert container.answers(8081, version)
    assert not any("8080" in line for line in saved(version))
    portmaps["eth1"].delete()
    assert own_lines(version) == []
    assert set(before) <= set(saved(version))


def test_what_is_the_host_s_own_stays_so(container: Container) -> None:
    """::1 leads to no container, whichever interface goes; both may have the same port."""
    portmaps = {ifname: container.portmap(ifname, (8080, 80)) for ifname in PORTS}
    for portmap in portmaps.values():
        portmap.add()
    with service(None, "host", 8080):
        assert ask(None, "::1", 8080) == "host ::1"
        portmaps["eth0"].delete()
        assert ask(None, "::1", 8080) == "host ::1"
        assert container.answers(8080, 6)
        portmaps["eth0"].add()
        portmaps["eth1"].delete()
        assert ask(None, "::1", 8080) == "host ::1"
        assert container.answers(8080, 6)
        portmaps["eth0"].delete()
    assert own_lines(6) == []


def test_what_one_lost_comes_back_beside_the_other_s(container: Container) -> None:
    portmaps = {ifname: container.portmap(ifname) for ifname in PORTS}
    for portmap in portmaps.values():
        portmap.add()
    both = saved()
    for ifname, rule in (("eth0", "8080"), ("eth1", "8081")):
        for line in saved():
            if rule in line and line.startswith("-A"):
                container_chain = line.split()[1]
                lines = ["*nat", line.replace("-A", "-D", 1), "COMMIT"]
                assert container_chain.startswith("CNI-")
                iptables.restore(2, "nat", lines[1:-1])
        portmaps[ifname].drift()
        portmaps[ifname].add()
        for portmap in portmaps.values():
            portmap.check()
        assert saved() == both


def test_one_port_of_both(container: Container) -> None:
    """Runtimes may map the same ports to each interface: the first has them, then the second."""
    portmaps = {ifname: container.portmap(ifname, (8080, 80)) for ifname in PORTS}
    for portmap in portmaps.values():
        portmap.add()
    for portmap in portmaps.values():
        portmap.check()
    assert container.answers(8080)
    portmaps["eth0"].delete()
    portmaps["eth1"].check()
    assert container.answers(8080)
    portmaps["eth0"].add()
    portmaps["eth0"].check()
    portmaps["eth1"].delete()
    portmaps["eth0"].check()
    assert container.answers(8080)
    assert ask(container.bridges["eth0"].sandbox, HOST[4], 8080).startswith("one ")
    portmaps["eth0"].delete()
    assert own_lines() == []


@pytest.mark.parametrize("known", ["prevResult", "what is noted", "nothing"])
@pytest.mark.parametrize("there", ["sandbox", "interface gone", "no sandbox"])
def test_del_takes_away_one_interface(container: Container, known: str, there: str) -> None:
    portmaps = {ifname: container.portmap(ifname) for ifname in PORTS}
    for portmap in portmaps.values():
        portmap.add()
    leaves = portmaps["eth1"]
    if known != "prevResult":
        leaves.result = None
        leaves.config = {key: leaves.config[key] for key in ("cniVersion", "name", "type")}
    if known == "nothing":
        forget_attachments()
    if there == "interface gone":
        run_in(leaves.sandbox, ["ip", "link", "delete", "eth1"])
    elif there == "no sandbox":
        leaves.sandbox = None
    leaves.delete()
    if (known, there) == ("nothing", "no sandbox"):
        assert own_lines() == []  # no one knows what was whose
        return
    portmaps["eth0"].check()
    assert container.answers(8080)
    assert not container.answers(8081)
    portmaps["eth0"].sandbox = None
    portmaps["eth0"].delete()
    assert own_lines() == []


@pytest.mark.parametrize("known", ["prevResult", "nothing"])
def test_del_of_one_that_the_container_renamed(container: Container, known: str) -> None:
    portmaps = {ifname: container.portmap(ifname) for ifname in PORTS}
    for portmap in portmaps.values():
        portmap.add()
    leaves = portmaps["eth1"]
    if known == "nothing":
        leaves.result = None
        leaves.config = {key: leaves.config[key] for key in ("cniVersion", "name", "type")}
    for change in (["down"], ["name", "mine"], ["up"]):
        name = "mine" if change == ["up"] else "eth1"
        run_in(leaves.sandbox, ["ip", "link", "set", name, *change])
    leaves.delete()
    portmaps["eth0"].check()
    assert container.answers(8080)
    assert not any("8081" in line for line in saved())


def test_what_a_dead_attachment_left_goes(container: Container) -> None:
    """The container was attached before, and its DEL never came."""
    again = container.portmap("eth0", (8082, 80))
    result = again.config["prevResult"]
    ips = [{**ip, "address": ip["address"].replace("2/", "77/")} for ip in result["ips"]]
    again.config["prevResult"] = {**result, "ips": ips}
    again.add()
    assert any("10.15.20.77:80" in line for line in saved())
    eth1 = container.portmap("eth1")
    eth1.add()
    assert not any("10.15.20.77" in line or "8082" in line for line in saved())
    eth1.check()
    eth0 = container.portmap("eth0")
    eth0.add()
    for portmap in (eth0, eth1):
        portmap.check()
    again.add()
    assert not any("10.15.20.2:80" in line for line in saved())  # not attached in this config
    eth1.delete()
    assert not any("8081" in line for line in saved())


@pytest.mark.parametrize("order", ["reference first", "ours first"])
def test_beside_the_reference(
    machines: Machines, kind: str, reference_dir: Path, order: str
) -> None:
    """Each interface was attached by another implementation; the rules are equal.

    IPv4 only: with iptables-legacy, the reference itself makes no IPv6 rules for the second.
    """
    container = Container(machines, families=(4,))
    container.add("eth1")
    ours, theirs = ("eth1", "eth0") if order == "reference first" else ("eth0", "eth1")
    portmaps = {
        ours: container.portmap(ours),
        theirs: container.reference(reference_dir, container.portmap(theirs)),
    }
    for ifname in PORTS:
        portmaps[ifname].add()
    mixed = saved()
    assert container.answers(8080)
    assert container.answers(8081)
    portmaps[ours].check()
    follows = container.portmap(theirs)
    follows.result = portmaps[theirs].result
    follows.check()
    follows.delete()
    portmaps[ours].check()
    assert not any(str(PORTS[theirs][0]) in line for line in saved())
    follows.add()
    assert saved() == mixed


def test_a_failed_add_leaves_the_other_interface_as_it_was(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    container.portmap("eth0").add()
    before = saved(), saved(6)
    second = container.portmap("eth1")
    real = iptables.restore

    def refuse_ipv6(family: int, table: str, lines: Any, variant: str = "") -> None:
        if family == 10 and any("8081" in line for line in lines):
            raise iptables.IPTablesError(5, "ip6tables-restore", "refused by the test")
        real(family, table, lines, variant)

    with monkeypatch.context() as patch:
        patch.setattr(iptables, "restore", refuse_ipv6)
        assert "refused by the test" in second.refused()["msg"]
    assert (saved(), saved(6)) == before


def test_a_failed_add_again_leaves_what_was_there(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ADD repeated of what is attached takes back what it changed, and no more."""
    portmaps = {ifname: container.portmap(ifname) for ifname in PORTS}
    for portmap in portmaps.values():
        portmap.add()
    before = saved(), saved(6)
    real = iptables.restore

    def refuse_ipv6(family: int, table: str, lines: Any, variant: str = "") -> None:
        if family == 10:
            raise iptables.IPTablesError(5, "ip6tables-restore", "refused by the test")
        real(family, table, lines, variant)

    with monkeypatch.context() as patch:
        patch.setattr(iptables, "restore", refuse_ipv6)
        portmaps["eth1"].refused()
    assert (saved(), saved(6)) == before


# --- GC ------------------------------------------------------------------------------------------


def collect(attachment: Attachment, *kept: str) -> None:
    config = {
        "cniVersion": "1.1.0", "name": "first", "type": attachment.config["type"],
        "cni.dev/valid-attachments": [
            {"containerID": container, "ifname": ifname}
            for container, _, ifname in (name.partition("/") for name in kept)
        ],
    }  # fmt: skip
    run = attachment.call(attachment.plugin, "GC", config)
    assert (run.code, run.stdout) == (0, ""), run.stdout


def test_gc_by_interface(container: Container) -> None:
    portmaps = {ifname: container.portmap(ifname) for ifname in PORTS}
    for portmap in portmaps.values():
        portmap.add()
    both = saved()
    collect(portmaps["eth0"], "one/eth0", "one/eth1")
    assert saved() == both
    collect(portmaps["eth0"], "one/eth0")
    portmaps["eth0"].check()
    assert container.answers(8080)
    assert not any("8081" in line for line in saved())
    portmaps["eth1"].add()
    run_in(container.bridges["eth0"].sandbox, ["ip", "link", "delete", "eth0"])
    collect(portmaps["eth0"], "one/eth1")
    portmaps["eth1"].check()
    assert not any("8080" in line for line in saved())
    collect(portmaps["eth0"], "two/eth1")
    assert own_lines() == []


# --- repair --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", ["iptables -t nat -F CNI-HOSTPORT-DNAT", "iptables -t nat -F", "CHAIN"]
)
def test_repair_ends_where_it_finds_nothing(
    machines: Machines, kind: str, tmp_path: Path, plugin_dir: Path, damage: str
) -> None:
    """Both attachments are repaired by the runtime, each once, and both ports answer."""
    box = machines.sandbox()
    network = Network.from_dict(
        {
            "cniVersion": "1.1.0",
            "name": "lab",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": True,
                    "ipMasq": True,
                    "ipMasqBackend": "iptables",
                    "ipam": host_local(tmp_path / "leases", "10.1.0.0/16"),
                },
                {
                    "type": "portmap",
                    "capabilities": {"portMappings": True},
                    "backend": "iptables",
                },
            ],
        },
        plugin_dirs=plugin_dir,
        cache_dir=tmp_path / "cache",
    )
    for ifname, (host, port) in PORTS.items():
        mapping = {"hostPort": host, "containerPort": port, "protocol": "tcp"}
        network.add("one", box.path, ifname, capabilities={"portMappings": [mapping]})
    run_in(box, ["ip", "route", "add", "default", "via", "10.1.0.1"])
    with service(box, "one", 80, 81):
        before = saved()
        if damage == "CHAIN":
            chain = Owner("lab", "one", "").chain("CNI-DN-")
            damage = f"iptables -t nat -F {chain}"
        run_in(None, damage.split())
        repaired = network.repair()
        assert [(one.is_sound, one.ok) for one in repaired] == [(False, True)] * 2, repaired
        assert saved() == before
        assert [one.is_sound for one in network.repair()] == [True, True]
        for host, _ in PORTS.values():
            assert ask(machines.client, HOST[4], host) == f"one {CLIENT[4]}"
        network.delete("one", ifname="eth1")
        assert [one.is_sound for one in network.repair()] == [True]
        # The host knows the address by the other interface, until it asks again.
        run_in(None, ["ip", "neighbour", "flush", "dev", "cni0"])
        assert ask(machines.client, HOST[4], 8080) == f"one {CLIENT[4]}"
        network.delete("one")
        assert own_lines() == []


# --- masquerade ----------------------------------------------------------------------------------


@pytest.fixture
def masqueraded(machines: Machines, kind: str) -> Container:
    found = Container(machines, ipMasq=True, ipMasqBackend="iptables")
    found.add("eth1")
    return found


def sources(container: Container, version: int = 4) -> dict[str, str]:
    """As whom the machine beyond sees each interface's address."""
    return {
        ifname: ask(bridge.sandbox, FAR[version], 80, source=(addresses(bridge)[version], 0))
        for ifname, bridge in container.bridges.items()
    }


GATEWAY = {4: "far 198.51.100.1", 6: "far 2001:db8:f::1"}


@both_families
def test_each_interface_is_masqueraded(masqueraded: Container, version: int) -> None:
    with service(masqueraded.machines.far, "far", 80):
        wanted = dict.fromkeys(PORTS, GATEWAY[version])
        assert sources(masqueraded, version) == wanted
        both = own_lines(version)
        assert len(both) == 4  # two in the chain, two that lead there
        first, second = masqueraded.bridges["eth0"], masqueraded.bridges["eth1"]
        for bridge in (first, second):
            bridge.check()
        second.delete()
        first.check()
        assert len(own_lines(version)) == 3
        assert not any(addresses(second)[version] in line for line in saved(version))
        assert ask(first.sandbox, FAR[version], 80) == GATEWAY[version]
        first.delete()
        assert own_lines(version) == []


@pytest.mark.parametrize("there", ["no sandbox", "no prevResult"])
def test_del_of_one_that_is_masqueraded(masqueraded: Container, there: str) -> None:
    first, second = masqueraded.bridges["eth0"], masqueraded.bridges["eth1"]
    leaves = Attachment(
        second.plugin, second.config, second.sandbox, "one", "eth1", result=second.result
    )
    if there == "no sandbox":
        leaves.sandbox = None
    else:
        leaves.result = None
    leaves.delete()
    first.check()
    assert not any(addresses(second)[4] in line for line in saved())
    first.sandbox = None
    first.delete()
    assert own_lines() == []


def test_gc_of_one_that_is_masqueraded(masqueraded: Container) -> None:
    first, second = masqueraded.bridges["eth0"], masqueraded.bridges["eth1"]
    both = own_lines()
    collect(first, "one/eth0", "one/eth1")
    assert own_lines() == both
    collect(first, "one/eth0")
    first.check()
    assert not any(addresses(second)[4] in line for line in saved())
    collect(first)
    assert own_lines() == []
