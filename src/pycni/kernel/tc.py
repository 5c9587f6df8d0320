"""Traffic control: what `tc` does, as far as limiting a link's rate needs it.

A limit is a token bucket: the queueing discipline tbf, or a class of htb where only some traffic
is limited. What a link receives can only be limited by redirecting it to another one (an ifb).
Formats: include/uapi/linux/pkt_sched.h, pkt_cls.h, tc_act/tc_mirred.h. Errors: `NetlinkError`.
Used by the step that shapes a container's traffic.
"""

from __future__ import annotations

import errno
from _socket import AF_UNSPEC, htons
from _struct import Struct

from pycni.kernel.netlink import constants as c
from pycni.kernel.netlink.codec import (
    BYTES,
    STRING,
    U32,
    U64,
    MalformedMessage,
    NetlinkRequest,
    Schema,
    Structure,
)
from pycni.kernel.netlink.errors import NetlinkError
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycni.kernel.netlink.socket import NetlinkSocket
    from pycni.spec.ip import IPNetwork

ROOT = c.TC_H_ROOT
INGRESS = c.TC_H_INGRESS
INGRESS_HANDLE = 0xFFFF0000  # ffff:
CLSACT_INGRESS = INGRESS_HANDLE | c.TC_H_MIN_INGRESS

ETH_P_ALL = 0x0003
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD

LATENCY = 25_000  # microseconds that a packet may wait in a token bucket's queue
MICROSECONDS = 1_000_000
MAX_U32 = (1 << 32) - 1

_TCMSG = Struct("=BxxxiIII")  # struct tcmsg: family, index, handle, parent, info
# struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate
_RATE = "BBHhHI"
_TBF = Structure(f"={_RATE}{_RATE}III")  # struct tc_tbf_qopt: rate, peak rate, limit, buffer, mtu
_HTB_CLASS = Structure(f"={_RATE}{_RATE}IIIII")  # struct tc_htb_opt: rate, ceil, buffer, cbuffer...
_HTB = Structure("=IIIII")  # struct tc_htb_glob: version, rate to quantum, default class, ...
_U32_KEY = Struct("=4s4sii")  # struct tc_u32_key: mask, value, offset, offset mask
_U32_SELECTOR = Struct("=BBBxHHhhI")  # struct tc_u32_sel: flags, shift, number of keys, ...
_MIRRED = Structure("=IIiiiiI")  # struct tc_mirred: tc_gen, action, ifindex

_MESSAGE = Schema(kind=(c.TCA_KIND, STRING), options=(c.TCA_OPTIONS, BYTES))
_TBF_OPTIONS = Schema(
    parameters=(c.TCA_TBF_PARMS, _TBF),
    rate=(c.TCA_TBF_RATE64, U64),
    burst=(c.TCA_TBF_BURST, U32),
)
_HTB_OPTIONS = Schema(
    parameters=(c.TCA_HTB_PARMS, _HTB_CLASS),
    init=(c.TCA_HTB_INIT, _HTB),
    direct=(c.TCA_HTB_DIRECT_QLEN, U32),
    rate=(c.TCA_HTB_RATE64, U64),
    ceil=(c.TCA_HTB_CEIL64, U64),
)
_ACTION = Schema(
    kind=(c.TCA_ACT_KIND, STRING),
    options=(c.TCA_ACT_OPTIONS, Schema(mirred=(c.TCA_MIRRED_PARMS, _MIRRED))),
)
_U32_OPTIONS = Schema(
    classid=(c.TCA_U32_CLASSID, U32),
    selector=(c.TCA_U32_SEL, BYTES),
    actions=(c.TCA_U32_ACT, Schema(first=(1, _ACTION), second=(2, _ACTION))),
)

_HTB_VERSION = 3
_HTB_QUANTUM = 10
_DIRECT_PACKETS = 1000  # that wait in htb for a link without a queue of its own (txqlen 0)
_CLASS_QUANTUM = 60_000  # bytes; of no effect with a single class


