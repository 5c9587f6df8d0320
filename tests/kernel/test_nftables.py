"""libnftables and nf_tables over netlink, each compared with what `nft` prints or made."""

from __future__ import annotations

import errno
import os
import resource
import threading

import pytest

from harness import Host, Namespace, Sandbox, nft_list, run_in
from pycni.kernel import namespace
from pycni.kernel.netfilter import constant_rules, nfnetlink, nftables
from pycni.kernel.netfilter.constant_rules import ConstantChain
from pycni.kernel.netfilter.nfnetlink import NFPROTO_INET, NFPROTO_IPV4, Element, NetfilterSocket
from pycni.kernel.netlink import NetlinkError, NetlinkRequest

TABLE = """
add table inet t
add chain inet t target
add set inet t m { type ipv4_addr; }
add map inet t v { type ipv4_addr : verdict; }
add set inet t s { type ifname; }
add rule inet t target accept comment "first"
add rule inet t target ip saddr @m drop
"""


@pytest.fixture
def table(netfilter: NetfilterSocket) -> NetfilterSocket:
    nftables.run(TABLE)
    return netfilter


def key(number: int) -> bytes:
    return bytes((10, 0, number >> 8, number & 255))


def add(number: int, comment: str = "c") -> object:
    return nfnetlink.add_element(NFPROTO_INET, "t", "m", key(number), comment)


# --- libnftables ---------------------------------------------------------------------------------


def test_run_is_one_transaction(host: Host, capfd: pytest.CaptureFixture[str]) -> None:
    nftables.run("add table inet one; add table ip two")
    assert {(e["table"]["family"], e["table"]["name"]) for e in nft_list()} == {
        ("inet", "one"),
        ("ip", "two"),
    }
    with pytest.raises(nftables.NftError):
        nftables.run("add table inet three\nadd rule inet nowhere nothing accept")
    assert len(nft_list()) == 2
    nftables.run("list ruleset")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("commands", "number", "words"),
    [
        ("add chain inet nowhere c", errno.ENOENT, r"^nftables: No such file or directory"),
        ("create table inet t", errno.EEXIST, r"^nftables: File exists$"),
        ("delete chain inet t target", errno.EBUSY, r"^nftables: Device or resource busy$"),
        ("make me a table", errno.EIO, r"^nftables: syntax error, unexpected \w+"),
        ("", None, ""),
    ],
)
def test_errors(table: object, commands: str, number: int | None, words: str) -> None:
    nftables.run("add element inet t v { 10.0.0.1 : goto target }")
    if number is None:
        nftables.run(commands)
        return
    with pytest.raises(nftables.NftError, match=words) as caught:
        nftables.run(commands)
    assert caught.value.errno == number
    assert caught.value.commands == commands
    assert "\n" not in str(caught.value)


def test_without_rights(host: Host) -> None:
    """In a child that has given up CAP_NET_ADMIN, as an unprivileged user has."""
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        try:
            nftables.run("add table inet t")
        except nftables.NftError as error:
            os._exit(error.errno or 0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EPERM


def test_with_many_descriptors_open(host: Host) -> None:
    """libnftables waits by select(2), which ends a process for a descriptor of 1,024 or more."""
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2000, 2000))
        for _ in range(1100):
            os.open("/dev/null", os.O_RDONLY)
        try:
            nftables.run("add table inet t")
            nftables.run("add table inet t; add chain inet t c { type filter; }")
        except nftables.NftError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    # The second one has a fault, so that its report is read too.
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EIO
    assert [entry["table"]["name"] for entry in nft_list()] == ["t"]


def test_available(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nftables.available()
    monkeypatch.setattr(nftables, "_usable", {})
    monkeypatch.setattr(nftables, "_library", None)
    monkeypatch.setattr(nftables, "LIBRARY", "libnothing.so.1")
    assert not nftables.available()
    with pytest.raises(nftables.NftError, match=r"libnothing\.so\.1 cannot be loaded") as caught:
        nftables.run("add table inet t")
    assert caught.value.errno == errno.ENOSYS


def test_run_in_threads_of_several_namespaces(host: Host, sandbox: Sandbox) -> None:
    spaces = [sandbox() for _ in range(3)]
    failures: list[Exception] = []

    def work(space: Namespace, number: int) -> None:
        try:
            with namespace.open_path(space.path) as opened, opened.enter():
                for turn in range(5):
                    nftables.run(f"add table inet {space.name.replace('-', '_')}_{number}_{turn}")
        except Exception as error:  # noqa: BLE001 - reported by the test
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(space, number)) for space in spaces for number in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert nft_list() == []
    for space in spaces:
        names = [entry["table"]["name"] for entry in nft_list(space)]
        assert len(names) == 10
        assert all(name.startswith(space.name.replace("-", "_")) for name in names)


