"""Who holds a port of the host: asked once before ports are made, whatever backend makes them.

Maps of nftables refuse a port twice by their keys; what other backends hold, and the reference, is
no key there. The reference's ADD refuses nothing, so CHECK asks again. A port is taken if another
container has it in

- the chains of iptables, ours or the reference's, whichever iptables keeps them,
- the reference's nftables tables,
- our own maps, where iptables is to be used: it comes before them.

The same port of one address of the host and of all addresses is one port. Two containers share one
only if the rules that come first have conditions, and the other's are not the same. Hosts that have
none of these chains and tables pay for one question; the rest is in `held_ports`. Called by
`port_map`, and by the iptables backend when its rules are there.
"""

from __future__ import annotations

from pycni.kernel.netfilter import nfnetlink
from pycni.kernel.netfilter.iptables_legacy import has_table
from pycni.kernel.netfilter.nfnetlink import NAT
from pycni.steps.port_map.layout import DNAT, REFERENCE_FOR_ALL, REFERENCE_TABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import PortMap
    from pycni.steps.namespaces import HostAndSandbox


def require_free(step: PortMap, kernel: HostAndSandbox) -> None:
    """Raise CNIError if another container has one of the ports.

    What leads to an address of the step holds no port: it was left by who had the address before,
    and is gone. It is removed, unless a port is refused. Raises NetlinkError, IPTablesError too.
    """
    found, legacy = _places(step, kernel)
    if found or legacy or step.backend == "iptables":
        from pycni.steps.port_map import held_ports

        held_ports.settle(step, kernel, found, legacy, maps=step.backend == "iptables")


def evict(step: PortMap, kernel: HostAndSandbox) -> None:
    """Remove what leads to an address of the step, also from our maps, which are listed for it.

    Raises CNIError if another container has one of the ports; NetlinkError, IPTablesError.
    """
    from pycni.steps.port_map import held_ports

    held_ports.settle(step, kernel, *_places(step, kernel), maps=True)


def differences(step: PortMap, kernel: HostAndSandbox) -> list[str]:
    """The ports that lead to others, and what leads others' ports to the container, for CHECK."""
    from pycni.steps.port_map import held_ports

    return held_ports.differences(step, kernel, *_places(step, kernel))


def _places(step: PortMap, kernel: HostAndSandbox) -> tuple[list[tuple[int, str, str]], list[int]]:
    """The chains of nftables that there are, and the families that iptables-legacy has."""
    netfilter = kernel.host.netfilter
    families = [network.family for network in step.addresses]
    chains = [
        chain
        for family in families
        for chain in ((family, NAT, DNAT), (family, REFERENCE_TABLE, REFERENCE_FOR_ALL))
    ]
    found = nfnetlink.existing(netfilter, chains)
    return found, [family for family in families if has_table(family, NAT)]
