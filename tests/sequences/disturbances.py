"""What happens to a host besides operations: edits, losses, failures, kills."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

from pycni.kernel.netlink import socket as pycni_socket
from pycni.kernel.netlink.codec import NetlinkRequest
from pycni.kernel.netlink.errors import NetlinkError
from sequences.lab import CACHE, LEASES, RUN
from sequences.model import ALIVE, HALF, IPTABLES, REFERENCE, Model
from sequences.operations import EITHER, ERROR, OK, Add, Del, Operation
from sequences.ways import Refused

if TYPE_CHECKING:
    from sequences.stage import Stage

_FLUSHED = "*nat\nCOMMIT\n*filter\nCOMMIT\n*mangle\nCOMMIT\n"
DROPPING = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n"


@dataclass(frozen=True, repr=False)
class Edit(Operation):
    """A network's configuration is edited; what is attached keeps what it was attached with."""

    net: str
    setting: str
    value: Any

    def settle(self, stage: Stage, outcome: Any) -> None:
        stage.model.edit(self.net, **{self.setting: self.value})


@dataclass(frozen=True, repr=False)
class Lose(Operation):
    """State is lost: "cache", "leases", "run", "nftables" (all rules) or "iptables"."""

    what: str

    def is_tried(self, model: Model) -> bool:
        # Nothing else says whose the interfaces and rules are that the reference made.
        theirs = any(one.by == REFERENCE for one in model.attachments.values())
        return self.what != "cache" or not theirs

    def perform(self, stage: Stage) -> None:
        if self.what == "nftables":
            subprocess.run(["nft", "flush", "ruleset"], check=True)
            stage.drop_forwarding()
        elif self.what == "iptables":
            _restore(_FLUSHED)
            stage.drop_forwarding()
        else:
            folders = {"cache": [CACHE], "leases": [LEASES], "run": RUN}[self.what]
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

    def settle(self, stage: Stage, outcome: Any) -> None:
        for one in stage.model.attachments.values():
            if self.what == "nftables":
                one.lost |= {"rules"} if one.backends else set()
            elif self.what == "iptables":
                one.lost |= {"rules"} if IPTABLES in one.backends else set()
            else:
                one.lost.add({"cache": "cache", "leases": "lease", "run": "settings"}[self.what])


@dataclass(frozen=True, repr=False)
class Reboot(Operation):
    """The machine starts again: nothing is left but what is on disk."""

    def perform(self, stage: Stage) -> None:
        stage.leave_all()
        stage.observer.forget()
        for slot in list(stage.lab.slots):
            stage.lab.vanish(slot)
        for folder in RUN:
            shutil.rmtree(folder, ignore_errors=True)
        stage.boot()

    def settle(self, stage: Stage, outcome: Any) -> None:
        for slot in list(stage.model.slots):
            stage.model.vanish(slot)
        stage.model.used.clear()


@dataclass(frozen=True, repr=False)
class Break(Operation):
    """A plugin's executable is "missing", or fails "before" or "after" having done its work."""

    plugin: str
    how: str

    def perform(self, stage: Stage) -> None:
        stage.programs.break_(self.plugin, self.how)

    def settle(self, stage: Stage, outcome: Any) -> None:
        stage.model.broken[self.plugin] = self.how


@dataclass(frozen=True, repr=False)
class Fix(Operation):
    """All plugins' executables are whole again."""

    def perform(self, stage: Stage) -> None:
        for plugin in stage.model.broken:
            stage.programs.fix(plugin)

    def settle(self, stage: Stage, outcome: Any) -> None:
        stage.model.broken.clear()


@dataclass(frozen=True, repr=False)
class Vanish(Operation):
    """A container's namespace goes, and no one calls DEL. leaving: the file that it was mounted
    on stays, if it is "a file"."""

    slot: str
    leaving: str = ""

    def perform(self, stage: Stage) -> None:
        if self.slot not in stage.lab.slots:
            return
        there = [one for one in stage.model.living() if one.slot == self.slot]
        for one in there:
            stage.leave(one.key)
        stage.observer.leave(self.slot)
        stage.lab.vanish(self.slot, leave_file=bool(self.leaving))
        stage.await_gone({one.outer for one in there})

    def settle(self, stage: Stage, outcome: Any) -> None:
        if stage.model.slots.get(self.slot) is not None:
            stage.model.vanish(self.slot)


@dataclass(frozen=True, repr=False)
class Appear(Operation):
    """A new namespace is made at a slot, which had none."""

    slot: str

    def perform(self, stage: Stage) -> None:
        if self.slot not in stage.lab.slots:
            stage.lab.appear(self.slot)

    def settle(self, stage: Stage, outcome: Any) -> None:
        if stage.model.slots.get(self.slot) is None:
            stage.model.appear(self.slot)


