"""Who holds a port of the host: in whichever backend, of ours or of the reference."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from itertools import product
from pathlib import Path
from socket import AF_INET6
from typing import Any

import pytest

from harness import Attachment, ask, run_in, run_plugin, service
from harness.host import forget_attachments
from harness.kernel_state import ruleset
from harness.lan import Lan, port, received, udp
from harness.machines import CLIENT, FAR, HOST, SECOND, Machines, addresses
from pycni.kernel import process
from pycni.kernel.netfilter import iptables, nftables
from pycni.kernel.netlink.socket import NetlinkSocket
from pycni.runtime import PluginError
from pycni.spec.owner import Owner, Owners
from pycni.steps import port_map
from pycni.steps.namespaces import HostAndSandbox
from pycni.steps.port_map.layout import OWN

both_families = pytest.mark.parametrize("version", [4, 6])

# Who maps a port: our two backends, the latter on both kinds of iptables, and the reference's.
CONDITIONAL = {"conditionsV4": ["ip", "ttl", "1-255"], "conditionsV6": ["ip6", "hoplimit", "1-255"]}
NFTABLES, IPTABLES, LEGACY = "ours nftables", "ours iptables", "ours iptables-legacy"
REFERENCE, REFERENCE_LEGACY = "reference iptables", "reference iptables-legacy"
REFERENCE_NFTABLES = "reference nftables"
OURS = (NFTABLES, IPTABLES, LEGACY)
OWN_MAPS = {NFTABLES}  # where both are there, the maps themselves decide
ALL = (*OURS, REFERENCE, REFERENCE_LEGACY, REFERENCE_NFTABLES)

# Who appends to the chain that is there; what comes later into another one comes first.
SAME_CHAIN: dict[str, tuple[str, ...]] = {
    NFTABLES: (),
    IPTABLES: (REFERENCE,),
    LEGACY: (REFERENCE_LEGACY,),
}

# As the reference's releases after 1.1.1 make them, of which Debian has none: what is for one
# address of the host is in a chain of its own, which comes first.
TABLE = """
table {ip} cni_hostport {{
  chain hostports {{ }}
  chain hostip_hostports {{ }}
  chain prerouting {{
    type nat hook prerouting priority -100; jump hostip_hostports; jump hostports;
  }}
  chain output {{
    type nat hook output priority -100; jump hostip_hostports; fib daddr type local jump hostports;
  }}
  chain masquerading {{ type nat hook postrouting priority 100; }}
}}
"""


def rules() -> list[str]:
    """All there is, in nftables and in both kinds of iptables."""
    lines = ruleset().splitlines()
    for program in ("iptables-legacy-save", "ip6tables-legacy-save"):
        lines += run_in(None, [program]).stdout.splitlines()
    return [line.split(" [")[0] for line in lines if not line.startswith("#")]


class Ports:
    """Containers whose ports are mapped, by each implementation and backend."""

    def __init__(self, machines: Machines, folder: Path, reference: Path, patch: Any) -> None:
        self.machines = machines
        self.reference = reference
        self._patch = patch
        self._legacy = folder / "legacy"
        self._legacy.mkdir()
        for family in ("iptables", "ip6tables"):
            for end in ("", "-save", "-restore"):
                found = shutil.which(f"{family}-legacy{end}", path=iptables.SYSTEM_PATH)
                assert found is not None, "no iptables-legacy"
                (self._legacy / f"{family}{end}").symlink_to(os.path.realpath(found))

    def portmap(
        self, how: str, container: Attachment, *mappings: dict[str, Any], **keys: Any
    ) -> Attachment:
        """A portmap for `call`; with nothing named it maps 8080 to 80."""
        backend = "nftables" if how == NFTABLES else "iptables"
        runtime = {"portMappings": list(mappings or (mapping(),))}
        made = self.machines.chained(
            "portmap", container, backend=backend, runtimeConfig=runtime, **keys
        )
        if how in (REFERENCE, REFERENCE_LEGACY):
            made.plugin = self.reference / "portmap"
            made.path, made.call = str(self.reference), run_plugin
        return made

    def call(self, how: str, command: Callable[[], Any]) -> Any:
        """Call a plugin where iptables is the one that is meant."""
        with self._patch.context() as patch:
            if how in (LEGACY, REFERENCE_LEGACY):
                patch.setenv("PATH", f"{self._legacy}:{os.environ['PATH']}")
            return command()

    def hold(self, how: str, container: Attachment, *mappings: dict[str, Any]) -> Attachment:
        """Map ports; 8080 by default."""
        portmap = self.portmap(how, container, *mappings)
        if how == REFERENCE_NFTABLES:
            self._write(container, mappings or (mapping(),))
        else:
            self.call(how, portmap.add)
        return portmap

    def release(self, how: str, portmap: Attachment) -> None:
        if how == REFERENCE_NFTABLES:
            for ip in ("ip", "ip6"):
                run_in(None, ["nft", "delete", "table", ip, "cni_hostport"])
        else:
            self.call(how, portmap.delete)

    def _write(self, container: Attachment, mappings: tuple[dict[str, Any], ...]) -> None:
        text = ""
        for version, ip in ((4, "ip"), (6, "ip6")):
            own = addresses(container)[version]
            target = own if version == 4 else f"[{own}]"
            text += TABLE.format(ip=ip)
            end = f'comment "{container.container}"\n'
            for item in mappings:
                host = item.get("hostIP", "")
                if host and (":" in host) != (version == 6):
                    continue
                match = f"{item['protocol']} dport {item['hostPort']}"
                chain = "hostports"
                if host not in ("", "0.0.0.0", "::"):
                    match, chain = f"{ip} daddr {host} {match}", "hostip_hostports"
                text += f"add rule {ip} cni_hostport {chain} {match} "
                text += f"dnat to {target}:{item['containerPort']} {end}"
            for source in (own, "127.0.0.1")[: 2 if version == 4 else 1]:
                text += f"add rule {ip} cni_hostport masquerading "
                text += f"{ip} saddr {source} {ip} daddr {own} masquerade {end}"
        run_in(None, ["nft", text])


def mapping(host: int = 8080, port: int = 80, protocol: str = "tcp", **more: Any) -> dict[str, Any]:
    return {"hostPort": host, "containerPort": port, "protocol": protocol, **more}


@pytest.fixture
def ports(
    machines: Machines, tmp_path: Path, reference_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Ports:
    return Ports(machines, tmp_path, reference_dir, monkeypatch)


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
def test_check_tells_whose_port_is_captured(
    ports: Ports, how: str, taker: str, version: int
) -> None:
    """The reference's ADD refuses nothing. Which rules come first, packets tell."""
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


