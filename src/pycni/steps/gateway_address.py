"""The gateway addresses of a shared link (`plan.steps.GatewayAddress`)."""

from __future__ import annotations

import errno
from _socket import AF_INET6, AF_UNSPEC

from pycni.kernel import address as addresses
from pycni.kernel import link as links
from pycni.kernel import route as routes
from pycni.kernel.netlink.errors import NetlinkError
from pycni.spec.errors import ALREADY_EXISTS, CNIError
from pycni.spec.ip import IPAddress
from pycni.steps.bridge import BRIDGE_ALIAS, remove_unused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.link import Link
    from pycni.plan.steps import GatewayAddress
    from pycni.spec.ip import IPNetwork
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox, Netns


def apply(step: GatewayAddress, kernel: HostAndSandbox) -> Undo | None:
    host = kernel.host
    link = host.known(step.link, altnames=True)
    present = _present(step, link, host)
    missing = [address for address in step.addresses if address not in present]
    if not missing:
        return None
    conflicts = [found for found in present if _conflicts(found, step.addresses)]
    if conflicts and not step.force:
        raise _conflict(step, missing[0], conflicts)

    from pycni.kernel.link_snapshot import LinkSnapshot  # for a network's first attachment only

    before = LinkSnapshot(host.netlink, link.index, _families(step))
    ports = _ports(link, host)

    def undo() -> None:
        try:
            # What was plugged in meanwhile relies on the address.
            if _ports(link, host) <= ports:
                _take_off(link, missing, host)
        finally:
            before.restore()

    _retire_bridges(missing, link, host)
    try:
        _change(step, link, conflicts, host)
        if conflicts:
            before.restore_routes()
        _require_way(missing, link, host)
    except (NetlinkError, CNIError) as refusal:
        try:
            undo()
        except NetlinkError:
            pass  # of what was never done; the kernel goes on behind it
        if isinstance(refusal, CNIError):
            raise
        from pycni.steps.address import explained

        raise explained(refusal, missing[-1], link) from None
    return undo


def check(step: GatewayAddress, kernel: HostAndSandbox) -> list[str]:
    host = kernel.host
    link = host.find(step.link, altnames=True)
    present = _present(step, link, host) if link is not None else []
    differences = [
        f"gateway address {address} is missing on {step.link}"
        for address in step.addresses
        if address not in present
    ]
    if link is None:
        return differences
    for address in present:
        way = _other_way(address, link, host) if address in step.addresses else None
        if way is not None:
            differences.append(_astray(address, link, way))
    return differences


def repair(step: GatewayAddress, kernel: HostAndSandbox) -> None:
    """Add what is missing, beside conflicting addresses: others that are attached rely on those."""
    host = kernel.host
    link = host.link(step.link, altnames=True)
    present = _present(step, link, host)
    missing = [address for address in step.addresses if address not in present]
    conflicts = [found for found in present if _conflicts(found, step.addresses)]
    if missing and conflicts and not step.force:
        raise _conflict(step, missing[0], conflicts)
    if missing:
        _retire_bridges(missing, link, host)
        _change(step, link, [], host)
    found = addresses.dump(host.netlink, link.index, AF_INET6)
    if any(not item.is_ipv4 for item in step.addresses) and not any(
        item.network.address.is_link_local for item in found
    ):
        # A flush of the addresses took this one too, without which the host finds no neighbours.
        # The kernel makes it when the way of making it is set to another than it was.
        key = f"net/ipv6/conf/{link.name}/addr_gen_mode"
        mode = host.write_sysctl(key, "1")
        host.write_sysctl(key, mode if mode != "1" else "0")


def _use_at_once(link: Link, host: Netns) -> None:
    """Have the link-local address of a link of ours be usable when it gets one.

    No other link has the random MAC address that it is made of, and until duplicate address
    detection is over the host could not ask for containers' addresses.
    """
    if link.alias == BRIDGE_ALIAS or link.kind == "veth":
        try:
            host.write_sysctl(f"net/ipv6/conf/{link.name}/accept_dad", "0")
        except OSError:
            pass  # it takes its time then


