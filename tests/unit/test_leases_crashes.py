"""Leases: the lock, failures, and crashes at any step."""

from __future__ import annotations

import os
import posix
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.topics import leases as kit
from harness.topics.leases import FIRST, V4, A, B, Network, address
from pycni.spec.config import Attachment
from pycni.spec.errors import IO_FAILURE, TRY_AGAIN_LATER, CNIError
from pycni.spec.ip import IPAddress
from pycni.state import leases as leases_module
from pycni.state.leases import LeaseStore

net = kit.net


# --- lock and failures -------------------------------------------------------------------------


def test_a_store_locks_its_network(net: Network) -> None:
    with net.open():
        with pytest.raises(CNIError) as caught, net.open(timeout=0.02):
            pytest.fail("entered")
        with LeaseStore(str(net.data_dir), "other", create=True, timeout=0.02):
            pass
    assert caught.value.code == TRY_AGAIN_LATER
    assert str(net.path / "lock") in caught.value.message
    with net.open(timeout=0.02):
        pass


def test_threads_of_one_process_share_a_network(net: Network) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            attachment = Attachment(f"c{number}", "eth0")
            for _ in range(10):
                with net.open(timeout=60) as store:
                    free = store.next_free(V4, FIRST, FIRST + 99)
                    assert free is not None
                    assert store.reserve(IPAddress.from_int(free, V4), attachment, 0)
                with net.open(timeout=60) as store:
                    assert len(store.release(attachment)) == 1
        except BaseException as error:  # noqa: BLE001 - reported to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert net.files() == {}


def test_what_the_file_system_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CNIError) as caught, LeaseStore(str(tmp_path / "file"), "n", create=True):
        pytest.fail("entered")
    assert caught.value.code == IO_FAILURE
    assert str(tmp_path / "file") in caught.value.message


def test_an_error_in_the_block_gets_a_name(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "10.0.0.2")

    monkeypatch.setattr(leases_module, "create_file", full)
    with pytest.raises(CNIError) as caught, net.open() as store:
        store.reserve(address(0), A, 0)
    assert caught.value.code == IO_FAILURE
    assert "No space left on device" in caught.value.message


# --- crashes -----------------------------------------------------------------------------------

# Everything a store does to the file system goes through these.
OPERATIONS = (
    "open", "close", "write", "pwrite", "read", "pread", "link", "unlink", "rename", "mkdir",
    "ftruncate", "utime", "listdir", "fstat",
)  # fmt: skip


def killed_at(step: int, work: Callable[[], None], *, after: bool) -> bool:
    """Run `work` in a process that is killed at its n-th file operation; False if it has fewer."""
    child = os.fork()
    if child == 0:
        count = [0]

        def watch(real: Callable[..., object]) -> Callable[..., object]:
            def operation(*args: object, **kwargs: object) -> object:
                count[0] += 1
                mine = count[0] == step
                if mine and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                try:
                    return real(*args, **kwargs)
                finally:
                    if mine:
                        os.kill(os.getpid(), signal.SIGKILL)

            return operation

        for name in OPERATIONS:
            setattr(posix, name, watch(getattr(posix, name)))
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work itself failed"
    return os.WIFSIGNALED(status)


def assert_sound(net: Network) -> None:
    """The leases are whole, and the index says of each what its file says."""
    with net.open() as store:
        said = {store_lease.address: store_lease for store_lease in store.leases()}
        assert set(map(str, said)) == set(net.files())
        for lease in said.values():
            assert lease.ifname == "eth0"
            assert lease.address in store.owned(lease.attachment)
        free = [n for n in range(FIRST, FIRST + 20) if IPAddress.from_int(n, V4) not in said]
        assert store.next_free(V4, FIRST, FIRST + 19) == free[0]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nameless", [True, False], ids=["O_TMPFILE", "link"])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "used"])
def test_a_reserve_killed_at_any_step(
    net: Network, monkeypatch: pytest.MonkeyPatch, after: bool, nameless: bool, fresh: bool
) -> None:
    if not nameless:
        monkeypatch.setattr(posix, "O_TMPFILE", os.O_DIRECTORY)  # which cannot be written: EISDIR

    def work() -> None:
        with net.open() as store:
            assert store.owned(A) == []
            assert store.reserve(address(7), A, 0)

    if not fresh:
        with net.open() as store:
            store.reserve(address(0), B, 0)
    step = 1
    while killed_at(step, work, after=after):
        for name, content in net.files().items() if net.path.exists() else ():
            assert name.endswith(".new") or content in (b"a\r\neth0", b"b\r\neth0")
        assert_sound(net)
        with net.open(create=False) as store:
            store.release(A)
        assert_sound(net)
        assert set(net.files()) <= {"10.0.0.2"}
        step += 1
        if fresh:
            shutil.rmtree(net.data_dir)
    assert step > 10
    assert net.files()["10.0.0.9"] == b"a\r\neth0"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_release_killed_at_any_step(net: Network, after: bool) -> None:
    def work() -> None:
        with net.open(create=False) as store:
            store.release(A)

    with net.open() as store:
        store.reserve(address(0), B, 0)
    step, killed = 1, True
    while killed:
        with net.open() as store:
            assert store.reserve(address(3), A, 0)
            assert store.reserve(address(4), A, 1)
        killed = killed_at(step, work, after=after)
        assert_sound(net)
        with net.open(create=False) as store:
            store.release(A)
        assert net.files() == {"10.0.0.2": b"b\r\neth0"}
        step += 1
    assert step > 10


def test_a_split_killed_at_any_step(net: Network) -> None:
    """The index grows while this runs: its pages are in flux when the process dies."""

    def work() -> None:
        with net.open() as store:
            for number in range(45, 60):
                store.reserve(address(number), Attachment(f"c{number}", "eth0"), 0)

    for step in range(1, 400, 7):
        with net.open() as store:
            store.collect([])
            for number in range(45):
                store.reserve(address(number), Attachment(f"c{number}", "eth0"), 0)
        if not killed_at(step, work, after=False):
            break
        assert_sound_many(net)
    else:
        pytest.fail("the work has more steps than this looks at")


def assert_sound_many(net: Network) -> None:
    with net.open() as store:
        leases = store.leases()
        for lease in leases:
            assert store.owned(lease.attachment) == [lease.address]
        assert store.next_free(V4, FIRST, FIRST + 99) == FIRST + len(leases)