class TokenBucket(Record):
    """A rate limit in the kernel's terms.

    rate: bytes a second; limit: bytes that may wait; buffer: what the bucket holds, as the time
    that it takes to send it, in ticks; burst: the same in bytes, where ticks cannot express it,
    else 0.
    """

    rate: int
    limit: int
    buffer: int
    burst: int = 0


class Qdisc(Record):
    """A queueing discipline of a link; bucket is set for tbf."""

    index: int
    kind: str
    handle: int
    parent: int
    bucket: TokenBucket | None = None


class Filter(Record):
    """A filter.

    classid: of the class it assigns, 0 for none; redirect: the index of the link it sends packets
    to, 0 for none.
    """

    kind: str
    handle: int
    parent: int
    priority: int
    classid: int = 0
    redirect: int = 0


def token_bucket(rate: int, burst: int) -> TokenBucket:
    """The limit for a rate in bits a second and a burst in bits, computed as the reference does."""
    rate, burst = rate // 8, burst // 8
    ticks = int(int(burst * MICROSECONDS / rate) * _ticks_per_microsecond())
    return TokenBucket(
        rate,
        limit=min(int(rate * LATENCY / MICROSECONDS) + burst, MAX_U32),
        buffer=min(ticks, MAX_U32),
        burst=burst if ticks > MAX_U32 else 0,
    )


def least_burst(rate: int, size: int) -> int:
    """The smallest burst in bits that packets of a size in bytes go through at a rate in bits.

    The kernel counts in ticks, and what is left of one is lost.
    """
    rate //= 8
    per_tick = int(rate / (MICROSECONDS * _ticks_per_microsecond()))
    return 8 * (size + per_tick + 2)


# --- reading -------------------------------------------------------------------------------------


def qdisc(netlink: NetlinkSocket, index: int, parent: int = ROOT) -> Qdisc | None:
    """The discipline that was set for a link, for sending (ROOT) or for receiving (INGRESS)."""
    body = _TCMSG.pack(AF_UNSPEC, index, 0, parent, 0)
    request = NetlinkRequest(c.RTM_GETQDISC, c.NLM_F_ECHO, body, f"get qdisc of link {index}")
    try:
        answers = netlink.request(request)
    except NetlinkError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):  # none, or the one it was born with
            return None
        raise
    found = parse_qdisc(answers[0].payload) if answers else None
    return found if found is not None and found.handle else None


def class_bucket(netlink: NetlinkSocket, index: int, handle: int) -> TokenBucket | None:
    """The limit of an htb class, None if it is not there."""
    body = _TCMSG.pack(AF_UNSPEC, index, 0, 0, 0)
    what = f"list classes of link {index}"
    for message in netlink.dump(NetlinkRequest(c.RTM_GETTCLASS, 0, body, what)):
        if _header(message.payload)[2] == handle:
            return parse_class(message.payload)
    return None


def filters(netlink: NetlinkSocket, index: int, parent: int) -> list[Filter]:
    """The filters of a link below a parent. Tables of u32 are among them, without redirection."""
    body = _TCMSG.pack(AF_UNSPEC, index, 0, parent, 0)
    what = f"list filters of link {index}"
    answers = netlink.dump(NetlinkRequest(c.RTM_GETTFILTER, 0, body, what))
    return [parse_filter(message.payload) for message in answers]


# --- changing ------------------------------------------------------------------------------------


def add_token_bucket(index: int, bucket: TokenBucket) -> NetlinkRequest:
    """Limit what a link sends; handle 1:. EEXIST if it has a discipline that was set."""
    rate = (0, 0, 0, 0, 0, min(bucket.rate, MAX_U32))
    options = _TBF_OPTIONS.encode(
        {
            "parameters": (*rate, *(0,) * 6, bucket.limit, bucket.buffer, 0),
            "rate": bucket.rate if bucket.rate > MAX_U32 else None,
            "burst": bucket.burst or None,
        }
    )
    return _add_qdisc("tbf", index, 1 << 16, ROOT, options)


