"""A link's addresses and routes as the kernel lists them, to be put back where they were lost.

What is put back are the kernel's own messages, as by `ip address restore` and `ip route restore`,
so that nothing is lost that this project does not read: labels, lifetimes, metrics. Formats:
include/uapi/linux/rtnetlink.h and if_addr.h. Used where the addresses of a link are replaced.
"""

from __future__ import annotations

from pycni.kernel import address as addresses
from pycni.kernel import route as routes
from pycni.kernel.netlink import constants as c
from pycni.kernel.netlink.codec import NetlinkRequest
from pycni.kernel.netlink.errors import NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pycni.kernel.netlink.socket import NetlinkSocket
    from pycni.kernel.route import KernelRoute
    from pycni.spec.ip import IPAddress, IPNetwork

_NEW = c.NLM_F_CREATE | c.NLM_F_APPEND


class LinkSnapshot:
    """The addresses and routes that a link has, of some families, when this is made."""

    def __init__(self, netlink: NetlinkSocket, index: int, families: Iterable[int]) -> None:
        self._netlink = netlink
        self._index = index
        self._families = tuple(families)
        self._addresses = self._present_addresses()
        self._routes = self._present_routes()

    def restore(self) -> None:
        """Put back what has been lost of both, as far as possible. Raises NetlinkError."""
        present = [network for network, _ in self._present_addresses()]
        for network, payload in self._addresses:
            if network not in present:
                what = f"put address {network} back on link {self._index}"
                flags = c.NLM_F_CREATE | c.NLM_F_REPLACE
                self._netlink.request(
                    NetlinkRequest(c.RTM_NEWADDR, flags, addresses.checked(payload), what)
                )
        self.restore_routes()

    def restore_routes(self) -> None:
        """Put back routes that have been lost, without the source addresses that have.

        What no address makes reachable any more stays away.
        """
        present = [route for route, _ in self._present_routes()]
        own = {network.address for network, _ in self._present_addresses()}
        lost = [(route, payload) for route, payload in self._routes if route not in present]
        # Those to neighbours first: others go through them.
        for route, payload in sorted(lost, key=lambda item: bool(item[0].gateways)):
            has_source = self._has(own, route.source)
            bare = route.replace(source=None)
            requests = []
            if bare in present:  # IPv6 routes stay without a source that goes
                if not has_source:
                    continue
                requests.append(routes.delete(bare))
            body = routes.renewed(payload, with_source=has_source)
            requests.append(NetlinkRequest(c.RTM_NEWROUTE, _NEW, body, f"put route {route} back"))
            try:
                self._netlink.batch(requests)
            except NetlinkError:
                continue

    def _has(self, own: set[IPAddress], source: IPAddress | None) -> bool:
        """Whether the link still has a source address that it had."""
        had = any(network.address == source for network, _ in self._addresses)
        return not had or source in own

    def _present_addresses(self) -> list[tuple[IPNetwork, bytes]]:
        return [
            (found.network, payload)
            for family in self._families
            for found, payload in addresses.dump_messages(self._netlink, self._index, family)
        ]

    def _present_routes(self) -> list[tuple[KernelRoute, bytes]]:
        return [
            (found, payload)
            for family in self._families
            for found, payload in routes.dump_messages(
                self._netlink, family, table=0, index=self._index
            )
            # The kernel makes those of addresses itself.
            if found.protocol != c.RTPROT_KERNEL
        ]
