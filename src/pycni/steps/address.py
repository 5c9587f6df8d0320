"""An address of an interface (`plan.steps.Address`)."""

from __future__ import annotations

import errno

from pycni.kernel import address as addresses
from pycni.kernel.netlink.constants import IFA_F_DADFAILED, MIN_IPV6_MTU
from pycni.kernel.netlink.errors import NetlinkError
from pycni.spec.errors import INVALID_CONFIG, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.link import Link
    from pycni.plan.steps import Address
    from pycni.spec.ip import IPNetwork
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox


def apply(step: Address, kernel: HostAndSandbox) -> Undo:
    site = kernel.netns(step.where)
    index = site.index(step.link)
    try:
        site.request(
            addresses.add(
                index, step.address, no_dad=not step.dad, no_prefix_route=not step.on_link
            )
        )
    except NetlinkError as error:
        raise explained(error, step.address, site.known(step.link)) from None
    return lambda: site.request(addresses.delete(index, step.address))


def explained(error: NetlinkError, address: IPNetwork, link: Link) -> Exception:
    """The refusal of an address, in words where it is one of IPv6 for want of room."""
    if error.errno != errno.EINVAL or address.is_ipv4 or link.mtu >= MIN_IPV6_MTU:
        return error
    return CNIError(
        INVALID_CONFIG,
        f"{link.name} cannot have the address {address}: its MTU is {link.mtu}",
        f'IPv6 needs {MIN_IPV6_MTU} bytes: give a larger "mtu", or no IPv6 addresses',
    )


def check(step: Address, kernel: HostAndSandbox) -> list[str]:
    site = kernel.netns(step.where)
    for found in addresses.dump(site.netlink, site.index(step.link), step.address.family):
        if found.network == step.address:
            if found.flags & IFA_F_DADFAILED:
                return [f"address {step.address} of {step.link} is in use elsewhere on the link"]
            return []
    return [f"address {step.address} is missing on interface {step.link}"]
