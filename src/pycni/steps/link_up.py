"""An interface that is administratively up (`plan.steps.LinkUp`)."""

from __future__ import annotations

import errno

from pycni.kernel import link as links
from pycni.kernel.netlink.errors import NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import LinkUp
    from pycni.steps.namespaces import HostAndSandbox


def apply(step: LinkUp, kernel: HostAndSandbox) -> None:
    site = kernel.netns(step.where)
    link = site.known(step.link)
    up = links.update(link, up=True)
    if step.link_local:
        site.request(up)
        return
    try:
        site.request(links.no_link_local(link), up)
    except NetlinkError as error:
        if error.errno != errno.EAFNOSUPPORT or 1 not in error.done:  # there is no IPv6
            raise


def check(step: LinkUp, kernel: HostAndSandbox) -> list[str]:
    found = kernel.netns(step.where).find(step.link)
    if found is None:
        return [f"interface {step.link} is missing in the {step.where}"]
    return [] if found.is_up else [f"interface {step.link} is down"]
