from __future__ import annotations

import errno
import fcntl
import os
import posix
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycni.spec.errors import IO_FAILURE, TRY_AGAIN_LATER, CNIError
from pycni.state import files
from pycni.state.attachment_files import Documents
from pycni.state.files import (
    Lock,
    create_file,
    make_directories,
    open_directory,
    read_file,
    remove_file,
    write_file,
)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_directories_get_the_mode_all_the_way(tmp_path: Path) -> None:
    make_directories(str(tmp_path / "a" / "b"), 0o700)
    make_directories(str(tmp_path / "a" / "b"), 0o700)
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(FileExistsError):
        make_directories(str(tmp_path / "a"))
    with pytest.raises(NotADirectoryError):
        make_directories(str(tmp_path / "a" / "b"))


def test_write_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"long content", b"short"):
        write_file(str(path), content, 0o640)
        assert path.read_bytes() == content
    assert mode(path) == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_write_replaces_a_planted_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / "file").symlink_to(target)
    write_file(str(tmp_path / "file"), b"new")
    assert target.read_text() == "kept"
    assert not (tmp_path / "file").is_symlink()


def test_create(tmp_path: Path, directory: int) -> None:
    create_file("file", b"content", dir_fd=directory)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert mode(tmp_path / "file") == 0o600
    with pytest.raises(FileExistsError):
        create_file("file", b"other", dir_fd=directory)
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("lacking", ["O_TMPFILE", "/proc"])
def test_create_where_nameless_files_cannot_be_had(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    real_open, real_link = os.open, os.link

    def refuse_open(path: str, flags: int, *args: int, **kwargs: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real_open(path, flags, *args, **kwargs)

    def refuse_link(source: str, name: str, **kwargs: int) -> None:
        if source.startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory")
        real_link(source, name, **kwargs)

    if lacking == "O_TMPFILE":
        monkeypatch.setattr(posix, "open", refuse_open)
    else:
        monkeypatch.setattr(posix, "link", refuse_link)
    test_create(tmp_path, directory)
    assert os.listdir(tmp_path) == ["file"]


def test_create_does_not_follow_a_planted_link(tmp_path: Path, directory: int) -> None:
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        create_file("file", b"content", dir_fd=directory)
    assert not (tmp_path / "elsewhere").exists()


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for size in (0, 1, files._CHUNK, files._CHUNK + 1, 3 * files._CHUNK + 5):
        path.write_bytes(os.urandom(size))
        assert read_file(str(path)) == path.read_bytes()
    assert read_file(str(path), limit=files._CHUNK + 7) == path.read_bytes()[: files._CHUNK + 7]


def test_read_neither_follows_a_link_nor_waits_for_a_writer(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic links"):
        read_file(str(tmp_path / "link"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a plain file"):
        read_file(str(tmp_path / "fifo"))


def test_remove(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert remove_file(str(tmp_path / "file"))
    assert not remove_file(str(tmp_path / "file"))


def test_a_directory_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.close(open_directory(str(tmp_path / "link")))
    if os.geteuid() == 0:
        os.lchown(tmp_path / "link", 65534, 65534)
        with pytest.raises(OSError):  # noqa: PT011 - ELOOP or ENOTDIR, by the kernel's version
            open_directory(str(tmp_path / "link"))


# --- Lock --------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_lock_excludes_threads_and_processes(tmp_path: Path, timeout: float | None) -> None:
    path = str(tmp_path / "lock")
    inside: list[int] = []
    overlaps: list[int] = []

    def work() -> None:
        for _ in range(20):
            with Lock(path, timeout=timeout):
                overlaps.extend(inside)
                inside.append(1)
                with open(path) as other, pytest.raises(BlockingIOError):
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
    assert mode(tmp_path / "lock") == 0o750
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_that_stays_taken_names_its_holder(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with open(path, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(CNIError) as caught, Lock(path, timeout=0.02):
            pytest.fail("entered")
    assert caught.value.code == TRY_AGAIN_LATER
    assert path in caught.value.message
    assert f"process {os.getpid()} (" in caught.value.message


def test_a_lock_that_another_thread_keeps(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    refused: list[CNIError] = []

    def work() -> None:
        try:
            with Lock(path, timeout=0.02):
                pytest.fail("entered")
        except CNIError as error:
            refused.append(error)

    with Lock(path):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert [error.code for error in refused] == [TRY_AGAIN_LATER]
    with Lock(path, timeout=0.02):
        pass


def test_a_lock_with_a_deadline_is_got_when_it_is_let_go(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    other = open(path, "w")  # noqa: SIM115 - closed by the timer
    fcntl.flock(other, fcntl.LOCK_EX)
    timer = threading.Timer(0.05, other.close)
    timer.start()
    with Lock(path, timeout=60):
        assert other.closed
    timer.join()


def test_a_lock_file_that_was_removed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    real: Callable[[int, int], None] = fcntl.flock

    def remove_once(descriptor: int, operation: int) -> None:
        real(descriptor, operation)
        monkeypatch.setattr(fcntl, "flock", real)
        path.unlink()

    monkeypatch.setattr(fcntl, "flock", remove_once)
    with Lock(str(path)), open(path) as other, pytest.raises(BlockingIOError):
        real(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("link", "missing/lock"):
        with pytest.raises(CNIError) as caught, Lock(str(tmp_path / name)):
            pytest.fail("entered")
        assert caught.value.code == IO_FAILURE
        assert name in caught.value.message
    assert not (tmp_path / "elsewhere").exists()


def test_threads_that_wait_for_a_lock_get_it_in_turn(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    entered: list[int] = []

    def work(number: int) -> None:
        with Lock(path, timeout=60):
            entered.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    with Lock(path):
        for number, thread in enumerate(threads, 1):
            thread.start()
            while sum(map(len, files._queues.values())) < number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert entered == list(range(8))
    assert files._queues == {}


def test_a_wait_for_a_lock_ends_when_no_one_wants_it_any_more(tmp_path: Path) -> None:
    """The one who gave up was the first in the queue; the second one gets it."""
    path = str(tmp_path / "lock")
    reader, writer = os.pipe()
    outcomes: list[str] = []

    def work(cancel: int | None) -> None:
        try:
            with Lock(path, timeout=60, cancel=cancel):
                outcomes.append("got it")
        except CNIError as error:
            assert error.code == TRY_AGAIN_LATER
            outcomes.append(error.message)

    with open(path, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        first = threading.Thread(target=work, args=(reader,))
        second = threading.Thread(target=work, args=(None,))
        for number, thread in enumerate((first, second), 1):
            thread.start()
            while sum(map(len, files._queues.values())) < number:
                time.sleep(0.001)
        os.close(writer)
        first.join()
        assert outcomes == [f"cancelled while waiting for the lock {path}"]
    second.join()
    os.close(reader)
    assert outcomes[1:] == ["got it"]


# --- what a crash left ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("c1_eth0.json.4711-0a1b2c3d.new", 4711),
        ("c1_eth0.json", None),
        ("c1.new", None),
        ("4711-0a1b2c3d.new", 4711),
        ("c1.x-0a1b2c3d.new", None),
        ("c1.4711-0a1b.new", None),
    ],
)
def test_who_was_writing(name: str, writer: int | None) -> None:
    assert files.writer_of(name) == writer


def ended_process() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_documents_of_a_writer_that_died(tmp_path: Path) -> None:
    """They go with the next look; what another process is writing stays."""
    dead = tmp_path / f"a.{ended_process()}-0a1b2c3d.new"
    busy = tmp_path / f"a.{os.getpid()}-0a1b2c3d.new"
    documents = Documents(str(tmp_path))
    for call in (documents.names, lambda: documents.remove("a")):
        dead.write_text("{")
        busy.write_text("{")
        call()
        assert not dead.exists()
        assert busy.exists()


def test_damaged_document_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_text('{"half": ')
    assert Documents(str(tmp_path)).read("a") == {}
    assert f"{tmp_path / 'a'} is damaged" in capfd.readouterr().err


def test_a_lock_that_the_kernel_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(CNIError) as caught, Lock(str(tmp_path / "lock")):
        pass
    assert caught.value.code == IO_FAILURE
    assert "No locks available" in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "a" * 250 + ".json", "\udcff" * 255])
def test_a_name_of_any_length_that_there_is(tmp_path: Path, name: str) -> None:
    """What is written first has a name of its own, which fits as well."""
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        write_file(name, b"1", dir_fd=directory)
        write_file(str(tmp_path / name), b"2")
    finally:
        os.close(directory)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"2"
