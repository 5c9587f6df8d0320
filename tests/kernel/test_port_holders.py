"""Who holds a port of the host: in whichever backend, of ours or of the reference."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from harness import Attachment, ask, run_in
from harness.machines import CLIENT, HOST, SECOND, addresses
from harness.threads import at_once
from harness.topics import port_holders as kit
from harness.topics.port_holders import (
    ALL,
    IPTABLES,
    LEGACY,
    NFTABLES,
    OURS,
    OWN_MAPS,
    REFERENCE,
    REFERENCE_LEGACY,
    REFERENCE_NFTABLES,
    Ports,
    both_families,
    mapping,
    rules,
)
from pycni.kernel import process
from pycni.kernel.netlink.socket import NetlinkSocket

ports = kit.ports


# Who appends to the chain that is there; what comes later into another one comes first.
SAME_CHAIN: dict[str, tuple[str, ...]] = {
    NFTABLES: (),
    IPTABLES: (REFERENCE,),
    LEGACY: (REFERENCE_LEGACY,),
}


# --- a port that is taken ------------------------------------------------------------------------


@pytest.mark.parametrize("new", OURS)
@pytest.mark.parametrize("held", ALL)
def test_a_taken_port_is_refused(ports: Ports, held: str, new: str) -> None:
    machines = ports.machines
    one, two = machines.container("one"), machines.container("two")
    holder = ports.hold(held, one)
    before = rules()
    portmap = ports.portmap(new, two)
    error = ports.call(new, portmap.refused)
    assert error["code"] == 101
    words = "host port 8080/tcp (IPv4) is taken by container one ("
    assert error["msg"].startswith(words)
    assert f"{addresses(one)[4]} port 80)" in error["msg"]
    assert ("network first" in error["msg"]) == (held != REFERENCE_NFTABLES)
    assert "hostPort" in error["details"]
    assert rules() == before
    for version in (4, 6):
        # Release 1.1.1 leads to IPv6 as well.
        assert ask(machines.client, HOST[version], 8080) == f"one {CLIENT[version]}"
    ports.release(held, holder)
    ports.call(new, portmap.add)
    for version in (4, 6):
        assert ask(machines.client, HOST[version], 8080) == f"two {CLIENT[version]}"


@pytest.mark.parametrize("new", [NFTABLES, IPTABLES])
@pytest.mark.parametrize("held", ALL)
def test_other_protocols_and_addresses_are_other_ports(ports: Ports, held: str, new: str) -> None:
    machines = ports.machines
    one, two = machines.container("one"), machines.container("two")
    ports.hold(held, one, mapping(protocol="udp"), mapping(9090, hostIP=HOST[4]), mapping(81, 80))
    mappings = mapping(), mapping(9090, hostIP=SECOND[4]), mapping(8081, 80)
    ports.call(new, ports.portmap(new, two, *mappings).add)
    assert ask(machines.client, HOST[4], 8080) == f"two {CLIENT[4]}"
    assert ask(machines.client, HOST[4], 8080, "udp") == f"one {CLIENT[4]}"
    assert ask(machines.client, HOST[4], 9090) == f"one {CLIENT[4]}"
    assert ask(machines.client, SECOND[4], 9090) == f"two {CLIENT[4]}"
    assert ask(machines.client, HOST[4], 8081) == f"two {CLIENT[4]}"


@pytest.mark.parametrize(
    ("held", "new"), [pair for pair in product(ALL, (NFTABLES, IPTABLES)) if set(pair) != OWN_MAPS]
)
@pytest.mark.parametrize("wide", ["the holder", "the new one"])
@both_families
def test_all_addresses_include_each(
    ports: Ports, held: str, new: str, wide: str, version: int
) -> None:
    """As with sockets: one address of the host and all of them are the same port."""
    machines = ports.machines
    one, two = machines.container("one"), machines.container("two")
    everywhere = {4: "0.0.0.0", 6: "::"}[version]
    narrow, all_of_it = mapping(hostIP=HOST[version]), mapping(hostIP=everywhere)
    first, second = (all_of_it, narrow) if wide == "the holder" else (narrow, all_of_it)
    ports.hold(held, one, first)
    before = rules()
    error = ports.call(new, ports.portmap(new, two, second).refused)
    assert "is taken by container one (" in error["msg"]
    where = f" of {HOST[version]} is" if second is narrow else f"(IPv{version}) is"
    assert where in error["msg"]
    assert rules() == before


@pytest.mark.parametrize("new", OURS)
@pytest.mark.parametrize("held", ALL)
def test_the_same_container_is_no_obstacle(ports: Ports, held: str, new: str) -> None:
    """Runtimes map the same ports in each network that a container joins."""
    machines = ports.machines
    one = machines.container("one")
    ports.hold(held, one)
    other = Attachment(
        one.plugin,
        {**one.config, "name": "second", "bridge": "br1"},
        one.sandbox,
        "one",
        "eth1",
    )
    other.config["ipam"] = {**one.config["ipam"], "ranges": [[{"subnet": "10.15.21.0/24"}]]}
    other.config |= {"isDefaultGateway": False, "isGateway": True}
    other.add()
    ports.call(new, ports.portmap(new, other).add)
    assert ask(machines.client, HOST[4], 8080) == f"one {CLIENT[4]}"


@pytest.mark.parametrize("how", OURS)
def test_who_holds_a_port_may_have_it_again(ports: Ports, how: str) -> None:
    """Repair does so, also where another implementation's ADD has taken the port in between."""
    machines = ports.machines
    one, two = machines.container("one"), machines.container("two")
    holder = ports.hold(how, one)
    ports.call(how, holder.add)
    ports.hold(REFERENCE if how != LEGACY else REFERENCE_LEGACY, two)
    ports.call(how, holder.add)
    if how == NFTABLES:  # rules of iptables come first all the same
        assert "is taken by container two (" in holder.drift()
        assert ask(machines.client, HOST[4], 8080).startswith("two ")
    else:
        ports.call(how, holder.check)


