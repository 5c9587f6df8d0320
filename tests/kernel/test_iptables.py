"""The iptables programs as we call them, on both kinds of iptables; and running programs at all."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from harness import Host, run_in
from harness.kernel_state import iptables_saved
from harness.process import of_this_process
from pycni.kernel import process
from pycni.kernel.netfilter import iptables, iptables_legacy, nat_rules
from pycni.kernel.netfilter.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6, NetfilterSocket

COMMENT = iptables.comment('name: "net" id: "one"')
RULES = [
    f"-A CNI-1 -d 10.0.0.0/24 {COMMENT} -j ACCEPT",
    f"-A POSTROUTING -s 10.0.0.1/32 {COMMENT} -j CNI-1",
]


@pytest.fixture
def legacy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host whose iptables is the legacy one: first in PATH, under the plain names."""
    programs = [
        f"{name}{end}" for name in ("iptables", "ip6tables") for end in ("", "-save", "-restore")
    ]
    for name in programs:
        family, dash, end = name.partition("-")
        found = shutil.which(f"{family}-legacy{dash}{end}", path=iptables.SYSTEM_PATH)
        if found is None:
            pytest.skip("no iptables-legacy")
        (tmp_path / name).symlink_to(os.path.realpath(found))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def saved(program: str = "iptables") -> list[str]:
    return [line for line in iptables_saved("nat", f"{program}-save") if "CNI" in line]


def ensure(netfilter: NetfilterSocket, family: int, rules: list[str], chain: str) -> list[str]:
    """Make a chain and rules that are not there; gives the lines that were carried out."""
    done: list[str] = []

    def build() -> list[str]:
        present = iptables.present(netfilter, family, "nat", [chain])
        done[:] = iptables.missing(present, [chain], rules)
        return done

    iptables.update(family, "nat", build)
    return done


def test_a_line_that_the_programs_cut(netfilter: NetfilterSocket) -> None:
    """They read so many bytes of a line, and would take the rest of it for a line of its own."""
    comment = " -m comment --comment "
    rule = "-A CNI-1 -p tcp"
    while len(rule) < 10_239:
        rule += comment + "x" * min(220, 10_239 - len(rule) - len(comment))
    rule += "-A PREROUTING -p tcp --dport 22 -j CNI-1"
    for program in ("", "-legacy"):
        with pytest.raises(iptables.IPTablesError, match="too long"):
            iptables.restore(NFPROTO_IPV4, "nat", [":CNI-1 - [0:0]", rule], program)
        assert saved(f"iptables{program}") == []


def check_life(netfilter: NetfilterSocket) -> None:
    assert not iptables.has_chain(netfilter, NFPROTO_IPV4, "nat", "CNI-1")
    lines = ensure(netfilter, NFPROTO_IPV4, RULES, "CNI-1")
    assert lines == ["-N CNI-1", *RULES]
    assert saved()[0].startswith(":CNI-1 ")
    assert sorted(saved()[1:]) == sorted(RULES)
    assert [iptables.comment_of(line) for line in saved()[1:]] == ['name: "net" id: "one"'] * 2
    assert iptables.has_chain(netfilter, NFPROTO_IPV4, "nat", "CNI-1")
    assert ensure(netfilter, NFPROTO_IPV4, RULES, "CNI-1") == []

    more = [*RULES, f"-A POSTROUTING -s 10.0.0.2/32 {COMMENT} -j CNI-1"]
    lines = ensure(netfilter, NFPROTO_IPV4, more, "CNI-1")
    assert lines == more[2:]
    assert len(saved()) == 4
    iptables.undo(NFPROTO_IPV4, "nat", lines)
    assert len(saved()) == 3


def test_life_of_a_chain(netfilter: NetfilterSocket) -> None:
    check_life(netfilter)
    iptables.undo(NFPROTO_IPV4, "nat", ["-N CNI-1", *RULES])
    assert saved() == []
    check_life(netfilter)
    netfilter.commit(iptables.removal(netfilter, NFPROTO_IPV4, "nat", "CNI-1", ["POSTROUTING"]))
    assert saved() == []
    assert iptables.removal(netfilter, NFPROTO_IPV4, "nat", "CNI-1", ["POSTROUTING"]) == []
    assert not iptables_legacy.has_table(NFPROTO_IPV4, "nat")


