"""A sequence while it runs: the machines, the model, who serves and who asks; and the verdict.

`Stage.step` does one operation and returns what is wrong afterwards. All that is asked of the world
is asked here: its tables are compared with the model, living containers are asked by packets, their
sessions are tried, and CHECK must be content.
"""

from __future__ import annotations

import itertools
import os
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sequences import disturbances
from sequences.compare import Difference, compare
from sequences.flows import Flow, Flows
from sequences.lab import CLIENT, FAR, HOST, Lab, inside
from sequences.loop import Loop, Service
from sequences.model import ALIVE, CONTAINER_PORT, PORTS, Attachment, Key, Model, Net, Short
from sequences.netlink import Link
from sequences.operations import ERROR, OK, Operation
from sequences.packets import REFUSED, Probe, Probes
from sequences.ways import InProcess, Programs, Refused, Way
from sequences.world import Observer

_AGAIN = (0.0, 0.01, 0.05, 0.15)  # seconds before a look that finds something is believed
_GONE = 5.0
_TOLERANCE = ("cache", "settings")

# Its kind, what it is in words, what to ask, and the answers that are right.
Question = tuple[str, str, Probe, list[str]]


@dataclass(frozen=True, repr=False)
class Setup(Short):
    """What a sequence begins with. slots: the containers' namespaces; drops: the host forwards only
    what its firewall accepts."""

    nets: tuple[Net, ...]
    way: str = "in process"
    slots: tuple[str, ...] = ("s1", "s2", "s3", "s4")
    drops: bool = False


