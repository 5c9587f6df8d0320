"""nftables over netlink: what is read, and changes to single elements, rules and chains.

Reads cost the same however much the host holds, and need no library. Rules, which take a compiler,
are written by `pycni.kernel.netfilter.nftables`; what is no more than a key and a name is written
here. What changes the kernel is a `NetlinkRequest`; `NetfilterSocket.commit` carries several out as
one transaction, all or nothing. Formats: include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h;
comments as libnftnl packs them. Errors: `NetlinkError`. Used by `nftables`, `iptables` and the
steps that keep something in nftables.
"""

from __future__ import annotations

import errno
import posix
from _socket import AF_INET, AF_INET6, SOL_SOCKET
from _struct import Struct

from pycni.kernel.netlink import socket as netlink_socket
from pycni.kernel.netlink.codec import (
    BE32,
    BYTES,
    STRING,
    Integer,
    MalformedMessage,
    Many,
    NetlinkRequest,
    Schema,
    outcome,
    pack,
)
from pycni.kernel.netlink.constants import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_NONREC,
    NLM_F_REQUEST,
    NLMSG_ERROR,
)
from pycni.kernel.netlink.errors import EventsLost, NetlinkError
from pycni.kernel.netlink.socket import NetlinkSocket
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from pycni.kernel.namespace import Namespace

    _Home = tuple[int, int, int]  # process, and its namespace's device and inode
    Expression = tuple[str, bytes]  # name and attributes

NETLINK_NETFILTER = 12

# linux/netfilter.h; FAMILIES gives them the names that `nft` has for them.
NFPROTO_INET = 1
NFPROTO_IPV4 = AF_INET
NFPROTO_BRIDGE = 7
NFPROTO_IPV6 = AF_INET6
FAMILIES = {NFPROTO_INET: "inet", NFPROTO_IPV4: "ip", NFPROTO_BRIDGE: "bridge", NFPROTO_IPV6: "ip6"}

IP_FAMILIES = (NFPROTO_IPV4, NFPROTO_IPV6)

NAT = "nat"  # the table of iptables that translates addresses
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}  # whose ports are translated
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}

MAX_CHAIN_NAME = 255  # NFT_CHAIN_MAXNAMELEN of linux/netfilter/nf_tables.h, less a NUL
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
_USUALLY_SENT = 64 * 1024  # bytes; a send buffer's default is 208 KiB, less where it was tuned

_BATCH_BEGIN = 16
_BATCH_END = 17
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_GETCHAIN = _SUBSYSTEM << 8 | 4
_DELTABLE = _SUBSYSTEM << 8 | 2
_DELCHAIN = _SUBSYSTEM << 8 | 5
_NEWRULE = _SUBSYSTEM << 8 | 6
_GETRULE = _SUBSYSTEM << 8 | 7
_DELRULE = _SUBSYSTEM << 8 | 8
_GETSET = _SUBSYSTEM << 8 | 10
_DELSET = _SUBSYSTEM << 8 | 11
_NEWSETELEM = _SUBSYSTEM << 8 | 12
_GETSETELEM = _SUBSYSTEM << 8 | 13
_DELSETELEM = _SUBSYSTEM << 8 | 14
_GETGEN = _SUBSYSTEM << 8 | 16

_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT, NFTNL_UDATA_SET_ELEM_COMMENT

# No such object, no such table, or a kernel without nf_tables.
ABSENT = (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP)
ATTEMPTS = 5

GENERAL = Struct(">BBH")  # struct nfgenmsg: family, version, resource

