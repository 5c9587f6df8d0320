"""firewall: the rules that it makes, CHECK and GC, and doing without what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Attachment, ipset_elements, nft_list, run_in
from harness.faults import each_change_failing
from harness.kernel_state import all_rules
from harness.machines import Machines, addresses
from harness.topics.firewall import BACKENDS, attached, each_backend, in_sets, saved
from pycni.kernel.netfilter import ipset, iptables, nftables

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
