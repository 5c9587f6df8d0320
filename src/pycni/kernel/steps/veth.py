"""A veth pair between sandbox and host (`plan.steps.VethPair`), made in one request."""

from __future__ import annotations

import errno

from pycni.kernel import link as links
from pycni.kernel.netlink.errors import NetlinkError
from pycni.spec.errors import ALREADY_EXISTS, CNIError
from pycni.spec.owner import Owner, network_tag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.context import Kernel, Site
    from pycni.kernel.executor import Undo
    from pycni.kernel.link import Link
    from pycni.plan.steps import BridgePort, VethPair
    from pycni.spec.config import Attachment


def apply(step: VethPair, kernel: Kernel) -> Undo:
    host = kernel.host
    made = host.remember(_create(step, kernel))
    if step.mac:  # else the kernel has chosen one
        inner = links.Link(index=made.link, name=step.name, kind="veth", mac=step.mac)
        kernel.site("sandbox").remember(inner)
    try:
        _set_up_host_end(step, made, host)
    except BaseException:
        host.discard(made)
        raise
    return lambda: host.discard(made)


def check(step: VethPair, kernel: Kernel) -> list[str]:
    inner = kernel.site("sandbox").find(step.name)
    if inner is None:
        return [f"interface {step.name} is missing in the sandbox"]
    if inner.kind != "veth":
        return [f"interface {step.name} is not of type veth"]
    outer = kernel.host.find(inner.link)
    if outer is None or outer.link != inner.index:
        return [f"the host end of {step.name} is missing"]
    differences = []
    if not outer.is_up:
        differences.append(f"host interface {outer.name} is down")
    if step.mac and inner.mac != step.mac:
        differences.append(f"interface {step.name} has the MAC address {inner.mac}, not {step.mac}")
    if step.port is not None:
        differences += _check_port(step.port, outer, kernel)
    return differences


def remove(step: VethPair, kernel: Kernel) -> None:
    """Delete the pair by its sandbox end, or by the host end where that is all that can be seen."""
    if kernel.sandbox is not None:
        inner = kernel.sandbox.find(step.name)
        if inner is not None and inner.kind:  # what has none, such as lo, stays
            kernel.sandbox.discard(inner)
            return
    outer = kernel.host.find(step.host_name)
    # The reference does not say whose it is; we do.
    if outer is not None and outer.kind == "veth" and _tag(outer) in ("", step.owner.tag):
        kernel.host.discard(outer)


def collect(kernel: Kernel, network: str, keep: frozenset[Attachment]) -> None:
    """Delete host ends that are marked as this network's, of attachments not to be kept."""
    kept = {Owner(network, item.container_id, item.ifname).tag for item in keep}
    prefix = network_tag(network) + "-"
    stale = [
        found
        for found in links.dump(kernel.host.netlink)
        if found.kind == "veth" and (tag := _tag(found)).startswith(prefix) and tag not in kept
    ]
    links.delete_together(kernel.host.netlink, stale)


def _create(step: VethPair, kernel: Kernel) -> Link:
    host = kernel.host
    sandbox = kernel.site("sandbox")
    request = links.veth(
        step.host_name,
        step.name,
        peer_netns=sandbox.namespace.fd,
        mac=links.port_mac() if step.port else None,
        peer_mac=step.mac or None,
        mtu=step.mtu,
        master=host.index(step.port.bridge) if step.port else 0,
    )
    try:
        return links.create(host.netlink, request)
    except NetlinkError as error:
        if error.errno == errno.EXFULL and step.port:
            from pycni.kernel.steps.bridge import no_port_left

            raise no_port_left(step.port.bridge) from None
        if error.errno != errno.EEXIST:
            raise
    if sandbox.find(step.name) is not None:
        raise CNIError(
            ALREADY_EXISTS,
            f'container veth name ("{step.name}") peer provided ("{step.host_name}") '
            "already exists",
            f"the sandbox {sandbox.path} has an interface {step.name}; "
            "delete the earlier attachment first",
        )
    # The name is ours alone, so this is the host end of an attachment that was cut short.
    remove(step, kernel)
    return links.create(host.netlink, request)


def _set_up_host_end(step: VethPair, made: Link, host: Site) -> None:
    alias, port = step.owner.comment, step.port
    if port is None:
        from pycni.kernel.steps import router_advertisements

        router_advertisements.refuse(host, made.name)
        host.request(links.update(made, up=True, alias=alias))
        return
    bridge = host.known(port.bridge)
    if bridge.bridge_id != bridge.mac or made.mac < bridge.mac:
        host.forget(bridge.name)  # it may have taken over its new port's address
    from pycni.kernel.steps import no_ipv6

    no_ipv6.switch_off(host, made.name)
    host.request(
        links.update(made, up=True, alias=alias, hairpin=port.hairpin, isolated=port.isolated)
    )
    if port.vlans:
        from pycni.kernel.steps import port_vlans

        port_vlans.assign(host, made, port.vlans)


def _tag(found: Link) -> str:
    """Whose pair it is; "" for one that was not made here."""
    return found.alias.partition(",")[0]


def _check_port(port: BridgePort, outer: Link, kernel: Kernel) -> list[str]:
    bridge = kernel.host.find(port.bridge)
    if bridge is None or outer.master != bridge.index:
        return [f"host interface {outer.name} is not plugged into bridge {port.bridge}"]
    differences = []
    for what, wanted, actual in (
        ("hairpin mode", port.hairpin, outer.hairpin),
        ("isolation", port.isolated, outer.isolated),
    ):
        if wanted != bool(actual):
            state = "on" if actual else "off"
            differences.append(f"{what} of host interface {outer.name} is {state}")
    if port.vlans:
        from pycni.kernel.steps import port_vlans

        differences += port_vlans.differences(kernel.host, outer, port.vlans)
    return differences
