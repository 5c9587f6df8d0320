"""What a check is: a requirement of the specification, and the function that tries it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pycni.conformance.case import Case

Keyword = Literal["MUST", "SHOULD"]
Outcome = Literal["passed", "failed", "skipped"]

INTERFACE = "interface"
CHAINED = "chained"
IPAM = "ipam"
KINDS = (INTERFACE, CHAINED, IPAM)


class Broken(Exception):
    """The plugin does not keep the requirement; the text says what was seen."""


class NotApplicable(Exception):
    """The requirement cannot be tried here; the text says why."""


@dataclass(frozen=True)
class Requirement:
    """One thing that the specification asks of plugins.

    section: of SPEC 1.1.0; text: the requirement in our words; sentence: the beginning or the core
    of the specification's own, to find it by; kinds: the kinds of plugins it is asked of; since:
    the version that a configuration must have for it to be tried.
    """

    id: str
    section: str
    keyword: Keyword
    text: str
    sentence: str
    kinds: Collection[str]
    since: str
    check: Callable[[Case], None]


@dataclass(frozen=True)
class Finding:
    """How the check of a requirement ended; seen: what was seen of a failure, or why it was not
    tried."""

    requirement: Requirement
    outcome: Outcome
    seen: str = ""
    seconds: float = 0.0


REQUIREMENTS: dict[str, Requirement] = {}


def requirement(
    id: str,  # noqa: A002 - what it is called in reports
    section: str,
    keyword: Keyword,
    text: str,
    sentence: str,
    *,
    kinds: Collection[str] = KINDS,
    since: str = "0.1.0",
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Declare the decorated function as the check of a requirement.

    The function returns if the requirement is kept, raises `Broken` if it is not, and
    `NotApplicable` if that cannot be judged.
    """

    def declare(check: Callable[[Case], None]) -> Callable[[Case], None]:
        if id in REQUIREMENTS:
            raise ValueError(f"two requirements are called {id}")
        REQUIREMENTS[id] = Requirement(id, section, keyword, text, sentence, kinds, since, check)
        return check

    return declare
