"""Connection tracking: forget UDP flows whose way has changed.

The kernel keeps a UDP flow on the way its first packet took, so when a host port gets another
container, or loses one, the entry must go. A kernel from 6.8 on finds the entries itself; with an
older one, and by IPv6 address, all of the family are read. Used by the steps of port mappings.
Format: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
from _socket import AF_INET, AF_INET6, IPPROTO_UDP
from _struct import Struct

from pycni.kernel.netlink.codec import BE16, BYTES, IP, U8, U32, Request, Schema, attribute
from pycni.kernel.netlink.constants import NLA_F_NESTED
from pycni.kernel.netlink.errors import NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycni.kernel.netlink.socket import NetlinkSocket
    from pycni.spec.ip import IPAddress

_SUBSYSTEM = 1  # NFNL_SUBSYS_CTNETLINK
_GET = _SUBSYSTEM << 8 | 1
_DELETE = _SUBSYSTEM << 8 | 2

_GENERAL = Struct(">BBH")  # struct nfgenmsg: family, version, resource
_VERSION = 1  # with version 0 the kernel would not look at the family

# CTA_FILTER_F_CTA_...: which parts of a tuple count.
_DESTINATION = 1 << 1
_PROTOCOL = 1 << 3
_DESTINATION_PORT = 1 << 5

_TUPLE = Schema(
    ip=(1, Schema(destination4=(2, IP), destination6=(4, IP))),
    ports=(2, Schema(protocol=(1, U8), destination=(3, BE16))),
)
_FILTER = Schema(original=(1, U32), reply=(2, U32))
_QUERY = Schema(original=(1, _TUPLE), filter=(25, _FILTER))
_ENTRY = Schema(original=(1, BYTES), id=(12, BYTES), zone=(18, BYTES))


def forget(
    netfilter: NetlinkSocket, family: int, port: int, address: IPAddress | None = None
) -> None:
    """Forget the UDP flows of a family to a port, of one address or of any.

    Raises NetlinkError.
    """
    flags = _PROTOCOL | _DESTINATION_PORT
    wanted: dict[str, Any] = {"ports": {"protocol": IPPROTO_UDP, "destination": port}}
    what = f"forget UDP flows to port {port}"
    if address is not None:
        name = "destination4" if family == AF_INET else "destination6"
        wanted = {"ip": {name: address}, **wanted}
        flags |= _DESTINATION
        if family == AF_INET6:
            # The kernel has this comparison the wrong way round (ctnetlink_filter_match_tuple).
            _forget_one_by_one(netfilter, family, wanted, what)
            return
    query = {"original": wanted, "filter": {"original": flags, "reply": 0}}
    body = _GENERAL.pack(family, _VERSION, 0) + _QUERY.encode(query)
    try:
        netfilter.request(Request(_DELETE, 0, body, what))
    except NetlinkError as error:
        # Older kernels want the whole tuple of one entry.
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            _forget_one_by_one(netfilter, family, wanted, what)
        elif error.errno != errno.ENOENT:
            raise


def _forget_one_by_one(
    netfilter: NetlinkSocket, family: int, wanted: dict[str, Any], what: str
) -> None:
    header = _GENERAL.pack(family, _VERSION, 0)
    for message in netfilter.dump(Request(_GET, 0, header, what)):
        entry = _ENTRY.decode(message.payload[_GENERAL.size :])
        if not _matches(_TUPLE.decode(entry.get("original", b"")), wanted):
            continue
        body = attribute(1 | NLA_F_NESTED, entry["original"])
        for number, name in ((12, "id"), (18, "zone")):
            if name in entry:
                body += attribute(number, entry[name])
        try:
            netfilter.request(Request(_DELETE, 0, header + body, what))
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise


def _matches(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(
        found.get(part, {}).get(name) == value
        for part, values in wanted.items()
        for name, value in values.items()
    )
