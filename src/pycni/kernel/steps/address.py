"""An address of an interface (`plan.steps.Address`)."""

from __future__ import annotations

from pycni.kernel import address as addresses
from pycni.kernel.netlink.constants import IFA_F_DADFAILED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.context import Kernel
    from pycni.kernel.executor import Undo
    from pycni.plan.steps import Address


def apply(step: Address, kernel: Kernel) -> Undo:
    site = kernel.site(step.where)
    index = site.index(step.link)
    site.request(
        addresses.add(index, step.address, no_dad=not step.dad, no_prefix_route=not step.on_link)
    )
    return lambda: site.request(addresses.delete(index, step.address))


def check(step: Address, kernel: Kernel) -> list[str]:
    site = kernel.site(step.where)
    for found in addresses.dump(site.netlink, site.index(step.link), step.address.family):
        if found.network == step.address:
            if found.flags & IFA_F_DADFAILED:
                return [f"address {step.address} of {step.link} is in use elsewhere on the link"]
            return []
    return [f"address {step.address} is missing on interface {step.link}"]
