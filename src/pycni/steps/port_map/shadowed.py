"""Processes of the host whose ports a mapping leads to a container instead. Used by portmap."""

from __future__ import annotations

from pycni.kernel import sock_diag
from pycni.spec.ip import IPAddress
from pycni.steps.port_map.layout import applicable, host_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import PortMap
    from pycni.steps.namespaces import HostAndSandbox

# Where a mapping for all addresses is looked for: what listens on all, and on IPv4's localhost.
# ::1 and link-local addresses are not for it.
_ALL = {True: IPAddress(b"\x7f\0\0\1"), False: IPAddress(bytes(16))}


def listeners(step: PortMap, kernel: HostAndSandbox) -> list[str]:
    """A sentence for each port that a process of the host listens on."""
    try:
        with kernel.host.enter():
            netlink = sock_diag.open_socket()
    except OSError:
        return []  # no one can say
    found = []
    with netlink:
        for network in step.addresses:
            for mapping in applicable(step, network.family):
                address = host_address(mapping) or _ALL[network.is_ipv4]
                uid = sock_diag.listener(netlink, mapping.protocol, address, mapping.host_port)
                if uid is not None:
                    found.append(
                        f"a process of the host (user {uid}) listens on host port "
                        f"{mapping.host_port}/{mapping.protocol}: what comes in for it goes to "
                        f"{network.address} now"
                    )
    return found
