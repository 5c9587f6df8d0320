"""A plan: the steps for one attachment, in order, and the interfaces its result lists."""

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

    def before_addresses(self) -> Plan:
        """The steps up to the interface's making, which leave it down.

        An address plugin that works on the interface finds it then; coming up later, with its
        addresses, it announces them.
        """
        made = [number for number, step in enumerate(self.steps, 1) if step.makes_link]
        return self.replace(steps=self.steps[: max(made, default=0)])

    def split(self) -> tuple[Plan, Plan]:
        """What the interface itself takes, and what comes on top of that.

        An address plugin that works on the interface releases between the two.
        """
        steps = self.steps
        end = 0
        for position, step in enumerate(steps, 1):
            if step.makes_link or step.follows_link:
                end = position
        return self.replace(steps=steps[:end]), self.replace(steps=steps[end:])

    def without(self, made: Plan) -> Plan:
        """What is left to do once another plan for the same attachment has been made.

        What only sets or awaits something of the interface is done again: it may depend on what
        has come since.
        """
        if not made.steps:
            return self
        left = [step for step in self.steps if step.follows_link or step not in made.steps]
        return self.replace(steps=tuple(left))
