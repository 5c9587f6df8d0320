"""Masquerading as packets see it, and what is left in nftables and iptables at each stage.

Three kinds of namespaces: containers behind the host, as `ptp` wires them, and an outside that
answers nothing but says where packets came from.
"""

from __future__ import annotations

import posix
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import Host, Namespace, Sandbox, nft_list, run_in
from harness.kernel_state import ruleset
from harness.threads import at_once
from harness.topics import masquerade as kit
from harness.topics.masquerade import saved, step
from pycni.kernel import namespace
from pycni.kernel.netfilter import nfnetlink
from pycni.kernel.netlink import NetlinkRequest
from pycni.kernel.netlink import socket as netlink_socket
from pycni.plan.steps import Masquerade
from pycni.spec.config import Attachment
from pycni.spec.ip import parse_address, parse_network
from pycni.spec.owner import Owners
from pycni.steps import masquerade
from pycni.steps.masquerade.sets import SETS
from pycni.steps.namespaces import HostAndSandbox

kernel = kit.kernel


HOST_OUTSIDE = {4: "192.0.2.1", 6: "2001:db8::1"}
OUTSIDE = {4: "192.0.2.2", 6: "2001:db8::2"}
PORT = 5353


def rule_lines(listing: str) -> list[str]:
    return [line for line in listing.splitlines() if " masquerade comment " in line]


def members(subnet: str) -> list[str]:
    """The addresses in the set of a subnet, as nft has them."""
    name = f"masquerade-{subnet.replace(':', '_')}"
    (found,) = (entry["set"] for entry in nft_list() if entry.get("set", {}).get("name") == name)
    return sorted(item["elem"]["val"] for item in found.get("elem", ()))


def commands(batch: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True, capture_output=True)