# --- what an earlier one left --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "new"), [pair for pair in product(ALL, OURS) if set(pair) != OWN_MAPS]
)
def test_what_leads_to_an_address_of_its_own_goes(ports: Ports, left: str, new: str) -> None:
    """Its holder is gone, since the address has been given to another container."""
    machines = ports.machines
    one, other = machines.container("one"), machines.container("other")
    ports.hold(left, one, mapping(), mapping(9090, 81), mapping(9091, 81, hostIP=HOST[4]))
    if left != REFERENCE_NFTABLES:
        stays = ports.hold(left, other, mapping(7070, 80))
    again = Attachment(one.plugin, one.config, one.sandbox, "two", result=one.result)
    portmap = ports.portmap(new, again, mapping(8080, 81))
    ports.call(new, portmap.add)
    ports.call(new, portmap.check)
    assert ask(machines.client, HOST[4], 8080) == f"one {CLIENT[4]}"
    assert not ask(machines.client, HOST[4], 9090)
    assert not ask(machines.client, HOST[6], 9090)
    assert not ask(machines.client, HOST[4], 9091)
    assert not any(number in line for line in rules() for number in ("9090", "9091"))
    if left != REFERENCE_NFTABLES:
        if left in OURS:
            ports.call(left, stays.check)
        assert ask(machines.client, HOST[4], 7070) == f"other {CLIENT[4]}"
    ports.call(new, portmap.delete)
    assert not ask(machines.client, HOST[4], 8080)


def lose(lan: Lan, container: str) -> None:
    """A container goes without DEL, what is noted of it goes too, and its lease is freed."""
    run_in(lan.sandbox(container), ["ip", "link", "delete", "eth0"])  # which waits until it is gone
    lan.sandboxes.pop(container).delete()
    forget_attachments()
    for lease in (lan.folder / "leases" / "n").iterdir():
        if lease.name[0].isdigit() or ":" in lease.name:
            lease.unlink()


@pytest.mark.parametrize("new", [NFTABLES, IPTABLES])
def test_what_the_reference_made_for_the_container_stays(ports: Ports, new: str) -> None:
    """It is the container's own, and its DEL removes it."""
    one = ports.machines.container("one")
    ports.hold(REFERENCE_NFTABLES, one, mapping(), mapping(9090), mapping(9091, hostIP=HOST[4]))
    before = set(rules())
    portmap = ports.portmap(new, one)
    portmap.add()
    assert before <= set(rules())
    portmap.delete()
    assert not any('comment "one"' in line for line in rules())


def test_what_the_reference_made_by_another_network_stays(ports: Ports) -> None:
    """Its rules name the container and no network, so addresses tell which one's they are."""
    machines = ports.machines
    one = machines.container("one")
    other = Attachment(
        one.plugin, {**one.config, "name": "second", "bridge": "br1"}, one.sandbox, "one", "eth1"
    )
    other.config["ipam"] = {**one.config["ipam"], "ranges": [[subnet] for subnet in SINGLE]}
    other.config |= {"isDefaultGateway": False, "isGateway": True}
    other.add()
    ports.hold(REFERENCE_NFTABLES, one, mapping(), mapping(9090, hostIP=HOST[4]))
    before = reference_rules()
    ports.hold(REFERENCE_NFTABLES, other, mapping(8081), mapping(9091, hostIP=SECOND[4]))
    ports.portmap(NFTABLES, other, mapping(8081)).delete()
    assert reference_rules() == before
    portmap = ports.portmap(NFTABLES, one)
    portmap.config.pop("prevResult")
    one.delete()
    portmap.delete()
    assert reference_rules() == []