_BE64 = Integer(">Q")
_VERDICT = Schema(code=(1, Integer(">i")), chain=(2, STRING))
_DATA = Schema(value=(1, BYTES), verdict=(2, _VERDICT))
_ELEMENT = Schema(key=(1, _DATA), data=(2, _DATA), userdata=(6, BYTES))
_ELEMENTS = Schema(table=(1, STRING), set=(2, STRING), elements=(3, Schema(items=(1, Many(BYTES)))))
_TABLE = Schema(name=(1, STRING))
_SET = Schema(table=(1, STRING), name=(2, STRING))
_CHAIN = Schema(table=(1, STRING), name=(3, STRING), use=(6, BE32))
_RULE = Schema(
    table=(1, STRING), chain=(2, STRING), handle=(3, _BE64), code=(4, BYTES), userdata=(7, BYTES)
)
_EXPRESSIONS = Schema(items=(1, Many(Schema(name=(1, STRING), data=(2, BYTES)))))
_IMMEDIATE = Schema(data=(2, _DATA))
_MATCH = Schema(name=(1, STRING), info=(3, STRING))


class Element(Record):
    """An element of a set or map. data: what a map's element holds, unless that is a verdict."""

    key: bytes
    comment: str
    data: bytes = b""


class Rule(Record):
    """A rule. `comment` is nft's own or that of the iptables match, "" if it has neither.

    chain: where the rule jumps or goes to, "" if nowhere.
    """

    handle: int
    comment: str
    chain: str = ""


class NetfilterSocket(NetlinkSocket):
    """A netfilter netlink socket of the calling thread's network namespace.

    After something was deleted, closing one waits until the kernel has freed it (some 10 ms), and
    all of nftables with it. Hence `acquire` and `release`; and who has to wait for the kernel
    anyway, as for a link's end, closes afterwards.

    refused: whether `update` asks again because something that it spoke of was not as it seemed.
    """

    __slots__ = ("refused",)

    refused_as_one = True  # nfnetlink_rcv() of the kernel looks at rights before anything else

    def __init__(self) -> None:
        super().__init__(NETLINK_NETFILTER)
        self.refused = False

    def commit(self, requests: Sequence[NetlinkRequest]) -> None:
        """Carry out changes as one transaction. Raises NetlinkError for the first refused one."""
        if not requests:
            return
        if netlink_socket.before_send is not None:
            for request in requests:
                netlink_socket.before_send(request)
        first = self._number(len(requests) + 2)
        last = first + len(requests)
        bounds = GENERAL.pack(0, 0, _SUBSYSTEM)
        parts = [pack(_BATCH_BEGIN, NLM_F_REQUEST, first, self._port, bounds)]
        for sequence, request in enumerate(requests, first + 1):
            # Acknowledgements fill the receive buffer, so one speaks for all; errors come anyway.
            flags = request.flags | NLM_F_REQUEST | (NLM_F_ACK if sequence == last else 0)
            parts.append(pack(request.kind, flags, sequence, self._port, request.body))
        parts.append(pack(_BATCH_END, NLM_F_REQUEST, last + 1, self._port, bounds))
        transaction = b"".join(parts)
        try:
            if len(transaction) > _USUALLY_SENT:
                self._socket.setsockopt(SOL_SOCKET, _SO_SNDBUFFORCE, len(transaction))
            self._socket.send(transaction)
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO, "not sent", requests[0].what) from None
        self._judge(requests, first)

    def update(self, build: Callable[[], list[NetlinkRequest]]) -> None:
        """Commit what `build` finds to do, again if someone else changed the same meanwhile."""
        try:
            for attempt in range(ATTEMPTS):
                try:
                    self.commit(build())
                except NetlinkError as error:
                    self.refused = error.errno in (errno.ENOENT, errno.EEXIST, errno.EBUSY)
                    if not self.refused or attempt == ATTEMPTS - 1:
                        raise
                else:
                    return
        finally:
            self.refused = False

    def _number(self, count: int) -> int:
        if self._sequence + count >= 1 << 32:
            self._sequence = 0
        self._sequence += count
        return self._sequence - count + 1

    def _judge(self, requests: Sequence[NetlinkRequest], first: int) -> None:
        """Read the answers: all are there once the send has returned, that of the last one last."""
        acknowledged = False
        failure: NetlinkError | None = None
        try:
            while not acknowledged and (messages := self._read(0.0)) is not None:
                for message in messages:
                    position = message.sequence - first - 1
                    if message.kind != NLMSG_ERROR or not -1 <= position < len(requests):
                        continue
                    # An error of the transaction as a whole is reported at its begin.
                    request = requests[max(0, position)]
                    result = outcome(message)
                    if result.errno and failure is None:
                        failure = NetlinkError(result.errno, result.text, request.what)
                    acknowledged = acknowledged or position == len(requests) - 1
        except EventsLost:
            failure = NetlinkError(errno.ENOBUFS, "answers were lost", requests[0].what)
        if failure is None and not acknowledged:
            failure = NetlinkError(errno.EIO, "the kernel did not answer", requests[-1].what)
        if failure is not None:
            raise failure