def test_life_of_a_legacy_chain(netfilter: NetfilterSocket, legacy: None) -> None:
    check_life(netfilter)
    assert iptables_legacy.has_table(NFPROTO_IPV4, "nat")
    assert iptables.removal(netfilter, NFPROTO_IPV4, "nat", "CNI-1", ["POSTROUTING"]) == []
    run_in(None, ["iptables", "-t", "nat", "-N", "CNI-2"])
    lines = iptables.legacy_lines(NFPROTO_IPV4, "nat", "CNI-1")
    assert iptables.legacy_lines(NFPROTO_IPV4, "nat", "CNI") == []
    iptables.restore_legacy(NFPROTO_IPV4, "nat", iptables.gone(lines, ["CNI-1", "CNI-3"]))
    assert [line.split()[0] for line in saved()] == [":CNI-2"]
    assert iptables.has_chain(netfilter, NFPROTO_IPV4, "nat", "CNI-2")
    assert not iptables.has_chain(netfilter, NFPROTO_IPV4, "nat", "CNI-1")


def test_what_legacy_names_is_asked_without_a_program(
    host: Host, legacy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in(None, ["iptables", "-t", "nat", "-N", "CNI-1"])
    run_in(None, ["ip6tables", "-t", "nat", "-N", "CNI-2"])
    monkeypatch.setattr(process, "run", lambda *_, **__: pytest.fail("a program was run"))
    for family, there in ((NFPROTO_IPV4, "CNI-1"), (NFPROTO_IPV6, "CNI-2")):
        for chain in ("CNI-1", "CNI-2", "CNI-"):
            assert iptables_legacy.names(family, "nat", chain) == (chain == there)
        assert iptables.legacy_lines(family, "nat", "CNI-") == []


# What leads ports elsewhere, in the words of iptables and of nft.
MATCHES = [
    ("-p tcp --dport 80", "tcp dport 80"),
    ("-p udp --dport 53 -d 192.0.2.1", "ip daddr 192.0.2.1 udp dport 53"),
    ("-p tcp --dport 443 -s 10.1.0.0/20", "ip saddr 10.1.0.0/20 tcp dport 443"),
    ("-p tcp --dport 443 -s 10.1.2.0/24", "ip saddr 10.1.2.0/24 tcp dport 443"),
    ("-p sctp --dport 36412 -s 127.0.0.1", "ip saddr 127.0.0.1 sctp dport 36412"),
    ("-s 10.1.2.3", "ip saddr 10.1.2.3"),
]


@pytest.mark.parametrize(("match", "nft"), MATCHES)
def test_a_rule_is_read_alike_no_matter_who_keeps_it(
    netfilter: NetfilterSocket, match: str, nft: str
) -> None:
    """By netlink, as lines of either iptables, and written by nft itself."""
    found = []
    run_in(None, ["nft", "add table ip mine; add chain ip mine CNI-1; add chain ip mine CNI-2"])
    for target, verdict in (
        ("DNAT --to-destination 10.9.8.7:81", "dnat to 10.9.8.7:81"),
        ("CNI-2", "jump CNI-2"),
    ):
        if "dport" not in match and "DNAT" in target:
            continue
        for program in ("iptables", "iptables-legacy"):
            for chain in ("CNI-1", "CNI-2"):
                run_in(None, [program, "-t", "nat", "-N", chain], check=False)
            run_in(None, [program, "-t", "nat", "-F", "CNI-1"])
            run_in(None, [program, *f"-t nat -A CNI-1 {match} -j {target}".split()])
            lines = run_in(None, [f"{program}-save", "-t", "nat"]).stdout.splitlines()
            found += nat_rules.parse_lines(lines, "CNI-1")
        found += nat_rules.read(netfilter, NFPROTO_IPV4, "nat", "CNI-1")
        run_in(None, ["nft", f"flush chain ip mine CNI-1; add rule ip mine CNI-1 {nft} {verdict}"])
        found += nat_rules.read(netfilter, NFPROTO_IPV4, "mine", "")
        plain = [rule.replace(line="", handle=0, matches="") for rule in found]
        assert plain == [plain[0]] * 4
        assert not plain[0].conditional
        assert (str(plain[0].target), plain[0].target_port) in (("10.9.8.7", 81), ("None", 0))
        found.clear()


@pytest.mark.parametrize("form", ["meta l4proto 6", "ip protocol 6", "@nh,72,8 6"])
def test_a_protocol_is_read_from_meta_and_from_the_header(
    netfilter: NetfilterSocket, form: str
) -> None:
    """iptables-nft wrote the first form until 1.8.10, and writes the second one since."""
    run_in(None, ["nft", "add table ip mine; add chain ip mine CNI-1"])
    address = "ip daddr 192.0.2.0/25"
    for match in (f"{form} {address} @th,16,16 80", f"{address} {form} @th,16,16 80"):
        run_in(None, ["nft", f"add rule ip mine CNI-1 {match} counter return"])
    rules = nat_rules.read(netfilter, NFPROTO_IPV4, "mine", "CNI-1")
    for rule in rules:
        assert (rule.protocol, rule.ports, str(rule.destination)) == ("tcp", (80,), "192.0.2.0/25")
        assert rule.jump == nat_rules.RETURN
        assert not rule.conditional
    assert len(rules) == 2


@pytest.mark.parametrize(
    ("family", "match"),
    [
        ("ip", "@nh,72,8 != 6"),
        ("ip", "@nh,72,8 & 0xf0 == 0"),
        ("ip", "@nh,72,16 6"),
        ("ip", "meta l4proto & 0xf0 == 0"),
        ("ip", "@th,16,16 & 0xff00 == 0x1f00"),
        ("ip6", "@nh,72,8 6"),  # in the sender's address
        ("ip6", "@nh,96,32 1"),
    ],
)
def test_what_is_like_a_protocol_or_a_port_makes_a_rule_conditional(
    netfilter: NetfilterSocket, family: str, match: str
) -> None:
    run_in(None, ["nft", f"add table {family} mine; add chain {family} mine CNI-1"])
    run_in(None, ["nft", f"add rule {family} mine CNI-1 {match} return"])
    number = NFPROTO_IPV4 if family == "ip" else NFPROTO_IPV6
    (rule,) = nat_rules.read(netfilter, number, "mine", "CNI-1")
    assert rule.conditional
    assert (rule.protocol, rule.ports, rule.source, rule.destination) == ("", (), None, None)


def test_what_is_not_understood_makes_a_rule_conditional(netfilter: NetfilterSocket) -> None:
    for program in ("iptables", "iptables-legacy"):
        run_in(None, [program, "-t", "nat", "-N", "CNI-1"])
        for match in (
            "-m multiport --dports 1,2 -i eth0",
            "-m multiport --dports 1,2 ! -s 10.0.0.1",
            "-m multiport --sports 3",
            "! --dport 4",
        ):
            run_in(None, [program, *f"-t nat -A CNI-1 -p tcp {match} -j ACCEPT".split()])
    lines = run_in(None, ["iptables-legacy-save", "-t", "nat"]).stdout.splitlines()
    for rules in (
        nat_rules.read(netfilter, NFPROTO_IPV4, "nat", "CNI-1"),
        nat_rules.parse_lines(lines, "CNI-1"),
    ):
        assert [rule.conditional for rule in rules] == [True] * 4
        assert [rule.ports for rule in rules[:2]] == [(1, 2)] * 2


@pytest.mark.parametrize(
    "line",
    [
        ":CNI-1 - [0:0]",
        "COMMIT",
        "-A",
        "-A X -p",
        "-A X --dport a",
        "-A X --to-destination 10.0.0.1-10.0.0.2:80",
    ],
)
def test_a_line_that_makes_no_sense(line: str) -> None:
    assert nat_rules.parse_line(line) is None


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_what_another_makes_meanwhile_stays(
    netfilter: NetfilterSocket, kind: str, request: pytest.FixtureRequest
) -> None:
    """Two ADDs at once both find the shared chain missing."""
    if kind == "legacy":
        request.getfixturevalue("legacy")
    of_another = f"-A CNI-1 -d 10.9.0.0/24 {COMMENT} -j ACCEPT"
    reads = []

    def build() -> list[str]:
        present = iptables.present(netfilter, NFPROTO_IPV4, "nat", ["CNI-1"])
        lines = iptables.missing(present, ["CNI-1"], RULES)
        if not reads:
            iptables.restore(NFPROTO_IPV4, "nat", ["-N CNI-1", of_another])
        reads.append(present)
        return lines

    iptables.update(NFPROTO_IPV4, "nat", build)
    assert sorted(saved()[1:]) == sorted([*RULES, of_another])
    assert len(reads) == 2


def test_families_are_apart(netfilter: NetfilterSocket) -> None:
    ensure(netfilter, NFPROTO_IPV6, [f"-A CNI-6 -d fd00::/64 {COMMENT} -j ACCEPT"], "CNI-6")
    assert saved() == []
    assert saved("ip6tables") == [
        ":CNI-6 -",
        f"-A CNI-6 -d fd00::/64 {COMMENT} -j ACCEPT",
    ]
    assert iptables.has_chain(netfilter, NFPROTO_IPV6, "nat", "CNI-6")
    assert not iptables.has_chain(netfilter, NFPROTO_IPV4, "nat", "CNI-6")


def test_a_bad_line_undoes_all(netfilter: NetfilterSocket) -> None:
    bad = "-A POSTROUTING -s 10.0.0.1/32 -j NOWHERE"
    with pytest.raises(iptables.IPTablesError) as caught:
        ensure(netfilter, NFPROTO_IPV4, [*RULES, bad], "CNI-1")
    assert saved() == []
    text = str(caught.value)
    assert text.startswith("iptables-restore: ")
    assert "\n" not in text
    assert "NOWHERE" in text


def test_missing_program(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iptables, "SYSTEM_PATH", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    assert not iptables.available(NFPROTO_IPV4)
    with pytest.raises(iptables.IPTablesError, match="ip6tables-save: not found in PATH") as caught:
        iptables.save(NFPROTO_IPV6, "nat")
    assert caught.value.errno == errno.ENOENT


# --- running a program ---------------------------------------------------------------------------


def script(path: Path, text: str) -> list[str]:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return [str(path)]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_run() -> None:
    before = of_this_process()
    done = process.run(["/bin/sh", "-c", "cat; echo error >&2; exit 3"], b"input")
    assert done == (3, b"input", b"error\n")
    assert process.run(["/bin/sh", "-c", "kill -TERM $$"]) == (-15, b"", b"")
    assert process.run(["/usr/bin/env"], env={"A": "b"}) == (0, b"A=b\n", b"")
    assert of_this_process() == before


def test_run_with_much_output_and_input() -> None:
    data = os.urandom(3_000_000)
    assert process.run(["/bin/cat"], data) == (0, data, b"")
    code, stdout, stderr = process.run(
        ["/bin/sh", "-c", "head -c 2000000 /dev/zero; head -c 2000000 /dev/zero >&2"], data
    )
    assert (code, len(stdout), len(stderr)) == (0, 2_000_000, 2_000_000)


def test_run_of_a_program_that_does_not_read() -> None:
    assert process.run(["/bin/true"], bytes(1_000_000)) == (0, b"", b"")
    code, _, _ = process.run(["/bin/sh", "-c", "exec <&-; sleep 0.1; exit 5"], bytes(1_000_000))
    assert code == 5


def test_program_gets_default_signals() -> None:
    """Python ignores SIGPIPE; a program that inherits that does not end when it should."""
    code, stdout, _ = process.run(["/bin/grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"])
    assert code == 0
    ignored = int(stdout.split(b"SigIgn:")[1].split()[0], 16)
    assert not ignored & 1 << 12


def test_run_ends_with_the_program_not_with_who_holds_its_output(tmp_path: Path) -> None:
    code, stdout, _ = process.run(
        ["/bin/sh", "-c", f"sleep 100 & echo $! > {tmp_path}/pid; echo done"]
    )
    pid = int((tmp_path / "pid").read_text())
    try:
        assert (code, stdout) == (0, b"done\n")
        os.kill(pid, 0)
    finally:
        os.kill(pid, 9)


def test_timeout_kills(tmp_path: Path) -> None:
    before = descriptors()
    sleeper = script(tmp_path / "sleeper", f"echo $$ > {tmp_path}/pid; exec sleep 100")
    with pytest.raises(TimeoutError, match=r"not finished after 0\.3 seconds, killed.*sleeper"):
        process.run(sleeper, timeout=0.3)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert descriptors() == before


def test_program_that_cannot_start(tmp_path: Path) -> None:
    before = descriptors()
    with pytest.raises(FileNotFoundError):
        process.run([str(tmp_path / "nothing")])
    (tmp_path / "plain").write_text("text")
    with pytest.raises(PermissionError):
        process.run([str(tmp_path / "plain")])
    assert descriptors() == before


def test_program_that_is_still_being_written(tmp_path: Path) -> None:
    shutil.copy("/bin/true", tmp_path / "busy")
    with open(tmp_path / "busy", "ab") as file:
        closer = threading.Timer(0.2, file.close)
        closer.start()
        assert process.run([str(tmp_path / "busy")]) == (0, b"", b"")
        closer.join()


def test_standard_descriptors_may_be_closed() -> None:
    pid = os.fork()
    if pid == 0:
        for fd in (0, 1, 2):
            os.close(fd)
        done = process.run(["/bin/sh", "-c", "cat; echo error >&2"], b"input")
        os._exit(0 if done == (0, b"input", b"error\n") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_run_in_many_threads() -> None:
    results: list[bool] = []

    def work(number: int) -> None:
        data = str(number).encode() * 50_000
        results.append(process.run(["/bin/cat"], data) == (0, data, b""))

    before = descriptors()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 32
    assert descriptors() == before
