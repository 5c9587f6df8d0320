"""Announcing a link's addresses to its neighbours (`plan.steps.GratuitousARP`).

The kernel sends a gratuitous ARP and unsolicited neighbour advertisements when a link's hardware
address is set, be it to what it is (arp_notify, ndisc_notify in its ip-sysctl.rst).
"""

from __future__ import annotations

from pycni.kernel import link as links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import GratuitousARP
    from pycni.steps.namespaces import HostAndSandbox


def apply(step: GratuitousARP, kernel: HostAndSandbox) -> None:
    site = kernel.netns(step.where)
    found = site.link(step.link)
    site.request(links.update(found, mac=found.mac))


def check(step: GratuitousARP, kernel: HostAndSandbox) -> list[str]:
    return []
