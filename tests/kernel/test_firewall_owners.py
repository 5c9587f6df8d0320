"""Whose an address is by now, where the rules that let it through name no one.

Both sets of plugins are on the node, ours and Debian's, and there is one address for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Namespace, ask, ip_json, ipset_elements, run_in, run_plugin, service
from harness import firewalld as real
from harness.firewalld import Firewalld
from harness.kernel_state import iptables_saved, ruleset
from harness.machines import FAR, Machines
from pycni.kernel import all_addresses
from pycni.plan.steps import Firewall
from pycni.spec.ip import parse_address
from pycni.spec.owner import Owner
from pycni.steps import firewall
from pycni.steps.namespaces import HostAndSandbox

ADDRESS = "10.15.20.2"
OURS, REFERENCE = "ours", "reference"


@dataclass
class Pod:
    """A container with what has to be called for it; each call is made by one of the two sets."""

    node: Node
    name: str
    sandbox: Namespace | None
    result: Any = None

    def _plugin(self, whose: str, plugin: str) -> Attachment:
        config = self.node.config[plugin]
        folder = self.node.folders[whose]
        call = {} if whose == OURS else {"call": run_plugin}
        return Attachment(
            folder / plugin, config, self.sandbox, self.name, env=self.node.env, **call
        )

    def add(self, whose: str) -> None:
        bridge, firewall = self._plugin(whose, "bridge"), self._plugin(whose, "firewall")
        self.result = bridge.add()
        if whose == OURS:
            firewall.config = {**firewall.config, **self.node.ours}
        firewall.config = {**firewall.config, "prevResult": self.result}
        firewall.add()

    def delete(self, whose: str, *, known: bool = True) -> None:
        for plugin in ("firewall", "bridge"):
            attachment = self._plugin(whose, plugin)
            if plugin == "firewall" and whose == OURS:
                attachment.config = {**attachment.config, **self.node.ours}
            attachment.result = self.result if known else None
            attachment.delete()

    def check(self) -> None:
        firewall = self._plugin(OURS, "firewall")
        firewall.config = {**firewall.config, **self.node.ours}
        firewall.result = self.result
        firewall.check()

    @property
    def passes(self) -> bool:
        """Whether the host lets it through."""
        return ask(self.sandbox, FAR[4], 80, timeout=0.5).startswith("far ")


class Node:
    """A node whose network has a single address. ours: keys of our firewall only."""

    def __init__(self, machines: Machines, reference: Path, ours: dict[str, Any]) -> None:
        self.machines = machines
        self.folders = {OURS: machines.plugins, REFERENCE: reference}
        self.ours = ours
        self.env: dict[str, str | None] = {}
        common = {"cniVersion": "1.0.0", "name": "first"}
        only = {"subnet": "10.15.20.0/24", "rangeStart": ADDRESS, "rangeEnd": ADDRESS}
        ipam = {"type": "host-local", "ranges": [[only]], "dataDir": str(machines.folder)}
        self.config: dict[str, dict[str, Any]] = {
            "bridge": {
                **common, "type": "bridge", "bridge": "br0", "isDefaultGateway": True, "ipam": ipam,
            },
            "firewall": {**common, "type": "firewall", "backend": "iptables"},
        }  # fmt: skip

    def pod(self, name: str) -> Pod:
        return Pod(self, name, self.machines.sandbox())

    def collect(self, *kept: str, plugins: tuple[str, ...] = ("bridge", "firewall")) -> None:
        """GC by ours."""
        valid = [{"containerID": name, "ifname": "eth0"} for name in kept]
        for plugin in plugins:
            config = {
                **self.config[plugin], "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid,
            }  # fmt: skip
            one = Attachment(self.folders[OURS] / plugin, config, None)
            run = one.call(one.plugin, "GC", config)
            assert (run.code, run.stdout) == (0, ""), run.stdout

    def lose(self, pod: Pod) -> None:
        """The pod's namespace goes, and no one calls DEL; its lease is freed all the same."""
        assert pod.sandbox is not None
        pod.sandbox.delete()
        pod.sandbox = None
        self.free()

    def free(self) -> None:
        (self.machines.folder / "first" / ADDRESS).unlink()


