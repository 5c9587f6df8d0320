"""Try a plugin's operations with one change after the other refused, or the process killed at it.

What must hold: after an error in ADD the host is as before. After one in DEL or GC it is reported,
the rest is removed, and a repetition leaves nothing. After a kill DEL leaves nothing; so does GC,
once the container has gone. CHECK changes nothing, whatever happens to it.

`trials` yields one `Trial` for each; used by the tests and by what writes docs/reliability.md.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.changes import ERRORS, Change, changes, killed, refused
from harness.host import Snapshot
from harness.plugin import PluginRun
from harness.worlds import Case, World
from pycni.spec.errors import INTERNAL

OPERATIONS = ("ADD", "CHECK", "DEL", "GC")
FULL = os.environ.get("PYCNI_FAULTS") == "full"

# What differs after a DEL that was refused one thing: one of these groups, the rest is removed.
_GROUPS = {
    "links": "link", "addresses": "link", "routes": "link", "qdiscs": "link", "rules": "rule",
    "rules of nft": "filter", "elements of ipset": "filter", "sysctls": "sysctl",
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One disturbance. fault: an errno's name, or what cleaned up after the kill; wrong: what was
    not as it must be, "" if all was."""

    case: str
    operation: str
    fault: str
    change: str
    wrong: str

    def __str__(self) -> str:
        return f"{self.case}: {self.operation}, {self.fault} at {self.change}: {self.wrong}"


class Trials:
    """The trials of one case, in a world that is replaced whenever it may be spoilt."""

    def __init__(self, case: Case, plugins: Path, folder: Path, *, shared: bool) -> None:
        self._case = case
        self._make: Callable[[], World] = lambda: World(case, plugins, folder, shared=shared)
        self._stack = ExitStack()
        self.world: World
        self.before: Snapshot = {}

    def __enter__(self) -> Trials:
        self.renew()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def renew(self) -> None:
        """A new world, in which one attachment has come and gone, so that what stays is there."""
        self._stack.close()
        self.world = self._stack.enter_context(self._make())
        if not self._case.spends:
            assert self.add() == ""
            assert self.delete() == ""
        self.before = self.world.settled()

    # --- operations: what is wrong with how they end, "" for nothing -----------------------------

    def add(self) -> str:
        return _reported("ADD", self.remember(self.world.one.run("ADD")))

    def remember(self, run: PluginRun) -> PluginRun:
        """Note the result of an ADD, which a runtime hands to DEL."""
        if run.code == 0 and not self._case.chained:
            self.world.one.result = run.result
        return run

    def delete(self) -> str:
        run = self.run("DEL")
        self.world.one.result = None
        return _reported("DEL", run)

    def gc(self) -> str:
        return _reported("GC", self.world.gc())

    def run(self, operation: str) -> PluginRun:
        one = self.world.one
        if operation == "GC":
            return self.world.gc()
        previous = {} if one.result is None else {"prevResult": one.result}
        return one.run(operation, **previous)

    def left(self, *, host_only: bool = False) -> str:
        found = self.world.differs(self.before, host_only=host_only)
        return f"left: {found}" if found else ""

    def lose(self) -> None:
        self.world.lose_sandbox()

    def after(self, wrong: str) -> str:
        """What is wrong after a trial; the next one gets a new world if need be."""
        if wrong or self._case.spends or not os.path.exists(self._sandbox()):
            self.renew()
        return wrong

    def _sandbox(self) -> str:
        assert self.world.one.sandbox is not None
        return self.world.one.sandbox.path


def trials(
    case: Case,
    operation: str,
    plugins: Path,
    folder: Path,
    *,
    full: bool = FULL,
    every: int = 1,
    first: int = 0,
) -> Iterator[Trial]:
    """Every change of an operation, disturbed. full: by every error, and cleaned up either way;
    first, every: only each so manyth change, from this one on.
    """
    disturbed = {"ADD": _add, "CHECK": _check, "DEL": _delete, "GC": _gc}[operation]
    modes = (True, False) if full and operation == "ADD" and not case.alone else (True,)
    for shared in modes:
        with Trials(case, plugins, folder, shared=shared) as tried:
            seen = _changes_of(tried, case, operation)
            for position in range(first, len(seen) + 1, every):
                if full or position == len(seen) or _worth(case, seen[position], position):
                    yield from disturbed(tried, case, position, full)


def _worth(case: Case, change: Change, position: int) -> bool:
    """Whether to disturb it in the short form, or another case has had the same."""
    if change.sort in ("file", "lock") and case.delegates:  # host-local's
        return position % 6 == 0
    return not case.variant or change.sort == "program" or position % 3 == 0


def _changes_of(tried: Trials, case: Case, operation: str) -> list[Change]:
    if operation != "ADD":
        assert tried.add() == ""
    run, seen = changes(lambda: tried.run(operation))
    assert run.code == 0, run.stdout
    if operation != "DEL":
        assert tried.delete() == ""
    if case.spends:
        tried.renew()
    return seen


def _errors(position: int, full: bool) -> tuple[int, ...]:
    return ERRORS if full else (ERRORS[position % len(ERRORS)],)