@dataclass
class Stage:
    """See the module."""

    lab: Lab
    model: Model
    programs: Programs
    way: Way
    folder: Path
    observer: Observer
    is_libcni: bool = (
        False  # which undoes nothing of an ADD that fails, and deletes by today's list
    )
    without: frozenset[str] = frozenset()
    loop: Loop = field(default_factory=Loop)
    services: dict[Key, Service] = field(default_factory=dict)
    flows: dict[Key, list[Flow]] = field(default_factory=dict)
    leased: set[Key] = field(default_factory=set)
    checked: int = 0

    def __post_init__(self) -> None:
        self.probes, self.sessions = Probes(self.loop), Flows(self.loop)
        self._checker = InProcess(self.programs.sound)
        self._far: Service | None = None
        self._said: list[Difference] = []

    # --- what operations use ---------------------------------------------------------------------

    def boot(self) -> None:
        """The host starts, and the machine beyond serves."""
        if self._far is not None:
            self._far.close()
        self.way.stop()
        self.lab.boot()
        self.way.start()
        with inside(self.lab.far):
            self._far = Service(self.loop, "far", FAR, PORTS[0])
        self.drop_forwarding()

    def drop_forwarding(self) -> None:
        if self.model.drops:
            disturbances.drop_forwarding()

    def document(self, network: str) -> dict[str, Any]:
        return self.model.nets[network].document(self.lab.base)

    def path(self, slot: str) -> str:
        return str(self.lab.path(slot))

    def found(self, kind: str, text: str) -> None:
        """Something is wrong with what an operation said."""
        self._said.append(Difference(kind, text))

    def serve(self) -> None:
        """Have the port of each attachment answer that has an address for itself."""
        for one in self.model.living():
            if one.key not in self.services and "address" not in one.lost:
                with inside(self.lab.slots[one.slot]):
                    service = Service(self.loop, one.name, one.address, CONTAINER_PORT)
                self.services[one.key] = service

    def leave(self, key: Key) -> None:
        """Close what is open for an attachment that may go."""
        self.sessions.close(self.flows.pop(key, ()))
        service = self.services.pop(key, None)
        if service is not None:
            service.close()

    def close_sessions(self) -> None:
        """End all sessions: new ones are opened."""
        for flows in self.flows.values():
            self.sessions.close(flows)
        self.flows.clear()

    def leave_all(self) -> None:
        for key in list(self.services):
            self.leave(key)

    def await_gone(self, names: set[str]) -> None:
        """Wait for the host's ends of pairs whose other end has gone with its namespace."""
        deadline = time.monotonic() + _GONE
        while names & {link.name for link in self.links()} and time.monotonic() < deadline:
            time.sleep(0.002)

    def links(self) -> list[Link]:
        return self.observer.links()

    def end(self) -> None:
        """Close everything, so that namespaces can go."""
        self.leave_all()
        self.way.stop()
        if self._far is not None:
            self._far.close()
        self.observer.forget()

    # --- one operation ---------------------------------------------------------------------------

    def step(self, operation: Operation) -> list[Difference]:
        """Do it; what is wrong then."""
        expected = operation.expected(self.model)
        outcome: Any
        try:
            outcome = operation.perform(self)
        except Refused as refused:
            outcome = refused
        except Exception as error:  # noqa: BLE001 - a fault of the product's, to be reported
            frames = traceback.format_exc().splitlines()
            return [Difference("exception", f"{error!r}: {' | '.join(frames[-6:])}")]
        is_refused = isinstance(outcome, Refused)
        found = []
        if expected == OK and is_refused:
            found.append(Difference("refused", f"expected {expected}, it said: {outcome}"))
        elif expected == ERROR and not is_refused:
            found.append(Difference("not refused", "expected an error, it said nothing"))
        found = self._known_out(found)
        if found:
            return found
        try:
            operation.settle(self, outcome)
        except (KeyError, StopIteration, IndexError, OSError) as error:
            return [Difference("result", f"{error!r} with {outcome!r}")]
        found = self._known_out([*self._said, *self._compared()])
        self._said.clear()
        if not found:
            self.serve()
            found = self.verdict()
        return found

    def verdict(self) -> list[Difference]:
        """What packets and CHECK find: the first part of it that anything is wrong with."""
        return (
            self._known_out(self._asked())
            or self._known_out(self._flowing())
            or self._known_out(self._checked())
        )

    def remaining(self) -> list[Difference]:
        """What is left when everything has been detached."""
        world = self.observer.look()
        found = [Difference("file", path) for path in world.files if _is_left(path)]
        return self._known_out(found)

    def _known_out(self, found: Iterable[Difference]) -> list[Difference]:
        return [one for one in found if one.kind not in self.without]

    def _compared(self) -> list[Difference]:
        found: list[Difference] = []
        for pause in _AGAIN:
            time.sleep(pause)
            found = compare(self.model, self.observer.look())
            if not self._known_out(found):
                return []
        return found

    # --- packets ---------------------------------------------------------------------------------

    def _asked(self) -> list[Difference]:
        """Who answers."""
        asked = [
            *(each for one in self.model.living() for each in self._questions(one)),
            *self._questions_of_no_one(),
        ]
        self.probes.ask([probe for _, _, probe, _ in asked])
        return [
            Difference(kind, f"{what}: {probe.answer!r}, expected {' or '.join(answers)!r}")
            for kind, what, probe, answers in asked
            if probe.answer not in answers
        ]

    def _questions(self, one: Attachment) -> Iterator[Question]:
        """What to ask from and about an attachment."""
        model, lab = self.model, self.lab
        if "address" in one.lost:
            return
        gateway = self._from(one, "ping", (one.net.gateway(lab.base), 0))
        yield "gateway", f"{one.name} pings its gateway", gateway, [""]
        if not self._is_reached(one):
            return
        for protocol in ("udp", "tcp"):
            beyond = self._from(one, protocol, (FAR, PORTS[0]))
            answers = [f"far {one.masqueraded_as}"]
            yield "beyond", f"{one.name} asks beyond by {protocol}", beyond, answers
        others = [
            each
            for each in model.living()
            if each.slot != one.slot
            and each.net.bridge == one.net.bridge
            and self._is_reached(each)
            and not model.is_unannounced(each)
        ]
        other = others[-1] if others else None
        if other is not None:
            ping = self._from(one, "ping", (other.address, 0))
            yield "inside", f"{one.name} pings {other.name}", ping, [""]
        for port, protocol in itertools.product(one.ports, ("udp", "tcp")):
            sharing = model.sharing(one, port)
            if any(each.state != ALIVE for each in sharing):
                continue  # it may lead to what is left of that one
            names = [each.name for each in sharing]
            what = f"port {port}/{protocol} of {one.name}"
            if not model.drops:  # the firewall plugin accepts what containers send
                outside = Probe(lab.client, protocol, (HOST, port))
                answers = [f"{name} {CLIENT}" for name in names]
                yield "port outside", f"{what} from outside", outside, answers
            if other is not None:
                near = self._from(other, protocol, (HOST, port), names_only=True)
                yield "port inside", f"{what} from {other.name}", near, names
            # The host may ask by any of its addresses.
            for where, address in (("the host", HOST), ("localhost", "127.0.0.1")):
                own = Probe(lab.host, protocol, (address, port), names_only=True)
                yield "port on the host", f"{what} from {where}", own, names

    def _questions_of_no_one(self) -> Iterator[Question]:
        for port, protocol in itertools.product(PORTS, ("udp", "tcp")):
            if not self.model.holder(port):
                probe = Probe(self.lab.client, protocol, (HOST, port))
                what = f"port {port}/{protocol}, which no one has, from outside"
                yield "port of no one", what, probe, [REFUSED]

    def _from(
        self, one: Attachment, protocol: str, to: tuple[str, int], *, names_only: bool = False
    ) -> Probe:
        """A question by an attachment's interface."""
        where = self.lab.slots[one.slot]
        return Probe(where, protocol, to, one.address, one.interface, names_only)

    def _is_reached(self, one: Attachment) -> bool:
        return one.is_sound(*_TOLERANCE) and self.model.beyond_is_open(one)

    def _flowing(self) -> list[Difference]:
        """Whether sessions go on; they are opened for who has none yet."""
        found, tried = [], []
        for one in self.model.living():
            open_ = self.flows.get(one.key)
            if not one.is_sound(*_TOLERANCE):
                self.sessions.use(open_ or ())
            elif open_ is None:
                found += self._open(one)
            else:
                tried += [(one, flow) for flow in open_]
        broken = self.sessions.interrupted([flow for _, flow in tried])
        for one, flow in tried:
            if any(flow is other for other in broken):
                found.append(Difference(f"{flow.kind} ends", f"{flow.name} of {one.name}"))
                self.flows[one.key].remove(flow)
        self.sessions.close(broken)
        self.loop.arrived.clear()
        return found

    def _open(self, one: Attachment) -> list[Difference]:
        lab, flows = self.lab, self.flows.setdefault(one.key, [])
        failed = []
        if self._far is None or not self.model.beyond_is_open(one):
            return []
        for protocol in ("udp", "tcp"):
            out = self.sessions.open(
                lab.slots[one.slot], self._far, protocol, (FAR, PORTS[0]),
                source=one.address, device=one.interface, incoming=False,
            )  # fmt: skip
            if out is None:
                failed.append(f"{protocol} from {one.name}")
            else:
                flows.append(out)
            for port in one.ports:
                if self.model.drops or len(self.model.sharing(one, port)) > 1:
                    continue
                service, to = self.services[one.key], (HOST, port)
                by_port = self.sessions.open(lab.client, service, protocol, to, incoming=True)
                if by_port is None:
                    failed.append(f"{protocol} to port {port} of {one.name}")
                else:
                    flows.append(by_port)
        return [Difference("session", f"none could be opened: {what}") for what in failed]

    # --- CHECK -----------------------------------------------------------------------------------

    def _checked(self, everyone: bool = False) -> list[Difference]:
        """What CHECK says of one of the living, each in its turn, or of all."""
        sound = [one for one in self.model.living()
                 if one.is_sound("settings") and not self.model.is_overruled(one)]  # fmt: skip
        if not sound:
            return []
        self.checked += 1
        chosen = sound if everyone else [sound[self.checked % len(sound)]]
        found = []
        for one in chosen:
            try:
                self._checker.check(
                    one.net.document(self.lab.base), one.container, self.path(one.slot),
                    one.interface, one.ports,
                )  # fmt: skip
            except Refused as refused:
                found.append(Difference("check", f"of {one.name}: {refused}"))
        return found


def _is_left(path: str) -> bool:
    """Whether a file below /run is one of an attachment: not a lock, nor a socket."""
    name = os.path.basename(path)
    return "lock" not in name and not path.endswith(".sock")