# --- netlink: read what nft made -----------------------------------------------------------------


def test_chains(table: NetfilterSocket) -> None:
    assert nfnetlink.supported(table)
    assert nfnetlink.chain_exists(table, NFPROTO_INET, "t", "target")
    assert not nfnetlink.chain_exists(table, NFPROTO_INET, "t", "targe")
    assert not nfnetlink.chain_exists(table, NFPROTO_INET, "u", "target")
    assert not nfnetlink.chain_exists(table, NFPROTO_IPV4, "t", "target")
    run_in(None, ["nft", "add chain inet t second; add table inet u; add chain inet u third"])
    assert nfnetlink.chains(table, NFPROTO_INET, "t") == ["target", "second"]
    assert nfnetlink.chains(table, NFPROTO_INET, "nowhere") == []


def test_sets(table: NetfilterSocket) -> None:
    run_in(None, ["nft", "add table inet u; add set inet u x { type ipv4_addr; }"])
    assert nfnetlink.sets(table, NFPROTO_INET, "t") == ["m", "v", "s"]
    assert nfnetlink.sets(table, NFPROTO_INET, "u") == ["x"]
    assert nfnetlink.sets(table, NFPROTO_IPV4, "t") == []
    assert nfnetlink.sets(table, NFPROTO_INET, "nowhere") == []


def test_rules(table: NetfilterSocket) -> None:
    run_in(None, ["nft", "add chain inet t other; add rule inet t target tcp dport 1 goto other"])
    expected = [entry["rule"] for entry in nft_list() if "rule" in entry]
    found = nfnetlink.rules(table, NFPROTO_INET, "t", "target")
    assert [rule.handle for rule in found] == [rule["handle"] for rule in expected]
    assert [rule.comment for rule in found] == ["first", "", ""]
    assert [rule.chain for rule in found] == ["", "", "other"]
    assert nfnetlink.rules(table, NFPROTO_INET, "t", "nowhere") == []
    assert nfnetlink.rules(table, NFPROTO_INET, "nowhere", "target") == []


def test_rules_of_iptables(netfilter: NetfilterSocket) -> None:
    comment = 'name: "net" id: "one"'
    run_in(None, ["iptables", "-t", "nat", "-N", "CNI-1"])
    rule = ["-s", "10.0.0.1", "-j", "CNI-1", "-m", "comment", "--comment", comment]
    run_in(None, ["iptables", "-t", "nat", "-A", "POSTROUTING", *rule])
    (found,) = nfnetlink.rules(netfilter, NFPROTO_IPV4, "nat", "POSTROUTING")
    assert (found.comment, found.chain) == (comment, "CNI-1")


def test_elements(table: NetfilterSocket) -> None:
    longest = "x" * 128
    run_in(
        None,
        [
            "nft",
            'add element inet t v { 10.0.0.1 comment "one" : goto target, 10.0.0.2 : drop }',
        ],
    )
    run_in(None, ["nft", f'add element inet t v {{ 10.0.0.3 comment "{longest}" : jump target }}'])
    run_in(None, ["nft", 'add element inet t s { "veth1" comment "ü" }'])
    one = Element(bytes((10, 0, 0, 1)), "one")
    two = Element(bytes((10, 0, 0, 2)), "")
    three = Element(bytes((10, 0, 0, 3)), longest)
    port = Element(b"veth1".ljust(16, b"\0"), "ü")
    for expected in (one, two, three):
        assert nfnetlink.element(table, NFPROTO_INET, "t", "v", expected.key) == expected
    assert nfnetlink.element(table, NFPROTO_INET, "t", "s", port.key) == port
    assert nfnetlink.element(table, NFPROTO_INET, "t", "v", key(99)) is None
    assert nfnetlink.element(table, NFPROTO_INET, "t", "nowhere", key(1)) is None
    found = nfnetlink.elements(table, NFPROTO_INET, "t", "v")
    assert sorted(found, key=lambda item: item.key) == [one, two, three]
    assert nfnetlink.elements(table, NFPROTO_INET, "t", "v", "on") == [one]
    assert nfnetlink.elements(table, NFPROTO_INET, "t", "v", "target") == []
    assert nfnetlink.elements(table, NFPROTO_INET, "t", "nowhere") == []
    assert nfnetlink.elements(table, NFPROTO_INET, "nowhere", "m") == []