def rules() -> list[str]:
    """All that lets the address through, wherever it is."""
    lines = ruleset().splitlines()
    lines += iptables_saved("filter", "iptables-save")
    return [line.strip() for line in (*lines, *ipset_elements()) if f"{ADDRESS}/" in f"{line}/"]


def owner() -> str:
    """Whom the set of nftables says to have the address, "" for no one."""
    listed = run_in(None, ["nft", "list", "table", "inet", "pycni"], check=False).stdout
    found = listed.partition("set firewall4 {")[2].partition("}\n")[0].partition("id: ")[2]
    return found.partition('"')[0]


@pytest.fixture(params=["iptables", "", "nftables"], ids=["iptables", "chosen", "nftables"])
def node(machines: Machines, reference_dir: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    with service(machines.far, "far", 80):
        run_in(None, ["iptables", "-P", "FORWARD", "DROP"])
        # Answers from the machine beyond; and where nftables is named, iptables decides no less.
        yield Node(machines, reference_dir, {"backend": request.param})


backends_that_decide = pytest.mark.parametrize("node", ["iptables", ""], indirect=True)


# --- an address that another has by now ----------------------------------------------------------


def test_a_late_del_spares_who_has_the_address(node: Node) -> None:
    a, b = node.pod("a"), node.pod("b")
    a.add(OURS)
    a.delete(REFERENCE)
    b.add(REFERENCE)
    assert b.passes
    a.delete(OURS)
    assert b.passes
    assert owner() == ""
    b.delete(REFERENCE)
    assert rules() == []


def test_a_repeated_del_spares_who_has_the_address(node: Node) -> None:
    a, b = node.pod("a"), node.pod("b")
    a.add(OURS)
    a.delete(OURS)
    b.add(REFERENCE)
    a.delete(OURS)
    assert b.passes
    b.delete(REFERENCE)
    assert rules() == []


def test_gc_spares_who_has_the_address(node: Node) -> None:
    a, b = node.pod("a"), node.pod("b")
    a.add(OURS)
    a.delete(REFERENCE)
    b.add(REFERENCE)
    node.collect("b")
    assert b.passes
    b.delete(REFERENCE)
    node.collect()
    assert rules() == []


def test_a_stale_owner_does_not_keep_an_address_from_its_del(node: Node) -> None:
    a, b = node.pod("a"), node.pod("b")
    a.add(OURS)
    a.delete(REFERENCE)
    b.add(REFERENCE)
    b.delete(OURS)
    assert rules() == []
    assert owner() == ""


def test_nor_where_it_vanished(node: Node) -> None:
    a, b = node.pod("a"), node.pod("b")
    a.add(OURS)
    node.lose(a)
    b.add(REFERENCE)
    assert owner() == "a"
    b.delete(OURS)
    assert rules() == []


def test_what_a_lost_one_left_goes_with_its_late_del(node: Node) -> None:
    a, b = node.pod("a"), node.pod("b")
    a.add(OURS)
    node.lose(a)
    b.add(OURS)
    a.delete(OURS)
    b.check()
    assert owner() == "b"
    b.delete(OURS)
    assert rules() == []


def test_the_next_one_by_ours_takes_it_over(node: Node) -> None:
    a, b = node.pod("a"), node.pod("b")
    a.add(REFERENCE)
    a.delete(REFERENCE)
    b.add(OURS)
    a.delete(OURS)
    b.check()
    node.collect("b")
    b.check()
    assert owner() == "b"
    b.delete(OURS)
    assert rules() == []


# --- an address that no one has ------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["prevResult", "nothing known"])
def test_a_namespace_that_is_gone(node: Node, known: bool) -> None:
    a = node.pod("a")
    a.add(OURS)
    assert a.sandbox is not None
    a.sandbox.delete()
    a.sandbox = None
    a.delete(OURS, known=known)
    assert rules() == []


def test_a_namespace_that_is_gone_beside_another_host_of_this_machine(node: Node) -> None:
    """A node that is itself a container may give its own containers the same addresses."""
    other_host, container = node.machines.sandbox(), node.machines.sandbox()
    pair = f"link add up0 type veth peer name eth0 netns {container.name}".split()
    run_in(other_host, ["ip", *pair])
    run_in(container, ["ip", "address", "add", f"{ADDRESS}/24", "dev", "eth0"])
    a = node.pod("a")
    a.add(OURS)
    assert a.sandbox is not None
    firewall = a._plugin(OURS, "firewall")
    firewall.config = {**firewall.config, **node.ours}
    firewall.result = a.result
    a.sandbox.delete()
    a.sandbox = None
    firewall.delete()
    assert rules() == []
    a.delete(OURS)


@pytest.mark.parametrize("way", ["DEL", "GC"])
def test_where_sets_and_result_are_lost(node: Node, way: str) -> None:
    """The addresses are noted."""
    a = node.pod("a")
    a.add(OURS)
    run_in(None, ["nft", "flush set inet pycni firewall4"])
    if way == "DEL":
        a.delete(OURS, known=False)
    else:
        node.collect()
    assert rules() == []


def test_an_interface_that_is_gone(node: Node) -> None:
    a = node.pod("a")
    a.add(OURS)
    run_in(a.sandbox, ["ip", "link", "delete", "eth0"])
    a.delete(OURS)
    assert rules() == []


def test_what_the_reference_made_and_whose_namespace_is_gone(node: Node) -> None:
    a = node.pod("a")
    a.add(REFERENCE)
    assert a.sandbox is not None
    a.sandbox.delete()
    a.sandbox = None
    a.delete(OURS)
    assert rules() == []


def test_a_namespace_out_of_reach_is_the_attachment_s_own(node: Node) -> None:
    """Its path is gone, and it lives on: what has the address there is no other."""
    a = node.pod("a")
    a.add(OURS)
    assert a.sandbox is not None
    place = Path("/run/out-of-reach")
    place.touch()
    run_in(None, ["mount", "--bind", a.sandbox.path, str(place)])
    try:
        a.sandbox.delete()
        a.sandbox = None
        firewall = a._plugin(OURS, "firewall")
        firewall.config = {**firewall.config, **node.ours}
        firewall.result = a.result
        firewall.delete()
        assert rules() == []
    finally:
        run_in(None, ["umount", str(place)])
        place.unlink()
    a.delete(OURS)


def test_gc_of_one_that_lives_and_is_not_valid(node: Node) -> None:
    a = node.pod("a")
    a.add(OURS)
    node.collect(plugins=("firewall",))
    assert rules() == []


# --- what a container does -----------------------------------------------------------------------


def forge(victim: Pod, attacker: Pod) -> None:
    """The attacker's eth0 gets the index of the victim's, and a peer with that one's host index.

    The peer is in a namespace of its own, so that it has an index of a namespace as well.
    """
    inside, outside = (
        ip_json("link", "show", "dev", "eth0", netns=victim.sandbox)[0][key]
        for key in ("ifindex", "link_index")
    )
    nested = victim.node.machines.sandbox()
    run_in(attacker.sandbox, ["ip", "link", "delete", "eth0"], check=False)
    run_in(
        attacker.sandbox,
        ["ip", "link", "add", "eth0", "index", str(inside), "type", "veth",
         "peer", "name", "x", "index", str(outside), "netns", nested.path],
    )  # fmt: skip
    run_in(attacker.sandbox, ["ip", "address", "add", f"{ADDRESS}/24", "dev", "eth0"])


def test_a_forged_index_keeps_no_rule_of_an_address(node: Node) -> None:
    """What has the address is the container's own interface, and not the other end of another's."""
    a, victim = node.pod("a"), node.pod("victim")
    a.add(OURS)
    bridge = victim._plugin(OURS, "bridge")
    bridge.config = {**bridge.config, "name": "other", "bridge": "br1", "isDefaultGateway": False}
    bridge.config["ipam"] = {}
    bridge.add()
    forge(victim, a)
    a.delete(OURS)
    assert rules() == []


def test_a_forged_index_is_no_holder_of_another_s_name(node: Node) -> None:
    a, victim = node.pod("a"), node.pod("victim")
    victim.add(OURS)
    tag = Owner("first", "victim", "eth0").tag
    address = parse_address(ADDRESS)
    with HostAndSandbox(None) as kernel:
        (holder,) = all_addresses.holders({address}, kernel.host.netlink)[address]
        assert holder.alias.startswith(tag)
        forge(victim, a)
        (found,) = all_addresses.holders({address}, kernel.host.netlink)[address]
    assert victim.sandbox is not None
    assert found.path == victim.sandbox.path
    assert found.alias.startswith(tag)


# --- what it costs -------------------------------------------------------------------------------


def test_namespaces_are_counted_only_where_there_is_doubt(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        all_addresses, "holders", lambda *_: pytest.fail("all namespaces were read")
    )
    a = node.pod("a")
    a.add(OURS)
    a.delete(OURS)
    a.delete(OURS)
    a.add(OURS)
    a.delete(OURS, known=False)
    assert rules() == []
    a.add(REFERENCE)
    a.delete(OURS)
    assert rules() == []
    a.add(OURS)
    if node.ours["backend"] != "iptables":
        assert a.sandbox is not None
        a.sandbox.delete()
        a.sandbox = None
        a.delete(OURS)
        assert rules() == []


# --- repair --------------------------------------------------------------------------------------


@backends_that_decide
def test_repair_enters_who_has_the_address(node: Node) -> None:
    a, b = node.pod("a"), node.pod("b")
    a.add(OURS)
    a.delete(REFERENCE)
    b.add(REFERENCE)
    owner_of_b = Owner("first", "b", "eth0")
    step = Firewall(owner_of_b, (parse_address(ADDRESS),), node.ours["backend"])
    with HostAndSandbox(None) as kernel:
        (difference,) = firewall.repairable(step, kernel)
        assert "belongs to another attachment, which is gone: " in difference
        assert "id: a" in difference
        firewall.repair(step, kernel)
        assert firewall.repairable(step, kernel) == []
    assert owner() == "b"
    # An owner that is known to be there keeps it; the other one is noted beside.
    other = step.replace(owner=Owner("second", "c", "eth0"))
    with HostAndSandbox(None, is_attached=lambda _, tag: tag == owner_of_b.tag) as kernel:
        (difference,) = firewall.repairable(other, kernel)
        assert "would be closed with that" in difference
        firewall.repair(other, kernel)
        assert firewall.repairable(other, kernel) == []
        assert owner() == "b"
        firewall.remove(other, kernel)
    assert owner() == "b"
    assert b.passes


# --- firewalld -----------------------------------------------------------------------------------


@pytest.fixture
def daemon(host: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Firewalld]:
    with real.on_the_system_bus(tmp_path / "firewalld", "nftables", monkeypatch) as daemon:
        yield daemon


@pytest.mark.parametrize("how", ["late DEL", "GC", "the new one's DEL", "no one has it"])
def test_firewalld(daemon: Firewalld, machines: Machines, reference_dir: Path, how: str) -> None:
    node = Node(machines, reference_dir, {"backend": "firewalld"})
    node.config["firewall"]["backend"] = "firewalld"
    node.env = {"DBUS_SYSTEM_BUS_ADDRESS": daemon.address}
    a, b = node.pod("a"), node.pod("b")
    a.add(OURS)
    if how == "no one has it":
        assert a.sandbox is not None
        a.sandbox.delete()
        a.sandbox = None
        a.delete(OURS)
        assert daemon.sources("trusted") == set()
        return
    a.delete(REFERENCE)
    b.add(REFERENCE)
    if how == "late DEL":
        a.delete(OURS)
    elif how == "GC":
        node.collect("b")
    else:
        b.delete(OURS)
        assert owner() == ""
    assert daemon.sources("trusted") == ({f"{ADDRESS}/32"} if "new" not in how else set())


def test_firewalld_trusts_an_address_of_two_networks(daemon: Firewalld) -> None:
    a, b = (
        Firewall(Owner(name, name, "eth0"), (parse_address(ADDRESS),), "firewalld") for name in "ab"
    )
    with HostAndSandbox(
        None, is_attached=lambda _, tag: tag in (a.owner.tag, b.owner.tag)
    ) as kernel:
        for first, last in ((a, b), (b, a)):
            firewall.apply(a, kernel)
            firewall.apply(b, kernel)
            firewall.remove(first, kernel)
            assert daemon.sources("trusted") == {f"{ADDRESS}/32"}
            assert firewall.check(last, kernel) == []
            firewall.remove(last, kernel)
            assert daemon.sources("trusted") == set()
