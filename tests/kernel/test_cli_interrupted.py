"""`pycni` interrupted at any moment: one line, the exit code of the signal, and nothing left.

PYCNI_INTERRUPTS is how many moments are tried (`make interrupts` tries more).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness import Host, Namespace, Sandbox
from harness.agent import PYCNI
from harness.configs import host_local
from harness.kernel_state import filled_sets, veths
from harness.ways import notes

TRIES = int(os.environ.get("PYCNI_INTERRUPTS", "25"))
STARTED = "running"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
NAMES = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}


class Lab:
    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder = folder
        self.options = ["--conf-dir", str(folder), "--cache-dir", str(folder / "cni"), *options]
        ipam = host_local(folder / "leases", "10.66.0.0/24")
        bridge = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True}
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        (folder / "n.conflist").write_text(
            json.dumps(
                {"cniVersion": "1.1.0", "name": "n", "plugins": [{**bridge, "ipam": ipam}, ports]}
            )
        )

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        environ = {name: value for name, value in os.environ.items() if name != "CNI_PATH"}
        ports = '[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]'
        return subprocess.Popen(
            [PYCNI, command, "n", *arguments, *self.options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environ, "CAP_ARGS": f'{{"portMappings": {ports}}}'},
            start_new_session=True,
        )

    def left(self) -> list[object]:
        """What is there of attachments."""
        leases = [str(path) for path in (self.folder / "leases/n").glob("10.*")]
        cached = [str(path) for path in (self.folder / "cni").glob("results/*")]
        new = [str(path) for path in self.folder.rglob("*.new*")]
        return [*leases, *cached, *new, *filled_sets(), *veths(), *notes()]


@pytest.fixture(params=["in process", "cold"])
def lab(request: pytest.FixtureRequest, host: Host, tmp_path: Path, plugin_dir: Path) -> Lab:
    in_process = request.param == "in process"
    return Lab(tmp_path, [] if in_process else ["--plugin-dir", str(plugin_dir), "--engine=exec"])


def duration(lab: Lab, box: Namespace) -> float:
    """How long an ADD takes, beyond the start of the interpreter."""
    begin = time.monotonic()
    assert lab.start("add", box.path).wait() == 0
    took = time.monotonic() - begin
    assert lab.start("del", box.path).wait() == 0
    return took


def interrupted(process: subprocess.Popen[str], number: int, after: float) -> tuple[int, str, str]:
    time.sleep(after)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=100)
    return process.returncode, stdout, stderr


def is_before_the_first_line(code: int, stderr: str, number: int) -> bool:
    """Whether the interpreter was still starting, with nothing of pycni's done."""
    return code == -number and ("KeyboardInterrupt" in stderr or not stderr)


@pytest.mark.slow
def test_add(lab: Lab, sandbox: Sandbox) -> None:
    box = sandbox()
    took = duration(lab, box)
    seen = set()
    for attempt in range(TRIES):
        number = SIGNALS[attempt % 2]
        after = random.uniform(0.02, took * 1.1)
        code, stdout, stderr = interrupted(lab.start("add", box.path), number, after)
        where = f"{number} after {after} s: exit code {code}: {stderr}"
        seen.add(code)
        if code == 0:
            assert json.loads(stdout)["ips"], where
            assert lab.start("del", box.path).wait() == 0
        elif not is_before_the_first_line(code, stderr, number):
            assert code == 128 + number, where
            assert stderr.startswith(NAMES[signal.Signals(number)]), where
            assert stderr.count("\n") == 1, where
        assert lab.left() == [], where
    assert seen & {130, 143}


@pytest.mark.slow
def test_add_that_is_interrupted_twice(lab: Lab, sandbox: Sandbox) -> None:
    """The second Ctrl-C of who is impatient does not keep the rest from being taken back."""
    box = sandbox()
    took = duration(lab, box)
    for _ in range(TRIES // 4 + 1):
        process = lab.start("add", box.path)
        time.sleep(random.uniform(0.15, took))
        for _ in range(20):
            process.send_signal(signal.SIGINT)
            time.sleep(0.002)
        _, stderr = process.communicate(timeout=100)
        assert process.returncode in (0, 130, -2), stderr
        if process.returncode == 0:
            assert lab.start("del", box.path).wait() == 0
        assert lab.left() == [], stderr


@pytest.mark.slow
def test_a_namespace_that_was_made_goes_too(lab: Lab, host: Host) -> None:
    for attempt in range(TRIES // 4 + 1):
        process = lab.start("add", "made-for-it", "--create-netns")
        after = random.uniform(0.1, 0.5)
        code, _, stderr = interrupted(process, SIGNALS[attempt % 2], after)
        if code == 0:
            assert lab.start("del", "made-for-it", "--delete-netns").wait() == 0
        assert not Path("/run/netns/made-for-it").exists(), (code, stderr)
        assert lab.left() == [], stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["del", "check"])
def test_other_commands(lab: Lab, sandbox: Sandbox, command: str) -> None:
    box = sandbox()
    took = duration(lab, box)
    for attempt in range(TRIES // 3):
        number = SIGNALS[attempt % 2]
        assert lab.start("add", box.path).wait() == 0
        process = lab.start(command, box.path)
        code, _, stderr = interrupted(process, number, random.uniform(0.02, took))
        if code != 0 and not is_before_the_first_line(code, stderr, number):
            assert code == 128 + number, stderr
            assert stderr == f"{NAMES[signal.Signals(number)]}\n"
        assert lab.start("del", box.path).wait() == 0
        assert lab.left() == [], stderr


@pytest.mark.slow
def test_what_cannot_be_undone_is_said(host: Host, sandbox: Sandbox, tmp_path: Path) -> None:
    script = f"""#!/bin/sh
    [ $CNI_COMMAND = DEL ] && echo '{{"code": 5, "msg": "no way"}}' && exit 1
    touch {tmp_path}/{STARTED}; exec sleep 60"""
    plugins = tmp_path / "bin"
    plugins.mkdir()
    (plugins / "bridge").write_text(script)
    (plugins / "bridge").chmod(0o755)
    lab = Lab(tmp_path, ["--plugin-dir", str(plugins)])
    (plugins / "portmap").symlink_to(plugins / "bridge")
    process = lab.start("add", sandbox().path)
    while not (tmp_path / STARTED).exists():
        time.sleep(0.01)
    code, stdout, stderr = interrupted(process, signal.SIGINT, 0)
    assert (code, stdout) == (130, "")
    assert stderr.startswith("Interrupted: not all could be undone: "), stderr
    assert "no way" in stderr
    assert stderr.count("\n") == 1