def _change(step: GatewayAddress, link: Link, conflicts: list[IPNetwork], host: Netns) -> None:
    """Give a link the addresses that it lacks, in the place of those that conflict."""
    _take_off(link, conflicts, host)
    present = _present(step, link, host)
    missing = [address for address in step.addresses if address not in present]
    if not all(address.is_ipv4 for address in missing):
        _use_at_once(link, host)
    host.request(
        # Setting the address a bridge has pins it: ports that join no longer change it.
        links.update(link, mac=link.mac),
        *(addresses.add(link.index, wanted, no_dad=True, replace=True) for wanted in missing),
    )


def _take_off(link: Link, unwanted: list[IPNetwork], host: Netns) -> None:
    for address in unwanted:
        try:
            host.request(addresses.delete(link.index, address))
        except NetlinkError as error:
            if error.errno != errno.EADDRNOTAVAIL:  # a secondary one goes with the primary one
                raise


def _ports(link: Link, host: Netns) -> set[int]:
    return {port.index for port in links.dump(host.netlink, link.index)}


def _retire_bridges(missing: list[IPNetwork], link: Link, host: Netns) -> None:
    """Delete bridges of ours that have these addresses and no ports.

    A network whose bridge was renamed leaves the earlier one behind, and the host would go on to
    send packets for its containers there.
    """
    for family in {address.family for address in missing}:
        for found in addresses.dump(host.netlink, 0, family):
            if found.network not in missing or found.index == link.index:
                continue
            other = host.find(found.index)
            if other is not None and other.kind == "bridge" and other.alias == BRIDGE_ALIAS:
                remove_unused(host, other.name)


def _require_way(missing: list[IPNetwork], link: Link, host: Netns) -> None:
    """Refuse what no packet would get through to. Raises CNIError (code 101)."""
    for address in missing:
        way = _other_way(address, link, host)
        if way is not None:
            raise CNIError(
                ALREADY_EXISTS,
                _astray(address, link, way),
                f"give the network another subnet, or use {way.name}; if the network's bridge was "
                f"renamed, detach first what is on {way.name}",
            )


def _astray(address: IPNetwork, link: Link, way: Link) -> str:
    return (
        f"packets to {address.network} leave by {way.name}, not by {link.name}: "
        f"{way.name} has the same network"
    )


def _other_way(address: IPNetwork, link: Link, host: Netns) -> Link | None:
    """The link that packets to an address's network leave by, if that is another one."""
    if address.prefix >= address.address.bits - 1:
        return None
    neighbour = IPAddress.from_int(int(address.address) ^ 1, address.family)
    index = routes.device_towards(host.netlink, neighbour)
    # No way at all is reported by others.
    found = None if index in (0, link.index) else host.find(index)
    return None if found is None or found.kind == "" else found  # lo, if that is the host's own


def _conflict(step: GatewayAddress, wanted: IPNetwork, found: list[IPNetwork]) -> CNIError:
    return CNIError(
        ALREADY_EXISTS,
        f'"{step.link}" already has an IP address different from {wanted}',
        f"it has {', '.join(map(str, found))}; remove that, give the network another "
        'bridge, or set "forceAddress": true to have it replaced',
    )


def _families(step: GatewayAddress) -> list[int]:
    return sorted({address.family for address in step.addresses})


def _present(step: GatewayAddress, link: Link, host: Netns) -> list[IPNetwork]:
    """The addresses that the link has, of the families that are asked for."""
    families = _families(step)
    family = families[0] if len(families) == 1 else AF_UNSPEC
    return [found.network for found in addresses.dump(host.netlink, link.index, family)]


def _conflicts(found: IPNetwork, wanted: tuple[IPNetwork, ...]) -> bool:
    """Whether an address is in the way of the wanted ones, as the reference sees it."""
    if found in wanted:
        return False
    if found.is_ipv4:
        return any(address.is_ipv4 for address in wanted)
    return any(
        found.contains(address.address) or address.contains(found.address) for address in wanted
    )