@dataclass(frozen=True, repr=False)
class Refuse(Operation):
    """An ADD or DEL whose nth netlink request the kernel refuses, if it comes so far."""

    what: Add | Del
    at: int

    def is_tried(self, model: Model) -> bool:
        return self.what.is_tried(model)

    def expected(self, model: Model) -> str:
        return ERROR if self.what.expected(model) == ERROR else EITHER

    def perform(self, stage: Stage) -> Any:
        count = _Count(self.at)
        with mock.patch.object(pycni_socket, "before_send", count.refuse):
            return self.what.perform(stage)

    def settle(self, stage: Stage, outcome: Any) -> None:
        self.what.settle(stage, outcome)


@dataclass(frozen=True, repr=False)
class Together(Operation):
    """Two operations of one process at the same time, in threads."""

    one: Add | Del
    two: Add | Del

    def is_tried(self, model: Model) -> bool:
        return self.one.is_tried(model) and self.two.is_tried(model)

    def expected(self, model: Model) -> str:
        return EITHER

    def perform(self, stage: Stage) -> list[Any]:
        with ThreadPoolExecutor(2) as pool:
            tasks = [pool.submit(each.perform, stage) for each in (self.one, self.two)]
        return [_outcome(task) for task in tasks]

    def settle(self, stage: Stage, outcome: Any) -> None:
        one, two = outcome
        model = stage.model
        net = self.one.net
        is_one_left = net == self.two.net and len(model.of(net)) + 2 > model.nets[net].size
        must = [each.expected(model) for each in (self.one, self.two)]
        self.one.settle(stage, one)
        must.append(self.two.expected(model))
        if (
            must == [OK, OK, OK]
            and not is_one_left
            and not set(self.one.ports) & set(self.two.ports)
        ):
            for each in outcome:
                if isinstance(each, Refused):
                    stage.found("refused", f"it said: {each}")
        self.two.settle(stage, two)


def _outcome(task: Future[Any]) -> Any:
    try:
        return task.result()
    except Refused as refused:
        return refused


class _Count:
    """Lets netlink requests pass but for the nth."""

    def __init__(self, at: int) -> None:
        self._left = at

    def refuse(self, request: NetlinkRequest) -> None:
        self._left -= 1
        if self._left == 0:
            raise NetlinkError(errno.EIO, "refused by the test", request.what)

    def kill(self, _request: NetlinkRequest) -> None:
        self._left -= 1
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, repr=False)
class Kill(Operation):
    """An ADD or DEL whose process is killed at its nth netlink request, if it comes so far."""

    what: Add | Del
    at: int

    def is_tried(self, model: Model) -> bool:
        return self.what.is_tried(model)

    def expected(self, model: Model) -> str:
        return EITHER

    def perform(self, stage: Stage) -> Any:
        if isinstance(self.what, Del):
            stage.leave(self.what.key)
        there, here = os.pipe()
        process = os.fork()
        if process == 0:
            _serve_and_die(stage, self.what, here, self.at)
        os.close(here)
        with open(there, "rb") as pipe:
            data = pipe.read()
        os.waitpid(process, 0)
        if not data:
            return None
        outcome = pickle.loads(data)
        if isinstance(outcome, Refused):
            raise outcome
        return outcome

    def settle(self, stage: Stage, outcome: Any) -> None:
        model, key = stage.model, self.what.key
        if outcome is not None:
            self.what.settle(stage, None if outcome == "done" else outcome)
        elif isinstance(self.what, Add):
            model.begin(self.what.begun(model))
        elif key in model.attachments:
            model.attachments[key].state = HALF


def _serve_and_die(stage: Stage, what: Operation, pipe: int, at: int) -> None:
    """In a child: do it, and be killed at its nth request, or hand on what it came to."""
    try:
        with mock.patch.object(pycni_socket, "before_send", _Count(at).kill):
            try:
                outcome = what.perform(stage) or "done"
            except Refused as refused:
                outcome = refused
        os.write(pipe, pickle.dumps(outcome))
    finally:
        os._exit(0)


def _restore(text: str) -> None:
    subprocess.run(["iptables-restore"], input=text, text=True, check=True)


def drop_forwarding() -> None:
    """Have the host forward nothing but what is accepted."""
    subprocess.run(["iptables-restore", "-n"], input=DROPPING, text=True, check=True)


__all__ = ["ALIVE", "drop_forwarding"]
