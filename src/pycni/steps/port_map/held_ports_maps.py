"""The ports that other containers hold in our own maps and chains of nftables.

See `held_ports`, which calls this. An element of a map says whose it is: what leads to an address
of the step is a stray only if its owner is gone. An attachment of another network that was given
the same address keeps its ports.
"""

from __future__ import annotations

from pycni.kernel.netfilter import nfnetlink, shared_elements
from pycni.kernel.netfilter.constant_rules import TABLE
from pycni.kernel.netfilter.nfnetlink import NFPROTO_INET
from pycni.spec.owner import names_in
from pycni.steps.ownership import is_same_container
from pycni.steps.port_map import conditional as port_map_conditional
from pycni.steps.port_map.held_port import HeldPort, HeldPorts
from pycni.steps.port_map.layout import (
    ADDRESS,
    ANY,
    CONDITIONAL,
    OWN,
    applicable,
    conditions,
    decoded,
    key_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netfilter.nfnetlink import Element
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import PortMap
    from pycni.spec.ip import IPNetwork
    from pycni.steps.namespaces import HostAndSandbox


def in_maps(step: PortMap, network: IPNetwork, kernel: HostAndSandbox) -> HeldPorts:
    """The elements that concern a step. Lists the maps."""
    netfilter, family, address = kernel.host.netfilter, network.family, network.address
    mappings = applicable(step, family)
    wanted = [address.packed, *(key_of(one.protocol, one.host_port) for one in mappings)]
    leaves = bool(conditions(step, family))  # what comes first, and leaves the rest to maps
    held: list[HeldPort] = []
    strays: list[HeldPort] = []
    requests: list[NetlinkRequest] = []
    for name in (ANY[family], ADDRESS[family]):
        for found in nfnetlink.elements_with(netfilter, NFPROTO_INET, TABLE, name, *wanted):
            if is_same_container(kernel, found.comment, step.owner):
                continue
            held_port = held_by(found).replace(leaves_rest=leaves)
            if held_port.target == address and shared_elements.is_stale(
                found.comment, step.owner, kernel.is_attached
            ):
                strays.append(held_port)
                requests.append(nfnetlink.delete_element(NFPROTO_INET, TABLE, name, found.key))
            else:
                held.append(held_port)
    return HeldPorts(held, strays, requests)


def in_conditional_chains(step: PortMap, network: IPNetwork, kernel: HostAndSandbox) -> HeldPorts:
    """The chains of mappings with conditions that concern a step."""
    netfilter, family, address = kernel.host.netfilter, network.family, network.address
    leaves = bool(conditions(step, family))
    held: list[HeldPort] = []
    strays: list[HeldPort] = []
    requests: list[NetlinkRequest] = []
    jumps = nfnetlink.rules(netfilter, NFPROTO_INET, TABLE, CONDITIONAL)
    for jump in jumps:
        if not jump.chain.startswith(OWN[family]) or is_same_container(
            kernel, jump.comment, step.owner
        ):
            continue
        found = port_map_conditional.ports_of_chain(netfilter, family, jump.chain, jump.comment)
        is_stray = any(
            held_port.target == address for held_port in found
        ) and shared_elements.is_stale(jump.comment, step.owner, kernel.is_attached)
        if is_stray:
            strays += found
            requests += port_map_conditional.deletion(jump.chain, jumps)
        else:
            held += (held_port.replace(leaves_rest=leaves) for held_port in found)
    return HeldPorts(held, strays, requests)


def held_by(found: Element) -> HeldPort:
    """What an element of a map holds, and for whom."""
    flow, port = decoded(found)
    network, ifname, container = names_in(found.comment)
    return HeldPort(
        flow.protocol, flow.port, flow.address, flow.target, port, container, network, ifname
    )
