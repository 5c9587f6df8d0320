"""firewall on the kernel: which packets the host lets through, and what is left afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Attachment, ask, run_in, service
from harness.kernel_state import all_rules
from harness.machines import CLIENT, FAR, HOST, Machines, addresses, commands
from harness.topics.firewall import attached, each_backend, saved
from pycni.kernel import process
from pycni.kernel.netfilter import nfnetlink
from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
from pycni.spec.ip import parse_address

both_families = pytest.mark.parametrize("version", [4, 6])


def drop_in_iptables() -> None:
    """What docker does to a host."""
    for program in ("iptables", "ip6tables"):
        run_in(None, [program, "-P", "FORWARD", "DROP"])


def drop_in_our_table() -> None:
    """What an administrator may do, to have our chain be the one that decides."""
    run_in(None, ["nft", "add chain inet pycni firewall-forward { policy drop; }"])


DROP = {"iptables": drop_in_iptables, "nftables": drop_in_our_table, "": drop_in_iptables}


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
        assert not ask(machines.client, addresses(one)[version], 80, timeout=0.4)
        assert not ask(two.sandbox, FAR[version], 80, timeout=0.4)
        assert not ask(machines.client, FAR[version], 80, timeout=0.4)
        firewall.delete()
        assert not ask(one.sandbox, FAR[version], 80, timeout=0.4)


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
            answer = ask(source.sandbox, addresses(target)[version], 80, timeout=0.4)
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
            assert not ask(two.sandbox, own, 80, kind, timeout=0.4)
            assert not ask(one.sandbox, other, 80, kind, timeout=0.4)
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
        assert not ask(two.sandbox, addresses(three)[4], 80, timeout=0.4)


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
    assert not ask(one.sandbox, addresses(two)[4], 80, timeout=0.4)
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
        assert not ask(one.sandbox, CLIENT[4], 80, timeout=0.4)
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
    assert not ask(far.sandbox, addresses(one)[4], 80, timeout=0.4)
    assert not ask(one.sandbox, addresses(far)[4], 80, timeout=0.4)
    assert bool(ask(one.sandbox, addresses(two)[4], 80, timeout=0.4)) == (policy != "isolated")
    assert "lanbr" not in all_rules()


def test_policy_is_judged_before_containers_are_accepted(machines: Machines) -> None:
    """FORWARD may have lost one of its rules; the other one then must not come first."""
    one, first = attached(machines, "one", backend="iptables", ingressPolicy="same-bridge")
    far, _ = attached(machines, "far", "br1", backend="iptables", ingressPolicy="same-bridge")
    assert not ask(one.sandbox, addresses(far)[4], 80, timeout=0.4)
    jump = ["-m", "comment", "--comment", "CNI firewall plugin rules", "-j", "CNI-FORWARD"]
    run_in(None, ["iptables", "-D", "FORWARD", *jump])
    assert "lacks the rule: -A FORWARD" in first.drift()
    run_in(None, ["iptables", "-I", "FORWARD", *jump])
    assert ask(one.sandbox, addresses(far)[4], 80)
    assert "CNI-ISOLATION-STAGE-1 comes after CNI-FORWARD" in first.drift()
    first.add()
    first.check()
    assert not ask(one.sandbox, addresses(far)[4], 80, timeout=0.4)
