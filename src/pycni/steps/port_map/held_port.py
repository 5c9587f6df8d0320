"""A port of the host that leads to a container, and what is said and asked about it."""

from __future__ import annotations

from pycni.spec.errors import ALREADY_EXISTS, CNIError
from pycni.spec.record import Record
from pycni.steps.port_map.layout import host_address, port_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import PortMap, PortMapping
    from pycni.spec.ip import IPAddress
    from pycni.spec.owner import Owner
    from pycni.steps.namespaces import HostAndSandbox


class HeldPort(Record):
    """A port of the host that leads to an address. host: None for all addresses of the host.

    container, network, ifname: whose it is, "" for not known; leaves_rest: whether only some of the
    packets go that way, and what is left can be the step's.
    """

    protocol: str
    port: int
    host: IPAddress | None
    target: IPAddress
    target_port: int
    container: str = ""
    network: str = ""
    ifname: str = ""
    leaves_rest: bool = False

    def __str__(self) -> str:
        known = {"network": self.network, "interface": self.ifname}
        words = [f"{name} {value}" for name, value in known.items() if value]
        words.append(f"{self.target} port {self.target_port}")
        return f"container {self.container or '?'} ({', '.join(words)})"

    def covers(self, mapping: PortMapping) -> bool:
        """Whether it takes packets for a mapping; what is for all addresses is for each."""
        host = host_address(mapping)
        return (self.protocol, self.port) == (mapping.protocol, mapping.host_port) and (
            host is None or self.host is None or host == self.host
        )


class HeldPorts(Record):
    """What concerns a step in one place.

    held: of its ports, by others; strays: what leads to its addresses and is not its own;
    requests, lines: what deletes the strays.
    """

    held: Sequence[HeldPort] = ()
    strays: Sequence[HeldPort] = ()
    requests: Sequence[NetlinkRequest] = ()
    lines: Sequence[str] = ()


def port_of(mapping: PortMapping, family: int) -> str:
    """What a mapping is for, for people."""
    return port_text(mapping.protocol, mapping.host_port, host_address(mapping), family)


def taken(what: str, held_port: HeldPort) -> CNIError:
    """The refusal of a port. what: the port, see `layout.port_text`."""
    return CNIError(
        ALREADY_EXISTS,
        f"{what} is taken by {held_port}",
        "choose another hostPort, or detach that container; "
        "if it is gone, GC of its network removes what it left",
    )


def has_address(
    step: PortMap, kernel: HostAndSandbox, address: IPAddress, is_named: Callable[[Owner], bool]
) -> bool:
    """Whether a container that a rule may be of has an address, by another network."""
    from pycni.steps import interfaces

    network = step.owner.network
    return interfaces.is_held(
        kernel,
        address,
        lambda owner: owner.network != network and is_named(owner),
        step.owner.owns,
    )
