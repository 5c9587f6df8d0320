"""The veth that carries a VLAN's gateway address on the host (`plan.steps.VLANGateway`)."""

from __future__ import annotations

import errno

from pycni.kernel import link as links
from pycni.kernel.netlink.errors import NetlinkError
from pycni.spec.errors import ALREADY_EXISTS, INVALID_CONFIG, CNIError
from pycni.spec.owner import hashed_name
from pycni.steps import port_vlans, router_advertisements
from pycni.steps.bridge import plug_in
from pycni.steps.child_link import require_free

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import VLANGateway
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox


def apply(step: VLANGateway, kernel: HostAndSandbox) -> Undo | None:
    host = kernel.host
    found = host.find(step.name)
    if found is not None:
        if found.kind != "veth":
            raise CNIError(
                INVALID_CONFIG,
                f'"{step.name}" already exists but is not a veth',
                f"it is where VLAN {step.vlans.pvid} of bridge {step.bridge} has its gateway; "
                "remove that interface",
            )
        return None
    bridge = host.link(step.bridge, altnames=True)
    peer = _peer_name(step)
    try:
        request = links.veth(step.name, peer, peer_mac=links.port_mac(), mtu=bridge.mtu)
        made = links.create(host.netlink, request)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        if host.find(step.name) is not None:
            return None  # another ADD was first
        require_free(step.name, host, f'gateway interface name ("{step.name}")')
        raise
    try:
        router_advertisements.refuse(host, step.name)
        plug_in(host, step.bridge, links.update(made.link, master=bridge.index, up=True))
        port_vlans.assign(host, host.link(made.link), step.vlans)
        host.request(links.update(made, up=True))
    except BaseException:
        host.discard(made)
        raise
    return lambda: host.discard(made)


def check(step: VLANGateway, kernel: HostAndSandbox) -> list[str]:
    found = kernel.host.find(step.name)
    if found is None or found.kind != "veth":
        return [f"the gateway interface {step.name} is missing"]
    port = kernel.host.find(found.link)
    if port is None:
        return [f"the bridge's end of {step.name} is missing"]
    return port_vlans.differences(kernel.host, port, step.vlans)


def repair(step: VLANGateway, kernel: HostAndSandbox) -> None:
    host = kernel.host
    found = host.find(step.name)
    if found is None or found.kind != "veth":
        apply(step, kernel)
        return
    port = host.find(found.link)
    if port is None:
        raise CNIError(
            ALREADY_EXISTS,
            f"the bridge's end of {step.name} is not on the host",
            f"remove {step.name}, and repair again",
        )
    master = host.link(step.bridge, altnames=True).index
    change = links.update(port, master=master, up=True)
    plug_in(host, step.bridge, change)
    port_vlans.assign(host, port, step.vlans)
    host.request(links.update(found, up=True))


def _peer_name(step: VLANGateway) -> str:
    return hashed_name("veth", f"{step.bridge}.{step.vlans.pvid}", 15)
