"""The notes of attachments: whole at any instant, and of the one who has the lock only."""

from __future__ import annotations

import errno
import fcntl
import os
import posix
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pycni.spec.errors import IO_FAILURE, CNIError
from pycni.spec.identity import Identity, NetnsID, OwnLink
from pycni.spec.owner import Owner
from pycni.state import attachments
from pycni.state.attachments import AttachmentLock

OWNER = Owner("n", "a", "eth0")
HOST, NETNS = NetnsID(4, 1, 1), NetnsID(4, 2, 2)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(attachments, "DIRECTORY", str(tmp_path / "attachments"))
    monkeypatch.setattr(attachments, "ADDRESSES", str(tmp_path / "addresses"))
    return tmp_path


def identity(*addresses: str, links: int = 1, owner: Owner = OWNER) -> Identity:
    made = tuple(OwnLink("sandbox", f"eth{number}", number) for number in range(links))
    return Identity(owner, "/ns", NETNS, HOST, 1.0, made, addresses)


def note(noted: Identity) -> Path:
    """Have an identity noted, as after an ADD; returns its file."""
    with AttachmentLock(noted.owner, adding=True) as lock:
        lock.write(noted)
    return Path(attachments.path_of(noted.owner.tag))


def kill_one_with(**keys: Any) -> None:
    """A process is killed while it has the attachment's lock."""
    code = (
        "import os, signal; from pycni.state import attachments;"
        "from pycni.spec.owner import Owner;"
        f"attachments.DIRECTORY = {attachments.DIRECTORY!r};"
        f"attachments.AttachmentLock(Owner('n', 'a', 'eth0'), **{keys!r}).__enter__();"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL


# --- written whole -------------------------------------------------------------------------------


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Files of this process, pytest's too, end at a size, as where a file system is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_note_that_does_not_fit_leaves_the_one_before() -> None:
    path = note(identity("10.0.0.2"))
    size = path.stat().st_size
    with AttachmentLock(OWNER) as lock:
        with small_files(size + 40), pytest.raises(CNIError) as caught:
            lock.write(identity("10.0.0.2", links=40))
        assert caught.value.code == IO_FAILURE
        assert os.strerror(errno.ENOSPC) in str(caught.value)
        assert lock.identity == identity("10.0.0.2")
    assert attachments.read(OWNER.tag) == identity("10.0.0.2")


def test_a_note_is_whole_at_any_instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """For who reads it without its lock, and for who comes after a kill."""
    long, short = identity("10.0.0.2", links=40), identity("10.0.0.2")
    seen = []

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            result = call(*args)
            seen.append(attachments.read(OWNER.tag))
            return result

        return wrapper

    note(long)
    with AttachmentLock(OWNER) as lock:
        monkeypatch.setattr(posix, "pwrite", watched(posix.pwrite))
        monkeypatch.setattr(posix, "ftruncate", watched(posix.ftruncate))
        lock.write(short)
        lock.write(long)
    assert seen
    assert set(seen) <= {long, short}
    assert attachments.read(OWNER.tag) == long


def test_a_large_file_of_another_content_is_overwritten() -> None:
    path = note(identity("10.0.0.2"))
    path.write_bytes(b"x" * (1 << 19))
    assert attachments.read(OWNER.tag) is None
    note(identity("10.0.0.2"))
    assert attachments.read(OWNER.tag) == identity("10.0.0.2")


# --- whose file it is ----------------------------------------------------------------------------


def test_what_is_abandoned_is_not_an_add_that_came_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """The empty file is replaced between opening and locking it."""
    path = note(identity())
    path.write_bytes(b"")
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        path.unlink()
        path.write_bytes(b"")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    attachments.remove_abandoned(OWNER.tag)
    assert path.exists()


def test_only_an_add_that_was_killed_is_unfinished() -> None:
    kill_one_with(adding=True)
    with AttachmentLock(OWNER, deleting=True) as lock:
        assert (lock.is_known, lock.is_unfinished) == (True, True)
        lock.remove()
    for keys in ({"deleting": True}, {}):
        kill_one_with(**keys)
        with AttachmentLock(OWNER, deleting=True) as lock:
            assert (lock.identity, lock.is_unfinished) == (None, False)
        assert not attachments.is_noted(OWNER.tag)


def test_an_add_that_was_killed_after_a_check_that_was_killed_is_unfinished() -> None:
    kill_one_with()
    kill_one_with(adding=True)
    with AttachmentLock(OWNER, deleting=True) as lock:
        assert lock.is_unfinished


def test_an_add_that_failed_after_a_check_that_was_killed_leaves_nothing() -> None:
    kill_one_with()
    with AttachmentLock(OWNER, adding=True) as lock:
        assert not lock.is_unfinished
    assert not attachments.is_noted(OWNER.tag)


def test_what_cannot_be_read_is_not_unfinished(folder: Path) -> None:
    path = note(identity())
    path.write_bytes(b"\0" * 100)
    with AttachmentLock(OWNER, deleting=True) as lock:
        assert (lock.identity, lock.is_unfinished) == (None, False)
    path.unlink()
    path.symlink_to(folder)
    with AttachmentLock(OWNER, deleting=True) as lock:
        assert lock.problem is not None
        assert not lock.is_unfinished


def test_a_note_that_fails_to_be_read_keeps_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    note(identity())

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(posix, "pread", fail)
    with pytest.raises(CNIError, match=os.strerror(errno.EIO)):
        AttachmentLock(OWNER).__enter__()
    with AttachmentLock(OWNER, deleting=True) as lock:
        assert lock.problem is not None
    monkeypatch.undo()


# --- another host's ------------------------------------------------------------------------------


def test_a_failed_add_leaves_what_another_host_noted() -> None:
    theirs = identity("10.0.0.2").replace(host=NetnsID(4, 9, 9))
    note(theirs)
    with AttachmentLock(OWNER, adding=True) as lock:
        lock.disregard()
        lock.write(identity("10.0.0.3"))
        lock.revert()
    assert attachments.read(OWNER.tag) == theirs
    assert attachments.holder("n", "10.0.0.2") == OWNER.tag
    assert attachments.holder("n", "10.0.0.3") == ""


# --- addresses -----------------------------------------------------------------------------------


def test_addresses_that_are_taken_back_lead_nowhere() -> None:
    note(identity("10.0.0.2"))
    with AttachmentLock(OWNER, adding=True) as lock:
        lock.write(identity("10.0.0.2", "10.0.0.3"))
        lock.revert()
    assert attachments.holder("n", "10.0.0.2") == OWNER.tag
    assert attachments.holder("n", "10.0.0.3") == ""


def test_an_address_that_another_one_has_by_now_is_its_own() -> None:
    note(identity("10.0.0.2"))
    other = Owner("n", "b", "eth0")
    note(identity("10.0.0.2", owner=other))
    with AttachmentLock(OWNER, adding=True) as lock:
        lock.write(identity())
    assert attachments.holder("n", "10.0.0.2") == other.tag


# --- blocks in one another -----------------------------------------------------------------------


def test_the_inner_block_reverts_its_own_part_only() -> None:
    with AttachmentLock(OWNER, adding=True) as outer:
        outer.write(identity("10.0.0.2"))
        with AttachmentLock(OWNER, adding=True) as inner:
            assert inner is outer
            inner.write(identity("10.0.0.2", "10.0.0.3"))
            inner.revert()
        assert outer.identity == identity("10.0.0.2")
        assert attachments.is_held(OWNER.tag)
    assert attachments.read(OWNER.tag) == identity("10.0.0.2")
    assert not attachments.is_held(OWNER.tag)
