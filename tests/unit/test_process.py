"""Processes, whatever the program around them does with its children, and their ends.

The program is a Python process of its own, since a signal's disposition is the whole process's; the
plugins are shell scripts.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pycni.kernel import process

PROGRAM = """
import json, os, signal, sys
from pycni.kernel import child, process
from pycni.runtime import Network
from pycni.spec.errors import CNIError

def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

folder, way, *script = sys.argv[1:]
if way == "ignored":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
elif way == "reaped":
    signal.signal(signal.SIGCHLD, reap)
elif way == "reaped in a thread":
    import threading, time
    def always():
        while True:
            reap()
            time.sleep(0.0001)
    threading.Thread(target=always, daemon=True).start()

def call(network, name, **arguments):
    try:
        getattr(network, name)(*arguments.pop("at", ()), **arguments)
        return "done"
    except CNIError as error:
        return [error.code, error.message, error.details]

network = Network.from_dict(
    {"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "a"}]},
    plugin_dirs=folder + "/bin", cache_dir=folder + "/cache",
)
"""
WAYS = ("ignored", "reaped", "reaped in a thread")


def program(folder: Path, way: str, script: str, rest: str) -> list[Any]:
    """What a program prints that has the plugin `a` as its network's, and reaps in some way."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/a").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin/a").chmod(0o755)
    text = f"{PROGRAM}\nprint(json.dumps([{rest}]))"
    done = subprocess.run(
        [sys.executable, "-c", text, str(folder), way],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: list[Any] = json.loads(done.stdout)
    return said


def release() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split(".")[:2])


keeps_exit_status = pytest.mark.skipif(
    release() < (6, 15), reason="a kernel that keeps no exit status"
)


@keeps_exit_status
@pytest.mark.parametrize("way", WAYS)
def test_how_a_plugin_ends_is_known_no_matter_who_reaps_it(tmp_path: Path, way: str) -> None:
    # Who reaps at any moment could do so before the program's pidfd is there.
    script = f"""
    {"sleep 0.05" if way == "reaped in a thread" else ""}
    [ $CNI_COMMAND = STATUS ] && kill -9 $$
    [ $CNI_COMMAND = CHECK ] && echo '{{"code": 102, "msg": "drift"}}' && exit 1
    [ $CNI_COMMAND = GC ] && echo why >&2 && exit 3
    [ $CNI_COMMAND = ADD ] && echo '{{"ips": [{{"address": "10.0.0.2/8"}}]}}'
    exit 0"""
    at = 'at=("c", "/nowhere")'
    rest = (
        f"[call(network, 'add', {at}), call(network, 'check', {at}), call(network, 'status'),"
        f" call(network, 'gc', keep=[('c', 'eth0')]), call(network, 'delete', {at})]"
    )
    found = program(tmp_path, way, script, f"{rest} for _ in range(10)")
    one = [
        "done",
        [102, "drift", ""],
        [0, "netplugin failed with no error message: signal: killed", ""],
        [0, 'failed to GC plugin a: netplugin failed: "why": exit status 3', ""],
        "done",
    ]
    assert found == [one] * 10


@pytest.mark.parametrize("way", WAYS)
def test_on_a_kernel_that_keeps_no_exit_status(tmp_path: Path, way: str) -> None:
    """Before Linux 6.15; failing is known from what was said, and nothing is taken for success."""
    old = "setattr(child, '_KEEPS_STATUS', False), setattr(child, '_GET_INFO', 0)"
    script = f"echo $CNI_COMMAND >> {tmp_path}/log; exit 0"
    _, _, said = program(tmp_path, way, script, f"{old}, call(network, 'status')")
    if way == "ignored":
        assert said[0] == 0
        assert "the program ignores SIGCHLD" in said[2]
        assert not (tmp_path / "log").exists(), "what cannot be judged is not begun"
    else:
        # Who is first to reap it, knows.
        assert said == "done" or "the program reaps all its children" in said[2]


def test_an_error_object_is_reported_though_the_exit_status_is_lost(tmp_path: Path) -> None:
    old = "setattr(child, '_KEEPS_STATUS', False), setattr(child, '_GET_INFO', 0)"
    lost = "setattr(child, '_ignores_children', lambda: False)"
    script = """echo '{"code": 50, "msg": "full", "details": "d"}'; exit 1"""
    rest = f"{old}, {lost}, call(network, 'status')"
    assert program(tmp_path, "ignored", script, rest)[-1] == [50, "full", "d"]
    said = program(tmp_path, "ignored", "exit 0", rest)[-1]
    assert said[1] == "netplugin failed with no error message: exit status unknown"


@keeps_exit_status
def test_the_plugin_itself_does_not_ignore_its_children(tmp_path: Path) -> None:
    script = f"grep SigIgn /proc/self/status > {tmp_path}/ignored"
    assert program(tmp_path, "ignored", script, "call(network, 'status')") == ["done"]
    ignored = int((tmp_path / "ignored").read_text().split()[1], 16)
    assert not ignored >> 16 & 1  # SIGCHLD


# --- groups -------------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.mark.parametrize("ended", [False, True], ids=["at work", "ended"])
def test_who_is_killed_takes_along_whom_it_started(tmp_path: Path, ended: bool) -> None:
    """Also where it has ended itself when its time is over, and another goes on."""
    pids = tmp_path / "pids"
    script = f"sleep 60 & echo $! > {pids}.new; mv {pids}.new {pids}; wait"
    if ended:
        script = f"sh -c '{script}' & sleep 60"
    reader, writer = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            while not pids.exists():
                time.sleep(0.01)
            os.write(writer, b"x")
            os._exit(0)
        with pytest.raises(process.Killed) as caught:
            process.run(["/bin/sh", "-c", script], cancel=reader)
        os.waitpid(pid, 0)
    finally:
        os.close(reader)
        os.close(writer)
    assert caught.value.errno == errno.ECANCELED
    assert not alive(int(pids.read_text()))


def test_nothing_is_left_of_who_was_killed() -> None:
    """Neither descriptors nor zombies, also where the caller is whom orphans are given to."""
    before = sorted(os.listdir("/proc/self/fd"))
    for number in range(30):
        with pytest.raises(process.Killed):
            process.run(["/bin/sh", "-c", "sleep 60 & wait"], timeout=number * 0.001)
    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_terminal_does_not_reach_it() -> None:
    code, stdout, _ = process.run(["/bin/sh", "-c", "cut -d' ' -f5 /proc/$$/stat; echo $$"])
    group, pid = stdout.split()
    assert code == 0
    assert group == pid


def test_within_a_plugin_it_stays_in_the_group_of_that() -> None:
    """Anyone who started the plugin may kill that."""
    text = """
from pycni.kernel import process
print(process.run(["/bin/sh", "-c", "cut -d' ' -f5 /proc/$$/stat"])[1].decode())"""
    done = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, "CNI_COMMAND": "ADD"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == os.getpgrp()