# Sockets that are not in use, each with its process and namespace.
_idle: list[tuple[_Home, NetfilterSocket]] = []
_MOST_IDLE = 32
_is_closed_at_exit = False


def acquire(space: Namespace) -> NetfilterSocket:
    """A socket in the calling thread's namespace, which is `space`: an idle one, or a new one."""
    try:
        home, netfilter = _idle.pop()
    except IndexError:
        return NetfilterSocket()
    if home == (posix.getpid(), space.device, space.inode):
        return netfilter
    _idle.append((home, netfilter))
    return NetfilterSocket()


def release(netfilter: NetfilterSocket, space: Namespace) -> None:
    """Keep an acquired socket for the next, or close it.

    An open socket keeps its namespace alive. So only those are kept that are in the namespace of
    this process itself, that is, of its main thread.
    """
    try:
        status = posix.stat("/proc/self/ns/net")
    except OSError:  # the main thread has ended
        netfilter.close()
        return
    home = (posix.getpid(), status.st_dev, status.st_ino)
    close_idle(home)
    if home[1:] == (space.device, space.inode) and len(_idle) < _MOST_IDLE:
        _close_at_exit()
        _idle.append((home, netfilter))
    else:
        netfilter.close()


def close_idle(but_of: _Home | None = None) -> None:
    """Close the sockets that are kept; but_of: but for those of this process in this namespace."""
    for item in [item for item in _idle if item[0] != but_of]:
        try:
            _idle.remove(item)
        except ValueError:  # another thread took it
            continue
        item[1].close()


def _close_at_exit() -> None:
    """Have what is kept closed at the end: a socket that is not is a ResourceWarning."""
    global _is_closed_at_exit  # noqa: PLW0603 - a process has one end
    if not _is_closed_at_exit:
        _is_closed_at_exit = True
        import atexit

        atexit.register(close_idle)


def supported(netfilter: NetfilterSocket) -> bool:
    """Whether this kernel has nf_tables, and the caller may use it."""
    try:
        netfilter.request(_request(_GETGEN, 0, 0, b"", "read the generation of nftables"))
    except NetlinkError:
        return False
    return True


# --- read ----------------------------------------------------------------------------------------


def chain_exists(netfilter: NetfilterSocket, family: int, table: str, chain: str) -> bool:
    """Whether a table has a chain of this name."""
    if len(chain) > MAX_CHAIN_NAME:  # which the kernel refuses to look for
        return False
    body = _CHAIN.encode({"table": table, "name": chain})
    what = f"look for chain {_place(family, table, chain)}"
    return bool(_ask(netfilter, _request(_GETCHAIN, 0, family, body, what)))


def existing(
    netfilter: NetfilterSocket, chains: Sequence[tuple[int, str, str]]
) -> list[tuple[int, str, str]]:
    """Those of some chains that exist, each as family, table and name; asked for together.

    For chains that are asked for often: the requests are kept.
    """
    if netlink_socket.before_send is not None:
        return [chain for chain in chains if chain_exists(netfilter, *chain)]
    try:
        netfilter.batch([_looks.get(chain) or _look(chain) for chain in chains])
    except NetlinkError as error:
        if error.errno not in ABSENT:
            raise
        return [chains[position] for position in sorted(error.done)]
    return [*chains]


