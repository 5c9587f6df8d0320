"""Host ports with conditions: whose they are, and which of them share a port."""

from __future__ import annotations

import errno
from socket import AF_INET6
from typing import Any

import pytest

from harness import Attachment, ask, run_in
from harness.machines import CLIENT, FAR, HOST, SECOND
from harness.topics import port_holders as kit
from harness.topics.port_holders import (
    CONDITIONAL,
    IPTABLES,
    LEGACY,
    NFTABLES,
    Ports,
    both_families,
    mapping,
    rules,
)
from pycni.kernel.netfilter import nftables
from pycni.spec.owner import Owner, Owners
from pycni.steps import port_map
from pycni.steps.namespaces import HostAndSandbox
from pycni.steps.port_map.layout import OWN

ports = kit.ports


# --- conditions ----------------------------------------------------------------------------------


CONDITIONS = {
    NFTABLES: (["ip", "saddr", CLIENT[4]], ["ip", "saddr", "!=", CLIENT[4]]),
    IPTABLES: (["-s", f"{CLIENT[4]}/32"], ["!", "-s", f"{CLIENT[4]}/32"]),
}


@pytest.mark.parametrize("new", [NFTABLES, IPTABLES])
@pytest.mark.parametrize("held", [NFTABLES, IPTABLES])
def test_conditions_of_different_networks_share_a_port(ports: Ports, held: str, new: str) -> None:
    machines = ports.machines
    one, far = machines.container("one"), machines.container("far", "br1")
    for_all = mapping(hostIP="0.0.0.0")
    ports.portmap(held, one, for_all, conditionsV4=CONDITIONS[held][0]).add()
    ports.portmap(new, far, for_all, conditionsV4=CONDITIONS[new][1]).add()
    assert ask(machines.client, HOST[4], 8080) == f"one {CLIENT[4]}"
    assert ask(None, HOST[4], 8080) == f"far {HOST[4]}"


EQUAL = {
    IPTABLES: (CONDITIONS[IPTABLES][0], ["-i", "out", "-m", "ttl", "--ttl", "9"]),
    NFTABLES: (
        CONDITIONS[NFTABLES][0],
        ["iifname", "out", "ip", "ttl", "9"],
        ["ip", "saddr", "{", f"{CLIENT[4]},", "192.0.2.77", "}"],
        ["ip", "saddr", "{", "192.0.2.0-192.0.2.9", "}", "ct", "state", "new,untracked"],
    ),
}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (how, words)
        for how, kind in ((IPTABLES, IPTABLES), (LEGACY, IPTABLES), (NFTABLES, NFTABLES))
        for words in EQUAL[kind]
    ],
)
def test_equal_conditions_do_not(ports: Ports, how: str, words: list[str]) -> None:
    """They are the network's, so two of its containers have the same, and the second gets none."""
    machines = ports.machines
    one, two = machines.container("one"), machines.container("two")
    mappings = mapping(hostIP="0.0.0.0"), mapping(7070, hostIP="0.0.0.0")
    holder = ports.portmap(how, one, *mappings, conditionsV4=words)
    ports.call(how, holder.add)
    before = rules()
    portmap = ports.portmap(how, two, mappings[0], conditionsV4=words)
    error = ports.call(how, portmap.refused)
    assert error["code"] == 101
    assert "host port 8080/tcp (IPv4) is taken by container one (" in error["msg"]
    assert rules() == before
    # Another port is free, and the holder may have its own again.
    other = ports.portmap(how, two, mapping(8081, hostIP="0.0.0.0"), conditionsV4=words)
    ports.call(how, other.add)
    for portmap in (holder, other):
        ports.call(how, portmap.add)
        ports.call(how, portmap.check)


@pytest.mark.parametrize("way", ["GC", "of one"])
def test_gc_finds_chains_that_nothing_leads_to(ports: Ports, way: str) -> None:
    one, two = (ports.machines.container(name) for name in ("one", "two"))
    ports.portmap(NFTABLES, one, **CONDITIONAL).add()
    ports.portmap(NFTABLES, two, mapping(8081), **CONDITIONAL).add()
    run_in(None, ["nft", "flush chain inet pycni port-map-conditional"])
    left, kept = (Owner("first", name, "eth0").attachment for name in ("one", "two"))
    owners = Owners("first", keep=[kept]) if way == "GC" else Owners("first", [left])
    with HostAndSandbox(None) as kernel:
        port_map.collect(kernel, owners)
    chains = {line.split()[1] for line in rules() if line.strip().startswith("chain port-map-if")}
    tag = Owner("first", "two", "eth0").tag
    assert chains == {prefix + tag for prefix in OWN.values()}


