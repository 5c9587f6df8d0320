"""The same faults for our plugins and the reference's: given from outside, by strace.

A system call that changes something is refused, or the process is killed at it: the first of its
kind, the second, and so on, as often as any thread of the plugin, or of a program it starts, makes
it. An undisturbed run shows how often that is.

    after an error in ADD   the host is as before, and after the DEL that follows it
    after a kill in ADD     DEL leaves nothing
    after an error in DEL   it is reported, and a repetition leaves nothing; or nothing is left
    after a kill in DEL     a repetition leaves nothing

What a system call never says (EEXIST, ENODEV) is left to what `harness.injection` does inside.

Run by `tools/soak/run faults`.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.attachment import Attachment
from harness.fault_cases import CASES
from harness.host import Snapshot
from harness.plugin import PluginRun, run_plugin
from harness.worlds import Case, World

REFERENCE = Path("/usr/lib/cni")
# Of our cases those that the reference's release has; none names iptables as a backend.
NAMES = ("host-local", "bridge", "ptp", "macvlan", "portmap", "firewall, iptables", "bandwidth",
         "tuning", "sbr")  # fmt: skip
COMPARED = tuple(case for name in NAMES for case in CASES if case.name == name)

ERRORS = (errno.EBUSY, errno.ENOSPC, errno.EPERM, errno.ENOBUFS)
REFUSED = ("sendto", "sendmsg", "link", "linkat", "unlink", "unlinkat", "rename", "renameat",
           "mkdir", "mkdirat", "flock", "setns", "ftruncate", "pwrite64")  # fmt: skip
KILLED = (*REFUSED, "write", "socket", "bind", "fsync")
TIMEOUT = 60.0  # seconds, for a call that hangs

_LINE = re.compile(r"^(\d+) +(\w+)\(")


@dataclass(frozen=True)
class Outcome:
    """One fault. undone: what an ADD that failed did not take back; left: what is there after DEL,
    or after an error in DEL that was not reported; both "" for nothing."""

    case: str
    side: str
    operation: str
    fault: str
    undone: str
    left: str

    def __str__(self) -> str:
        what = self.left or f"(until DEL) {self.undone}"
        return f"{self.side} {self.case} {self.operation}, {self.fault}: {what}"


class Side:
    """A world in which one side's plugin is disturbed."""

    def __init__(self, name: str, case: Case, plugins: Path, folder: Path) -> None:
        self.name = name
        self.case = case
        self._plugins = plugins
        self._folder = folder
        self._log = folder / "trace"
        self.world: World | None = None
        self.before: Snapshot = {}

    @property
    def one(self) -> Attachment:
        assert self.world is not None
        return self.world.one

    def renew(self) -> None:
        """A new world, with a neighbour by the same side, in which one has come and gone."""
        self.close()
        self.world = World(self.case, self._plugins, self._folder, shared=True, call=run_plugin,
                           version="1.0.0")  # fmt: skip
        self.world.__enter__()
        if not self.case.spends:
            self.require(self.run("ADD"))
            self.require(self.run("DEL"))
        self.before = self.world.settled()

    def close(self) -> None:
        if self.world is not None:
            self.world.__exit__(None, None, None)
            self.world = None

    def run(self, operation: str, *strace: str) -> PluginRun:
        """A call, under strace if options for it are given."""
        one = replace(self.one, call=self._traced(strace)) if strace else self.one
        return one.run(operation)

    def require(self, run: PluginRun) -> None:
        assert run.code == 0, f"{self.name} {self.case.name}: {run.stdout}{run.stderr}"

    def counts(self, operation: str) -> dict[str, int]:
        """How often an undisturbed call makes each system call, in the thread that does most."""
        wanted = ",".join(f"?{name}" for name in KILLED)
        self.require(self.run(operation, "-e", f"trace={wanted}"))
        made: dict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        for line in self._log.read_text(errors="replace").splitlines():
            found = _LINE.match(line)
            if found:
                made[found[2]][found[1]] += 1
        return {name: max(by_thread.values()) for name, by_thread in made.items()}

    def disturbed(self, operation: str, syscall: str, number: int, what: str) -> PluginRun:
        inject = f"inject={syscall}:{what}:when={number}"
        return self.run(operation, "-e", f"trace={syscall}", "-e", inject)

    def left(self) -> str:
        assert self.world is not None
        found = self.world.differs(self.before)
        return f"left {found}" if found else ""

    def _traced(self, options: tuple[str, ...]) -> Callable[..., PluginRun]:
        def call(path: Path, command: str, config: dict[str, Any], **env: str | None) -> PluginRun:
            prefix = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", os.fspath(self._log), *options]
            try:
                return run_plugin(path, command, config, prefix=prefix, timeout=TIMEOUT, **env)
            except subprocess.TimeoutExpired:
                return PluginRun(-1, "", "hangs")

        return call


def outcomes(case: Case, side: str, plugins: Path, folder: Path, every: int) -> Iterator[Outcome]:
    """All faults of one case on one side; every: only every Nth of them."""
    tried = Side(side, case, plugins, folder)
    number = 0
    try:
        for operation in ("ADD", "DEL"):
            tried.renew()
            if operation == "DEL":
                tried.require(tried.run("ADD"))
            counts = tried.counts(operation)
            tried.renew()
            for syscall, most in sorted(counts.items()):
                for position in range(1, most + 1):
                    for what in _faults(syscall, position):
                        number += 1
                        if number % every:
                            continue
                        undone, left = _try(tried, operation, syscall, position, what)
                        fault = f"{what} at {syscall} {position}"
                        yield Outcome(case.name, side, operation, fault, undone, left)
                        if left or case.spends:
                            tried.renew()
    finally:
        tried.close()


def _faults(syscall: str, position: int) -> list[str]:
    faults = ["signal=SIGKILL"]
    if syscall in REFUSED:
        number = ERRORS[position % len(ERRORS)]
        faults.insert(0, f"error={errno.errorcode[number]}")
    return faults


def _try(tried: Side, operation: str, syscall: str, position: int, what: str) -> tuple[str, str]:
    """What was not undone by ADD itself, and what was left in the end."""
    if operation == "DEL":
        tried.require(tried.run("ADD"))
    run = tried.disturbed(operation, syscall, position, what)
    if run.stderr == "hangs":
        return "", "it hangs"
    refused = what.startswith("error")
    undone = tried.left() if refused and operation == "ADD" and run.code != 0 else ""
    if operation == "DEL" and refused and run.code == 0:
        return "", tried.left()
    again = tried.run("DEL")
    if again.code != 0:
        return undone, f"DEL fails: {again.stdout}"
    return undone, tried.left()
