"""Which sockets of a network namespace wait for packets, by netlink: what `ss` shows.

One socket is asked for by its address and port, so it costs the same however many there are.
Formats: include/uapi/linux/inet_diag.h. Used by portmap.
"""

from __future__ import annotations

from _socket import IPPROTO_TCP, IPPROTO_UDP
from _struct import Struct

from pycni.kernel.netlink.codec import NetlinkRequest
from pycni.kernel.netlink.errors import NetlinkError
from pycni.kernel.netlink.socket import NetlinkSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.spec.ip import IPAddress

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
_PROTOCOLS = {"tcp": IPPROTO_TCP, "udp": IPPROTO_UDP}
_EVERY_STATE = 0xFFFFFFFF
_ANY_COOKIE = 0xFFFFFFFFFFFFFFFF

# struct inet_diag_req_v2: family, protocol, extensions, states; then struct inet_diag_sockid:
# ports and addresses of source and destination, interface, cookie
_REQUEST = Struct("=BBBxI")
_SOCKET = Struct(">HH16s16s")
_REST = Struct("=IQ")
# struct inet_diag_msg: family, state, timer, retransmissions, the id, expiry, queues, uid
_MESSAGE = Struct("=4B48sIIII")


def open_socket() -> NetlinkSocket:
    """A socket to ask by, in the thread's namespace. Raises OSError where the kernel has none."""
    return NetlinkSocket(NETLINK_SOCK_DIAG)


def listener(netlink: NetlinkSocket, protocol: str, address: IPAddress, port: int) -> int | None:
    """The user id of the socket that receives what comes in for a port of an address.

    None where there is no such socket, or it cannot be found: for sctp, or where the kernel does
    not say.
    """
    number = _PROTOCOLS.get(protocol)
    if number is None:
        return None
    packed = address.packed.ljust(16, b"\0")
    # A listening socket has no other end. Kernels differ in which of the two they look for UDP by.
    far = bytes(16), 0
    if number == IPPROTO_UDP:
        far = packed, port
    body = (
        _REQUEST.pack(address.family, number, 0, _EVERY_STATE)
        + _SOCKET.pack(port, far[1], packed, far[0])
        + _REST.pack(0, _ANY_COOKIE)
    )
    try:
        answers = netlink.request(
            NetlinkRequest(
                SOCK_DIAG_BY_FAMILY, 0, body, f"find who listens on {address}:{port}", answered=True
            )
        )
    except NetlinkError:
        return None
    for message in answers:
        if len(message.payload) >= _MESSAGE.size:
            uid: int = _MESSAGE.unpack_from(message.payload)[-1]
            return uid
    return None
