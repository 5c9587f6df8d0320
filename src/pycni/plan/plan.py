"""A plan: the steps for one attachment, in order, and the interfaces its result tells of."""

from __future__ import annotations

from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import Step


class Reported(Record):
    """An interface that the result lists; where: `steps.HOST` or `steps.SANDBOX`.

    in_kernel: whether the kernel has an interface of that name. It has none for a device that a
    program drives by itself.
    """

    where: str
    name: str
    in_kernel: bool = True


class Plan(Record):
    """What should exist for one attachment.

    steps are made in order and removed in reverse; interfaces appear in the result in this order.
    """

    steps: tuple[Step, ...] = ()
    interfaces: tuple[Reported, ...] = ()
