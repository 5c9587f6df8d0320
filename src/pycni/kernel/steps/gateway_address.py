"""The gateway addresses of a shared link (`plan.steps.GatewayAddress`)."""

from __future__ import annotations

from _socket import AF_UNSPEC

from pycni.kernel import address as addresses
from pycni.kernel import link as links
from pycni.kernel.netlink.errors import NetlinkError
from pycni.spec.errors import ALREADY_EXISTS, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.context import Kernel
    from pycni.kernel.executor import Undo
    from pycni.kernel.link import Link
    from pycni.plan.steps import GatewayAddress
    from pycni.spec.ip import IPNetwork


def apply(step: GatewayAddress, kernel: Kernel) -> Undo | None:
    host = kernel.host
    link = host.known(step.link)
    present = _present(step, link, kernel)
    missing = [address for address in step.addresses if address not in present]
    if not missing:
        return None
    conflicts = [found for found in present if _conflicts(found, step.addresses)]
    if conflicts and not step.force:
        raise CNIError(
            ALREADY_EXISTS,
            f'"{step.link}" already has an IP address different from {missing[0]}',
            f"it has {', '.join(map(str, conflicts))}; remove that, give the network another "
            'bridge, or set "forceAddress": true to have it replaced',
        )

    def undo() -> None:
        # Whoever plugged something in meanwhile relies on the address.
        if not links.dump(host.netlink, link.index):
            host.request(
                *(addresses.delete(link.index, wanted) for wanted in missing),
                *(addresses.add(link.index, found, replace=True) for found in conflicts),
            )

    try:
        host.request(
            *(addresses.delete(link.index, found) for found in conflicts),
            # Setting the address a bridge has pins it: ports that join no longer change it.
            links.update(link, mac=link.mac),
            *(addresses.add(link.index, wanted, no_dad=True, replace=True) for wanted in missing),
        )
    except NetlinkError as refusal:
        try:
            undo()
        except NetlinkError:
            pass  # of what was never done; the kernel goes on behind it
        raise refusal from None
    return undo


def check(step: GatewayAddress, kernel: Kernel) -> list[str]:
    link = kernel.host.find(step.link)
    present = _present(step, link, kernel) if link is not None else []
    return [
        f"gateway address {address} is missing on {step.link}"
        for address in step.addresses
        if address not in present
    ]


def _present(step: GatewayAddress, link: Link, kernel: Kernel) -> list[IPNetwork]:
    """The addresses that the link has, of the families that are asked for."""
    families = {address.family for address in step.addresses}
    family = families.pop() if len(families) == 1 else AF_UNSPEC
    return [found.network for found in addresses.dump(kernel.host.netlink, link.index, family)]


def _conflicts(found: IPNetwork, wanted: tuple[IPNetwork, ...]) -> bool:
    """Whether an address is in the way of the wanted ones, as the reference sees it."""
    if found in wanted:
        return False
    if found.is_ipv4:
        return any(address.is_ipv4 for address in wanted)
    return any(
        found.contains(address.address) or address.contains(found.address) for address in wanted
    )
