"""Runs checks: each in a process that is isolated from the machine, several at a time.

`run` is the way in; a check that hangs, crashes or leaves processes cannot touch another.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pycni.conformance import checks, host
from pycni.conformance.case import Case
from pycni.conformance.requirement import Broken, Finding, NotApplicable, Outcome, Requirement
from pycni.conformance.subject import Subject, SubjectError, call
from pycni.kernel.libc import become_subreaper
from pycni.spec.versions import at_least

SECONDS = 180.0  # for one check
JOBS = 4


def requirements_of(subject: Subject, chosen: Sequence[str] = ()) -> list[Requirement]:
    """The requirements for a plugin's kind, in the order of reports.

    chosen: ids, or beginnings of ids such as "del."; without any, all.
    """
    return [
        one
        for one in checks.requirements()
        if subject.kind in one.kinds and (not chosen or one.id.startswith(tuple(chosen)))
    ]


def prepare(subject: Subject) -> Subject:
    """The subject with the versions that it claims. Raises HostError, SubjectError.

    Also tries whether the host can be made ready as the configuration needs it.
    """
    outcome, text = _apart(lambda: _ask_versions(subject))
    if outcome != "passed":
        raise (SubjectError if outcome == "failed" else host.HostError)(text)
    return replace(subject, versions=tuple(json.loads(text)))


def run(
    subject: Subject, requirements: Sequence[Requirement], jobs: int = JOBS
) -> Iterator[Finding]:
    """Try requirements on a prepared subject; findings come as they are made, in any order."""
    waiting = list(requirements)
    working: list[_Worker] = []
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                one = waiting.pop(0)
                if not at_least(subject.version, one.since):
                    reason = f"needs {one.since}, the plugin is tried with {subject.version}"
                    yield Finding(one, "skipped", reason)
                    continue
                working.append(_start(lambda one=one: _try(subject, one), one))  # type: ignore[misc]
            for worker in _ready(working):
                working.remove(worker)
                outcome, text = worker.finish()
                seconds = time.monotonic() - worker.started
                assert worker.requirement is not None
                yield Finding(worker.requirement, outcome, text, seconds)
    finally:
        for worker in working:
            worker.end()


def _ask_versions(subject: Subject) -> tuple[Outcome, str]:
    host.isolate()
    Case(subject)
    document = call(subject.path, "VERSION", {"cniVersion": "1.1.0"}, {}).document
    found = document.get("supportedVersions") if isinstance(document, dict) else None
    versions = found if isinstance(found, list) else []
    return "passed", json.dumps([version for version in versions if isinstance(version, str)])


def _try(subject: Subject, requirement: Requirement) -> tuple[Outcome, str]:
    host.isolate()
    try:
        requirement.check(Case(subject))
    except Broken as broken:
        return "failed", str(broken)
    except NotApplicable as reason:
        return "skipped", str(reason)
    return "passed", ""


# --- processes -----------------------------------------------------------------------------------


@dataclass
class _Worker:
    """A process at work; it writes [outcome, text] as JSON into a pipe and ends."""

    pid: int
    pipe: int
    started: float
    requirement: Requirement | None = None
    text: bytes = b""

    @property
    def overdue(self) -> bool:
        return time.monotonic() > self.started + SECONDS

    def end(self) -> None:
        """Kill the process, and the programs that it runs."""
        _end_group(self.pid)
        os.close(self.pipe)

    def finish(self) -> tuple[Outcome, str]:
        if self.overdue:
            self.end()
            return "failed", f"not finished after {SECONDS:g} seconds"
        # What it left in the background goes with it. Not reaped yet, its number is still its own.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        status = _end_group(self.pid)
        os.close(self.pipe)
        try:
            outcome, text = json.loads(self.text)
        except ValueError:
            code = os.waitstatus_to_exitcode(status)
            return "failed", f"the kit's own process ended with {code}"
        return outcome, text


def _end_group(leader: int) -> int:
    """Kill the processes of a group and wait for them; returns the leader's status."""
    os.killpg(leader, signal.SIGKILL)
    status = 0
    while True:
        try:
            pid, found = os.waitpid(-leader, 0)
        except ChildProcessError:
            return status
        if pid == leader:
            status = found


def _start(work: Callable[[], tuple[str, str]], requirement: Requirement | None = None) -> _Worker:
    become_subreaper()  # of what setups leave in the background
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _work(work, writer)
    os.close(writer)
    os.setpgid(pid, pid)
    return _Worker(pid, reader, time.monotonic(), requirement)


def _work(work: Callable[[], tuple[str, str]], pipe: int) -> None:
    """The life of a worker. Never returns."""
    answer: Any = ["failed", "the kit failed"]
    try:
        os.setpgid(0, 0)
        # Nothing of a plugin or program is to reach the kit's own output.
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        answer = work()
    except (host.HostError, SubjectError) as error:
        kind = "failed" if isinstance(error, SubjectError) else "skipped"
        answer = [kind, str(error)]
    except BaseException as error:  # noqa: BLE001 - the parent reports it
        answer = ["failed", f"a fault of the kit: {_place(error)}"]
    finally:
        with os.fdopen(pipe, "w") as stream:
            stream.write(json.dumps(answer))
        os._exit(0)


def _place(error: BaseException) -> str:
    trace, where = error.__traceback__, ""
    while trace is not None:
        where = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error} ({where})"


def _ready(working: list[_Worker]) -> list[_Worker]:
    """The workers that have finished or taken too long; waits until there is one."""
    while True:
        done = [worker for worker in working if worker.overdue]
        readable = select.select([worker.pipe for worker in working], [], [], 1.0)[0]
        for worker in working:
            if worker.pipe in readable:
                data = os.read(worker.pipe, 65536)
                worker.text += data
                if not data and worker not in done:
                    done.append(worker)
        if done:
            return done


def _apart(work: Callable[[], tuple[str, str]]) -> tuple[Outcome, str]:
    worker = _start(work)
    _ready([worker])
    return worker.finish()
