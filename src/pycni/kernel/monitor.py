"""The kernel's notices of what a repair may have to put back: rules, bridges, addresses gone.

nftables reports each transaction (NFNLGRP_NFTABLES), rtnetlink links, addresses and forwarding;
iptables-legacy reports nothing. What this process does itself is left out. Used by the agent, with
--watch-rules.
"""

from __future__ import annotations

import posix
import time
from _struct import Struct

from pycni.kernel import link as links
from pycni.kernel.forwarding_events import turned_off
from pycni.kernel.netfilter.nfnetlink import NETLINK_NETFILTER
from pycni.kernel.netlink import constants as c
from pycni.kernel.netlink.codec import BE32, STRING, MalformedMessage, Schema
from pycni.kernel.netlink.errors import EventsLost
from pycni.kernel.netlink.socket import NetlinkSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from pycni.kernel.netlink.codec import Message

NFNLGRP_NFTABLES = 7
RTNLGRP_IPV4_IFADDR = 5
RTNLGRP_IPV4_NETCONF = 24
RTNLGRP_IPV6_NETCONF = 25

# Tables that hold something of a container's: pycni's, iptables-nft's, firewalld's.
TABLES = ("pycni", "filter", "nat", "firewalld")

_SUBSYSTEM = 10 << 8
# Of a table, a chain, a rule, a set, an element.
_DELETIONS = {_SUBSYSTEM | number for number in (2, 5, 8, 11, 14)}
_NEW_GENERATION = _SUBSYSTEM | 15
_TABLE = Schema(table=(1, STRING))  # the first attribute of all of them
_GENERATION = Schema(process=(2, BE32))
_HEADER_SIZE = 4  # struct nfgenmsg
_IFADDR = Struct("=4xI")  # struct ifaddrmsg: its index
_AF_BRIDGE = 7

_UP = "the use"  # it is down
_PORT = "the bridge"  # it is no port any more


class Monitor:
    """Subscriptions in the calling thread's network namespace. Close it, or use `with`.

    A notice about an interface may belong to its coming or going; `recheck` looks at it again.
    """

    def __init__(self) -> None:
        self._rules = NetlinkSocket(NETLINK_NETFILTER)
        try:
            self._links = NetlinkSocket()
            self._rules.subscribe((NFNLGRP_NFTABLES,))
            self._links.subscribe(
                (
                    c.RTNLGRP_LINK,
                    RTNLGRP_IPV4_IFADDR,
                    c.RTNLGRP_IPV6_IFADDR,
                    RTNLGRP_IPV4_NETCONF,
                    RTNLGRP_IPV6_NETCONF,
                )
            )
        except BaseException:
            self._rules.close()
            raise
        self._deleted: set[str] = set()  # in a transaction whose end is to come
        self._suspects: dict[int, str] = {}  # interfaces by index, and what is to be looked at

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rules.close()
        self._links.close()

    def filenos(self) -> tuple[int, int]:
        """The descriptors that can be read when there are notices."""
        return self._rules.fileno(), self._links.fileno()

    def read(self) -> set[str]:
        """What is gone, in words, by the notices that have come. Returns at once.

        An empty set with `has_pending` says that an interface has to be looked at.
        """
        gone: set[str] = set()
        for netlink, judge in ((self._rules, self._of_rules), (self._links, self._of_links)):
            while True:
                try:
                    messages = netlink.events(time.monotonic() + 0.001)
                except EventsLost:
                    gone.add("something unknown, since notices were lost,")
                    continue
                if not messages:
                    break
                for message in messages:
                    try:
                        gone |= judge(message)
                    except MalformedMessage:
                        continue
        return gone

    @property
    def has_pending(self) -> bool:
        """Whether there is an interface for `recheck` to look at."""
        return bool(self._suspects)

    def recheck(self) -> set[str]:
        """What is gone of interfaces that are still there. To be called when nothing happens."""
        suspects, self._suspects = self._suspects, {}
        gone: set[str] = set()
        if not suspects:
            return gone
        with NetlinkSocket() as netlink:
            for index, what in suspects.items():
                found = links.find(netlink, index)
                if (
                    found is None
                    or (what == _UP and found.is_up)
                    or (what == _PORT and found.master)
                ):
                    continue
                gone.add(f"{what} of {found.name}")
        return gone

    def _of_rules(self, message: Message) -> set[str]:
        body = message.payload[_HEADER_SIZE:]
        if message.kind in _DELETIONS:
            table = _TABLE.decode(body).get("table", "")
            if table in TABLES:
                self._deleted.add(f"something in the nftables table {table}")
        elif message.kind == _NEW_GENERATION:
            deleted, self._deleted = self._deleted, set()
            if not _is_own(_GENERATION.decode(body).get("process", 0)):
                return deleted
        return set()

    def _of_links(self, message: Message) -> set[str]:
        payload = message.payload
        if message.kind in (c.RTM_NEWLINK, c.RTM_DELLINK):
            found = links.parse(payload)
            gone = message.kind == c.RTM_DELLINK
            if gone and payload[0] == _AF_BRIDGE:
                self._suspects[found.index] = _PORT
            elif gone and found.kind == "bridge":
                return {f"bridge {found.name}"}
            elif not gone and not found.is_up and found.kind in ("bridge", "veth"):
                self._suspects[found.index] = _UP
        elif message.kind == c.RTM_DELADDR and len(payload) >= _IFADDR.size:
            self._suspects[_IFADDR.unpack_from(payload)[0]] = "an address"
        elif turned_off(message):
            return {"forwarding"}
        return set()


def _is_own(thread: int) -> bool:
    """Whether a thread is one of this process."""
    return bool(thread) and posix.access(f"/proc/self/task/{thread}", posix.F_OK)
