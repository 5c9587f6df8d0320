"""What repair and inspect tell of an attachment: the steps of its plan, and what differs."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.spec.record import Record

_FAMILIES = {AF_INET: "IPv4", AF_INET6: "IPv6"}

MISSING = "missing"
REPAIRED = "repaired"
FAILED = "failed"

AGAIN = "delete the attachment and add it again"


class Difference(Record):
    """One part that is not as ADD left it.

    what: a sentence, CHECK's; state: MISSING (only looked at), REPAIRED or FAILED; reason: why it
    could not be put back, and what can be done.
    """

    what: str
    state: str = MISSING
    reason: str = ""


class Part(Record):
    """A step of an attachment's plan as `inspect` shows it.

    kind: of the step, see `pycni.plan.steps`; what: its fields in words; differences: how the
    kernel differs from it, none if it is as it should be.
    """

    kind: str
    what: str
    differences: tuple[str, ...] = ()


def described(record: Record) -> str:
    """The fields of a step that say something, in words. The owner goes without saying."""
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