_looks: dict[tuple[int, str, str], NetlinkRequest] = {}


def _look(chain: tuple[int, str, str]) -> NetlinkRequest:
    family, table, name = chain
    body = _CHAIN.encode({"table": table, "name": name})
    what = f"look for chain {_place(family, table, name)}"
    found = _looks[chain] = _request(_GETCHAIN, 0, family, body, what)
    return found


def users(netfilter: NetfilterSocket, family: int, table: str, chain: str) -> int:
    """How many rules are in a chain, and jump to it, together; 0 without the chain."""
    body = _CHAIN.encode({"table": table, "name": chain})
    what = f"look for jumps to chain {_place(family, table, chain)}"
    found = _ask(netfilter, _request(_GETCHAIN, 0, family, body, what))
    count: int = _CHAIN.decode(found[0]).get("use", 0) if found else 0
    return count


def chains(netfilter: NetfilterSocket, family: int, table: str) -> list[str]:
    """The names of a table's chains; [] without the table. Reads all chains of the family."""
    what = f"list the chains of table {_place(family, table)}"
    found = []
    for payload in _dump(netfilter, _request(_GETCHAIN, 0, family, b"", what)):
        chain = _CHAIN.decode(payload)
        if chain.get("table") == table:
            found.append(chain["name"])
    return found


def sets(netfilter: NetfilterSocket, family: int, table: str) -> list[str]:
    """The names of a table's sets and maps; [] without the table."""
    body = _SET.encode({"table": table})
    what = f"list the sets of table {_place(family, table)}"
    found = _dump(netfilter, _request(_GETSET, 0, family, body, what))
    return [_SET.decode(payload)["name"] for payload in found]


def rules(netfilter: NetfilterSocket, family: int, table: str, chain: str) -> list[Rule]:
    """The rules of a chain in order; [] if there is no such chain."""
    return [parse_rule(rule) for rule in _rules(netfilter, family, table, chain)]


def expressions(
    netfilter: NetfilterSocket, family: int, table: str, chain: str, wanted: Sequence[bytes]
) -> list[tuple[Rule, str, list[Expression]]]:
    """The rules of a chain, or of all chains ("") of a table, with their chain and expressions.

    wanted: bytes, some of which a rule must contain.
    """
    return [
        (parse_rule(rule), rule["chain"], _named_code(rule))
        for rule in _rules(netfilter, family, table, chain, wanted)
    ]


def element(
    netfilter: NetfilterSocket, family: int, table: str, name: str, key: bytes
) -> Element | None:
    """The element of a set or map that has this key, None if there is none."""
    body = _element_body(table, name, {"key": {"value": key}})
    what = f"look for {key.hex()} in {_place(family, table, name)}"
    found = _ask(netfilter, _request(_GETSETELEM, 0, family, body, what))
    return next(iter(parse_elements(found[0])), None) if found else None


def elements(
    netfilter: NetfilterSocket, family: int, table: str, name: str, comment: str = ""
) -> list[Element]:
    """The elements of a set or map whose comment contains a text; [] if there is no such set."""
    found = elements_with(netfilter, family, table, name, comment.encode())
    return [item for item in found if comment in item.comment]


def elements_with(
    netfilter: NetfilterSocket, family: int, table: str, name: str, *wanted: bytes
) -> list[Element]:
    """The elements of a set or map that contain some of certain bytes; [] without the set."""
    body = _ELEMENTS.encode({"table": table, "set": name})
    what = f"list the elements of {_place(family, table, name)}"
    found = []
    for payload in _dump(netfilter, _request(_GETSETELEM, 0, family, body, what)):
        if any(item in payload for item in wanted):  # most are not worth decoding
            found += parse_elements(payload, *wanted)
    return found