# --- netlink: write what nft reads ---------------------------------------------------------------


def test_elements_written(table: NetfilterSocket) -> None:
    table.commit(
        [
            nfnetlink.add_element(NFPROTO_INET, "t", "m", key(1), "one"),
            nfnetlink.add_element(NFPROTO_INET, "t", "s", b"veth1".ljust(16, b"\0"), "port"),
        ]
    )
    listed = run_in(None, ["nft", "list", "table", "inet", "t"]).stdout
    assert '10.0.0.1 comment "one"' in listed
    assert '"veth1" comment "port"' in listed


def test_many_changes_in_one_transaction(table: NetfilterSocket) -> None:
    table.commit([add(number) for number in range(5000)])
    assert len(nfnetlink.elements(table, NFPROTO_INET, "t", "m")) == 5000
    deletions = [nfnetlink.delete_element(NFPROTO_INET, "t", "m", key(n)) for n in range(5000)]
    with pytest.raises(NetlinkError, match="delete 0a000005 from inet t m: No such file"):
        table.commit([*deletions, deletions[5]])
    assert len(nfnetlink.elements(table, NFPROTO_INET, "t", "m")) == 5000
    table.commit(deletions)
    assert nfnetlink.elements(table, NFPROTO_INET, "t", "m") == []


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_refusal_undoes_all(table: NetfilterSocket, position: int) -> None:
    table.commit([add(1)])
    changes = [add(2), add(3)]
    changes.insert(position, add(1))
    with pytest.raises(NetlinkError, match="add 0a000001 to inet t m: File exists") as caught:
        table.commit(changes)
    assert caught.value.errno == errno.EEXIST
    assert [item.key for item in nfnetlink.elements(table, NFPROTO_INET, "t", "m")] == [key(1)]
    # The socket is fit for more.
    table.commit([add(2)])
    assert nfnetlink.element(table, NFPROTO_INET, "t", "m", key(2)) is not None


def test_rules_and_chains_deleted(table: NetfilterSocket) -> None:
    first, second = nfnetlink.rules(table, NFPROTO_INET, "t", "target")
    table.commit([nfnetlink.delete_rule(NFPROTO_INET, "t", "target", first.handle)])
    assert nfnetlink.rules(table, NFPROTO_INET, "t", "target") == [second]
    nftables.run("add chain inet t other; add rule inet t other goto target")
    (jump,) = nfnetlink.rules(table, NFPROTO_INET, "t", "other")
    for refused in (
        nfnetlink.delete_chain(NFPROTO_INET, "t", "target"),
        nfnetlink.delete_chain(NFPROTO_INET, "t", "other", empty=True),
    ):
        with pytest.raises(NetlinkError) as caught:
            table.commit([refused])
        assert caught.value.errno == errno.EBUSY
    table.commit(
        [
            nfnetlink.delete_rule(NFPROTO_INET, "t", "other", jump.handle),
            nfnetlink.delete_chain(NFPROTO_INET, "t", "other", empty=True),
            nfnetlink.delete_chain(NFPROTO_INET, "t", "target"),
        ]
    )
    assert nfnetlink.chains(table, NFPROTO_INET, "t") == []