def test_gc_asks_no_more_for_more_containers(
    host: Host, kernel: HostAndSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for number in range(3):
        one = step(f"c{number}", f"10.1.0.{number + 2}/24", backend="iptables")
        masquerade.apply(one, kernel)
        asked: list[str] = []
        monkeypatch.setattr(
            netlink_socket, "before_send", lambda request, to=asked: to.append(request.what)
        )
        kept = [Attachment(f"c{each}", "eth0") for each in range(3)]
        masquerade.collect(kernel, Owners("net", keep=kept))
        monkeypatch.undo()
        counts.append(len(asked))
    assert counts == counts[:1] * 3
    masquerade.collect(kernel, Owners("net", keep=kept[1:]))
    assert sorted(line.split()[3] for line in saved() if "POSTROUTING" in line) == [
        "10.1.0.3/32", "10.1.0.4/32",
    ]  # fmt: skip


# --- packets -------------------------------------------------------------------------------------


@dataclass
class Lab:
    """Containers .2 and .3 of 10.15.20.0/24 and fd00:15:20::/64, a host, and an outside."""

    containers: dict[str, Namespace]
    outside: Namespace

    def source_seen(self, sender: Namespace | None, target: Namespace, to: str, **bind: str) -> str:
        """The source address of a packet from `sender` (None: the host) as `target` sees it."""
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        with _socket(target, family) as receiver:
            receiver.settimeout(5)
            receiver.bind(("", PORT))
            if parse_address(to).packed[0] & 0xF0 == 0xE0 and family == socket.AF_INET:
                receiver.setsockopt(
                    socket.IPPROTO_IP,
                    socket.IP_ADD_MEMBERSHIP,
                    socket.inet_aton(to) + socket.inet_aton(OUTSIDE[4]),
                )
            with _socket(sender, family) as sock:
                if "source" in bind:
                    sock.bind((bind["source"], 0))
                    sock.setsockopt(
                        socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(HOST_OUTSIDE[4])
                    )
                sock.sendto(b"who am I", (to, PORT))
                data, source = receiver.recvfrom(100)
        assert data == b"who am I"
        return str(source[0])


def _socket(where: Namespace | None, family: int) -> socket.socket:
    if where is None:
        return socket.socket(family, socket.SOCK_DGRAM)
    with namespace.open_path(where.path) as space, space.enter():
        return socket.socket(family, socket.SOCK_DGRAM)


@pytest.fixture
def lab(host: Host, sandbox: Sandbox) -> Lab:
    outside = sandbox()
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path(f"/proc/sys/net/{path}").write_text("1")
    commands(
        f"link add out type veth peer name eth0 netns {outside.name}\n"
        f"link set out up\n"
        f"address add {HOST_OUTSIDE[4]}/24 dev out\n"
        f"address add {HOST_OUTSIDE[6]}/64 dev out nodad\n"
    )
    # The outside knows ways to the containers, so packets with any source reach it.
    run_in(outside, ["ip", "link", "set", "eth0", "up"])
    run_in(outside, ["ip", "address", "add", f"{OUTSIDE[4]}/24", "dev", "eth0"])
    run_in(outside, ["ip", "address", "add", f"{OUTSIDE[6]}/64", "dev", "eth0", "nodad"])
    run_in(outside, ["ip", "route", "add", "10.15.0.0/16", "via", HOST_OUTSIDE[4]])
    run_in(outside, ["ip", "route", "add", "fd00:15::/32", "via", HOST_OUTSIDE[6]])
    containers = {}
    for number in (2, 3):
        inside = containers[str(number)] = sandbox()
        commands(
            f"link add veth{number} type veth peer name eth0 netns {inside.name}\n"
            f"link set veth{number} up\n"
            f"address add 10.15.20.1/32 dev veth{number}\n"
            f"address add fd00:15:20::1/128 dev veth{number} nodad\n"
            f"route add 10.15.20.{number} dev veth{number}\n"
            f"route add fd00:15:20::{number} dev veth{number}\n"
        )
        for line in (
            "link set eth0 up",
            f"address add 10.15.20.{number}/32 dev eth0",
            f"address add fd00:15:20::{number}/128 dev eth0 nodad",
            "route add 10.15.20.1 dev eth0",
            "route add default via 10.15.20.1",
            "-6 route add fd00:15:20::1 dev eth0",
            "-6 route add default via fd00:15:20::1",
        ):
            run_in(inside, ["ip", *line.split()])
    return Lab(containers, outside)


@pytest.mark.parametrize("backend", ["nftables", "iptables", ""])
@pytest.mark.parametrize("version", [4, 6])
def test_source_address(lab: Lab, kernel: HostAndSandbox, backend: str, version: int) -> None:
    address = {4: "10.15.20.2/24", 6: "fd00:15:20::2/64"}[version]
    neighbour = {4: "10.15.20.3", 6: "fd00:15:20::3"}[version]
    own = address.partition("/")[0]
    one, two = lab.containers["2"], lab.containers["3"]
    wanted = step("one", address, backend=backend)

    assert lab.source_seen(one, lab.outside, OUTSIDE[version]) == own
    undo = masquerade.apply(wanted, kernel)
    assert undo is not None
    assert masquerade.check(wanted, kernel) == []
    assert lab.source_seen(one, lab.outside, OUTSIDE[version]) == HOST_OUTSIDE[version]
    assert lab.source_seen(one, two, neighbour) == own
    # Only what was asked for: the other container keeps its address.
    assert lab.source_seen(two, lab.outside, OUTSIDE[version]) == neighbour

    masquerade.remove(wanted, kernel)
    assert lab.source_seen(one, lab.outside, OUTSIDE[version]) == own


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_multicast_keeps_its_source(lab: Lab, kernel: HostAndSandbox, backend: str) -> None:
    """An address of the host stands for the container: multicast is not forwarded by itself."""
    masquerade.apply(step("one", "10.15.20.1/24", backend=backend), kernel)
    seen = lab.source_seen(None, lab.outside, "239.1.1.1", source="10.15.20.1")
    assert seen == "10.15.20.1"
    assert lab.source_seen(None, lab.outside, OUTSIDE[4], source="10.15.20.1") == HOST_OUTSIDE[4]


@pytest.mark.parametrize("version", [4, 6])
def test_overlapping_subnets(lab: Lab, kernel: HostAndSandbox, version: int) -> None:
    """What is inside for a container is so by its own subnet, not by one that overlaps with it."""
    narrow, wide, near = {
        4: ("10.15.20.2/24", "10.15.20.3/16", "10.15.99.1"),
        6: ("fd00:15:20::2/64", "fd00:15:20::3/48", "fd00:15:20:99::1"),
    }[version]
    own = wide.partition("/")[0]
    no_dad = ["nodad"] if version == 6 else []
    run_in(lab.outside, ["ip", "address", "add", near, "dev", "eth0", *no_dad])
    run_in(None, ["ip", "route", "add", near, "via", OUTSIDE[version]])
    one, two = lab.containers["2"], lab.containers["3"]
    for wanted in (step("one", narrow), step("two", wide)):
        masquerade.apply(wanted, kernel)
    for wanted in (step("one", narrow), step("two", wide)):
        assert masquerade.check(wanted, kernel) == []
    assert lab.source_seen(one, lab.outside, near) == HOST_OUTSIDE[version]
    assert lab.source_seen(two, lab.outside, near) == own
    for container in (one, two):
        assert lab.source_seen(container, lab.outside, OUTSIDE[version]) == HOST_OUTSIDE[version]

    # An address that passes to the other subnet leaves the set of the first.
    moved = step("three", f"{own}/{narrow.partition('/')[2]}")
    masquerade.apply(moved, kernel)
    assert lab.source_seen(two, lab.outside, near) == HOST_OUTSIDE[version]
    assert members(str(parse_network(wide).network)) == []
    masquerade.remove(moved, kernel)
    assert lab.source_seen(two, lab.outside, OUTSIDE[version]) == own
    assert lab.source_seen(one, lab.outside, OUTSIDE[version]) == HOST_OUTSIDE[version]


# --- nftables ------------------------------------------------------------------------------------


def test_rules_do_not_grow_with_the_containers(kernel: HostAndSandbox) -> None:
    def rules() -> int:
        return sum("rule" in entry for entry in nft_list())

    masquerade.apply(step("c0", "10.15.0.1/16", "fd00::1/64"), kernel)
    before = rules()
    for number in range(1, 500):
        address = f"10.15.{number // 250}.{number % 250 + 2}/16"
        assert masquerade.apply(step(f"c{number}", address), kernel) is not None
    assert rules() == before
    assert len(members("10.15.0.0/16")) == 500
    for number in range(500):
        masquerade.remove(step(f"c{number}"), kernel)
    assert members("10.15.0.0/16") == []


def test_applying_twice_changes_nothing(kernel: HostAndSandbox) -> None:
    wanted = step("one", "10.15.20.2/24", "fd00::2/64")
    assert masquerade.apply(wanted, kernel) is not None
    before = ruleset()
    assert masquerade.apply(wanted, kernel) is None
    assert ruleset() == before


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_undo(kernel: HostAndSandbox, backend: str) -> None:
    masquerade.apply(step("other", "10.15.20.9/24", "fd00::9/64", backend=backend), kernel)
    before = ruleset(), saved()
    undo = masquerade.apply(step("one", "10.15.20.2/24", "fd00::2/64", backend=backend), kernel)
    assert (ruleset(), saved()) != before
    assert undo is not None
    undo()
    assert (ruleset(), saved()) == before


def test_undo_of_the_first_of_a_subnet_leaves_nothing(kernel: HostAndSandbox) -> None:
    undo = masquerade.apply(step("one", "10.15.20.2/24", "fd00::2/64"), kernel)
    assert undo is not None
    undo()
    assert ruleset() == ""
    masquerade.apply(step("other", "10.15.30.9/24"), kernel)
    before = ruleset()
    undo = masquerade.apply(step("one", "10.15.20.2/24", "fd00::2/64"), kernel)
    assert undo is not None
    undo()
    assert ruleset() == before


def test_stale_element_gives_way(kernel: HostAndSandbox) -> None:
    masquerade.apply(step("crashed", "10.15.20.2/24"), kernel)
    new = step("one", "10.15.20.2/25")
    assert masquerade.check(new, kernel)
    masquerade.apply(new, kernel)
    assert masquerade.check(new, kernel) == []
    assert "id: crashed" not in ruleset()
    reported = masquerade.check(step("crashed", "10.15.20.2/24"), kernel)
    assert any("10.15.20.2" in difference and "id: one" in difference for difference in reported)


def test_late_removal_spares_the_next_owner_of_the_address(kernel: HostAndSandbox) -> None:
    old, new = step("old", "10.15.20.2/24"), step("new", "10.15.20.2/24")
    masquerade.apply(old, kernel)
    masquerade.apply(new, kernel)
    for late in (old, step("old")):
        masquerade.remove(late, kernel)
        assert masquerade.check(new, kernel) == []


def test_removal_without_addresses(kernel: HostAndSandbox) -> None:
    masquerade.apply(step("keep", "10.15.20.9/24"), kernel)
    before = ruleset()
    masquerade.apply(step("one", "10.15.20.2/24", "10.15.20.3/24", "fd00::2/64"), kernel)
    masquerade.remove(step("one"), kernel)
    text = ruleset()
    assert "id: one" not in text
    assert "id: keep" in text
    assert all(line in text for line in before.splitlines())


def test_removal_where_nothing_is_runs_no_program(
    kernel: HostAndSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posix, "posix_spawn", lambda *_, **__: pytest.fail("a program was run"))
    before = ruleset()
    masquerade.remove(step("one", "10.15.20.2/24"), kernel)
    masquerade.remove(step("one"), kernel)
    masquerade.collect(kernel, Owners("net"))
    assert ruleset() == before == ""


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("flush ruleset", ["masquerade-postrouting is not there", "10.15.20.2 is not in set"]),
        ("delete table inet pycni", ["masquerade-postrouting is not there"]),
        ("flush table inet pycni", ["masquerade-postrouting is empty: no container"]),
        (
            "delete element inet pycni masquerade-10.15.20.0/24 { 10.15.20.2 }",
            ["10.15.20.2 is not in set inet pycni masquerade-10.15.20.0/24"],
        ),
        ("RULE 10.15.20.0/24", ["lacks the rule: ip saddr @masquerade-10.15.20.0/24 ip daddr"]),
    ],
)
def test_check_says_what_is_missing_and_apply_repairs_it(
    kernel: HostAndSandbox, damage: str, words: list[str]
) -> None:
    wanted = step("one", "10.15.20.2/24")
    masquerade.apply(wanted, kernel)
    assert masquerade.check(wanted, kernel) == []
    if damage.startswith("RULE "):
        masquerade.apply(step("other", "10.15.30.2/24"), kernel)
        netfilter = kernel.host.netfilter
        chain = ("pycni", SETS.chain)
        (handle,) = (
            rule.handle
            for rule in nfnetlink.rules(netfilter, nfnetlink.NFPROTO_INET, *chain)
            if rule.comment == damage.removeprefix("RULE ")
        )
        damage = f"delete rule inet {' '.join(chain)} handle {handle}"
    run_in(None, ["nft", damage])
    reported = "\n".join(masquerade.check(wanted, kernel))
    for word in words:
        assert word in reported
    masquerade.apply(wanted, kernel)
    assert masquerade.check(wanted, kernel) == []