THEIRS = (REFERENCE, REFERENCE_LEGACY, REFERENCE_NFTABLES)


@pytest.mark.parametrize("taker", THEIRS)
@pytest.mark.parametrize("how", OURS)
@both_families
def test_check_says_whose_port_is_captured(
    ports: Ports, how: str, taker: str, version: int
) -> None:
    """The reference's ADD refuses nothing. Which rules come first, packets say."""
    machines = ports.machines
    one, two, three = (machines.container(name) for name in ("one", "two", "three"))
    holder, other = (
        ports.hold(how, one, mapping(), mapping(9090)),
        ports.hold(how, three, mapping(81)),
    )
    taking = ports.hold(taker, two)
    is_captured = ask(machines.client, HOST[version], 8080).startswith("two ")
    assert is_captured == (taker not in SAME_CHAIN[how])
    if is_captured:
        message = ports.call(how, holder.drift)
        where = {4: "(IPv4)", 6: "(IPv6)"}[version]
        assert f"host port 8080/tcp {where} is taken by container two (" in message
        assert f"{addresses(two)[version]} port 80)" in message
        assert "9090" not in message
    else:
        ports.call(how, holder.check)
    ports.call(how, other.check)
    ports.release(taker, taking)
    ports.call(how, holder.check)
    assert ask(machines.client, HOST[version], 8080).startswith("one ")


@pytest.mark.parametrize("taken", [HOST[4], SECOND[4]])
def test_check_of_one_address_that_is_captured(ports: Ports, taken: str) -> None:
    machines = ports.machines
    one, two = machines.container("one"), machines.container("two")
    holder = ports.hold(NFTABLES, one, mapping(hostIP=HOST[4]))
    ports.hold(REFERENCE, two, mapping(hostIP=taken))
    if taken == HOST[4]:
        words = f"host port 8080/tcp of {taken} is taken by container two ("
        assert words in holder.drift()
    else:
        holder.check()
        assert ask(machines.client, HOST[4], 8080).startswith("one ")


