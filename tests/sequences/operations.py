"""Operations of runtimes and operators. Printed, each is what makes it again.

An operation says what it must come to (`expected`), is done (`perform`), and reports to the model
what has become of it (`settle`). What may go either way is judged by what it claims: an ADD that
says that it succeeded must have, one that says that it was refused must have left everything as it
was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sequences import ways
from sequences.model import ALIVE, HALF, REFERENCE, Attachment, Key, Model, Short
from sequences.ways import Refused

if TYPE_CHECKING:
    from sequences.stage import Stage

OK, ERROR, EITHER = "success", "an error", "either"


@dataclass(frozen=True, repr=False)
class Operation(Short):
    """Base of all: what changes nothing and cannot fail."""

    def expected(self, model: Model) -> str:
        """OK, ERROR or EITHER."""
        return OK

    def is_tried(self, model: Model) -> bool:
        """Whether to do it at all; what is left out is in `ALLOWANCES`."""
        return True

    def perform(self, stage: Stage) -> Any:
        """Do it. Raises Refused."""
        return None

    def settle(self, stage: Stage, outcome: Any) -> None:
        """Report to the model. outcome: what `perform` returned, or the Refused that it raised."""


@dataclass(frozen=True, repr=False)
class Add(Operation):
    """ADD of a container, whose namespace is at a slot, with published ports of the host."""

    net: str
    container: str
    slot: str
    interface: str = "eth0"
    ports: tuple[int, ...] = ()
    by: str = ""

    @property
    def key(self) -> Key:
        return self.net, self.container, self.interface

    def expected(self, model: Model) -> str:
        net = model.nets[self.net]
        if model.slots.get(self.slot) is None:
            return ERROR
        own = model.attachments.get(self.key)
        there = [one for one in model.living()
                 if (one.slot, one.interface) == (self.slot, self.interface)]  # fmt: skip
        if there or (own is not None and own.state == ALIVE):
            return ERROR
        others = [one for one in model.of(self.net) if one.key != self.key]
        leased = [one for one in others if one.state == ALIVE and "lease" not in one.lost]
        if len(leased) >= net.size:
            return ERROR
        ports = self.ports if net.portmap else ()
        holders = [one for port in ports for one in model.holder(port) if one.key != self.key]
        if any(one.is_sound("cache", "settings") and one.container != self.container
               for one in holders):  # fmt: skip
            return ERROR
        doubtful = (
            own is not None
            or model.is_hit(net) is not False
            or holders
            or len(others) >= net.size
            or model.is_contended(net)
            or any(self.slot in {one.slot, *one.also} and one.interface == self.interface
                   for one in model.remains())
        )  # fmt: skip
        return EITHER if doubtful else OK

    def is_tried(self, model: Model) -> bool:
        if any(one.container == self.container and one.slot != self.slot for one in model.living()):
            return False  # a container has one namespace
        earlier = model.attachments.get(self.key)
        if earlier is not None and earlier.state != ALIVE and earlier.lost >= {"settings", "lease"}:
            return False  # forgotten
        # The reference refuses no port that is taken, and leaves what it made when it fails.
        return not self.by or (earlier is None and self.expected(model) == OK)

    def perform(self, stage: Stage) -> Any:
        document = stage.document(self.net)
        return stage.way.add(
            document, self.container, stage.path(self.slot), self.interface, self.ports, self.by
        )

    def begun(self, model: Model) -> Attachment:
        """What there may be of it when it has not come to its end."""
        net, generation = model.nets[self.net], model.slots.get(self.slot) or 0
        ports = self.ports if net.portmap else ()
        return Attachment(
            net, self.container, self.interface, self.slot, generation, ports, state=HALF
        )

    def settle(self, stage: Stage, outcome: Any) -> None:
        model = stage.model
        net = model.nets[self.net]
        one = self.begun(model)
        if isinstance(outcome, Refused):
            model.used.add((net.bridge, net.subnet(model.base)))  # the bridge stays
            if stage.is_libcni or model.is_hit(net) is not False:
                model.begin(one)
            return
        one.state, one.by = ALIVE, self.by
        if self.by == REFERENCE:
            one.lost.add("settings")  # its tuning notes no sysctl
            if self.ports:
                stage.close_sessions()
        one.address = outcome["ips"][0]["address"].partition("/")[0]
        outside = [item for item in outcome["interfaces"] if not item.get("sandbox")]
        one.outer = next(item["name"] for item in outside if item["name"] != net.bridge)
        one.mac = next(item["mac"] for item in outcome["interfaces"] if item.get("sandbox"))
        stage.leave(self.key)
        model.attach(one)


@dataclass(frozen=True, repr=False)
class Del(Operation):
    """DEL of a container, with the path of a slot's namespace."""

    net: str
    container: str
    slot: str
    interface: str = "eth0"
    ports: tuple[int, ...] = ()
    by: str = ""

    @property
    def key(self) -> Key:
        return self.net, self.container, self.interface

    def expected(self, model: Model) -> str:
        return EITHER if model.is_hit(*model.concerned(self.net, self.key)) is not False else OK

    def perform(self, stage: Stage) -> Any:
        stage.leave(self.key)
        document = stage.document(self.net)
        stage.way.delete(
            document, self.container, stage.path(self.slot), self.interface, self.ports, self.by
        )

    def settle(self, stage: Stage, outcome: Any) -> None:
        one = stage.model.attachments.get(self.key)
        if one is None:
            return
        if isinstance(outcome, Refused):
            one.state = HALF
            return
        if self.by == REFERENCE:
            stage.model.untracked.add(one.address)
            if one.by != REFERENCE:
                one.state = HALF
                one.lost |= {"lease", "cache", "settings"}
                return
        if one.net.tuning and stage.model.broken.get("tuning") == "missing":
            one.lost.add("settings")
        goes_by_todays = "cache" in one.lost or stage.is_libcni
        if goes_by_todays and one.net.tuning and not stage.model.nets[self.net].tuning:
            one.lost.add("settings")  # the plugin was not called
        stage.model.detach(self.key)


