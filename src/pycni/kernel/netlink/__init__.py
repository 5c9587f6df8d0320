"""Netlink: the codec (pure), the socket, and the kernel's numbers.

The verbs stand one level up, in `pycni.kernel.link`, `address`, `route` and so on.
What changes the kernel is a `NetlinkRequest` that one of them builds, so that several can go in one
send; what reads it takes the socket:

    with NetlinkSocket() as netlink:
        pair = link.create(netlink, link.veth("veth1", "eth0", peer_netns=namespace.fd))
        netlink.batch([link.update(pair, up=True), address.add(pair.index, network)])
"""

from __future__ import annotations

from pycni.kernel.netlink.codec import MalformedMessage, Message, NetlinkRequest
from pycni.kernel.netlink.errors import EventsLost, NetlinkError
from pycni.kernel.netlink.socket import NetlinkSocket

__all__ = [
    "EventsLost",
    "MalformedMessage",
    "Message",
    "NetlinkError",
    "NetlinkRequest",
    "NetlinkSocket",
]
