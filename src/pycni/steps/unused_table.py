"""A routing table that nothing uses. For the steps that need one, under the sandbox's lock."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.kernel import link as links
from pycni.kernel import route as routes
from pycni.kernel import rule as rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netlink.socket import NetlinkSocket


def unused_table(netlink: NetlinkSocket, first: int) -> int:
    """The first table from `first` on that no rule leads to, no VRF has, and has no routes."""
    taken = {*routes.SYSTEM_TABLES, *(link.vrf_table for link in links.dump(netlink))}
    for family in (AF_INET, AF_INET6):
        taken.update(rule.table for rule in rules.dump(netlink, family))
    table = first
    while table in taken or routes.dump(netlink, table=table):
        table += 1
    return table