# --- change --------------------------------------------------------------------------------------


def add_element(
    family: int, table: str, name: str, key: bytes, comment: str, data: bytes = b""
) -> NetlinkRequest:
    """Make an element that is not there yet. data: what a map's element holds."""
    item: dict[str, object] = {"key": {"value": key}}
    if data:
        item["data"] = {"value": data}
    text = comment.encode() + b"\0"
    item["userdata"] = bytes((_COMMENT, len(text))) + text
    body = _element_body(table, name, item)
    what = f"add {key.hex()} to {_place(family, table, name)}"
    return _request(_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, family, body, what)


def delete_element(family: int, table: str, name: str, key: bytes) -> NetlinkRequest:
    """Delete an element."""
    body = _element_body(table, name, {"key": {"value": key}})
    what = f"delete {key.hex()} from {_place(family, table, name)}"
    return _request(_DELSETELEM, 0, family, body, what)


def add_rule(
    family: int, table: str, chain: str, expressions: Sequence[Expression]
) -> NetlinkRequest:
    """Append a rule."""
    items = [{"name": name, "data": data} for name, data in expressions]
    code = _EXPRESSIONS.encode({"items": items})
    body = _RULE.encode({"table": table, "chain": chain, "code": code})
    what = f"add a rule to chain {_place(family, table, chain)}"
    return _request(_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, family, body, what)


def delete_rule(family: int, table: str, chain: str, handle: int) -> NetlinkRequest:
    """Delete a rule."""
    body = _RULE.encode({"table": table, "chain": chain, "handle": handle})
    what = f"delete rule {handle} of chain {_place(family, table, chain)}"
    return _request(_DELRULE, 0, family, body, what)


def delete_chain(family: int, table: str, chain: str, *, empty: bool = False) -> NetlinkRequest:
    """Delete a chain with its rules, or (empty) without any. EBUSY if something refers to it."""
    body = _CHAIN.encode({"table": table, "name": chain})
    what = f"delete chain {_place(family, table, chain)}"
    return _request(_DELCHAIN, NLM_F_NONREC if empty else 0, family, body, what)


def delete_set(family: int, table: str, name: str) -> NetlinkRequest:
    """Delete an empty set or map. EBUSY if it has elements, or something still refers to it."""
    body = _SET.encode({"table": table, "name": name})
    return _request(_DELSET, NLM_F_NONREC, family, body, f"delete {_place(family, table, name)}")


def delete_table(family: int, table: str) -> NetlinkRequest:
    """Delete an empty table. EBUSY if something is in it."""
    body = _TABLE.encode({"name": table})
    return _request(_DELTABLE, NLM_F_NONREC, family, body, f"delete table {_place(family, table)}")


def discard(netfilter: NetfilterSocket, *requests: NetlinkRequest) -> None:
    """Commit deletions together, unless something is in use or gone already: then none of them."""
    try:
        netfilter.commit(requests)
    except NetlinkError as error:
        if error.errno not in (errno.EBUSY, errno.ENOENT):
            raise


def ifname_key(*names: str) -> bytes:
    """The key of a set of type ifname, or of several such parts."""
    return b"".join(name.encode("utf-8", "surrogateescape").ljust(16, b"\0") for name in names)


# --- bytes ---------------------------------------------------------------------------------------


def _request(kind: int, flags: int, family: int, body: bytes, what: str) -> NetlinkRequest:
    # Reading single things; the flag says nothing about dumps and changes, sent in other ways.
    answered = kind in (_GETCHAIN, _GETSETELEM, _GETGEN)
    return NetlinkRequest(kind, flags, GENERAL.pack(family, 0, 0) + body, what, answered=answered)


def _ask(netfilter: NetfilterSocket, request: NetlinkRequest) -> list[bytes]:
    try:
        return [message.payload[GENERAL.size :] for message in netfilter.request(request)]
    except NetlinkError as error:
        if error.errno in ABSENT:
            return []
        raise