def add_ingress(index: int) -> NetlinkRequest:
    """Have filters look at what a link receives. EEXIST if they do already."""
    return _add_qdisc("ingress", index, INGRESS_HANDLE, INGRESS, b"")


def add_htb(index: int, default: int) -> NetlinkRequest:
    """A classful discipline, handle 1:; default: the class (minor) of what no filter assigns.

    0 sends that, and what is assigned to 1:0, without any limit.
    """
    init = (_HTB_VERSION, _HTB_QUANTUM, default, 0, 0)
    options = _HTB_OPTIONS.encode({"init": init, "direct": _DIRECT_PACKETS})
    return _add_qdisc("htb", index, 1 << 16, ROOT, options)


def add_htb_class(index: int, minor: int, bucket: TokenBucket) -> list[NetlinkRequest]:
    """A limited class 1:minor of the discipline above, with a queue as a token bucket has it."""
    rate = (0, 0, 0, 0, 0, min(bucket.rate, MAX_U32))
    wide = bucket.rate if bucket.rate > MAX_U32 else None
    handle = 1 << 16 | minor
    options = _HTB_OPTIONS.encode(
        {
            "parameters": (*rate, *rate, bucket.buffer, bucket.buffer, _CLASS_QUANTUM, 0, 0),
            "rate": wide,
            "ceil": wide,
        }
    )
    body = _TCMSG.pack(AF_UNSPEC, index, handle, 1 << 16, 0) + _message("htb", options)
    return [
        NetlinkRequest(
            c.RTM_NEWTCLASS, c.NLM_F_CREATE | c.NLM_F_EXCL, body, f"add class to link {index}"
        ),
        _add_qdisc("bfifo", index, minor << 16, handle, U32.encode(bucket.limit)),
    ]


def assign(
    index: int, network: IPNetwork, class_minor: int, priority: int, *, by_source: bool
) -> NetlinkRequest:
    """Send what comes from (by_source) or goes to a network through a class of htb."""
    offset = (12 if by_source else 16) if network.is_ipv4 else (8 if by_source else 24)
    packed = network.network.address.packed
    mask = ((1 << network.address.bits) - (1 << (network.address.bits - network.prefix))).to_bytes(
        len(packed), "big"
    )
    keys = [
        _U32_KEY.pack(mask[at : at + 4], packed[at : at + 4], offset + at, 0)
        for at in range(0, len(packed), 4)
        if any(mask[at : at + 4])
    ]
    return _add_u32(
        index,
        1 << 16,
        priority,
        ETH_P_IP if network.is_ipv4 else ETH_P_IPV6,
        keys or [_U32_KEY.pack(bytes(4), bytes(4), 0, 0)],
        1 << 16 | class_minor,
    )


def redirect(index: int, parent: int, target: int) -> NetlinkRequest:
    """Send all that a link receives to another link, to leave by that one's queue."""
    action: dict[str, object] = {
        "kind": "mirred",
        "options": {"mirred": (0, 0, c.TC_ACT_STOLEN, 0, 0, c.TCA_EGRESS_REDIR, target)},
    }
    every = [_U32_KEY.pack(bytes(4), bytes(4), 0, 0)]
    return _add_u32(index, parent, 1, ETH_P_ALL, every, 1 << 16 | 1, action)


def delete_qdisc(qdisc: Qdisc) -> NetlinkRequest:
    """Delete a discipline with all that is below it. ENOENT if it is not there."""
    body = _TCMSG.pack(AF_UNSPEC, qdisc.index, qdisc.handle, qdisc.parent, 0)
    return NetlinkRequest(c.RTM_DELQDISC, 0, body, f"delete {qdisc.kind} of link {qdisc.index}")


def delete_redirection(index: int, parent: int) -> NetlinkRequest:
    """Take back `redirect`. ENOENT if there is none."""
    info = 1 << 16 | htons(ETH_P_ALL)
    body = _TCMSG.pack(AF_UNSPEC, index, 0, parent, info) + _MESSAGE.encode({"kind": "u32"})
    return NetlinkRequest(c.RTM_DELTFILTER, 0, body, f"delete filter of link {index}")


