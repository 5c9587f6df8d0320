"""firewall on the kernel: which packets the host lets through, and what is left afterwards."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, Namespace, ask, ipset_elements, nft_list, run_in, service
from harness import firewalld as real
from harness.faults import each_change_failing
from harness.firewalld import Firewalld
from harness.kernel_state import all_rules, iptables_saved
from harness.machines import CLIENT, FAR, HOST, Machines, addresses, commands
from pycni.kernel import process
from pycni.kernel.netfilter import firewalld as client_of_firewalld
from pycni.kernel.netfilter import ipset, iptables, nfnetlink, nftables
from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
from pycni.spec.ip import parse_address

BACKENDS = ("iptables", "nftables", "")  # "": chosen, which here are sets that iptables looks into
each_backend = pytest.mark.parametrize(
    "backend", BACKENDS, ids=[backend or "chosen" for backend in BACKENDS]
)
both_families = pytest.mark.parametrize("version", [4, 6])


def saved() -> list[str]:
    return [line for line in iptables_saved("filter") if line.startswith("-A")]


def in_sets(*containers: Attachment) -> list[str]:
    """What `ipset_elements` gives where these containers are let through."""
    return sorted(
        f"add CNI-FORWARD{version} {address}"
        for container in containers
        for version, address in addresses(container).items()
    )


def drop_in_iptables() -> None:
    """What docker does to a host."""
    for program in ("iptables", "ip6tables"):
        run_in(None, [program, "-P", "FORWARD", "DROP"])


def drop_in_our_table() -> None:
    """What an administrator may do, to have our chain be the one that decides."""
    run_in(None, ["nft", "add chain inet pycni firewall-forward { policy drop; }"])


DROP = {"iptables": drop_in_iptables, "nftables": drop_in_our_table, "": drop_in_iptables}


def attached(
    machines: Machines, name: str, bridge: str = "br0", **keys: Any
) -> tuple[Attachment, Attachment]:
    """A container, and firewall after ADD."""
    container = machines.container(name, bridge)
    firewall = machines.chained("firewall", container, **keys)
    assert firewall.add() == container.result
    firewall.check()
    return container, firewall


# --- packets -------------------------------------------------------------------------------------


@both_families
@each_backend
def test_only_containers_are_let_through(machines: Machines, backend: str, version: int) -> None:
    with service(machines.far, "far", 80):
        one, firewall = attached(machines, "one", backend=backend)
        two = machines.container("two")
        DROP[backend]()
        # With an answer, but not from outside; and who was not attached gets nothing through.
        assert ask(one.sandbox, FAR[version], 80) == f"far {addresses(one)[version]}"
        assert ask(one.sandbox, FAR[version], 80, "udp").startswith("far ")
        assert not ask(machines.client, addresses(one)[version], 80, patience=0.4)
        assert not ask(two.sandbox, FAR[version], 80, patience=0.4)
        assert not ask(machines.client, FAR[version], 80, patience=0.4)
        firewall.delete()
        assert not ask(one.sandbox, FAR[version], 80, patience=0.4)


def test_accept_of_nftables_is_not_the_last_word(machines: Machines) -> None:
    """Why the automatic choice is another: what one table drops no other table lets through."""
    with service(machines.far, "far", 80):
        one, _ = attached(machines, "one", backend="nftables")
        assert ask(one.sandbox, FAR[4], 80)
        drop_in_iptables()
        assert not ask(one.sandbox, FAR[4], 80)
        machines.chained("firewall", one).add()
        assert ask(one.sandbox, FAR[4], 80)


@each_backend
def test_the_administrator_comes_first(machines: Machines, backend: str) -> None:
    with service(machines.far, "far", 80, 81):
        one, _ = attached(machines, "one", backend=backend)
        if backend != "nftables":
            run_in(None, "iptables -A CNI-ADMIN -p tcp --dport 81 -j DROP".split())  # noqa: SIM905
        else:
            run_in(None, ["nft", "add rule inet pycni firewall-admin tcp dport 81 drop"])
        attached(machines, "two", backend=backend)
        assert ask(one.sandbox, FAR[4], 80)
        assert not ask(one.sandbox, FAR[4], 81)


def test_rules_by_netlink_are_those_of_the_program(machines: Machines) -> None:
    """The first container's rules are made by iptables-restore, the others' by netlink."""
    one, first = attached(machines, "one", backend="iptables")
    two, second = attached(machines, "two", backend="iptables")

    def of(container: Attachment) -> tuple[list[str], list[tuple[str, bytes]]]:
        lines, expressions = saved(), []
        with NetfilterSocket() as netfilter:
            for version, address in addresses(container).items():
                key = parse_address(address)
                lines = [line.replace(f"{address}/{key.bits}", f"V{version}") for line in lines]
                for *_, found in nfnetlink.expressions(
                    netfilter, key.family, "filter", "CNI-FORWARD", (key.packed,)
                ):
                    expressions += [(name, data.replace(key.packed, b"")) for name, data in found]
        return [line for line in lines if "V4" in line or "V6" in line], expressions

    assert of(one) == of(two)
    lines, expressions = of(two)
    assert len(lines) == 4
    assert len(expressions) == 18
    # Counters, which a packet changes, are no obstacle.
    with service(machines.far, "far", 80):
        assert ask(two.sandbox, FAR[4], 80)
    second.delete()
    assert of(two) == ([], [])
    assert len(of(one)[0]) == 4
    first.delete()
    assert of(one) == ([], [])


@pytest.mark.parametrize("backend", ["iptables", ""], ids=["iptables", "chosen"])
def test_no_program_runs_for_a_container(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    attached(machines, "one", backend=backend)
    container = machines.container("two")
    firewall = machines.chained("firewall", container, backend=backend)

    def refuse(argv: list[str], *_: object) -> None:
        raise AssertionError(argv)

    monkeypatch.setattr(process, "run", refuse)
    firewall.add()
    if not backend:
        firewall.check()
    firewall.delete()


def test_an_administrators_chain_that_was_there_first(machines: Machines) -> None:
    attached(machines, "one", backend="iptables")
    run_in(None, "iptables -N MINE".split())  # noqa: SIM905
    run_in(None, "iptables -A MINE -p tcp --dport 81 -j DROP".split())  # noqa: SIM905
    with service(machines.far, "far", 80, 81):
        two, _ = attached(machines, "two", backend="iptables", iptablesAdminChainName="MINE")
        assert ask(two.sandbox, FAR[4], 80)
        assert not ask(two.sandbox, FAR[4], 81)


@each_backend
@pytest.mark.parametrize("policy", ["open", "same-bridge", "isolated"])
def test_ingress_policy(machines: Machines, bridge_calls: None, backend: str, policy: str) -> None:
    one, _ = attached(machines, "one", backend=backend, ingressPolicy=policy)
    two, _ = attached(machines, "two", backend=backend, ingressPolicy=policy)
    far, _ = attached(machines, "far", "br1", backend=backend, ingressPolicy=policy)
    for version in (4, 6):
        for source, target, allowed in (
            (one, two, policy != "isolated"),
            (two, one, policy != "isolated"),
            (one, far, policy == "open"),
            (far, two, policy == "open"),
        ):
            answer = ask(source.sandbox, addresses(target)[version], 80, patience=0.4)
            assert bool(answer) == allowed, f"{source.container} {target.container} {version}"
        # The host, and who is not on a bridge with a policy, is not concerned.
        assert ask(None, addresses(one)[version], 80)
        assert ask(machines.client, addresses(one)[version], 80) == f"one {CLIENT[version]}"
        gateway = addresses(one)[version].rpartition("2")[0] + "1"
        with service(None, "host", 90):
            assert ask(one.sandbox, gateway, 90).startswith("host ")


@each_backend
def test_isolated_from_a_network_without_a_policy(
    machines: Machines, bridge_calls: None, backend: str
) -> None:
    """The other container is on the same bridge, and its port is as any."""
    one, firewall = attached(machines, "one", backend=backend, ingressPolicy="isolated")
    two = machines.container("two")
    for version in (4, 6):
        own, other = addresses(one)[version], addresses(two)[version]
        for kind in ("tcp", "udp"):
            assert not ask(two.sandbox, own, 80, kind, patience=0.4)
            assert not ask(one.sandbox, other, 80, kind, patience=0.4)
        assert ask(None, own, 80)
        assert ask(machines.client, own, 80) == f"one {CLIENT[version]}"
    firewall.delete()
    assert "one" not in all_rules()


@each_backend
def test_check_of_isolation_from_others(machines: Machines, backend: str) -> None:
    for name in ("iptables", "ip6tables"):
        Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}").write_text("0")
    two = machines.container("two")
    three, _ = attached(machines, "three", backend=backend, ingressPolicy="isolated")
    for damage, words in (
        ("nft flush chain bridge pycni firewall-isolated-forward", "firewall-isolated-forward"),
        ("nft flush set bridge pycni firewall-isolated", "is not in set bridge pycni"),
        ("nft delete table bridge pycni", "firewall-isolated-forward"),
    ):
        run_in(None, damage.split())
        again = machines.chained("firewall", three, backend=backend, ingressPolicy="isolated")
        again.result = three.result
        assert words in again.drift()
        assert ask(two.sandbox, addresses(three)[4], 80)
        again.add()
        again.check()
        assert not ask(two.sandbox, addresses(three)[4], 80, patience=0.4)


def test_isolated_is_not_from_the_lan(machines: Machines) -> None:
    """A bridge may have an uplink; what comes in by it is from outside."""
    for name in ("iptables", "ip6tables"):
        Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}").write_text("0")
    one, _ = attached(machines, "one", ingressPolicy="isolated")
    vxlan = "type vxlan id 7 dstport 4789 local {} remote {}"
    commands(f"link add up0 {vxlan.format(HOST[4], CLIENT[4])}\nlink set up0 master br0 up\n")
    commands(
        f"link add lan {vxlan.format(CLIENT[4], HOST[4])}\n"
        "link set lan up\naddress add 10.15.20.99/24 dev lan\n",
        machines.client,
    )
    assert ask(machines.client, addresses(one)[4], 80) == "one 10.15.20.99"


@each_backend
def test_a_policy_can_change(machines: Machines, backend: str) -> None:
    for name in ("iptables", "ip6tables"):
        Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}").write_text("1")
    one, first = attached(machines, "one", backend=backend, ingressPolicy="isolated")
    two, second = attached(machines, "two", backend=backend, ingressPolicy="isolated")
    assert not ask(one.sandbox, addresses(two)[4], 80, patience=0.4)
    for attachment in (first, one, second, two):
        attachment.delete()
    three, _ = attached(machines, "three", backend=backend, ingressPolicy="same-bridge")
    four, firewall = attached(machines, "four", backend=backend, ingressPolicy="same-bridge")
    assert ask(three.sandbox, addresses(four)[4], 80)
    firewall.config["ingressPolicy"] = "isolated"
    assert "br0" in firewall.drift()


@each_backend
@pytest.mark.parametrize("policy", ["same-bridge", "isolated"])
@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ({"name": "out", "sandbox": "/run/netns/x"}, "it is an interface of the container"),
        ({"name": "out"}, "it is a veth"),
        ({"name": "nowhere0"}, "the host has no such interface"),
    ],
    ids=["of the container", "no bridge", "not there"],
)
def test_a_policy_needs_a_bridge(
    machines: Machines, backend: str, policy: str, first: dict[str, str], reason: str
) -> None:
    """tap or host-device report the container's interface first, whose name another may have.

    The policy of that name would cut off the host's uplink, here `out`.
    """
    with service(machines.client, "client", 80):
        one, _ = attached(machines, "one", backend=backend, ingressPolicy=policy)
        two = machines.container("two")
        result = {**two.result, "interfaces": [first], "ips": [{"address": "10.15.30.2/24"}]}
        firewall = machines.chained(
            "firewall", two, prevResult=result, backend=backend, ingressPolicy=policy
        )
        before = all_rules()
        error = firewall.refused()
        assert error["code"] == 7
        assert error["msg"] == f'"{first["name"]}" is no bridge for ingress policy "{policy}"'
        assert reason in error["details"]
        assert "first interface of prevResult" in error["details"]
        assert all_rules() == before
        assert ask(one.sandbox, CLIENT[4], 80).startswith("client ")
        # One that was attached by an earlier release, which made the policy.
        firewall.result = result
        assert f'"{first["name"]}" is no bridge' in firewall.refused("CHECK")["msg"]
        firewall.delete()


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_bridge_that_iptables_takes_for_others(machines: Machines, backend: str) -> None:
    """A name that ends in + stands for all that begin so in a rule of iptables, here for `out`."""
    with service(machines.client, "client", 80):
        one, _ = attached(machines, "one", backend=backend, ingressPolicy="same-bridge")
        run_in(None, ["ip", "link", "add", "ou+", "type", "bridge"])
        two = machines.container("two")
        result = {
            **two.result, "interfaces": [{"name": "ou+"}], "ips": [{"address": "10.15.30.2/24"}]
        }  # fmt: skip
        firewall = machines.chained(
            "firewall", two, prevResult=result, backend=backend, ingressPolicy="isolated"
        )
        if backend == "iptables":
            error = firewall.refused()
            assert error["code"] == 7
            assert '"ou+"' in error["msg"]
            assert "ou+" not in all_rules()
        else:
            firewall.add()
        assert ask(one.sandbox, CLIENT[4], 80).startswith("client ")
        firewall.delete()


@each_backend
def test_gc_drops_policies_of_what_is_no_bridge(machines: Machines, backend: str) -> None:
    with service(machines.client, "client", 80):
        one, first = attached(machines, "one", backend=backend, ingressPolicy="same-bridge")
        run_in(None, ["ip", "link", "property", "add", "dev", "br0", "altname", "lanbr"])
        for name in ("out", "lanbr"):
            if backend == "nftables":
                run_in(None, ["nft", f"add element inet pycni firewall-bridges {{ {name} }}"])
            else:
                for rule in (
                    f"1 -i {name} ! -o {name} -j CNI-ISOLATION-STAGE-2",
                    f"2 -o {name} -j DROP",
                ):
                    stage, *words = rule.split()
                    run_in(None, ["iptables", "-I", f"CNI-ISOLATION-STAGE-{stage}", *words])
        assert not ask(one.sandbox, CLIENT[4], 80, patience=0.4)
        valid = [{"containerID": "one", "ifname": "eth0"}]
        config = {
            "cniVersion": "1.1.0", "name": "first", "type": "firewall",
            "cni.dev/valid-attachments": valid,
        }  # fmt: skip
        assert first.call(first.plugin, "GC", config).code == 0
        assert ask(one.sandbox, CLIENT[4], 80).startswith("client ")
        assert "lanbr" not in all_rules()
        first.check()


@each_backend
@pytest.mark.parametrize("policy", ["same-bridge", "isolated"])
def test_a_bridge_by_its_alternative_name(machines: Machines, backend: str, policy: str) -> None:
    """Rules match what the kernel calls it."""
    one, two = machines.container("one"), machines.container("two")
    far, _ = attached(machines, "far", "br1", backend=backend, ingressPolicy=policy)
    run_in(None, ["ip", "link", "property", "add", "dev", "br0", "altname", "lanbr"])
    for container in (one, two):
        container.result["interfaces"][0]["name"] = "lanbr"
        firewall = machines.chained("firewall", container, backend=backend, ingressPolicy=policy)
        firewall.add()
        firewall.check()
    assert not ask(far.sandbox, addresses(one)[4], 80, patience=0.4)
    assert not ask(one.sandbox, addresses(far)[4], 80, patience=0.4)
    assert bool(ask(one.sandbox, addresses(two)[4], 80, patience=0.4)) == (policy != "isolated")
    assert "lanbr" not in all_rules()


def test_policy_is_judged_before_containers_are_accepted(machines: Machines) -> None:
    """FORWARD may have lost one of its rules; the other one then must not come first."""
    one, first = attached(machines, "one", backend="iptables", ingressPolicy="same-bridge")
    far, _ = attached(machines, "far", "br1", backend="iptables", ingressPolicy="same-bridge")
    assert not ask(one.sandbox, addresses(far)[4], 80, patience=0.4)
    jump = ["-m", "comment", "--comment", "CNI firewall plugin rules", "-j", "CNI-FORWARD"]
    run_in(None, ["iptables", "-D", "FORWARD", *jump])
    assert "lacks the rule: -A FORWARD" in first.drift()
    run_in(None, ["iptables", "-I", "FORWARD", *jump])
    assert ask(one.sandbox, addresses(far)[4], 80)
    assert "CNI-ISOLATION-STAGE-1 comes after CNI-FORWARD" in first.drift()
    first.add()
    first.check()
    assert not ask(one.sandbox, addresses(far)[4], 80, patience=0.4)


# --- what is there -------------------------------------------------------------------------------


def test_iptables_rules_are_the_reference_s(machines: Machines) -> None:
    """As sections 6.2 and 6.4 of the facts on the reference have them, in their order."""
    one, firewall = attached(
        machines, "one", backend="iptables", ingressPolicy="isolated",
        iptablesAdminChainName="MY-ADMIN",
    )  # fmt: skip
    any_policy = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)"
    policy = '-m comment --comment "CNI firewall plugin rules (ingressPolicy: isolated)"'
    shared = f'-m comment --comment "{any_policy}"'

    def wanted(address: str) -> list[str]:
        return [
            f"-A FORWARD {shared} -j CNI-ISOLATION-STAGE-1",
            '-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD',
            '-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j MY-ADMIN',
            f"-A CNI-FORWARD -d {address} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            f"-A CNI-FORWARD -s {address} -j ACCEPT",
            f"-A CNI-ISOLATION-STAGE-1 -i br0 -o br0 {policy} -j DROP",
            f"-A CNI-ISOLATION-STAGE-1 -i br0 ! -o br0 {policy} -j CNI-ISOLATION-STAGE-2",
            f"-A CNI-ISOLATION-STAGE-1 {shared} -j RETURN",
            f"-A CNI-ISOLATION-STAGE-2 -o br0 {shared} -j DROP",
            f"-A CNI-ISOLATION-STAGE-2 {shared} -j RETURN",
        ]

    def by_chain(lines: list[str]) -> list[list[str]]:
        """Which of the chains comes first is no matter."""
        chains: dict[str, list[str]] = {}
        for line in lines:
            chains.setdefault(line.split()[1], []).append(line)
        return sorted(chains.values())

    for program, own in (
        ("iptables-save", f"{addresses(one)[4]}/32"),
        ("ip6tables-save", f"{addresses(one)[6]}/128"),
    ):
        lines = run_in(None, [program, "-t", "filter"]).stdout.splitlines()
        assert by_chain([line for line in lines if line.startswith("-A")]) == by_chain(wanted(own))
    before = saved()
    firewall.add()
    assert saved() == before


def test_rules_for_all_containers(machines: Machines) -> None:
    """Two rules a family beside the reference's shared ones, and they are as iptables has them."""
    one, first = attached(machines, "one")
    rules_for_one = saved()
    own = [line for line in rules_for_one if "--match-set" in line]
    answers = (
        "-m conntrack --ctstate RELATED,ESTABLISHED"
        ' -m comment --comment "CNI firewall plugin: answers to containers"'
    )
    assert own == [
        f"-A CNI-FORWARD -m set --match-set CNI-FORWARD{version} {rest} -j ACCEPT"
        for version in (4, 6)
        for rest in (
            f"dst {answers}",
            'src -m comment --comment "CNI firewall plugin: from containers"',
        )
    ]
    two, second = attached(machines, "two")
    assert saved() == rules_for_one
    assert ipset_elements() == in_sets(one, two)
    first.add()
    assert ipset_elements() == in_sets(one, two)
    first.delete()
    assert ipset_elements() == in_sets(two)
    second.delete()
    assert ipset_elements() == []
    assert saved() == rules_for_one