def _dump(netfilter: NetfilterSocket, request: NetlinkRequest) -> list[bytes]:
    try:
        return [message.payload[GENERAL.size :] for message in netfilter.dump(request)]
    except NetlinkError as error:
        if error.errno in ABSENT:
            return []
        raise


def _rules(
    netfilter: NetfilterSocket,
    family: int,
    table: str,
    chain: str,
    wanted: Sequence[bytes] = (b"",),
) -> Iterator[dict[str, Any]]:
    """The attributes of a chain's rules; those with none of the bytes wanted are not decoded.

    chain: "" for all chains of the table.
    """
    body = _RULE.encode({"table": table, "chain": chain} if chain else {"table": table})
    what = f"list the rules of chain {_place(family, table, chain)}"
    for payload in _dump(netfilter, _request(_GETRULE, 0, family, body, what)):
        for item in wanted:  # there may be thousands of rules, so this does without `any`
            if item in payload:
                break
        else:
            continue
        rule = _RULE.decode(payload)
        # Kernels before 3.19 do not filter.
        if rule.get("table") == table and chain in ("", rule.get("chain")):
            yield rule


def _code(rule: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """The expressions of a rule."""
    items: Sequence[dict[str, Any]] = _EXPRESSIONS.decode(rule.get("code", b"")).get("items", ())
    return items


def _named_code(rule: dict[str, Any]) -> list[Expression]:
    return [(item["name"], item.get("data", b"")) for item in _code(rule)]


def _element_body(table: str, name: str, item: dict[str, object]) -> bytes:
    nested = {"items": [_ELEMENT.encode(item)]}
    return _ELEMENTS.encode({"table": table, "set": name, "elements": nested})


def parse_elements(payload: bytes, *wanted: bytes) -> list[Element]:
    """The elements of a message; those with none of the bytes wanted, if any, are not decoded.

    Raises MalformedMessage.
    """
    found = []
    for raw in _ELEMENTS.decode(payload).get("elements", {}).get("items", ()):
        if not wanted or any(item in raw for item in wanted):
            item = _ELEMENT.decode(raw)
            comment = _comment(item.get("userdata", b""))
            key = item.get("key", {}).get("value")
            if key is None:
                raise MalformedMessage("an element without a key")
            found.append(Element(key, comment, item.get("data", {}).get("value", b"")))
    return found


def parse_rule(found: bytes | dict[str, Any]) -> Rule:
    """A rule of its attributes, decoded or not. Raises MalformedMessage."""
    if isinstance(found, bytes):
        found = _RULE.decode(found)
    if "handle" not in found:
        raise MalformedMessage("a rule without a handle")
    comment, chain = _comment(found.get("userdata", b"")), ""
    code = found.get("code", b"")
    worth_decoding = b"immediate" in code or (b"match" in code and not comment)
    for expression in _code(found) if worth_decoding else ():
        name, data = expression.get("name"), expression.get("data", b"")
        if name == "immediate":
            target = _IMMEDIATE.decode(data).get("data", {}).get("verdict", {})
            chain = target.get("chain", chain)
        elif name == "match" and not comment:
            match = _MATCH.decode(data)
            if match.get("name") == "comment":
                comment = match.get("info", "")
    return Rule(found["handle"], comment, chain)


def _comment(userdata: bytes) -> str:
    """The comment among type-length-value triples of one byte each for type and length."""
    offset = 0
    while offset + 2 <= len(userdata):
        kind, size = userdata[offset], userdata[offset + 1]
        value = userdata[offset + 2 : offset + 2 + size]
        if kind == _COMMENT:
            return STRING.decode(value)
        offset += 2 + size
    return ""


def _place(family: int, table: str, name: str = "") -> str:
    return f"{FAMILIES[family]} {table} {name}".rstrip()
