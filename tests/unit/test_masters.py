"""The note of the mode that the ipvlans on a link are in."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pycni.spec.errors import IO_FAILURE, TRY_AGAIN_LATER, CNIError
from pycni.spec.identity import NetnsID
from pycni.state import masters, run_lock
from pycni.state.masters import MasterNote

HOST = NetnsID(4, 4026531840, 1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(masters, "DIRECTORY", str(tmp_path / "pycni/masters"))
    return tmp_path / "pycni/masters"


def noted(netns: NetnsID = HOST, index: int = 7) -> str:
    with MasterNote(netns, index) as note:
        return note.mode


def write(mode: str, netns: NetnsID = HOST, index: int = 7) -> None:
    with MasterNote(netns, index) as note:
        note.write(mode)
        assert note.mode == mode


def test_the_last_one_is_noted(folder: Path) -> None:
    assert noted() == ""
    for mode in ("l3s", "l2", "l3"):
        write(mode)
        assert noted() == mode
    assert [path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())] == [0o700, 0o600]


def test_an_index_counts_in_its_namespace() -> None:
    write("l2")
    write("l3", NetnsID(4, 4026531840, 2))
    write("l3s", index=8)
    without_cookies = NetnsID(4, 4026531840), NetnsID(4, 4026531841)
    write("l3", without_cookies[0])
    assert [noted(one) for one in without_cookies] == ["l3", ""]
    assert (noted(), noted(index=8), noted(NetnsID(4, 4026531840, 2))) == ("l2", "l3s", "l3")


def test_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "LOCK_TIMEOUT", 0.05)
    seen: list[str] = []

    def second() -> None:
        try:
            seen.append(noted())
        except CNIError as error:
            seen.append(str(error.code))

    for _ in range(2):
        with MasterNote(HOST, 7) as first:
            first.write("l3")
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        assert noted(index=7) == "l3"
    assert seen == [str(TRY_AGAIN_LATER)] * 2


@pytest.mark.parametrize("content", [b"", b"\0\xff\n", b"l", b"x" * 10_000])
def test_what_is_no_mode(folder: Path, content: bytes) -> None:
    write("l2")
    (path,) = folder.iterdir()
    path.write_bytes(content)
    assert noted() not in ("l2", "l3", "l3s")
    write("l3s")
    assert noted() == "l3s"


def test_what_another_user_wrote(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    write("l2")
    (path,) = folder.iterdir()
    os.chown(path, 65534, 65534)
    assert noted() == ""


def test_what_leads_elsewhere(folder: Path, tmp_path: Path) -> None:
    write("l2")
    (path,) = folder.iterdir()
    path.unlink()
    other = tmp_path / "other"
    other.write_bytes(b"as it was")
    path.symlink_to(other)
    with pytest.raises(CNIError) as refused:
        noted()
    assert refused.value.code == IO_FAILURE
    assert str(path) in str(refused.value)
    assert other.read_bytes() == b"as it was"