def _add(tried: Trials, case: Case, position: int, full: bool) -> Iterator[Trial]:
    for number in _errors(position, full):
        run, watch = refused(lambda: tried.remember(tried.world.one.run("ADD")), position, number)
        if watch.disturbed is None:
            tried.after(tried.delete() or tried.left())
            break
        wrong = _internal(run)
        if run.code == 0:  # what was refused is not vital, or was not needed
            wrong = wrong or tried.delete()
        wrong = wrong or tried.left()
        if wrong and run.code:
            wrong += f"; ADD said: {_said(run)}"
        yield _trial(case, "ADD", number, watch.disturbed, tried.after(wrong))
    cleaners = ("DEL", "GC") if full else ("DEL" if position % 4 else "GC",)
    for cleaner in cleaners if tried.world.shared or case.alone else ("DEL",):
        died = killed(lambda: tried.world.one.run("ADD"), position)
        yield _trial(case, "ADD", cleaner, _at(position, died), _clean(tried, cleaner))


def _check(tried: Trials, case: Case, position: int, full: bool) -> Iterator[Trial]:
    assert tried.add() == ""
    before, world = tried.world.settled(), tried.world
    for number in _errors(position, full):
        run, watch = refused(lambda: tried.run("CHECK"), position, number)
        if watch.disturbed is None:
            break
        wrong = _internal(run) or _reported("CHECK afterwards", tried.run("CHECK"))
        found = world.differs(before)
        wrong = wrong or (f"CHECK changed {found}" if found else "")
        yield _trial(case, "CHECK", number, watch.disturbed, wrong)
    tried.after(tried.delete() or tried.left())


def _delete(tried: Trials, case: Case, position: int, full: bool) -> Iterator[Trial]:
    for number in _errors(position, full):
        assert tried.add() == ""
        run, watch = refused(lambda: tried.run("DEL"), position, number)
        if watch.disturbed is None:
            tried.after(tried.delete() or tried.left())
            break
        wrong = _internal(run) or _rest(tried.world.differs(tried.before), case)
        wrong = wrong or tried.delete()
        # That a link has gone is believed, and it may be there for all that.
        believed = number == errno.ENODEV and run.code == 0
        wrong = wrong or tried.left(host_only=believed)
        yield _trial(case, "DEL", number, watch.disturbed, tried.after(wrong))
        if believed:
            tried.renew()
    for cleaner in ("DEL", "GC") if full else ("DEL" if position % 4 else "GC",):
        assert tried.add() == ""
        died = killed(lambda: tried.run("DEL"), position)
        yield _trial(case, "DEL", cleaner, _at(position, died), _clean(tried, cleaner))


def _gc(tried: Trials, case: Case, position: int, full: bool) -> Iterator[Trial]:
    for number in _errors(position, full) if full or position % 2 else ():
        assert tried.add() == ""
        tried.lose()
        run, watch = refused(tried.world.gc, position, number)
        if watch.disturbed is None:
            tried.renew()
            break
        wrong = _internal(run) or tried.gc() or tried.left(host_only=True)
        yield _trial(case, "GC", number, watch.disturbed, tried.after(wrong))
    if not full and position % 2:
        return
    assert tried.add() == ""
    tried.lose()
    died = killed(tried.world.gc, position)
    wrong = tried.gc() or tried.left(host_only=True)
    yield _trial(case, "GC", "GC", _at(position, died), tried.after(wrong))


def _clean(tried: Trials, cleaner: str) -> str:
    if cleaner == "DEL":
        return tried.after(tried.delete() or tried.left())
    tried.lose()
    return tried.after(tried.gc() or tried.left(host_only=True))


def _trial(case: Case, operation: str, fault: int | str, change: object, wrong: str) -> Trial:
    name = errno.errorcode[fault] if isinstance(fault, int) else f"killed, then {fault}"
    return Trial(case.name, operation, name, str(change), wrong)


def _at(position: int, died: bool) -> str:
    return f"change {position}" if died else "the end"


def _reported(what: str, run: PluginRun) -> str:
    return "" if run.code == 0 else f"{what} failed: {_said(run)}"


def _internal(run: PluginRun) -> str:
    """A failure must be one of the protocol, with words."""
    if run.code == 0:
        return ""
    error: Any = run.result
    if error["code"] in (0, INTERNAL) or not error["msg"]:
        return f"it said {error}"
    return ""


def _said(run: PluginRun) -> str:
    return f"{run.result['msg']} ({run.result.get('details', '')})" if run.stdout else run.stderr


def _rest(differences: dict[str, Any], case: Case) -> str:
    """What else than the refused thing was not removed, or was although it had to stay."""
    # What DEL needs, should it be repeated, is kept until all is done; and so is an address that
    # something names.
    kept = ("files tuning/", "files flannel/", "files notes/", "files leases/")
    names = [name for name in differences if not name.startswith(kept)]
    groups = {_GROUPS.get(name.partition(" ")[2], "file") for name in names}
    if len(groups) > 1:
        return f"more than one thing is left: {differences}"
    if groups and case.reserves and not any(name.startswith(kept[-1]) for name in differences):
        return f"the address was released, and is named still: {differences}"
    return ""
