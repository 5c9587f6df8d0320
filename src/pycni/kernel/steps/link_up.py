"""An interface that is administratively up (`plan.steps.LinkUp`)."""

from __future__ import annotations

from pycni.kernel import link as links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.context import Kernel
    from pycni.plan.steps import LinkUp


def apply(step: LinkUp, kernel: Kernel) -> None:
    kernel.site(step.where).request(links.update(step.link, up=True))


def check(step: LinkUp, kernel: Kernel) -> list[str]:
    found = kernel.site(step.where).find(step.link)
    if found is None:
        return [f"interface {step.link} is missing in the {step.where}"]
    return [] if found.is_up else [f"interface {step.link} is down"]
