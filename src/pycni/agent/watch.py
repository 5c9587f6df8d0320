"""Watching over attachments: what a flush takes is put back without being asked for.

A thread of the agent waits for the kernel's monitor (`pycni.kernel.monitor`). When something was
deleted that may be a container's, it waits until no more comes, and repairs all attachments of the
cache once. Bounded: after a repair it rests ten times as long as that took, and longer and longer
while another program keeps undoing it. A repair that finds nothing changes nothing, so it cannot
keep itself going. Interfaces that are gone are left to `pycni repair`: a DEL by another process may
just be at work.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pycni.kernel.monitor import Monitor
from pycni.plan.difference import REPAIRED
from pycni.runtime.errors import Canceled
from pycni.runtime.options import Cancellation

if TYPE_CHECKING:
    from pycni.agent.metrics import Metrics
    from pycni.plan.difference import Difference
    from pycni.runtime.report import AttachmentReport

QUIET = 0.2  # seconds without a notice, after which a burst is over
LONGEST_BURST = 2.0
PAUSE = 1.0  # seconds after a repair; doubled while one has to follow the other
LONGEST_PAUSE = 60.0
SHARE = 10  # at most one part in so many of the time is spent on repairs
LINES = 20  # of a repair that are logged


class Watch:
    """The thread. `repair` is `repair_all` with the agent's options, and a way to stop it."""

    def __init__(
        self,
        repair: Callable[[Cancellation], list[AttachmentReport]],
        metrics: Metrics,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self._repair = repair
        self._cancel = Cancellation()
        self._metrics = metrics
        self._log = log or _to_stderr
        self._monitor = Monitor()  # from now on, in the calling thread's namespace
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._logged: set[str] = set()  # what could not be repaired, so as not to repeat it
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)

    def start(self) -> None:
        """Repair once, for what happened before; then watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; of a repair that is under way, what waits is given up."""
        self._cancel.cancel()
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)

    def _run(self) -> None:
        pause, last = PAUSE, 0.0
        gone = {"perhaps something, before the agent was started"}
        with self._monitor:
            while gone:
                begin = time.monotonic()
                changed = self._pass(gone)
                end = time.monotonic()
                again = changed and begin - last < LONGEST_PAUSE
                pause = min(LONGEST_PAUSE, pause * 2) if again else PAUSE
                last = end if changed else last
                if not self._sleep(max(pause, (end - begin) * SHARE)):
                    return
                gone = self._wait()

    def _pass(self, gone: set[str]) -> bool:
        """Repair everything; whether there was anything to put back."""
        try:
            reports = self._repair(self._cancel)
        except Canceled:
            return False
        except Exception as error:  # noqa: BLE001 - the agent goes on serving, and watching
            self._log(f"repair failed: {error}")
            self._metrics.repaired(0, 1)
            return False
        findings = [(report, finding) for report in reports for finding in report.findings]
        repaired = sum(finding.state == REPAIRED for _, finding in findings)
        self._metrics.repaired(repaired, len(findings) - repaired)
        lines = [_line(report, finding) for report, finding in findings]
        lines += [f"left alone: {report.name}: {report.skipped}" for report in reports
                  if not (report.findings or report.ok)]  # fmt: skip
        news = [line for line in lines if line not in self._logged]
        self._logged = {line for line in lines if not line.startswith(REPAIRED)}
        if news:
            what = ", ".join(sorted(gone))
            self._log(f"{what} gone: {repaired} repaired, {len(findings) - repaired} not")
        for line in news[:LINES]:
            self._log(line)
        if len(news) > LINES:
            self._log(f"and {len(news) - LINES} more")
        return repaired > 0

    def _wait(self) -> set[str]:
        """Wait for the end of a burst of notices; what is gone, empty if it is time to stop."""
        try:
            return self._burst()
        except Exception as error:  # noqa: BLE001 - a thread that is gone would watch nothing
            self._log(f"watching failed: {error!r}")
            return {"something unknown"}

    def _burst(self) -> set[str]:
        gone: set[str] = set()
        first = 0.0
        while True:
            burst = bool(gone) or self._monitor.has_pending
            if burst and not first:
                first = time.monotonic()
            ready = self._poll(QUIET if burst else None)
            if ready is None:
                return set()
            if ready:
                gone |= self._monitor.read()
            if burst and (not ready or time.monotonic() - first > LONGEST_BURST):
                gone |= self._monitor.recheck()
                if gone:
                    return gone
                first = 0.0

    def _poll(self, seconds: float | None) -> bool | None:
        """Whether something was noticed within some seconds; None if it is time to stop."""
        poll = select.poll()
        for descriptor in (self._stop, *self._monitor.filenos()):
            poll.register(descriptor, select.POLLIN)
        ready = dict(poll.poll(None if seconds is None else seconds * 1000))
        return None if self._stop in ready else bool(ready)

    def _sleep(self, seconds: float) -> bool:
        """False if it is time to stop."""
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        return not poll.poll(seconds * 1000)


def _line(report: AttachmentReport, finding: Difference) -> str:
    reason = f" ({finding.reason})" if finding.reason else ""
    return f"{finding.state}: {report.name}: {finding.plugin}: {finding.what}{reason}"


def _to_stderr(line: str) -> None:
    # Names of pods and files are others' choice, and a terminal would obey them.
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    sys.stderr.write(f"pycni agent: {shown}\n")
