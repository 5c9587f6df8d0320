"""A veth pair between sandbox and host (`plan.steps.VethPair`), made in one request."""

from __future__ import annotations

import errno

from pycni.kernel import link as links
from pycni.kernel.netlink.errors import NetlinkError
from pycni.plan.steps import SANDBOX
from pycni.steps import ownership

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.link import Link
    from pycni.plan.steps import BridgePort, VethPair
    from pycni.spec.ip import IPAddress
    from pycni.spec.owner import Owners
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox, Netns


def apply(step: VethPair, kernel: HostAndSandbox) -> Undo:
    host = kernel.host
    made = host.remember(_create(step, kernel))
    if step.mac:  # else the kernel has chosen one
        inner = links.Link(index=made.link, name=step.name, kind="veth", mac=step.mac, mtu=made.mtu)
        kernel.netns(SANDBOX).remember(inner)
    try:
        _set_up_host_end(step, made, host)
    except BaseException:
        host.discard(made)
        raise
    return lambda: host.discard(made)


def check(step: VethPair, kernel: HostAndSandbox) -> list[str]:
    inner = kernel.netns(SANDBOX).find(step.name)
    if inner is None:
        return [f"interface {step.name} is missing in the sandbox"]
    if inner.kind != "veth":
        return [f"interface {step.name} is not of type veth"]
    outer = ownership.peer_on_host(kernel, inner)
    if outer is None:
        return [f"the host end of {step.name} is missing"]
    differences = []
    if not outer.is_up:
        differences.append(f"host interface {outer.name} is down")
    if step.port is not None:
        differences += _check_port(step.port, outer, kernel)
    return differences


def repair(step: VethPair, kernel: HostAndSandbox) -> None:
    from pycni.plan.difference import unrepairable

    host, sandbox = kernel.host, kernel.netns(SANDBOX)
    inner = sandbox.find(step.name)
    if inner is None:
        apply(step, kernel)
        return
    outer = ownership.peer_on_host(kernel, inner)
    if outer is None:
        raise unrepairable(step)
    port = step.port
    if port is None:
        host.request(links.update(outer, up=True))
        return
    master = host.link(port.bridge, altnames=True).index
    if outer.master != master:
        from pycni.steps.bridge import plug_in

        plug_in(host, port.bridge, links.update(outer, master=master))
    host.disable_ipv6(outer.name)
    # What a later plugin has switched on stays.
    hairpin, isolated = port.hairpin or None, port.isolated or None
    host.request(links.update(outer, up=True, hairpin=hairpin, isolated=isolated))
    if port.vlans:
        from pycni.steps import port_vlans

        if port_vlans.differences(host, outer, port.vlans):
            port_vlans.assign(host, outer, port.vlans)


def remove(step: VethPair, kernel: HostAndSandbox) -> None:
    """Delete the pair by its host end, which no container can hide; by the other one without."""
    outer = ownership.own_host_end(kernel, step.host_name)
    if outer is not None:
        others = _other_addresses(kernel, outer) if step.port is not None else []
        kernel.host.discard(outer)
        if others:
            _forget_neighbours(others, outer.master, kernel.host)
        return
    inner = ownership.own_link(kernel, step.name)
    if inner is not None and inner.kind and kernel.sandbox is not None:  # lo, say, has none
        kernel.sandbox.discard(inner)


def _other_addresses(kernel: HostAndSandbox, outer: Link) -> list[IPAddress]:
    """The addresses of the container's other interfaces.

    It may have answered for them on this one: to Linux, addresses are the host's.
    """
    from pycni.kernel import address as addresses
    from pycni.kernel.netlink.constants import RT_SCOPE_UNIVERSE

    if outer.link_netnsid is None or outer.link_netnsid < 0:
        return []
    try:
        found = addresses.dump(kernel.host.netlink, netns_id=outer.link_netnsid)
    except NetlinkError:
        return []  # the namespace has gone meanwhile
    return [
        one.network.address
        for one in found
        if one.index != outer.link and one.scope == RT_SCOPE_UNIVERSE
    ]


def _forget_neighbours(others: list[IPAddress], bridge: int, host: Netns) -> None:
    """Have the host ask again who has these addresses: it would wait for seconds otherwise."""
    from pycni.kernel import neighbour

    for address in others:
        try:
            host.request(neighbour.delete(neighbour.Neighbour(bridge, address)))
        except NetlinkError:
            continue  # there is none


def collect(kernel: HostAndSandbox, owners: Owners) -> None:
    """Delete host ends that are marked as theirs."""
    stale = [
        found
        for found in links.dump(kernel.host.netlink)
        if found.kind == "veth" and owners.includes(found.alias)
    ]
    links.delete_together(kernel.host.netlink, stale)


def _create(step: VethPair, kernel: HostAndSandbox) -> Link:
    host = kernel.host
    sandbox = kernel.netns(SANDBOX)
    request = links.veth(
        step.host_name,
        step.name,
        peer_netns=sandbox.namespace.fd,
        mac=links.port_mac() if step.port else None,
        peer_mac=step.mac or None,
        mtu=step.mtu,
        master=host.known(step.port.bridge, altnames=True).index if step.port else 0,
    )
    try:
        return links.create(host.netlink, request)
    except NetlinkError as error:
        if error.errno == errno.EXFULL and step.port:
            from pycni.steps.bridge import no_port_left

            raise no_port_left(step.port.bridge) from None
        if error.errno != errno.EEXIST:
            raise
    from pycni.steps.child_link import require_free

    pair = f'container veth name ("{step.name}") peer provided ("{step.host_name}")'
    require_free(step.name, sandbox, pair)
    holder = host.find(step.host_name, altnames=True)
    if holder is not None and holder.name != step.host_name:
        require_free(step.host_name, host, "host veth name")
    # The name is ours alone, so this is the host end of an attachment that was cut short.
    remove(step, kernel)
    return links.create(host.netlink, request)


def _set_up_host_end(step: VethPair, made: Link, host: Netns) -> None:
    alias, port = step.owner.comment, step.port
    if port is None:
        from pycni.steps import router_advertisements

        router_advertisements.refuse(host, made.name)
        host.request(links.update(made, up=True, alias=alias))
        return
    bridge = host.known(port.bridge, altnames=True)
    if bridge.bridge_id != bridge.mac or made.mac < bridge.mac:
        host.forget(bridge.name)  # it may have taken over its new port's address
    host.disable_ipv6(made.name)
    host.request(
        links.update(made, up=True, alias=alias, hairpin=port.hairpin, isolated=port.isolated)
    )
    if port.vlans:
        from pycni.steps import port_vlans

        port_vlans.assign(host, made, port.vlans)


def _check_port(port: BridgePort, outer: Link, kernel: HostAndSandbox) -> list[str]:
    bridge = kernel.host.find(port.bridge, altnames=True)
    if bridge is None or outer.master != bridge.index:
        return [f"host interface {outer.name} is not plugged into bridge {port.bridge}"]
    differences = []
    for what, wanted, actual in (
        ("hairpin mode", port.hairpin, outer.hairpin),
        ("isolation", port.isolated, outer.isolated),
    ):
        if wanted and not actual:  # a later plugin may have switched it on
            differences.append(f"{what} of host interface {outer.name} is off")
    if port.vlans:
        from pycni.steps import port_vlans

        differences += port_vlans.differences(kernel.host, outer, port.vlans)
    return differences
