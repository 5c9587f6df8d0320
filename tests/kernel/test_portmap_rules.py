"""portmap: the rules that it makes, CHECK, GC, and many containers."""

from __future__ import annotations

import posix

import pytest

from harness import Attachment, ask, nft_list, run_in
from harness.faults import each_change_failing
from harness.kernel_state import ruleset
from harness.lan import port as mapping
from harness.machines import HOST, Machines
from harness.topics.portmap import BACKENDS, both_backends, portmap_for
from pycni.kernel.netfilter import nfnetlink, nftables


def no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix, "posix_spawn", lambda *_, **__: pytest.fail("a program was run"))


# --- what is there -------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("known", ["all", "no prevResult", "no mappings", "nothing"])
def test_del_leaves_what_is_shared(machines: Machines, backend: str, known: str) -> None:
    one, two = machines.container("one"), machines.container("two")
    other = portmap_for(machines, two, mapping(8081, 80), mapping(5301, 81, "udp"), backend=backend)
    other.add()
    before = ruleset()
    portmap = portmap_for(
        machines,
        one,
        mapping(8080, 80),
        mapping(5300, 81, "udp"),
        mapping(443, 81, hostIP=HOST[4]),
        mapping(443, 81, hostIP=HOST[6]),
        backend=backend,
    )
    portmap.add()
    assert ruleset() != before
    portmap.check()
    if known in ("no prevResult", "nothing"):
        portmap.result = None
        del portmap.config["prevResult"]
    if known in ("no mappings", "nothing"):
        del portmap.config["runtimeConfig"]
    portmap.delete()
    assert ruleset() == before
    portmap.delete()
    assert ruleset() == before
    other.check()


def test_del_without_a_backend_removes_what_either_made(machines: Machines) -> None:
    one = machines.container("one")
    for backend in BACKENDS:
        portmap_for(
            machines, one, mapping(8080, 80), mapping(5300, 80, "udp"), backend=backend
        ).add()
    portmap_for(machines, one, mapping(8080, 80)).delete()
    assert not ask(machines.client, HOST[4], 8080)
    assert "10.15.20.2" not in ruleset()
    assert "CNI-DN-" not in ruleset()


def test_del_with_a_faulty_configuration(machines: Machines) -> None:
    one = machines.container("one")
    portmap = portmap_for(machines, one, mapping(8080, 80), mapping(8081, 80))
    portmap.add()
    portmap.config["runtimeConfig"]["portMappings"] += [
        mapping(0, 80), mapping(1, 99999), mapping(8082, 80, "icmp")
    ]  # fmt: skip
    portmap.config["backend"] = "abacus"
    portmap.delete()
    assert "10.15.20.2" not in ruleset()