def test_a_set_goes_with_its_rule_unless_it_has_elements(table: NetfilterSocket) -> None:
    _, rule = nfnetlink.rules(table, NFPROTO_INET, "t", "target")
    deletions = [
        nfnetlink.delete_rule(NFPROTO_INET, "t", "target", rule.handle),
        nfnetlink.delete_set(NFPROTO_INET, "t", "m"),
    ]
    with pytest.raises(NetlinkError) as caught:  # the rule refers to it
        table.commit(deletions[1:])
    assert caught.value.errno == errno.EBUSY
    table.commit([add(1)])
    with pytest.raises(NetlinkError) as caught:
        table.commit(deletions)
    assert caught.value.errno == errno.EBUSY
    assert rule in nfnetlink.rules(table, NFPROTO_INET, "t", "target")
    table.commit([nfnetlink.delete_element(NFPROTO_INET, "t", "m", key(1))])
    table.commit(deletions)
    assert nfnetlink.sets(table, NFPROTO_INET, "t") == ["v", "s"]
    with pytest.raises(NetlinkError) as caught:
        table.commit([add(1)])
    assert caught.value.errno == errno.ENOENT


def test_update_looks_again_when_another_was_faster(table: NetfilterSocket) -> None:
    table.commit([add(1), add(2)])
    looks = 0

    def left() -> list[object]:
        nonlocal looks
        looks += 1
        found = nfnetlink.elements(table, NFPROTO_INET, "t", "m")
        if looks == 1:
            run_in(None, ["nft", "delete element inet t m { 10.0.0.1 }"])
        return [nfnetlink.delete_element(NFPROTO_INET, "t", "m", item.key) for item in found]

    table.update(left)
    assert looks == 2
    assert nfnetlink.elements(table, NFPROTO_INET, "t", "m") == []


@pytest.mark.parametrize("lost", ["set one", "map two", "chain three"])
def test_what_was_declared_and_deleted_is_declared_again(
    netfilter: NetfilterSocket, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Nothing refers to these, so the chain by which they seem to be there is whole."""
    declarations = (
        "set one { type ipv4_addr; }",
        "map two { type ipv4_addr : ipv4_addr; }",
        "chain three",
    )
    chain = ConstantChain("rules", {"a comment": "accept"})
    runs = []
    run = nftables.run

    def count(commands: str) -> None:
        runs.append(commands)
        run(commands)

    monkeypatch.setattr(nftables, "run", count)
    number = 0

    def build() -> list[NetlinkRequest]:
        constant_rules.set_up(netfilter, declarations, [chain])
        jump = nfnetlink.add_rule(NFPROTO_INET, constant_rules.TABLE, "three", [("counter", b"")])
        return [
            nfnetlink.add_element(NFPROTO_INET, constant_rules.TABLE, "one", key(number), "c"),
            nfnetlink.add_element(
                NFPROTO_INET, constant_rules.TABLE, "two", key(number), "c", key(9)
            ),
            jump,
        ]

    netfilter.update(build)
    number += 1
    netfilter.update(build)
    assert len(runs) == 1
    kind, name = lost.split()
    run_in(None, ["nft", f"flush chain inet pycni {name}" if kind == "chain" else "list tables"])
    run_in(None, ["nft", f"delete {kind} inet pycni {name}"])
    assert [one.split()[1] for one in constant_rules.missing(netfilter, declarations)] == [name]
    number += 1
    netfilter.update(build)
    assert constant_rules.missing(netfilter, declarations) == []
    assert len(runs) == 2
    number += 1
    netfilter.update(build)
    assert len(runs) == 2


def test_commit_without_rights(host: Host) -> None:
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        try:
            NetfilterSocket().commit([add(1)])
        except NetlinkError as error:
            os._exit(error.errno or 0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EPERM


# --- sockets -------------------------------------------------------------------------------------


def test_an_idle_socket_serves_the_next(host: Host) -> None:
    with namespace.current() as here, namespace.create() as other:
        one = nfnetlink.acquire(here)
        nfnetlink.release(one, here)
        assert nfnetlink.acquire(here) is one
        with other.enter():
            inside = nfnetlink.acquire(other)
        assert inside is not one
        nfnetlink.release(inside, other)
        assert inside.fileno() == -1
        nfnetlink.release(one, here)
        assert one.fileno() >= 0


def test_no_idle_socket_keeps_a_namespace_that_the_process_has_left(host: Host) -> None:
    with namespace.current() as here, namespace.create() as other:
        one = nfnetlink.acquire(here)
        nfnetlink.release(one, here)
        with other.enter():
            two = nfnetlink.acquire(other)
            assert two is not one
            nfnetlink.release(two, other)
            assert one.fileno() == -1
        three = nfnetlink.acquire(here)
        assert three is not two
        nfnetlink.release(three, here)
        assert two.fileno() == -1