def test_first_attachments_in_threads(kernel: HostAndSandbox) -> None:
    steps = [step(f"c{number}", f"10.15.{number % 4}.{number + 2}/24") for number in range(24)]

    def attach(wanted: Masquerade) -> None:
        with HostAndSandbox(None) as own:
            masquerade.apply(wanted, own)

    assert at_once(attach, steps) == []
    assert [masquerade.check(wanted, kernel) for wanted in steps] == [[]] * len(steps)
    assert sum("rule" in entry for entry in nft_list()) == 4


@pytest.fixture
def unused_set(kernel: HostAndSandbox) -> None:
    """The set of a subnet, and its rule, without a member."""
    gone = step("gone", "10.15.20.2/24")
    masquerade.apply(gone, kernel)
    masquerade.remove(gone, kernel)


def interfere(
    monkeypatch: pytest.MonkeyPatch, before: str, act: Callable[[HostAndSandbox], None]
) -> list[str]:
    """Have another act just before a request that begins so is sent. Returns what is sent."""
    sent: list[str] = []

    def watch(request: NetlinkRequest) -> None:
        sent.append(request.what)
        if request.what.startswith(before):
            monkeypatch.setattr(netlink_socket, "before_send", None)
            with HostAndSandbox(None) as other:
                act(other)

    monkeypatch.setattr(netlink_socket, "before_send", watch)
    return sent


