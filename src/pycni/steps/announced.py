"""Telling neighbours of a link's addresses (`plan.steps.Announced`).

The kernel sends a gratuitous ARP and unsolicited neighbour advertisements when a link's hardware
address is set, be it to what it is (arp_notify, ndisc_notify in its ip-sysctl.rst).
"""

from __future__ import annotations

from pycni.kernel import link as links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import Announced
    from pycni.steps.context import Kernel


def apply(step: Announced, kernel: Kernel) -> None:
    site = kernel.site(step.where)
    found = site.link(step.link)
    site.request(links.update(found, mac=found.mac))


def check(step: Announced, kernel: Kernel) -> list[str]:
    return []