def test_only_words_are_refused_as_conditions(
    ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what else keeps nftables from making the rules: a lack of rights, or others' changes."""
    portmap = ports.portmap(NFTABLES, ports.machines.container("one"), **CONDITIONAL)
    portmap.add()
    run = nftables.run

    def deleted(commands: str) -> None:
        monkeypatch.setattr(nftables, "run", run)
        assert "replace rule" in commands
        run_in(None, ["nft", "flush chain inet pycni port-map-conditional"])
        run(commands)

    monkeypatch.setattr(nftables, "run", deleted)
    portmap.add()
    portmap.check()

    def refused(_commands: str) -> None:
        raise nftables.NftError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(nftables, "run", refused)
    error = portmap.refused()
    assert error["code"] != 7
    assert "rights of root" in error["details"]
    monkeypatch.setattr(nftables, "run", run)
    for words in (["nonsense"], ["ip", "saddr", "@nonesuch"]):
        portmap.config["conditionsV4"] = words
        error = portmap.refused()
        assert error["code"] == 7
        assert "nftables refuses the conditions" in error["msg"]


@pytest.mark.parametrize("fault", ["taken", "words"])
def test_a_failed_repair_leaves_what_is_there(ports: Ports, fault: str) -> None:
    """Of one family; the other one's was lost, and cannot be made again."""
    machines = ports.machines
    one, two = machines.container("one"), machines.container("two")
    portmap = ports.portmap(NFTABLES, one, **CONDITIONAL)
    portmap.add()
    (chain,) = {word for line in rules() for word in line.split() if word.startswith(OWN[AF_INET6])}
    listed = run_in(None, ["nft", "-a", "list", "chain", "inet pycni port-map-conditional"]).stdout
    (handle,) = [line.split()[-1] for line in listed.splitlines() if chain in line]
    run_in(None, ["nft", f"delete rule inet pycni port-map-conditional handle {handle}"])
    run_in(None, ["nft", f"delete chain inet pycni {chain}"])
    before = {line for line in rules() if "elements" not in line}
    if fault == "taken":
        ports.portmap(NFTABLES, two, mapping(hostIP="::"), **CONDITIONAL).add()
    else:
        portmap.config["conditionsV6"] = ["nonsense"]
    portmap.refused()
    assert before <= set(rules())
    assert ask(machines.client, HOST[4], 8080).startswith("one ")


@both_families
def test_equal_conditions_of_one_address_and_all(ports: Ports, version: int) -> None:
    """As with the maps of nftables: what is for one address leaves the others to who has all."""
    machines = ports.machines
    one, two, three = (machines.container(name) for name in ("one", "two", "three"))
    keys = {
        4: {"conditionsV4": ["ip", "saddr", CLIENT[4]]},
        6: {"conditionsV6": ["ip6", "saddr", CLIENT[6]]},
    }[version]
    everywhere = {4: "0.0.0.0", 6: "::"}[version]
    ports.portmap(NFTABLES, one, mapping(hostIP=HOST[version]), **keys).add()
    ports.portmap(NFTABLES, two, mapping(hostIP=everywhere), **keys).add()
    assert ask(machines.client, HOST[version], 8080).startswith("one ")
    assert ask(machines.client, SECOND[version], 8080).startswith("two ")
    error = ports.portmap(NFTABLES, three, mapping(hostIP=SECOND[version]), **keys).refused()
    assert f"host port 8080/tcp of {SECOND[version]} is taken by container two (" in error["msg"]


def test_equal_conditions_of_one_container(ports: Ports) -> None:
    """In two networks, as runtimes map ports; and of one whose address it has now."""
    machines = ports.machines
    one = machines.container("one")
    keys: dict[str, Any] = {
        "conditionsV4": CONDITIONS[NFTABLES][0],
        "conditionsV6": ["ip6", "hoplimit", "9"],
    }
    ports.portmap(NFTABLES, one, **keys).add()
    other = Attachment(one.plugin, {**one.config, "name": "second"}, one.sandbox, "one", "eth1")
    other.config |= {"bridge": "br1", "isDefaultGateway": False, "isGateway": True}
    other.config["ipam"] = {**one.config["ipam"], "ranges": [[{"subnet": "10.15.21.0/24"}]]}
    other.add()
    second = ports.portmap(NFTABLES, other, **keys)
    second.add()
    second.check()
    assert ask(machines.client, HOST[4], 8080).startswith("one ")
    again = Attachment(one.plugin, one.config, one.sandbox, "two", result=one.result)
    portmap = ports.portmap(NFTABLES, again, mapping(8080, 81), **keys)
    second.delete()
    portmap.add()
    portmap.check()
    assert not any("jump port-map-if" in line and "id: one" in line for line in rules())


def test_check_and_repair_of_equal_conditions(ports: Ports) -> None:
    """As an earlier release, which did not compare them, has left them."""
    machines = ports.machines
    one, two = machines.container("one"), machines.container("two")
    conditions = [CONDITIONS[NFTABLES][0], ["ip", "saddr", FAR[4]]]
    first, second = (
        ports.portmap(NFTABLES, container, mapping(hostIP="0.0.0.0"), conditionsV4=words)
        for container, words in zip((one, two), conditions, strict=True)
    )
    first.add()
    second.add()
    listed = run_in(None, ["nft", "-a", "list", "chain", "inet pycni port-map-conditional"]).stdout
    (rule,) = [line for line in listed.splitlines() if FAR[4] in line]
    words, _, handle = rule.strip().replace(FAR[4], CLIENT[4]).partition(" # handle ")
    place = "inet pycni port-map-conditional"
    run_in(None, ["nft", f"replace rule {place} handle {handle} {words}"])
    first.check()
    second.config["conditionsV4"] = conditions[0]
    assert "host port 8080/tcp (IPv4) is taken by container one (" in second.drift()
    # No one loses by it what he has.
    for portmap in (first, second, first):
        portmap.add()
    first.check()
    assert ask(machines.client, HOST[4], 8080).startswith("one ")
    first.delete()
    second.check()
    assert ask(machines.client, HOST[4], 8080).startswith("two ")


@pytest.mark.parametrize(
    ("held", "new", "taken"),
    [
        # iptables comes first: who has conditions there leaves the rest to others.
        (IPTABLES, NFTABLES, False),
        (NFTABLES, IPTABLES, True),
        (IPTABLES, IPTABLES, False),
    ],
)
def test_conditions_of_the_holder_alone(ports: Ports, held: str, new: str, taken: bool) -> None:
    machines = ports.machines
    one, two = machines.container("one"), machines.container("two")
    for_all = mapping(hostIP="0.0.0.0")
    ports.portmap(held, one, for_all, conditionsV4=CONDITIONS[held][0]).add()
    portmap = ports.portmap(new, two, for_all)
    if taken:
        assert "is taken by container one" in portmap.refused()["msg"]
    else:
        portmap.add()
        assert ask(None, HOST[4], 8080) == f"two {HOST[4]}"
    assert ask(machines.client, HOST[4], 8080) == f"one {CLIENT[4]}"


@pytest.mark.parametrize(
    ("held", "new", "taken"),
    [(IPTABLES, NFTABLES, True), (NFTABLES, IPTABLES, False), (IPTABLES, IPTABLES, True)],
)
def test_conditions_of_the_new_one_alone(ports: Ports, held: str, new: str, taken: bool) -> None:
    machines = ports.machines
    one, two = machines.container("one"), machines.container("two")
    for_all = mapping(hostIP="0.0.0.0")
    ports.portmap(held, one, for_all).add()
    portmap = ports.portmap(new, two, for_all, conditionsV4=CONDITIONS[new][0])
    if taken:
        assert "is taken by container one" in portmap.refused()["msg"]
        assert ask(machines.client, HOST[4], 8080) == f"one {CLIENT[4]}"
    else:
        portmap.add()
        assert ask(machines.client, HOST[4], 8080) == f"two {CLIENT[4]}"
    assert ask(None, HOST[4], 8080) == f"one {HOST[4]}"