@pytest.mark.usefixtures("unused_set")
def test_a_set_that_gets_a_member_is_not_collected(
    kernel: HostAndSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses to delete set and rule, which were looked at before the member came."""
    new = step("new", "10.15.20.3/24")
    deletion = "delete inet pycni masquerade-10.15.20.0/24"
    before = ruleset()
    sent = interfere(monkeypatch, deletion, lambda other: masquerade.apply(new, other))
    masquerade.collect(kernel, Owners("net", keep=frozenset({Attachment("new", "eth0")})))
    assert sent[-1] == deletion
    assert masquerade.check(new, kernel) == []
    assert rule_lines(ruleset()) == rule_lines(before) != []


@pytest.mark.usefixtures("unused_set")
def test_a_set_that_was_collected_is_made_again(
    kernel: HostAndSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set is deleted when ADD has seen it, and before it enters its address."""
    new = step("new", "10.15.20.3/24")
    missing: list[str] = []

    def collect(other: HostAndSandbox) -> None:
        masquerade.collect(other, Owners("net"))
        missing.append(ruleset())

    interfere(monkeypatch, "add 0a0f1403 to inet pycni masquerade-", collect)
    masquerade.apply(new, kernel)
    assert len(missing) == 1
    assert "10.15.20" not in missing[0]
    assert masquerade.check(new, kernel) == []


def test_a_rule_that_two_have_added_is_there_once_again(kernel: HostAndSandbox) -> None:
    """As two ADDs leave it that found it missing at the same time."""
    masquerade.apply(step("one", "10.15.20.2/24"), kernel)
    before = rule_lines(ruleset())
    run_in(None, ["nft", f"add rule inet pycni masquerade-postrouting {before[0].strip()}"])
    assert len(rule_lines(ruleset())) == 2
    masquerade.collect(kernel, Owners("another"))
    assert rule_lines(ruleset()) == before
    assert masquerade.check(step("one", "10.15.20.2/24"), kernel) == []


def test_addresses_are_removed_when_their_rules_are_gone(kernel: HostAndSandbox) -> None:
    for number in (2, 3):
        masquerade.apply(step(f"c{number}", f"10.15.20.{number}/24"), kernel)
    run_in(None, ["nft", "flush table inet pycni"])
    masquerade.remove(step("c2"), kernel)
    assert members("10.15.20.0/24") == ["10.15.20.3"]
    masquerade.collect(kernel, Owners("net"))
    assert "10.15.20" not in ruleset()


PROCESS = """
import sys
from pycni.steps.namespaces import HostAndSandbox
from pycni.steps import masquerade
from pycni.plan.steps import Masquerade
from pycni.spec.ip import parse_network
from pycni.spec.owner import Owner, Owners
number = int(sys.argv[1])
owner, address = Owner("net", f"c{number}", "eth0"), f"10.15.{number % 2}.{number}/24"
step = Masquerade(owner, (parse_network(address),))
with HostAndSandbox(None) as kernel:
    sys.stdin.read()
    masquerade.apply(step, kernel)
    if number % 3 == 0:
        masquerade.remove(step, kernel)
        masquerade.collect(kernel, Owners("another"))
"""


def test_first_attachments_in_processes(kernel: HostAndSandbox) -> None:
    """Meanwhile others remove theirs, and the sets of subnets that are not used."""
    numbers = range(2, 14)
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(number)], stdin=subprocess.PIPE)
        for number in numbers
    ]
    for process in started:
        assert process.stdin
        process.stdin.close()
    assert [process.wait() for process in started] == [0] * len(started)
    for number in numbers:
        wanted = step(f"c{number}", f"10.15.{number % 2}.{number}/24")
        differences = masquerade.check(wanted, kernel)
        if number % 3 == 0:
            assert any("is not in set" in difference for difference in differences)
        else:
            assert differences == []