@dataclass(frozen=True, repr=False)
class Check(Operation):
    """CHECK of a container."""

    net: str
    container: str
    slot: str
    interface: str = "eth0"
    ports: tuple[int, ...] = ()
    by: str = ""

    @property
    def key(self) -> Key:
        return self.net, self.container, self.interface

    def expected(self, model: Model) -> str:
        one = model.attachments.get(self.key)
        if one is None:
            return ERROR
        if one.state != ALIVE or model.is_hit(*model.concerned(self.net, self.key)) is not False:
            return EITHER
        if "cache" in one.lost:
            return ERROR
        if "lease" in one.lost:
            return EITHER  # an ADD reserves again what is noted
        if one.net != model.nets[self.net] or one.lost - {"settings", "rules"}:
            return EITHER
        if model.is_overruled(one) or any(len(model.sharing(one, port)) > 1 for port in one.ports):
            return EITHER
        if "rules" in one.lost:
            return ERROR
        return OK

    def perform(self, stage: Stage) -> Any:
        document = stage.document(self.net)
        stage.way.check(
            document, self.container, stage.path(self.slot), self.interface, self.ports, self.by
        )


@dataclass(frozen=True, repr=False)
class GC(Operation):
    """GC of a network. keep: the living ones ("right"), or none ("empty")."""

    net: str
    keep: str = "right"

    def expected(self, model: Model) -> str:
        hit = [one.net for one in model.of(self.net)]
        return EITHER if model.is_hit(model.nets[self.net], *hit) is not False else OK

    def kept(self, model: Model) -> list[Attachment]:
        living = [one for one in model.of(self.net) if one.state == ALIVE]
        return living if self.keep == "right" else []

    def perform(self, stage: Stage) -> Any:
        kept = self.kept(stage.model)
        for one in stage.model.of(self.net):
            if one not in kept:
                stage.leave(one.key)
        stage.way.gc(stage.document(self.net), [(one.container, one.interface) for one in kept])

    def settle(self, stage: Stage, outcome: Any) -> None:
        model = stage.model
        kept = self.kept(model)
        for one in model.of(self.net):
            if one in kept:
                continue
            was_forgotten = "settings" in one.lost
            unknown = "cache" in one.lost or not one.address
            is_dropped = one.net.tuning and not model.nets[self.net].tuning and stage.is_libcni
            if unknown or is_dropped or isinstance(outcome, Refused):
                one.lost.add("settings")
            if isinstance(outcome, Refused):
                if one.state == ALIVE:
                    one.state = HALF
                if was_forgotten:
                    one.lost.add("lease")
                continue
            if unknown and one.state == HALF and model.slots.get(one.slot) == one.generation:
                continue  # what is inside, or was not marked yet, only a DEL of it can say
            if unknown and model.nets[self.net].version < "1.1.0":
                continue
            model.detach(one.key)


@dataclass(frozen=True, repr=False)
class Repair(Operation):
    """`pycni repair --all`."""

    def perform(self, stage: Stage) -> Any:
        return ways.repair(stage.programs)

    def settle(self, stage: Stage, outcome: Any) -> None:
        model = stage.model
        for one in model.living():
            is_known = not one.lost & {"cache", "lease", "port", "address"}
            if is_known and model.is_hit(one.net) is False:
                one.lost.discard("rules")


@dataclass(frozen=True, repr=False)
class Reclaim(Operation):
    """`pycni ipam reclaim`."""

    def expected(self, model: Model) -> str:
        remains = [one for one in model.remains() if "cache" in one.lost or not one.address]
        return EITHER if remains or model.broken else OK

    def perform(self, stage: Stage) -> Any:
        documents = [stage.document(name) for name in stage.model.nets]
        stage.leased = stage.observer.look().leased
        ways.reclaim(documents, stage.folder / "net.d")

    def settle(self, stage: Stage, outcome: Any) -> None:
        freed = stage.leased - stage.observer.look().leased
        for one in stage.model.remains():
            if one.key in freed:
                stage.model.detach(one.key)
