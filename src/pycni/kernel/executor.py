"""The executor of plans: make, check, remove, collect. Called by plugins through `pycni.sdk`.

Invariants: making is all or nothing, what was done is taken back in reverse when a later step
fails; removing goes on after a failure and tells all of them at the end; the kernel's errors become
`CNIError` here and nowhere else.
"""

from __future__ import annotations

import errno

from pycni.bundle import module
from pycni.plan.plan import Plan
from pycni.spec.errors import (
    ALREADY_EXISTS,
    INVALID_ENVIRONMENT,
    KERNEL_REFUSED,
    TRY_AGAIN_LATER,
    CNIError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType
    from typing import Self, TypeVar

    from pycni.kernel.context import Kernel
    from pycni.plan.steps import Step
    from pycni.spec.config import Attachment

    Undo = Callable[[], None]
    T = TypeVar("T")


class Transaction:
    """Steps made so far and how to take them back.

        with Transaction(kernel) as transaction:
            transaction.apply(plan)
            ...                        # whatever else must succeed with it

    Leaving it by an exception takes them back.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._undo: list[Undo] = []

    def apply(self, plan: Plan) -> None:
        """Make the steps of a plan in order. Raises CNIError; what was made is then taken back."""
        for step in plan.steps:
            if self._kernel.cancelled:
                raise CNIError(
                    TRY_AGAIN_LATER,
                    "cancelled: whoever asked for the attachment has gone",
                    "nothing of it is left",
                )
            try:
                undo = handler(step.kind).apply(step, self._kernel)
            except OSError as error:
                if error.errno == errno.ENOBUFS and not step.follows_link:
                    remove(Plan((step,)), self._kernel)  # the answer was lost: it may be there
                raise translate(error) from error
            if undo is not None:
                self._undo.append(undo)

    def undo(self) -> None:
        """Take back what was made, in reverse; a part that cannot be taken back is left to DEL."""
        while self._undo:
            try:
                self._undo.pop()()
            except (OSError, CNIError):
                continue

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.undo()


def check(plan: Plan, kernel: Kernel) -> list[str]:
    """How the kernel differs from a plan: a sentence for each difference."""
    differences: list[str] = []
    for step in plan.steps:
        try:
            differences += handler(step.kind).check(step, kernel)
        except OSError as error:
            differences.append(str(error))
        except CNIError as error:
            differences.append(str(error))
    return differences


def remove(plan: Plan, kernel: Kernel) -> list[CNIError]:
    """Remove what a plan names, in reverse; what is missing is no error. Returns what failed."""
    steps = [step for step in reversed(plan.steps) if not (step.follows_link or step.shared)]
    return _each(lambda step: handler(step.kind).remove(step, kernel), steps)


def collect(
    kinds: Iterable[str], kernel: Kernel, network: str, keep: frozenset[Attachment]
) -> list[CNIError]:
    """Remove what a network left for attachments not in `keep`. Returns what failed."""
    return _each(lambda kind: handler(kind).collect(kernel, network, keep), kinds)


def current(plan: Plan, kernel: Kernel) -> Plan:
    """The steps of a plan that set a value, with the values the kernel has now.

    What has no value yet is left out. Raises CNIError.
    """
    steps: list[Step] = []
    for step in plan.steps:
        try:
            found = handler(step.kind).current(step, kernel)
        except OSError as error:
            raise translate(error) from error
        if found is not None:
            steps.append(found)
    return plan.replace(steps=tuple(steps))


def handler(kind: str) -> ModuleType:
    """The module that knows a kind of step; imported when first needed.

    A kind with a dot is the whole name of a module: of a step that another package declares.
    """
    found = _handlers.get(kind)
    if found is None:
        found = _handlers[kind] = module(kind if "." in kind else f"{__package__}.steps.{kind}")
    return found


_handlers: dict[str, ModuleType] = {}


def translate(error: OSError) -> CNIError:
    """The kernel's refusal as an error for people: what was asked, why not, what to do."""
    if error.errno == errno.EPERM:
        return CNIError(
            INVALID_ENVIRONMENT,
            str(error),
            "the plugin needs the rights of root (CAP_NET_ADMIN, CAP_SYS_ADMIN) on this host",
        )
    if error.errno == errno.EEXIST:
        return CNIError(
            ALREADY_EXISTS,
            str(error),
            "it is there already: left by an earlier attachment, or made by another program",
        )
    return CNIError(KERNEL_REFUSED, str(error))


def _each(action: Callable[[T], None], items: Iterable[T]) -> list[CNIError]:
    failures: list[CNIError] = []
    for item in items:
        try:
            action(item)
        except OSError as error:
            failures.append(translate(error))
        except CNIError as error:
            failures.append(error)
    return failures