def test_what_the_reference_form_let_through_before(machines: Machines) -> None:
    """A host may have such rules from the reference, or from who named the backend."""
    one, named = attached(machines, "one", backend="iptables")
    follows = machines.chained("firewall", one)
    follows.check()
    follows.add()
    assert ipset_elements() == in_sets(one)
    run_in(None, ["iptables", "-F", "CNI-FORWARD"])
    assert "iptables: table filter lacks the rule: -A CNI-FORWARD -m set" in follows.drift()
    assert "-s 10.15.20.2/32 -j ACCEPT" in named.drift()
    follows.add()
    follows.check()
    follows.delete()
    assert not any(address in all_rules() for address in addresses(one).values())


@pytest.mark.parametrize("lacks", ["ipset", "iptables-nft"])
def test_without_sets_each_container_has_rules(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    if lacks == "ipset":
        monkeypatch.setattr(ipset, "usable", lambda *_: False)
    else:
        monkeypatch.setattr(iptables, "is_nft", lambda *_: False)
    one, firewall = attached(machines, "one")
    assert f"-A CNI-FORWARD -s {addresses(one)[4]}/32 -j ACCEPT" in saved()
    assert ipset_elements() == []
    firewall.delete()
    assert addresses(one)[4] not in all_rules()


@each_backend
@pytest.mark.parametrize("known", ["all", "no prevResult"])
def test_del_leaves_what_is_shared(machines: Machines, backend: str, known: str) -> None:
    attached(machines, "two", backend=backend, ingressPolicy="same-bridge")
    before = all_rules()
    _, firewall = attached(machines, "one", backend=backend, ingressPolicy="same-bridge")
    assert all_rules() != before
    if known == "no prevResult":
        firewall.result = None
        del firewall.config["prevResult"]
    firewall.delete()
    assert all_rules() == before
    firewall.delete()
    assert all_rules() == before


@each_backend
def test_late_del_spares_the_next_owner_of_the_address(machines: Machines, backend: str) -> None:
    one, late = attached(machines, "one", backend=backend)
    # Its interface goes without a DEL, and its addresses are given to another.
    run_in(one.sandbox, ["ip", "link", "delete", "eth0"])
    for address in addresses(one).values():
        (machines.folder / "first" / address).unlink()
    config = {**one.config, "args": {"cni": {"ips": [*addresses(one).values()]}}}
    again = Attachment(one.plugin, config, machines.sandbox(), "two")
    again.add()
    assert addresses(again) == addresses(one)
    firewall = machines.chained("firewall", again, backend=backend)
    firewall.add()
    late.delete()
    firewall.check()
    firewall.delete()
    assert addresses(one)[4] not in all_rules()


@each_backend
def test_del_removes_what_another_backend_made(machines: Machines, backend: str) -> None:
    one, _ = attached(machines, "one", backend=backend)
    other = machines.chained(
        "firewall", one, backend=next(each for each in BACKENDS if each != backend)
    )
    other.delete()
    assert addresses(one)[4] not in all_rules()
    assert addresses(one)[6] not in all_rules()


def test_one_family_needs_one_program(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = machines.container("one")
    result = {**one.result, "ips": [ip for ip in one.result["ips"] if ":" not in ip["address"]]}
    for name in ("iptables", "iptables-save", "iptables-restore"):
        (tmp_path / name).symlink_to(f"/usr/sbin/{name}")
    monkeypatch.setattr("pycni.kernel.netfilter.iptables.SYSTEM_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    firewall = machines.chained("firewall", one, prevResult=result, backend="iptables")
    firewall.add()
    firewall.check()
    firewall.delete()
    firewall = machines.chained("firewall", one, backend="iptables")
    assert "ip6tables" in firewall.refused()["msg"]


@each_backend
@pytest.mark.parametrize("policy", ["open", "isolated"])
def test_a_failed_add_leaves_nothing(machines: Machines, backend: str, policy: str) -> None:
    attached(machines, "two", backend=backend, ingressPolicy=policy)
    before = (
        all_rules(),
        run_in(None, ["bridge", "-d", "link"]).stdout.count("isolated on"),
    )
    one = machines.container("one")
    firewall = machines.chained("firewall", one, backend=backend, ingressPolicy=policy)
    refused = 0
    for what, run in each_change_failing(lambda: firewall.run("ADD")):
        assert run.code == 1, what
        refused += 1
        isolated = run_in(None, ["bridge", "-d", "link"]).stdout.count("isolated on")
        assert (all_rules(), isolated) == before, what
    assert refused > 2


@each_backend
def test_a_failed_change_of_policy_leaves_the_earlier_one(machines: Machines, backend: str) -> None:
    attached(machines, "one", backend=backend, ingressPolicy="isolated")
    two = machines.container("two")
    firewall = machines.chained("firewall", two, backend=backend, ingressPolicy="same-bridge")
    before = sorted(all_rules().splitlines())
    refused = 0
    for what, run in each_change_failing(lambda: firewall.run("ADD")):
        assert run.code == 1, what
        refused += 1
        assert sorted(all_rules().splitlines()) == before, what
    assert refused > 2


def test_rules_do_not_grow_with_the_containers(machines: Machines) -> None:
    one, _ = attached(machines, "one", backend="nftables", ingressPolicy="same-bridge")

    def count() -> int:
        return sum("rule" in entry for entry in nft_list())

    before = count()
    for number in range(200):
        result = {**one.result, "ips": [{"address": f"10.15.20.{number + 20}/24"}]}
        each = Attachment(one.plugin, one.config, one.sandbox, f"c{number}", result=result)
        machines.chained("firewall", each, backend="nftables", ingressPolicy="same-bridge").add()
    assert count() == before


# --- CHECK, GC -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "damage", "words"),
    [
        ("nftables", "nft flush ruleset", "no container is let through"),
        ("nftables", "nft flush chain inet pycni firewall-forward", "firewall-forward is empty"),
        (
            "nftables",
            "nft delete element inet pycni firewall4 { 10.15.20.2 }",
            "10.15.20.2 is not in set inet pycni firewall4",
        ),
        (
            "nftables",
            "nft delete element inet pycni firewall-bridges { br0 }",
            "br0 is not in set inet pycni firewall-bridges",
        ),
        (
            "nftables",
            "nft add element inet pycni firewall-pairs { br0 . br0 }",
            "br0 is in set inet pycni firewall-pairs",
        ),
        ("iptables", "iptables -F", "iptables: table filter lacks the rule: -A FORWARD"),
        ("iptables", "ip6tables -F CNI-FORWARD", "-s fd00:15:20::2/128 -j ACCEPT"),
        ("iptables", "iptables -F CNI-ISOLATION-STAGE-2", "-A CNI-ISOLATION-STAGE-2 -o br0"),
        ("iptables", "nft flush ruleset", "iptables: table filter lacks"),
        ("", "nft flush ruleset", "iptables: table filter lacks the rule: -A FORWARD"),
        ("", "iptables -F FORWARD", "iptables: table filter lacks the rule: -A FORWARD"),
        ("", "ip6tables -F CNI-FORWARD", "ip6tables: table filter lacks the rule: -A CNI-FORWARD"),
        ("", "iptables -D CNI-FORWARD 3", "lacks the rule: -A CNI-FORWARD -m set --match-set"),
        ("", "ipset flush", "iptables: 10.15.20.2 is not in the set CNI-FORWARD4"),
        (
            "",
            "ipset del CNI-FORWARD6 fd00:15:20::2",
            "fd00:15:20::2 is not in the set CNI-FORWARD6",
        ),
        ("iptables", "bridge link set dev PORT isolated off", "of bridge br0 is not isolated"),
    ],
)
def test_check_finds_drift_and_add_repairs_it(
    machines: Machines, backend: str, damage: str, words: str
) -> None:
    one, firewall = attached(machines, "one", backend=backend, ingressPolicy="isolated")
    port = next(
        each["name"] for each in one.result["interfaces"] if each["name"].startswith("veth")
    )
    run_in(None, damage.replace("PORT", port).split())
    assert words in firewall.drift()
    firewall.add()
    firewall.check()


@each_backend
@pytest.mark.parametrize("lost", ["firewall4", "firewall6", "firewall-bridges", "firewall-pairs"])
def test_a_set_that_somebody_deleted(machines: Machines, backend: str, lost: str) -> None:
    """Where iptables decides nothing refers to the sets, so they go by themselves."""
    one, first = attached(machines, "one", backend=backend, ingressPolicy="same-bridge")
    if backend == "nftables":
        run_in(None, ["nft", "flush chain inet pycni firewall-forward"])
    run_in(None, ["nft", f"delete set inet pycni {lost}"])
    missing = lost[-1] in "46" or backend == "nftables"
    if missing:
        assert lost in first.drift()
    _, second = attached(machines, "two", backend=backend, ingressPolicy="same-bridge")
    second.check()
    first.add()
    first.check()
    if missing:
        listed = run_in(None, ["nft", f"list set inet pycni {lost}"]).stdout
        version = int(lost[-1]) if lost[-1] in "46" else 0
        assert addresses(one)[version] in listed if version else "br0" in listed
    first.delete()
    second.delete()
    assert addresses(one)[4] not in all_rules()


@each_backend
def test_gc(machines: Machines, backend: str) -> None:
    one, first = attached(machines, "one", backend=backend, ingressPolicy="isolated")
    two, second = attached(machines, "two", backend=backend, ingressPolicy="isolated")
    _, other = attached(machines, "far", "br1", backend=backend, ingressPolicy="isolated")

    def collect(*kept: str) -> None:
        keep = [{"containerID": container, "ifname": "eth0"} for container in kept]
        config = {
            "cniVersion": "1.1.0", "name": "first", "type": "firewall",
            "cni.dev/valid-attachments": keep,
        }  # fmt: skip
        run = first.call(first.plugin, "GC", config)
        assert (run.code, run.stdout) == (0, "")

    collect("one", "two")
    first.check()
    collect("two")
    assert addresses(one)[4] not in all_rules()
    assert addresses(one)[6] not in all_rules()
    second.check()
    other.check()
    collect()
    assert addresses(two)[4] not in all_rules()
    other.check()
    # The bridge is gone, and so are the rules for it.
    run_in(None, ["ip", "link", "delete", "br0"])
    collect()
    assert "br0" not in all_rules()
    other.check()


# --- without what it needs -----------------------------------------------------------------------


def test_without_nftables(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """iptables does without the sets."""
    monkeypatch.setattr(nftables, "LIBRARY", "libnftables-not-there.so.1")
    monkeypatch.setattr(nftables, "_library", None)
    monkeypatch.setattr(nftables, "_usable", {})
    one, firewall = attached(machines, "one", backend="iptables", ingressPolicy="same-bridge")
    assert "inet pycni" not in all_rules()
    firewall.delete()
    assert addresses(one)[4] not in all_rules()
    firewall = machines.chained("firewall", one, backend="nftables")
    assert "libnftables-not-there.so.1 cannot be loaded" in firewall.refused()["msg"]


def test_the_automatic_choice(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, firewall = attached(machines, "one")
    assert ipset_elements() == in_sets(one)
    assert not any(addresses(one)[4] in line for line in saved())
    firewall.delete()
    run_in(None, ["nft", "flush ruleset"])
    with monkeypatch.context() as patch:
        patch.setattr("pycni.kernel.netfilter.iptables.SYSTEM_PATH", str(tmp_path))
        patch.setenv("PATH", str(tmp_path))
        firewall.add()
        firewall.check()
        firewall.delete()
    assert "chain firewall-forward" in all_rules()
    assert "CNI-FORWARD" not in all_rules()


# --- firewalld -----------------------------------------------------------------------------------


@pytest.fixture(params=["nftables", "iptables"])
def daemon(
    host: object, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Firewalld]:
    """firewalld, with each of its own backends."""
    with real.on_the_system_bus(tmp_path / "firewalld", request.param, monkeypatch) as daemon:
        yield daemon


@pytest.mark.parametrize("backend", ["firewalld", ""])
def test_firewalld(daemon: Firewalld, machines: Machines, backend: str) -> None:
    keys = {"backend": backend} if backend else {}
    with service(machines.far, "far", 80):
        one = machines.container("one")
        # firewalld rejects what it does not know.
        for version in (4, 6):
            assert not ask(one.sandbox, FAR[version], 80)
        firewall = machines.chained("firewall", one, **keys)
        assert firewall.add() == one.result
        firewall.check()
        own = {f"{addresses(one)[4]}/32", f"{addresses(one)[6]}/128"}
        assert daemon.sources("trusted") == own
        for version in (4, 6):
            assert ask(one.sandbox, FAR[version], 80).startswith("far ")
        assert not ask(machines.client, FAR[4], 80)
        firewall.add()
        firewall.delete()
        assert daemon.sources("trusted") == set()
        for version in (4, 6):
            assert not ask(one.sandbox, FAR[version], 80)
        firewall.delete()


def test_firewalld_zone_and_reload(daemon: Firewalld, machines: Machines) -> None:
    one, firewall = attached(machines, "one", backend="firewalld", firewalldZone="internal")
    own = {f"{addresses(one)[4]}/32", f"{addresses(one)[6]}/128"}
    assert daemon.sources("internal") == own
    daemon.command("--reload")
    drift = firewall.drift()
    for source in own:
        assert f"{source} is not a source of zone internal" in drift
    firewall.add()
    firewall.check()
    # DEL knows the addresses from the sets in nftables.
    firewall.result = None
    del firewall.config["prevResult"]
    firewall.delete()
    assert daemon.sources("internal") == set()


def test_firewalld_ingress_policy(daemon: Firewalld, machines: Machines) -> None:
    """The policy outlives a reload: it is in a table of its own."""
    one, _ = attached(machines, "one", ingressPolicy="same-bridge")
    two, _ = attached(machines, "two", ingressPolicy="same-bridge")
    far, firewall = attached(machines, "far", "br1", ingressPolicy="same-bridge")
    assert ask(one.sandbox, addresses(two)[4], 80)
    for version in (4, 6):
        assert not ask(one.sandbox, addresses(far)[version], 80, patience=0.4)
        assert not ask(far.sandbox, addresses(one)[version], 80, patience=0.4)
    daemon.command("--reload")
    assert "firewall-bridges" not in firewall.drift()


def test_firewalld_gc_and_undo(daemon: Firewalld, machines: Machines) -> None:
    one, first = attached(machines, "one", firewalldZone="internal")
    two = machines.container("two")
    # The zone that IPv6 wants is another one by the administrator's word.
    taken = f"{addresses(two)[6]}/128"
    daemon.command("--zone", "public", "--add-source", taken)
    ours = ["nft", "list", "table", "inet", "pycni"]
    before = run_in(None, ours).stdout
    error = machines.chained("firewall", two).refused()
    assert "ZONE_CONFLICT" in error["msg"]
    assert taken in error["msg"]
    assert run_in(None, ours).stdout == before
    assert daemon.sources("trusted") == set()
    error = machines.chained("firewall", one, firewalldZone="nowhere").refused()
    assert "INVALID_ZONE: nowhere" in error["msg"]
    assert "nowhere" in error["details"]
    run = first.call(
        first.plugin, "GC",
        {"cniVersion": "1.1.0", "name": "first", "type": "firewall",
         "cni.dev/valid-attachments": []},
    )  # fmt: skip
    assert (run.code, run.stdout) == (0, "")
    assert daemon.sources("internal") == set()
    assert daemon.sources("public") == {taken}


def test_firewalld_gone(daemon: Firewalld, machines: Machines) -> None:
    _, firewall = attached(machines, "one", backend="firewalld")
    daemon.stop()
    assert "firewalld" in firewall.drift()
    firewall.delete()
    error = firewall.refused()
    assert error["code"] == 4
    assert "firewalld" in error["msg"]


def test_firewalld_without_jeepney(
    daemon: Firewalld, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machines.container("one")
    real_import = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("jeepney"):
            raise ImportError(name)
        return real_import(name, *rest, **more)

    for name in [name for name in sys.modules if name.startswith("jeepney")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    firewall = machines.chained("firewall", one)
    error = firewall.refused()
    assert "jeepney" in error["msg"]
    assert "pycni[firewalld]" in error["details"]
    firewall.delete()


def test_no_bus_is_no_firewalld(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, sandbox: object
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/no-such-bus")
    one = machines.container("one")
    assert isinstance(one.sandbox, Namespace)
    with pytest.raises(client_of_firewalld.FirewalldError, match="cannot be reached"):
        client_of_firewalld.Firewalld().__enter__()
    error = machines.chained("firewall", one, backend="firewalld").refused()
    assert "start dbus and firewalld" in error["details"]
    machines.chained("firewall", one).add()
    assert ipset_elements() == in_sets(one)


@pytest.mark.parametrize(("bus", "asked"), [(False, False), (True, True)])
def test_what_speaks_to_the_bus_is_loaded_where_there_is_one(
    host: Host, tmp_path: Path, bus: bool, asked: bool
) -> None:
    """It takes longer to load than all else of a plugin's process."""
    place = tmp_path / "bus"
    if bus:
        place.touch()
    script = f"""if True:
        import sys
        from pycni.kernel.netfilter import firewalld
        from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
        firewalld.PROGRAM, firewalld.BUS = "/bin/true", {str(place)!r}
        assert not firewalld.is_active(NetfilterSocket())
        print("jeepney" in sys.modules)
    """
    environ = {name: value for name, value in os.environ.items() if "DBUS" not in name}
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(asked)
