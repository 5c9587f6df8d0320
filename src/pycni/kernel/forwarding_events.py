"""A network namespace's forwarding, read by netlink (include/uapi/linux/netconf.h).

The same is below /proc/sys, where a look-up takes longer the more namespaces the host has.
Used by the executor of plans.
"""

from __future__ import annotations

import errno
from _struct import Struct

from pycni.kernel.netlink import constants as c
from pycni.kernel.netlink.codec import S32, NetlinkRequest, Schema
from pycni.kernel.netlink.errors import NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netlink.codec import Message
    from pycni.kernel.netlink.socket import NetlinkSocket

RTM_NEWNETCONF = 80

_NETCONF = Struct("=B3x")  # struct netconfmsg: family; padded
_ATTRIBUTES = Schema(
    index=(c.NETCONFA_IFINDEX, S32),
    forwarding=(c.NETCONFA_FORWARDING, S32),
)


def forwards(netlink: NetlinkSocket, family: int) -> bool:
    """Whether all interfaces forward packets of a family; False for one that the kernel lacks.

    Raises NetlinkError.
    """
    body = _NETCONF.pack(family) + _ATTRIBUTES.encode({"index": c.NETCONFA_IFINDEX_ALL})
    try:
        answer = netlink.request(
            NetlinkRequest(c.RTM_GETNETCONF, 0, body, "get forwarding", answered=True)
        )
    except NetlinkError as error:
        if error.errno == errno.EOPNOTSUPP:  # no IPv6
            return False
        raise
    return any(
        _ATTRIBUTES.decode(message.payload[_NETCONF.size :]).get("forwarding") == 1
        for message in answer
    )


def turned_off(message: Message) -> bool:
    """Whether a notice says that a family's packets are forwarded no more."""
    if message.kind != RTM_NEWNETCONF:
        return False
    found = _ATTRIBUTES.decode(message.payload[_NETCONF.size :])
    return found.get("index") == c.NETCONFA_IFINDEX_ALL and found.get("forwarding") == 0