# --- messages ------------------------------------------------------------------------------------


def _message(kind: str, options: bytes) -> bytes:
    return _MESSAGE.encode({"kind": kind, "options": options})


def _add_qdisc(kind: str, index: int, handle: int, parent: int, options: bytes) -> NetlinkRequest:
    body = _TCMSG.pack(AF_UNSPEC, index, handle, parent, 0) + _message(kind, options)
    flags = c.NLM_F_CREATE | c.NLM_F_EXCL
    return NetlinkRequest(c.RTM_NEWQDISC, flags, body, f"add {kind} to link {index}")


def _add_u32(
    index: int,
    parent: int,
    priority: int,
    protocol: int,
    keys: list[bytes],
    classid: int,
    action: dict[str, object] | None = None,
) -> NetlinkRequest:
    selector = _U32_SELECTOR.pack(c.TC_U32_TERMINAL, 0, len(keys), 0, 0, 0, 0, 0)
    options = _U32_OPTIONS.encode(
        {
            "classid": classid,
            "selector": selector + b"".join(keys),
            "actions": {"first": action} if action else None,
        }
    )
    info = priority << 16 | htons(protocol)
    body = _TCMSG.pack(AF_UNSPEC, index, 0, parent, info) + _message("u32", options)
    flags = c.NLM_F_CREATE | c.NLM_F_EXCL
    return NetlinkRequest(c.RTM_NEWTFILTER, flags, body, f"add filter to link {index}")


def parse_qdisc(payload: bytes) -> Qdisc:
    """Read an RTM_NEWQDISC message. Raises MalformedMessage."""
    _, index, handle, parent, _ = _header(payload)
    kind, options = _options(payload)
    bucket = None
    if kind == "tbf":
        found = _TBF_OPTIONS.decode(options)
        parameters = _parameters(found)
        bucket = TokenBucket(found.get("rate", parameters[5]), *parameters[12:14])
    return Qdisc(index, kind, handle, parent, bucket)


def parse_class(payload: bytes) -> TokenBucket:
    """Read the RTM_NEWTCLASS message of an htb class. Raises MalformedMessage."""
    options = _HTB_OPTIONS.decode(_options(payload)[1])
    parameters = _parameters(options)
    return TokenBucket(options.get("rate", parameters[5]), 0, parameters[12])


def parse_filter(payload: bytes) -> Filter:
    """Read an RTM_NEWTFILTER message. Raises MalformedMessage."""
    _, _, handle, parent, info = _header(payload)
    kind, options = _options(payload)
    classid = target = 0
    if kind == "u32":
        decoded = _U32_OPTIONS.decode(options)
        classid = decoded.get("classid", 0)
        for action in decoded.get("actions", {}).values():
            if "mirred" in action.get("options", {}):
                target = action["options"]["mirred"][6]
    return Filter(kind, handle, parent, info >> 16, classid, target)


def _parameters(options: dict[str, Any]) -> tuple[int, ...]:
    if "parameters" not in options:
        raise MalformedMessage("traffic control message without its parameters")
    found: tuple[int, ...] = options["parameters"]
    return found


def _header(payload: bytes) -> tuple[int, int, int, int, int]:
    if len(payload) < _TCMSG.size:
        raise MalformedMessage(f"traffic control message of {len(payload)} bytes")
    family, index, handle, parent, info = _TCMSG.unpack_from(payload)
    return family, index, handle, parent, info


def _options(payload: bytes) -> tuple[str, bytes]:
    found = _MESSAGE.decode(payload[_TCMSG.size :])
    return found.get("kind", ""), found.get("options", b"")


def _ticks_per_microsecond() -> float:
    """How the kernel counts time in traffic control: 15.625 for some twenty years."""
    try:
        with open("/proc/net/psched", encoding="utf-8") as file:
            to_microseconds, from_microseconds, clock, _ = (
                int(word, 16) for word in file.read().split()
            )
    except OSError:
        return 15.625
    return to_microseconds / from_microseconds * (clock / MICROSECONDS)