@both_families
def test_check_of_what_the_reference_made(ports: Ports, version: int) -> None:
    """For one address of the host and for all, which it keeps in two chains."""
    one = ports.machines.container("one")
    mappings = mapping(hostIP=HOST[version]), mapping(9090)
    ports.hold(REFERENCE_NFTABLES, one, *mappings)
    portmap = ports.portmap(NFTABLES, one, *mappings, snat=False)
    portmap.check()
    for chain in ("hostip_hostports", "hostports"):
        ip = {4: "ip", 6: "ip6"}[version]
        before = run_in(None, ["nft", "--stateless", "list", "chain", ip, "cni_hostport", chain])
        run_in(None, ["nft", "flush", "chain", ip, "cni_hostport", chain])
        assert "is not in map inet pycni" in portmap.drift()
        run_in(None, ["nft", before.stdout])
        portmap.check()


@both_families
def test_who_comes_first_in_the_chains_of_the_reference(ports: Ports, version: int) -> None:
    """Its rules for one address of the host come before those for all."""
    machines = ports.machines
    one, two = machines.container("one"), machines.container("two")
    narrow, wide = mapping(hostIP=HOST[version]), mapping(hostIP={4: "0.0.0.0", 6: "::"}[version])
    ports.hold(REFERENCE_NFTABLES, one, narrow)
    ports.hold(REFERENCE_NFTABLES, two, wide)
    assert ask(machines.client, HOST[version], 8080).startswith("one ")
    ports.portmap(NFTABLES, one, narrow, snat=False).check()
    words = f"host port 8080/tcp (IPv{version}) is taken by container one ("
    assert words in ports.portmap(NFTABLES, two, wide, snat=False).drift()


def test_check_of_a_port_that_conditions_leave(ports: Ports) -> None:
    """What comes first takes some of the packets; ADD allows that too."""
    machines = ports.machines
    holder = ports.hold(NFTABLES, machines.container("one"), mapping(hostIP="0.0.0.0"))
    taker = ports.portmap(
        REFERENCE, machines.container("two", "br1"), mapping(hostIP="0.0.0.0"),
        conditionsV4=["-s", f"{CLIENT[4]}/32"],
    )  # fmt: skip
    taker.add()
    holder.check()
    assert ask(machines.client, HOST[4], 8080).startswith("two ")
    assert ask(None, HOST[4], 8080).startswith("one ")


def test_a_jump_that_somebody_deleted_makes_no_port_free(ports: Ports) -> None:
    machines = ports.machines
    ports.hold(IPTABLES, machines.container("one"))
    for program in ("iptables", "ip6tables"):
        jump = "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"
        run_in(None, [program, "-t", "nat", "-D", "OUTPUT", *jump.split()])
    error = ports.portmap(NFTABLES, machines.container("two")).refused()
    assert "is taken by container one (" in error["msg"]


# --- many, and at once ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "keys"),
    [
        (IPTABLES, {}),
        (LEGACY, {}),
        (
            NFTABLES,
            {"conditionsV4": ["ip", "ttl", "1-200"], "conditionsV6": ["ip6", "hoplimit", "1-200"]},
        ),
    ],
)
def test_two_at_once_never_get_the_same_port(
    ports: Ports, how: str, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    attachments = [
        ports.portmap(how, ports.machines.container(f"c{number}"), **keys) for number in range(5)
    ]
    codes: list[int] = []

    def attach(portmap: Attachment) -> None:
        codes.append(portmap.run("ADD").code)

    ports.call(how, lambda: at_once(attach, attachments))
    assert sorted(codes) == [0] + [1] * 4
    led = [line for line in rules() if "dnat name" in line]
    assert len(led) == 2 if how == LEGACY else len(led) <= 2


def test_a_host_without_iptables_pays_next_to_nothing(
    ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No program runs, and nothing is listed that grows with the containers."""
    machines = ports.machines
    ports.hold(NFTABLES, machines.container("one"))
    two = ports.portmap(NFTABLES, machines.container("two"), mapping(9090))
    listed: list[str] = []
    dump = NetlinkSocket.dump

    def note(self: NetlinkSocket, request: Any) -> Any:
        listed.append(request.what)
        return dump(self, request)

    monkeypatch.setattr(NetlinkSocket, "dump", note)
    monkeypatch.setattr(process, "run", lambda *_, **__: pytest.fail("a program was run"))
    two.add()
    assert not [what for what in listed if "cni_hostport" in what or " nat" in what]
