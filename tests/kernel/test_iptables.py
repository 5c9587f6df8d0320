"""The iptables programs as we call them, on both kinds of iptables; and running programs at all."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Host, run_in
from pycni.kernel import iptables, process
from pycni.kernel.nfnetlink import NFPROTO_IPV4, NFPROTO_IPV6, NetfilterSocket

COMMENT = iptables.comment('name: "net" id: "one"')
RULES = [
    f"-A CNI-1 -d 10.0.0.0/24 {COMMENT} -j ACCEPT",
    f"-A POSTROUTING -s 10.0.0.1/32 {COMMENT} -j CNI-1",
]


@pytest.fixture
def netfilter(host: Host) -> Iterator[NetfilterSocket]:
    with NetfilterSocket() as netfilter:
        yield netfilter


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
    lines = run_in(None, [f"{program}-save", "-t", "nat"]).stdout.splitlines()
    return [line for line in lines if "CNI" in line]


def check_life(netfilter: NetfilterSocket) -> None:
    assert not iptables.has_chain(netfilter, NFPROTO_IPV4, "nat", "CNI-1")
    lines = iptables.ensure(netfilter, NFPROTO_IPV4, "nat", "CNI-1", RULES)
    assert lines == [":CNI-1 - [0:0]", *RULES]
    assert saved()[0].startswith(":CNI-1 ")
    assert sorted(saved()[1:]) == sorted(RULES)
    assert [iptables.comment_of(line) for line in saved()[1:]] == ['name: "net" id: "one"'] * 2
    assert iptables.has_chain(netfilter, NFPROTO_IPV4, "nat", "CNI-1")
    assert iptables.ensure(netfilter, NFPROTO_IPV4, "nat", "CNI-1", RULES) == []

    more = [*RULES, f"-A POSTROUTING -s 10.0.0.2/32 {COMMENT} -j CNI-1"]
    lines = iptables.ensure(netfilter, NFPROTO_IPV4, "nat", "CNI-1", more)
    assert lines == more[2:]
    assert len(saved()) == 4
    iptables.undo(NFPROTO_IPV4, "nat", lines)
    assert len(saved()) == 3


def test_life_of_a_chain(netfilter: NetfilterSocket) -> None:
    check_life(netfilter)
    iptables.undo(NFPROTO_IPV4, "nat", [":CNI-1 - [0:0]", *RULES])
    assert saved() == []
    check_life(netfilter)
    netfilter.commit(iptables.removal(netfilter, NFPROTO_IPV4, "nat", "CNI-1", ["POSTROUTING"]))
    assert saved() == []
    assert iptables.removal(netfilter, NFPROTO_IPV4, "nat", "CNI-1", ["POSTROUTING"]) == []
    assert not iptables.has_legacy(NFPROTO_IPV4, "nat")


def test_life_of_a_legacy_chain(netfilter: NetfilterSocket, legacy: None) -> None:
    check_life(netfilter)
    assert iptables.has_legacy(NFPROTO_IPV4, "nat")
    assert iptables.removal(netfilter, NFPROTO_IPV4, "nat", "CNI-1", ["POSTROUTING"]) == []
    run_in(None, ["iptables", "-t", "nat", "-N", "CNI-2"])
    iptables.remove_legacy(NFPROTO_IPV4, "nat", ["CNI-1", "CNI-3"])
    assert [line.split()[0] for line in saved()] == [":CNI-2"]


def test_families_are_apart(netfilter: NetfilterSocket) -> None:
    iptables.ensure(
        netfilter, NFPROTO_IPV6, "nat", "CNI-6", [f"-A CNI-6 -d fd00::/64 {COMMENT} -j ACCEPT"]
    )
    assert saved() == []
    assert saved("ip6tables") == [
        ":CNI-6 - [0:0]",
        f"-A CNI-6 -d fd00::/64 {COMMENT} -j ACCEPT",
    ]
    assert iptables.has_chain(netfilter, NFPROTO_IPV6, "nat", "CNI-6")
    assert not iptables.has_chain(netfilter, NFPROTO_IPV4, "nat", "CNI-6")


def test_a_bad_line_undoes_all(netfilter: NetfilterSocket) -> None:
    bad = "-A POSTROUTING -s 10.0.0.1/32 -j NOWHERE"
    with pytest.raises(iptables.IPTablesError) as caught:
        iptables.ensure(netfilter, NFPROTO_IPV4, "nat", "CNI-1", [*RULES, bad])
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
    before = descriptors()
    done = process.run(["/bin/sh", "-c", "cat; echo error >&2; exit 3"], b"input")
    assert done == (3, b"input", b"error\n")
    assert process.run(["/bin/sh", "-c", "kill -TERM $$"]) == (-15, b"", b"")
    assert process.run(["/usr/bin/env"], env={"A": "b"}) == (0, b"A=b\n", b"")
    assert descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


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