def test_threads_work_in_their_own_namespaces(host: Host, sandbox: Sandbox) -> None:
    spaces = [sandbox(), sandbox()]

    def attach(space: Namespace) -> None:
        with (
            namespace.open_path(space.path) as opened,
            opened.enter(),
            HostAndSandbox(None) as kernel,
        ):
            masquerade.apply(step(space.name, "10.15.20.2/24"), kernel)

    threads = [threading.Thread(target=attach, args=(space,)) for space in spaces]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nft_list() == []
    for space in spaces:
        listed = run_in(space, ["nft", "list", "table", "inet", "pycni"]).stdout
        assert f"id: {space.name}" in listed
        assert listed.count("id: ") == 1


def test_collect(kernel: HostAndSandbox) -> None:
    kept, gone = step("kept", "10.15.20.2/24"), step("gone", "10.15.20.3/24", "10.15.99.3/24")
    foreign = step("gone", "10.15.20.4/24", net="another")
    for each in (kept, gone, foreign):
        masquerade.apply(each, kernel)
    masquerade.collect(kernel, Owners("net", keep=frozenset({Attachment("kept", "eth0")})))
    assert masquerade.check(kept, kernel) == []
    assert masquerade.check(foreign, kernel) == []
    assert "net: net, if: eth0, id: gone" not in ruleset()
    assert "masquerade-10.15.99.0/24" not in ruleset()
    masquerade.collect(kernel, Owners("net", keep=frozenset({Attachment("kept", "eth1")})))
    assert "id: kept" not in ruleset()
    masquerade.collect(kernel, Owners("another"))
    assert "10.15.20.0/24" not in ruleset()


def test_sets_of_earlier_subnets_do_not_pile_up(kernel: HostAndSandbox) -> None:
    lasting = step("lasting", "10.15.20.2/24")
    masquerade.apply(lasting, kernel)
    for number in range(30, 40):
        one = step(f"c{number}", f"10.15.{number}.2/24", f"fd00:{number}::2/64")
        masquerade.apply(one, kernel)
        masquerade.remove(one, kernel)
    assert {entry["set"]["name"] for entry in nft_list() if "set" in entry} == {
        "masquerade-10.15.20.0/24",
        "masquerade-10.15.39.0/24",
        "masquerade-fd00_39__/64",
    }
    rules = [entry["rule"]["comment"] for entry in nft_list() if "rule" in entry]
    assert sorted(rules) == ["10.15.20.0/24", "10.15.39.0/24", "fd00:39::/64"]
    assert masquerade.check(lasting, kernel) == []
