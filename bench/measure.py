"""Rounds in which every contender works once, and what they give: medians of ratios."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from contenders import Attachment, Contender, sandboxes
from scenarios import Scenario

from harness import inside

OPERATIONS = ("ADD", "CHECK", "DEL")
Values = dict[str, list[float]]


@dataclass(frozen=True)
class Measurement:
    """One operation of one piece of work: values by contender, one a round.

    unit: of the values; of rates, more is better.
    """

    work: str
    operation: str
    values: Values
    unit: str = "s"

    def median(self, contender: str) -> float:
        """The contender's median value."""
        return statistics.median(self.values[contender])

    def ratio(self, contender: str, reference: str) -> tuple[float, float, float]:
        """Quartiles of the contender's value over the reference's, round by round."""
        pairs = zip(self.values[contender], self.values[reference], strict=True)
        ratios = [own / theirs for own, theirs in pairs]
        if len(ratios) == 1:
            ratios *= 2
        lower, middle, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        return lower, middle, upper


@dataclass(frozen=True)
class Table:
    """Measurements that belong together; reference: the contender that ratios are taken to."""

    title: str
    reference: str
    rows: list[Measurement] = field(default_factory=list)

    @property
    def contenders(self) -> list[str]:
        """All that take part, the reference first."""
        names = dict.fromkeys(name for row in self.rows for name in row.values)
        return [self.reference, *(name for name in names if name != self.reference)]


def measure(
    scenario: Scenario,
    contenders: Sequence[Contender],
    rounds: int,
    work: str = "",
    first: int = 0,
    operations: Sequence[str] = OPERATIONS,
) -> list[Measurement]:
    """Attach, check and detach once a round by every contender; one round before that warms up.

    work: what to call it; first: the number of the first container.
    """
    values: dict[str, Values] = {operation: {} for operation in operations}
    with ExitStack() as stack:
        places = {}
        for contender in contenders:
            name = f"box-{scenario.network}-{contender.name}".replace(" ", "-")
            places[contender] = stack.enter_context(sandboxes(1, name))[0].netns
        for number in range(rounds + 1):
            for slot, contender in enumerate(in_turn(contenders, number)):
                attachment = Attachment(f"{scenario.network}-{number}-{slot}", places[contender])
                configs = scenario.configured(first + slot, contender.room.name)
                spent = cycle(contender, configs, attachment, scenario.unchecked, operations)
                if number > 0:
                    for operation, elapsed in spent.items():
                        values[operation].setdefault(contender.name, []).append(elapsed)
    names = [contender.name for contender in contenders]
    return [
        Measurement(
            work or scenario.name,
            operation,
            {name: found[name] for name in names if name in found},
        )
        for operation, found in values.items()
    ]


def measure_at_once(
    scenario: Scenario, contenders: Sequence[Contender], count: int, rounds: int
) -> list[Measurement]:
    """Attach so many containers, whose ADDs begin together, then detach them; seconds for all."""
    values: dict[str, Values] = {"ADD": {}, "DEL": {}}
    with sandboxes(count, "at-once") as boxes:
        for number in range(rounds + 1):
            for contender in in_turn(contenders, number):
                configs = [scenario.configured(i, contender.room.name)[0] for i in range(count)]
                for operation, found in values.items():
                    with inside(contender.room):
                        contender.arrive()
                        work = list(zip(configs, boxes, strict=True))
                        elapsed, results = contender.at_once(operation, work)
                    configs = [
                        {**config, "prevResult": result}
                        for config, result in zip(configs, results, strict=True)
                    ]
                    if number > 0:
                        found.setdefault(contender.name, []).append(elapsed)
    return [
        Measurement(f"{scenario.name}, {count} at once", operation, found)
        for operation, found in values.items()
    ]


def cycle(
    contender: Contender,
    configs: Sequence[Mapping[str, Any]],
    attachment: Attachment,
    unchecked: Sequence[str] = (),
    operations: Sequence[str] = OPERATIONS,
) -> dict[str, float]:
    """Attach a container, check it, detach it; the seconds by operation."""
    spent: dict[str, float] = {}
    with inside(contender.room):
        contender.arrive()
        result, spent["ADD"] = attach(contender, configs, attachment)
        configs = [{**config, "prevResult": result} for config in configs]
        if "CHECK" in operations and "CHECK" in contender.operations:
            spent["CHECK"] = sum(
                contender.call("CHECK", config, attachment)[1]
                for config in configs
                if config["type"] not in unchecked
            )
        spent["DEL"] = sum(
            contender.call("DEL", config, attachment)[1] for config in reversed(configs)
        )
    return {operation: spent[operation] for operation in operations if operation in spent}


def attach(
    contender: Contender, configs: Sequence[Mapping[str, Any]], attachment: Attachment
) -> tuple[Any, float]:
    """ADD of a list: the last plugin's result, and seconds. The thread must be in the room."""
    elapsed = 0.0
    previous: dict[str, Any] = {}
    for config in configs:
        result, seconds = contender.call("ADD", {**config, **previous}, attachment)
        previous = {"prevResult": result}
        elapsed += seconds
    return result, elapsed


def in_turn(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """The contenders in the order of a round: another begins, and every other round goes backwards.

    So none always pays for what the same one before it has left to the kernel to do.
    """
    first = number // 2 % len(contenders)
    order = [*contenders[first:], *contenders[:first]]
    return order if number % 2 else order[::-1]
