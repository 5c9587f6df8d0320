"""iptables-legacy's tables, asked of the kernel itself: whether there is one, and names a chain.

Its program takes milliseconds to say so, and reads the whole table too. The kernel gives a table as
bytes (IPT_SO_GET_ENTRIES), in which chains stand by their names; what else is in it is left to the
program. Formats: linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h. Used by `iptables`,
and by steps on their way to it.
"""

from __future__ import annotations

import errno
import posix
from _socket import AF_INET, IPPROTO_IP, IPPROTO_IPV6, SOCK_CLOEXEC, SOCK_DGRAM, socket
from _struct import Struct

_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_..., the same for IPv6
_INFO = Struct("=32sI5I5III")  # struct ipt_getinfo: name, hooks, their entries, number, size
_ENTRIES = Struct("=32sI4x")  # struct ipt_get_entries: name, size, entries
_ATTEMPTS = 5


def has_table(family: int, table: str) -> bool:
    """Whether iptables-legacy has used a table in this network namespace."""
    name = "ip_tables_names" if family == AF_INET else "ip6_tables_names"
    try:
        file = posix.open(f"/proc/thread-self/net/{name}", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return False
    try:
        return table.encode() in posix.read(file, 4096).split()  # a page is all there can be
    except OSError:
        return False
    finally:
        posix.close(file)


def names(family: int, table: str, chain: str) -> bool:
    """Whether a table that is there names a chain. True where the kernel does not say."""
    level = IPPROTO_IP if family == AF_INET else IPPROTO_IPV6
    asked = socket(family, SOCK_DGRAM | SOCK_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            question = table.encode()
            info = _ask(asked, level, _GET_INFO, question, _INFO.size)
            size = _INFO.unpack(info)[-1]
            try:
                question = _ENTRIES.pack(table.encode(), size)
                entries = _ask(asked, level, _GET_ENTRIES, question, len(question) + size)
            except OSError as error:
                if error.errno != errno.EAGAIN:  # the table has changed its size meanwhile
                    raise
            else:
                return chain.encode() + b"\0" in entries
    except OSError:
        pass
    finally:
        asked.close()
    return True


def _ask(asked: socket, level: int, option: int, question: bytes, length: int) -> bytes:
    from pycni.kernel import libc  # there is such a table on few hosts

    return libc.getsockopt(asked.fileno(), level, option, question, length)