def test_without_mappings_nothing_is_done(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machines.container("one")
    before = ruleset()
    with monkeypatch.context() as patch:
        no_programs(patch)
        patch.setattr(nftables, "run", lambda _: pytest.fail("libnftables was used"))
        portmap = portmap_for(machines, one)
        assert portmap.add() == one.result
        portmap.check()
        portmap.delete()
    assert ruleset() == before


def test_iptables_rules_are_the_reference_s(machines: Machines) -> None:
    """As section 7.3 of the facts on the reference has them, which its DEL and CHECK go by."""
    one = machines.container("1234", name="test")
    portmap = portmap_for(
        machines,
        one,
        mapping(8080, 80),
        mapping(8081, 80, hostIP="192.0.2.1"),
        mapping(8082, 81, "UDP", hostIP="2001:db8::1"),
        backend="iptables",
        markMasqBit=5,
    )
    portmap.add()
    own = "CNI-DN-2bbe0c48b91a7d1b8a675"
    owner = '-m comment --comment "dnat name: \\"test\\" id: \\"1234\\""'
    local, mark = "-m addrtype --dst-type LOCAL", "-j CNI-HOSTPORT-SETMARK"

    def saved(program: str) -> list[str]:
        lines = run_in(None, [program, "-t", "nat"]).stdout.splitlines()
        return [line for line in lines if line.startswith("-A")]

    wanted = f"""\
-A PREROUTING {local} -j CNI-HOSTPORT-DNAT
-A OUTPUT {local} -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A CNI-HOSTPORT-DNAT -p tcp {owner} -m multiport --dports 8080,8081 -j {own}
-A CNI-HOSTPORT-DNAT -p udp {owner} -m multiport --dports 8082 -j {own}
-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK \
--set-xmark 0x20/0x20
-A CNI-HOSTPORT-MASQ -m mark --mark 0x20/0x20 -j MASQUERADE
-A {own} -s 10.15.20.0/24 -p tcp -m tcp --dport 8080 {mark}
-A {own} -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 {mark}
-A {own} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.15.20.2:80
-A {own} -s 10.15.20.0/24 -d 192.0.2.1/32 -p tcp -m tcp --dport 8081 {mark}
-A {own} -s 127.0.0.1/32 -d 192.0.2.1/32 -p tcp -m tcp --dport 8081 {mark}
-A {own} -d 192.0.2.1/32 -p tcp -m tcp --dport 8081 -j DNAT --to-destination 10.15.20.2:80
"""
    assert sorted(saved("iptables-save")) == sorted(wanted.splitlines())
    # The mark comes before the target is changed.
    chain = [line for line in saved("iptables-save") if line.startswith(f"-A {own} ")]
    assert [line.split(" -j ")[1].split()[0] for line in chain] == [
        "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-SETMARK", "DNAT",
    ] * 2  # fmt: skip
    six = [line for line in saved("ip6tables-save") if line.startswith(f"-A {own} ")]
    udp = "-d 2001:db8::1/128 -p udp -m udp --dport 8082"
    assert six == [
        # Those to the host itself are ours.
        f"-A {own} -d ::1/128 -p tcp -m tcp --dport 8080 -j RETURN",
        f"-A {own} -d fe80::/10 -p tcp -m tcp --dport 8080 -j RETURN",
        f"-A {own} -s fd00:15:20::/64 -p tcp -m tcp --dport 8080 {mark}",
        f"-A {own} -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00:15:20::2]:80",
        f"-A {own} -s fd00:15:20::/64 {udp} {mark}",
        f"-A {own} {udp} -j DNAT --to-destination [fd00:15:20::2]:81",
    ]
    before = saved("iptables-save")
    portmap.add()
    assert sorted(saved("iptables-save")) == sorted(before)


def test_a_chain_of_others_sets_the_mark(machines: Machines) -> None:
    run_in(None, ["iptables", "-t", "nat", "-N", "KUBE-MARK-MASQ"])
    run_in(None, ["ip6tables", "-t", "nat", "-N", "KUBE-MARK-MASQ"])
    one = machines.container("one")
    portmap = portmap_for(machines, one, mapping(8080, 80), externalSetMarkChain="KUBE-MARK-MASQ")
    portmap.add()
    portmap.check()
    assert ruleset().count("jump KUBE-MARK-MASQ") == 3
    assert "CNI-HOSTPORT-MASQ" not in ruleset()
    assert "CNI-HOSTPORT-SETMARK" not in ruleset()
    portmap.config["externalSetMarkChain"] = "NOWHERE"
    assert "NOWHERE" in portmap.refused()["msg"]


@both_backends
def test_a_failed_add_leaves_nothing(machines: Machines, backend: str) -> None:
    """Whatever is refused; what is left is what containers share."""
    one, two = machines.container("one"), machines.container("two")
    portmap_for(machines, two, mapping(8081, 80), backend=backend).add()
    before = ruleset()
    portmap = portmap_for(
        machines, one, mapping(8080, 80), mapping(5300, 80, "udp", hostIP=HOST[4]), backend=backend
    )
    refused = 0
    for what, run in each_change_failing(lambda: portmap.run("ADD")):
        if run.code == 0:
            assert "flows" in what or "who listens" in what
            portmap.check()
            portmap.delete()
        refused += 1
        assert ruleset() == before, what
    assert refused > 3


def test_undo_follows_a_later_failure(machines: Machines) -> None:
    """The words of a condition are judged when all else is done."""
    one = machines.container("one")
    portmap_for(
        machines,
        machines.container("two"),
        mapping(8081, 80),
        conditionsV4=["ip", "saddr", "1.2.3.4"],
    ).add()
    before = ruleset()
    portmap = portmap_for(machines, one, mapping(8080, 80), conditionsV4=["bogus", "match"])
    error = portmap.refused()
    assert error["code"] == 7
    assert "conditions" in error["msg"]
    assert "conditionsV4" in error["details"]
    assert ruleset() == before


# --- CHECK, GC -----------------------------------------------------------------------------------


ANY4 = "inet pycni port-map4 { tcp ."
FROM6 = "inet pycni port-map-from-fd00_15_20__/64"


@pytest.mark.parametrize(
    ("backend", "damage", "words"),
    [
        ("nftables", "nft flush ruleset", "no port leads to a container"),
        ("nftables", "nft flush table inet pycni", "chain inet pycni port-map is empty"),
        ("nftables", "nft flush chain inet pycni port-map-output", "port-map-output is empty"),
        (
            "nftables",
            f"nft delete element {ANY4} 8080 }}",
            "host port 8080/tcp (IPv4) is not in map inet pycni port-map4",
        ),
        (
            "nftables",
            f"nft delete element {FROM6} {{ tcp . fd00:15:20::2 . 80 }}",
            f"fd00:15:20::2 port 80/tcp is not in set {FROM6}",
        ),
        (
            "nftables",
            f"nft delete element {ANY4} 8080 }};nft add element {ANY4} 8080 : 10.9.9.9 . 9 }}",
            "belongs to another attachment",
        ),
        ("iptables", "iptables -t nat -F", "table nat lacks the rule: -A PREROUTING"),
        ("iptables", "ip6tables -t nat -F CNI-HOSTPORT-DNAT", "ip6tables: table nat lacks"),
        ("iptables", "iptables -t nat -F CNI-HOSTPORT-MASQ", "-j MASQUERADE"),
        ("iptables", "nft flush ruleset", "table nat lacks"),
        (
            "nftables",
            "sysctl -q -w net.ipv4.conf.br0.route_localnet=0",
            "route_localnet is 0: localhost does not reach",
        ),
    ],
)
def test_check_finds_drift_and_add_repairs_it(
    machines: Machines, backend: str, damage: str, words: str
) -> None:
    one = machines.container("one")
    portmap = portmap_for(machines, one, mapping(8080, 80), backend=backend)
    portmap.add()
    portmap.check()
    for command in damage.split(";"):
        run_in(None, command.split())
    assert words in portmap.drift()
    if "another" not in words:
        portmap.add()
        portmap.check()
        assert ask(machines.client, HOST[4], 8080).startswith("one ")
        assert ask(None, "127.0.0.1", 8080).startswith("one ")


@both_backends
def test_gc(machines: Machines, backend: str) -> None:
    one, two = machines.container("one"), machines.container("two")
    first = portmap_for(machines, one, mapping(8080, 80), mapping(5300, 80, "udp"), backend=backend)
    second = portmap_for(machines, two, mapping(8081, 80), backend=backend)
    conditional = portmap_for(machines, one, mapping(8082, 80), backend=backend)
    if backend == "nftables":
        conditional.config["conditionsV4"] = ["ip", "saddr", "192.0.2.2"]
        conditional.ifname = "eth7"
        conditional.config["prevResult"] = {
            "cniVersion": "1.0.0",
            "ips": [{"address": "10.15.20.7/24"}],
        }
        conditional.add()
    first.add()
    second.add()

    def collect(name: str, *kept: str) -> None:
        keep = [{"containerID": container, "ifname": "eth0"} for container in kept]
        config = {
            "cniVersion": "1.1.0", "name": name, "type": "portmap",
            "cni.dev/valid-attachments": keep,
        }  # fmt: skip
        run = first.call(first.plugin, "GC", config)
        assert (run.code, run.stdout) == (0, "")

    collect("another")
    first.check()
    collect("first", "one", "two")
    first.check()
    assert "8082" not in ruleset()
    collect("first", "two")
    second.check()
    assert first.drift()
    assert "10.15.20.2:80" not in ruleset()
    assert not ask(machines.client, HOST[4], 8080)
    assert ask(machines.client, HOST[4], 8081).startswith("two ")
    collect("first")
    assert "10.15.20" not in ruleset()


# --- many ----------------------------------------------------------------------------------------


def count_rules() -> int:
    return sum("rule" in entry for entry in nft_list())


def test_rules_do_not_grow_with_the_containers(machines: Machines) -> None:
    one = machines.container("one")
    portmap = portmap_for(machines, one, mapping(8080, 80), backend="nftables")
    portmap.add()
    before = count_rules()
    for number in range(300):
        result = {"cniVersion": "1.0.0", "ips": [{"address": f"10.15.20.{number % 250 + 3}/24"}]}
        each = Attachment(one.plugin, one.config, one.sandbox, f"c{number}", result=result)
        portmap_for(machines, each, mapping(10000 + number, 80 + number)).add()
    assert count_rules() == before
    assert ask(machines.client, HOST[4], 8080).startswith("one ")


def test_no_element_holds_a_verdict(machines: Machines) -> None:
    """The kernel would check each of them at each change of the table that adds one."""
    one = machines.container("one", ipMasq=True)
    portmap_for(machines, one, mapping(8080, 80), backend="nftables").add()
    machines.chained("firewall", one, backend="nftables").add()
    sets = [entry[kind] for entry in nft_list() for kind in ("set", "map") if kind in entry]
    assert {
        "masquerade-10.15.20.0/24",
        "port-map-from-10.15.20.0/24",
        "port-map4",
        "firewall4",
    } <= {each["name"] for each in sets if "elem" in each}
    assert [each["name"] for each in sets if each.get("map") == "verdict"] == []


def test_sets_of_earlier_subnets_do_not_pile_up(machines: Machines) -> None:
    one = machines.container("one")
    portmap = portmap_for(machines, one, mapping(8080, 80), backend="nftables")
    portmap.add()
    for prefix in range(25, 31):
        result = {"cniVersion": "1.0.0", "ips": [{"address": f"10.15.20.2/{prefix}"}]}
        each = Attachment(one.plugin, one.config, one.sandbox, f"c{prefix}", result=result)
        other = portmap_for(machines, each, mapping(9000, 81), backend="nftables")
        other.add()
        other.delete()
    names = {entry["set"]["name"] for entry in nft_list() if "set" in entry}
    assert {name for name in names if name.startswith("port-map-from-10")} == {
        "port-map-from-10.15.20.0/24",
        "port-map-from-10.15.20.0/30",
    }
    portmap.check()


def test_the_socket_that_is_open_is_used(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One netfilter socket a request at most: closing one after a deletion waits for the kernel."""
    one = machines.container("one")
    portmap = portmap_for(machines, one, mapping(8080, 80), mapping(5300, 80, "udp"))
    portmap.add()
    opened = 0
    before = nfnetlink.NetfilterSocket.__init__

    def count(self: nfnetlink.NetfilterSocket) -> None:
        nonlocal opened
        opened += 1
        before(self)

    monkeypatch.setattr(nfnetlink.NetfilterSocket, "__init__", count)
    portmap.delete()
    assert opened <= 1  # 0 where an earlier request has left one
