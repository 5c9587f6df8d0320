"""What a repair found: parts of an attachment that are not as its plan has them."""

from __future__ import annotations

from pycni.spec.record import Record

MISSING = "missing"
MENDED = "mended"
FAILED = "failed"


class Difference(Record):
    """One part that is not as ADD left it.

    what: a sentence, CHECK's; state: MISSING (only looked at), MENDED or FAILED; reason: why it
    could not be put back, and what can be done.
    """

    what: str
    state: str = MISSING
    reason: str = ""
