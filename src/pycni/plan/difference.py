"""What repair and inspect report of an attachment: the steps of its plan, and what differs."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.spec.errors import CHECK_FAILED, CNIError
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycni.plan.steps import Step

_FAMILIES = {AF_INET: "IPv4", AF_INET6: "IPv6"}

MISSING = "missing"
REPAIRED = "repaired"
FAILED = "failed"

AGAIN = "delete the attachment and add it again"


class Difference(Record):
    """A part of an attachment that is not as ADD left it.

    what: a sentence, CHECK's; state: MISSING (only looked at), REPAIRED or FAILED; reason: why it
    could not be repaired, and what can be done; plugin: whose part it is, which the runtime fills
    in.
    """

    what: str
    state: str = MISSING
    reason: str = ""
    plugin: str = ""

    def to_json(self) -> dict[str, Any]:
        """As `pycni repair -o json` prints it."""
        return {
            "plugin": self.plugin,
            "what": self.what,
            "state": self.state,
            "reason": self.reason,
        }


class StepReport(Record):
    """A step of an attachment's plan as `inspect` shows it.

    kind: of the step, see `pycni.plan.steps`; what: its fields in words; differences: how the
    kernel differs from it, none if it is as it should be; plugin: see `Difference`.
    """

    kind: str
    what: str
    differences: tuple[str, ...] = ()
    plugin: str = ""

    def to_json(self) -> dict[str, Any]:
        """As `pycni inspect -o json` prints it."""
        return {
            "plugin": self.plugin,
            "kind": self.kind,
            "what": self.what,
            "differences": [*self.differences],
        }


def unrepairable(step: Step) -> CNIError:
    """The error of a step that is there as another thing: see `Step.unrepairable`."""
    name = getattr(step, "name", step.kind)
    return CNIError(CHECK_FAILED, f"{name}: {step.unrepairable}", AGAIN)


def described(record: Record) -> str:
    """The fields of a step that say something, in words. The owner is left out."""
    words = []
    for name in record._fields:
        value = getattr(record, name)
        if name == "owner" or value == getattr(type(record), name, None):
            continue
        if name in ("family", "families"):
            value = value if isinstance(value, tuple) else (value,)
            value = tuple(_FAMILIES.get(family, family) for family in value)
        words.append(f"{name.replace('_', ' ')} {_text(value)}")
    return ", ".join(words)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    if type(value).__str__ is object.__str__ and isinstance(value, Record):
        return f"({described(value)})"
    return str(value)
