from __future__ import annotations

import os
import posix
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.topics import leases as kit
from harness.topics.leases import FIRST, V4, A, B, Network, address
from pycni.spec.config import Attachment
from pycni.spec.errors import CNIError
from pycni.spec.ip import parse_address
from pycni.state.lease_index import BadIndex, LeaseIndex
from pycni.state.leases import Lease, LeaseStore, networks

net = kit.net


@pytest.fixture
def rebuilds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one each time a directory is read to make an index again."""
    counted: list[int] = []
    real = LeaseStore._rebuild

    def count(self: LeaseStore) -> object:
        counted.append(1)
        return real(self)

    monkeypatch.setattr(LeaseStore, "_rebuild", count)
    return counted


# --- the layout on disk ------------------------------------------------------------------------


def test_the_files_are_the_references(net: Network) -> None:
    with net.open() as store:
        assert store.reserve(address(0), A, 0)
        assert store.reserve(parse_address("fd00::2"), A, 1)
    contents = {item.name: item.read_bytes() for item in net.path.iterdir()}
    assert contents == {
        "10.0.0.2": b"a\r\neth0",
        "fd00::2": b"a\r\neth0",
        "last_reserved_ip.0": b"10.0.0.2",
        "last_reserved_ip.1": b"fd00::2",
        "lock": b"",
    }
    modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in net.path.iterdir()}
    assert modes.pop("lock") == 0o750
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(net.path.stat().st_mode) == 0o755
    assert networks(str(net.data_dir)) == ["net"]
    assert net.notes == []


def test_what_leads_nowhere_hides_no_network(net: Network) -> None:
    with net.open() as store:
        assert store.reserve(address(0), A, 0)
    (net.data_dir / "loop").symlink_to("loop")
    (net.data_dir / "long").symlink_to("x" * 300)
    (net.data_dir / "below").symlink_to("/etc/hostname/x")
    assert networks(str(net.data_dir)) == ["net"]


def test_what_is_not_there_is_not_made(net: Network) -> None:
    with net.open(create=False) as store:
        assert store.owned(A) == []
        assert store.leases() == []
        assert store.release(A) == []
        assert store.collect([]) == []
        assert store.holder(address(0)) is None
        assert store.last_reserved(0) is None
        assert store.next_free(V4, FIRST, FIRST) == FIRST
        assert store.recheck() is False
    assert not net.data_dir.exists()
    assert networks(str(net.data_dir)) == []


def test_the_last_reserved_address_shrinks_and_grows(net: Network) -> None:
    for text in ("10.0.0.100", "10.0.0.9", "10.0.0.200"):
        with net.open() as store:
            store.reserve(parse_address(text), A, 0)
            assert store.last_reserved(0) == parse_address(text)
        assert (net.path / "last_reserved_ip.0").read_text() == text


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff\xfe"])
def test_a_last_reserved_address_that_makes_no_sense(net: Network, content: bytes) -> None:
    net.plant("last_reserved_ip.0", content)
    with net.open() as store:
        assert store.last_reserved(0) is None
        assert store.last_reserved(1) is None
    assert len(net.notes) == 1


@pytest.mark.parametrize("name", ["../net", "", ".pycni", "a/b"])
def test_a_network_is_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(CNIError):
        LeaseStore(str(tmp_path), name)


# --- reserve and release -----------------------------------------------------------------------


def test_an_address_is_given_once(net: Network, rebuilds: list[int]) -> None:
    with net.open() as store:
        assert store.reserve(address(0), A, 0)
        assert not store.reserve(address(0), B, 0)
        assert store.owned(A) == [address(0)]
        assert store.owned(B) == []
    assert len(rebuilds) == 1


def test_release_takes_all_addresses_of_the_attachment_only(net: Network) -> None:
    with net.open() as store:
        store.reserve(address(0), A, 0)
        store.reserve(address(1), A, 1)
        store.reserve(address(2), Attachment("a", "eth1"), 0)
        store.reserve(address(3), B, 0)
    with net.open() as store:
        assert sorted(store.release(A)) == [address(0), address(1)]
        assert store.release(A) == []
        assert store.next_free(V4, FIRST, FIRST + 9) == FIRST
    assert sorted(net.files()) == ["10.0.0.4", "10.0.0.5"]


def test_release_of_some(net: Network) -> None:
    with net.open() as store:
        store.reserve(address(0), A, 0)
        store.reserve(address(1), A, 1)
        assert store.release(A, [address(1), address(7)]) == [address(1)]
        assert store.owned(A) == [address(0)]


def test_the_oldest_format_counts_only_without_another_match(net: Network) -> None:
    net.plant("10.0.0.2", b"a")
    net.plant("10.0.0.3", b" a\n")
    net.plant("10.0.0.4", b"b")
    with net.open() as store:
        assert sorted(store.owned(A)) == [address(0), address(1)]
        store.reserve(address(5), A, 0)
        assert store.owned(A) == [address(5)]
        assert store.release(A) == [address(5)]
        assert sorted(store.release(A)) == [address(0), address(1)]
    assert list(net.files()) == ["10.0.0.4"]


def test_white_space_around_a_lease_is_no_part_of_it(net: Network) -> None:
    net.plant("10.0.0.2", b"a\r\neth0\n")
    with net.open() as store:
        assert store.owned(A) == [address(0)]


def test_leases_and_holder(net: Network) -> None:
    net.plant("10.0.0.3", b"old")
    os.utime(net.path / "10.0.0.3", (1, 1_000_000_000))
    net.plant("not-an-address", b"x")
    net.plant("010.0.0.1", b"x")
    with net.open() as store:
        store.reserve(address(0), A, 0)
        since = (net.path / "10.0.0.2").stat().st_mtime
        assert store.leases() == [
            Lease(address(0), "a", "eth0", since),
            Lease(address(1), "old", "", 1_000_000_000),
        ]
        holder = store.holder(address(0))
        assert holder is not None
        assert holder.attachment == A
        assert store.holder(address(9)) is None


# --- what a crash of the reference leaves ------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"\n"])
def test_an_empty_file_is_reclaimed_and_reported(net: Network, content: bytes) -> None:
    with net.open() as store:
        store.reserve(address(0), A, 0)
    net.plant("10.0.0.3", content)
    with net.open() as store:
        assert store.next_free(V4, FIRST, FIRST + 9) == FIRST + 1
        assert store.reserve(address(1), B, 0)
    assert net.files() == {"10.0.0.2": b"a\r\neth0", "10.0.0.3": b"b\r\neth0"}
    assert len(net.notes) == 1
    assert "10.0.0.3" in net.notes[0]


def test_what_is_no_crash_s_is_left(net: Network) -> None:
    """An empty file that is in no one's way, others' files, and names like those of ours."""
    with net.open() as store:
        store.reserve(address(0), A, 0)
    for name in ("10.9.0.1", "backup.new", "10.0.0.9.new", "x.4711-0a1b2c3d.new"):
        net.plant(name, b"")
    net.plant("10.0.0.9.4711-0a1b2c3d.new", b"")
    os.mkfifo(net.path / "10.0.0.3")
    net.plant("10.0.0.4", b"")
    (net.path / "10.0.0.5").hardlink_to(net.path / "10.0.0.4")
    with net.open() as store:
        assert store.next_free(V4, FIRST, FIRST + 9) == FIRST + 4
        assert not store.reserve(address(1), B, 0)
    assert not (net.path / "10.0.0.9.4711-0a1b2c3d.new").exists()
    kept = {path.name for path in net.path.iterdir()} - {"lock", "last_reserved_ip.0"}
    assert kept == {
        "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.9.0.1", "backup.new", "10.0.0.9.new",
        "x.4711-0a1b2c3d.new",
    }  # fmt: skip
    assert net.notes == []


def test_an_empty_file_in_the_way_of_a_known_address(net: Network) -> None:
    """It is there already when the index is made, by somebody who gives no addresses."""
    net.plant("10.0.0.3", b"")
    with LeaseStore(str(net.data_dir), "net", note=net.notes.append) as store:
        assert store.next_free(V4, FIRST + 1, FIRST + 1) is None
    assert net.notes == []
    with net.open() as store:
        assert store.reserve(address(1), B, 0)
    assert "10.0.0.3" in net.notes[0]


def test_text_of_any_kind_keeps_an_address(net: Network) -> None:
    net.plant("10.0.0.2", b"the printer's")
    (net.path / "10.0.0.3").mkdir()
    (net.path / "10.0.0.4").symlink_to("/etc/hostname")
    with net.open() as store:
        assert store.next_free(V4, FIRST, FIRST + 9) == FIRST + 3
        assert not store.reserve(address(0), A, 0)
        assert not store.reserve(address(1), A, 0)
        assert not store.reserve(address(2), A, 0)
        assert store.collect([]) == []
    assert (net.path / "10.0.0.2").read_bytes() == b"the printer's"
    assert net.notes == []


# --- collect -----------------------------------------------------------------------------------


def test_collect_keeps_what_it_is_given(net: Network) -> None:
    net.plant("10.0.0.20", b"old-kept")
    net.plant("10.0.0.21", b"old-gone")
    with net.open() as store:
        store.reserve(address(0), A, 0)
        store.reserve(address(1), B, 0)
        store.reserve(address(2), Attachment("a", "eth1"), 0)
    with net.open() as store:
        ended = store.collect({A, Attachment("old-kept", "eth7")})
        assert [str(lease.address) for lease in ended] == ["10.0.0.3", "10.0.0.4", "10.0.0.21"]
        assert store.owned(B) == []
        assert store.next_free(V4, FIRST, FIRST + 9) == FIRST + 1
    assert sorted(net.files()) == ["10.0.0.2", "10.0.0.20"]
    assert (net.path / "last_reserved_ip.0").exists()
    assert (net.path / "lock").exists()


def test_collect_with_nothing_to_keep(net: Network) -> None:
    with net.open() as store:
        store.reserve(address(0), A, 0)
        assert len(store.collect(frozenset())) == 1
    assert net.files() == {}


# --- the index: believed when it may be --------------------------------------------------------


def test_calls_in_a_row_read_no_directory(
    net: Network, rebuilds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with net.open() as store:
        store.reserve(address(0), A, 0)
    del rebuilds[:]
    monkeypatch.setattr(posix, "listdir", None)
    for number in range(1, 300):
        attachment = Attachment(f"c{number}", "eth0")
        with net.open() as store:
            assert store.owned(attachment) == []
            assert store.next_free(V4, FIRST, FIRST + 999) == FIRST + number
            assert store.reserve(address(number), attachment, 0)
    for number in range(1, 300):
        with net.open(create=False) as store:
            assert store.release(Attachment(f"c{number}", "eth0")) == [address(number)]
    assert rebuilds == []


def test_what_others_write_is_seen_at_once(net: Network) -> None:
    with net.open() as store:
        store.reserve(address(0), A, 0)
    net.plant("10.0.0.3", b"b\r\neth0")
    with net.open() as store:
        assert store.owned(B) == [address(1)]
        assert store.next_free(V4, FIRST, FIRST + 9) == FIRST + 2
    (net.path / "10.0.0.2").unlink()
    with net.open() as store:
        assert store.owned(A) == []
        assert store.next_free(V4, FIRST, FIRST + 9) == FIRST


def rewrite(file: Path, content: bytes) -> None:
    """As `cp` does: the file's name stays, and with it the directory's time."""
    with file.open("r+b") as opened:
        opened.truncate(0)
        opened.write(content)


@pytest.mark.parametrize("before", [A, Attachment("a", "")])
def test_a_file_rewritten_in_place_is_released(net: Network, before: Attachment) -> None:
    """By its new holder: the first one, another, and one that has an address besides."""
    content = b"a" if not before.ifname else b"a\r\neth0"
    with net.open() as store:
        store.reserve(address(0), Attachment("x", "eth0"), 0)
        store.reserve(address(1), A, 0)
        store.reserve(address(5), B, 0)
    rewrite(net.path / "10.0.0.3", content)
    with net.open() as store:
        assert store.next_free(V4, FIRST + 1, FIRST + 1) is None  # the index is made with it
        store.recheck()
        store.reserve(address(6), Attachment("y", "eth0"), 0)
    rewrite(net.path / "10.0.0.3", b"a\r\neth0")
    rewrite(net.path / "10.0.0.2", b"b\r\neth0")
    with net.open() as store:
        assert store.release(A) == [address(1)]
    with net.open() as store:
        released = store.release(B, likely=[address(0), address(7)])
        assert sorted(released) == [address(0), address(5)]  # listed in no order
        assert store.next_free(V4, FIRST, FIRST + 9) == FIRST
    assert sorted(net.files()) == ["10.0.0.8"]


def test_a_file_rewritten_for_who_has_none(net: Network) -> None:
    with net.open() as store:
        store.reserve(address(0), A, 0)
    rewrite(net.path / "10.0.0.2", b"b\r\neth0")
    with net.open() as store:
        assert store.find(A) == []
    rewrite(net.path / "10.0.0.2", b"a\r\neth0")
    with net.open() as store:
        assert store.find(B) == []
        assert store.release(A) == [address(0)]
    assert net.files() == {}


def test_a_removed_network_starts_again(net: Network) -> None:
    with net.open() as store:
        store.reserve(address(0), A, 0)
    for item in net.path.iterdir():
        item.unlink()
    net.path.rmdir()
    with net.open() as store:
        assert store.owned(A) == []
        assert store.reserve(address(0), B, 0)


def test_what_the_index_did_not_see_is_found_by_a_recheck(net: Network) -> None:
    with net.open() as store:
        store.reserve(address(0), A, 0)
    stamp = net.path.stat().st_mtime_ns
    (net.path / "10.0.0.2").unlink()
    net.plant("10.0.0.3", b"b\r\neth0")
    os.utime(net.path, ns=(stamp, stamp))
    with net.open() as store:
        assert store.next_free(V4, FIRST, FIRST) is None
        assert store.recheck() is True
        assert store.next_free(V4, FIRST, FIRST) == FIRST
        assert store.owned(A) == []
        assert store.owned(B) == [address(1)]
        assert store.recheck() is False


def test_an_address_that_only_looked_free_is_not_given_twice(net: Network) -> None:
    with net.open() as store:
        store.reserve(address(0), A, 0)
    stamp = net.path.stat().st_mtime_ns
    net.plant("10.0.0.3", b"b\r\neth0")
    os.utime(net.path, ns=(stamp, stamp))
    with net.open() as store:
        assert store.next_free(V4, FIRST, FIRST + 9) == FIRST + 1
        assert not store.reserve(address(1), A, 0)
        assert store.next_free(V4, FIRST, FIRST + 9) == FIRST + 2
    assert net.files()["10.0.0.3"] == b"b\r\neth0"


def test_without_a_place_for_the_index_all_works(net: Network) -> None:
    net.data_dir.mkdir()
    (net.data_dir / ".pycni").write_text("in the way")
    for number in range(5):
        with net.open() as store:
            assert store.next_free(V4, FIRST, FIRST + 9) == FIRST + number
            assert store.reserve(address(number), Attachment(f"c{number}", "eth0"), 0)
    with net.open() as store:
        assert store.release(Attachment("c2", "eth0")) == [address(2)]
        assert store.next_free(V4, FIRST, FIRST + 9) == FIRST + 2
    with net.open() as store:
        assert store.owned(Attachment("c3", "eth0")) == [address(3)]


def test_more_addresses_of_one_holder_than_the_index_takes(net: Network) -> None:
    for number in range(200):
        net.plant(str(address(number)), b"a")
    with net.open() as store:
        assert store.next_free(V4, FIRST, FIRST + 999) == FIRST + 200
        assert len(store.owned(A)) == 200
        assert len(store.release(A)) == 200
    assert net.files() == {}


@pytest.mark.parametrize("error", [BadIndex("broken"), OSError(28, "No space left on device")])
def test_an_index_that_fails_in_the_middle(
    net: Network, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    with net.open() as store:
        store.reserve(address(0), A, 0)
    for method in ("add", "remove", "next_free", "addresses"):
        with monkeypatch.context() as patch:
            patch.setattr(LeaseIndex, method, fail)
            patch.setattr(LeaseStore, "_open_index_file", _once(LeaseStore._open_index_file))
            with net.open() as store:
                assert store.next_free(V4, FIRST, FIRST + 9) == FIRST + 1
                assert store.reserve(address(1), B, 0)
                assert store.owned(B) == [address(1)]
                assert store.release(B) == [address(1)]
        with net.open() as store:
            assert [lease.attachment for lease in store.leases()] == [A]
            assert store.next_free(V4, FIRST, FIRST + 9) == FIRST + 1


def _once(real: Callable[[LeaseStore], int]) -> Callable[[LeaseStore], int]:
    """The file of the index can be opened once; then the store must do without."""
    calls: list[int] = []

    def opened(store: LeaseStore) -> int:
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(store)

    return opened