def reference_rules() -> list[str]:
    return [line.strip() for line in rules() if 'comment "one"' in line and "net: " not in line]


SINGLE = (
    {"subnet": "10.30.0.0/24", "rangeStart": "10.30.0.2", "rangeEnd": "10.30.0.2"},
    {"subnet": "fd00:30::/64", "rangeStart": "fd00:30::2", "rangeEnd": "fd00:30::2"},
)


def led() -> set[str]:
    """The rules that lead port 8080 of the host to a container, and what leads to them."""
    words = ("--dport 8080 ", "--dports 8080 ", "dport 8080 ", "dports 8080 ", 'comment "one"')
    return {line.strip() for line in rules() if any(word in line for word in words)}


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "not noted"])
@pytest.mark.parametrize("new", [NFTABLES, IPTABLES])
@pytest.mark.parametrize("held", [IPTABLES, LEGACY, REFERENCE, REFERENCE_NFTABLES])
def test_two_networks_with_one_address_keep_their_ports(
    ports: Ports, held: str, new: str, noted: bool
) -> None:
    """Whatever the other one's interface is called, and whoever made it, as long as it is there."""
    machines = ports.machines
    one, two, three = (
        Attachment(
            machines.plugins / "bridge",
            {
                "cniVersion": "1.0.0",
                "name": network,
                "type": "bridge",
                "bridge": f"br-{network}",
                "isGateway": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[subnet] for subnet in SINGLE],
                    "dataDir": str(machines.folder),
                },
            },
            machines.sandbox(),
            container,
            ifname,
        )
        for network, container, ifname in (
            ("first", "one", "eth1"),
            ("second", "two", "eth0"),
            ("second", "three", "eth0"),
        )
    )
    one.add()
    ports.hold(held, one)
    if not noted:
        forget_attachments()
    for version, subnet in enumerate(SINGLE):  # no ADD is let in beside another bridge with it
        words = ["route", "delete", subnet["subnet"], "dev", "br-first"]
        run_in(None, ["ip", ("-4", "-6")[version], *words])
    two.add()
    assert addresses(two) == addresses(one)
    before = led()
    ports.call(new, ports.portmap(new, two, mapping(8081)).add)
    assert before <= led()
    assert one.sandbox is not None
    one.sandbox.delete()
    two.delete()
    three.add()
    assert addresses(three) == addresses(one)
    ports.call(new, ports.portmap(new, three, mapping(8082)).add)
    assert not before & led()


@pytest.mark.parametrize("keys", [{}, CONDITIONAL], ids=["elements", "conditions"])
@pytest.mark.parametrize("own", [(7070, 81), None], ids=["with a port", "without"])
@both_families
def test_check_and_repair_see_strangers_ports(
    machines: Machines, tmp_path: Path, version: int, own: tuple[int, int] | None, keys: Any
) -> None:
    """Of somebody of whom nothing is noted, and who had the address."""
    lan = Lan(machines, tmp_path)
    network = lan.alone(portmap=keys)
    address = lan.add("left", port(8080, 80), port(9090, 82, "udp"), port(9091, 80, "sctp"))
    lose(lan, "left")
    assert lan.add("new", *([port(*own)] if own else [])) == address
    machines.stack.enter_context(service(lan.sandbox("new"), "new", 80, 81))
    client = udp(machines.client, version, 40000)
    reached = udp(lan.sandbox("new"), version, 82)
    client.sendto(b"hello", (HOST[version], 9090))
    assert received(reached)
    assert ask(machines.client, HOST[version], 8080).startswith("new ")
    with pytest.raises(PluginError) as told:
        network.check("new")
    words = f"host port 8080/tcp (IPv{version}) leads here, left by container left ("
    assert words in str(told.value)
    found = {report.endpoint.container_id: report.ok for report in network.repair()}
    assert found["new"]
    network.check("new")
    assert not ask(machines.client, HOST[version], 8080, patience=0.3)
    client.sendto(b"hello", (HOST[version], 9090))
    assert received(reached, 0.3) is None
    if own:
        assert ask(machines.client, HOST[version], 7070).startswith("new ")


def test_an_add_that_meets_an_earlier_holder_takes_all_of_it(
    machines: Machines, tmp_path: Path
) -> None:
    """By the container's port, which most have in common, or by one of the host's."""
    lan = Lan(machines, tmp_path)
    lan.alone()
    for number, asked in enumerate((port(7070, 80), port(8080, 81))):
        left = f"left{number}"
        address = lan.add(left, port(8080, 80), port(9090, 82))
        lose(lan, left)
        assert lan.add("new", asked) == address
        assert not any(f"id: {left}" in line and "9090" in line for line in rules())
        lan.network().check("new")
        lan.network().delete("new")


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
    # Nobody loses by it what he has.
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
    start = threading.Barrier(len(attachments))

    def attach(portmap: Attachment) -> None:
        start.wait()
        codes.append(portmap.run("ADD").code)

    def all_at_once() -> None:
        threads = [threading.Thread(target=attach, args=(each,)) for each in attachments]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ports.call(how, all_at_once)
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
