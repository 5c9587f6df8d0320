"""All network namespaces of the machine, and the addresses that are set in them.

What is set somewhere is in use, whatever files say: so an address is looked for before it goes to
another attachment. Namespaces are found by the processes in them, by their names in /run/netns, and
by the mounts that hold them. Used by `pycni ipam reclaim`, and by steps that meet rules for an
address whose interface is not where it should be.
"""

from __future__ import annotations

import posix

from pycni.kernel import address, link, namespace
from pycni.kernel.namespace import NAMED, OWN
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from pycni.kernel.link import Link
    from pycni.kernel.namespace import Namespace
    from pycni.kernel.netlink.socket import NetlinkSocket
    from pycni.spec.ip import IPAddress


class Holder(Record):
    """An interface that an address is set on. path: of its namespace, OWN for the thread's.

    outer: the other end, where that is a veth in the thread's namespace; alias: of that, else "".
    """

    path: str
    ifname: str
    outer: Link | None = None

    @property
    def alias(self) -> str:
        return "" if self.outer is None else self.outer.alias


def addresses(paths: Iterable[str] = ()) -> dict[IPAddress, str]:
    """Every address of every namespace, with a path of one that has it.

    paths: further ones to look at; what is no namespace is passed over. For root: others do not
    see them all.
    """
    found: dict[IPAddress, str] = {}
    for path, _, netlink in _namespaces(paths):
        for one in address.dump(netlink):
            found.setdefault(one.network.address, path)
    return found


def holders(wanted: Collection[IPAddress], host: NetlinkSocket) -> dict[IPAddress, list[Holder]]:
    """The interfaces of the machine that have one of some addresses.

    host: a route netlink socket of the thread's namespace. A veth counts whose other end is there:
    those of a host within this one, such as a node in a container, have its addresses. A container
    can set any address inside, so this says that one is in use, not that it was given.
    """
    found: dict[IPAddress, list[Holder]] = {}
    for path, space, netlink in _namespaces():
        for one in address.dump(netlink):
            if one.network.address not in wanted:
                continue
            inner = link.find(netlink, one.index)
            if inner is None:
                continue
            outer = None if path == OWN else _other_end(inner, space, host)
            if path == OWN or inner.kind != "veth" or outer is not None:
                holder = Holder(path, inner.name, outer)
                found.setdefault(one.network.address, []).append(holder)
    return found


def links_on(
    parent: int, kinds: Collection[str]
) -> Iterator[tuple[Namespace, NetlinkSocket, Link]]:
    """The links of some kinds that are on a link of the thread's namespace, in any namespace.

    parent: its index. With each, the namespace and a route netlink socket there, which are open
    until the next one.
    """
    with namespace.current() as home:
        for path, space, netlink in _namespaces():
            found = [one for one in link.dump(netlink) if one.kind in kinds and one.link == parent]
            if not found:
                continue
            here = None if path == OWN else namespace.id_seen_from(netlink, home)
            if path != OWN and here is None:
                continue
            yield from ((space, netlink, one) for one in found if one.link_netnsid == here)


def _other_end(inner: Link, space: Namespace, host: NetlinkSocket) -> Link | None:
    """The other end of a veth in a namespace, None if that is not on the host.

    An index counts in its namespace only, and a container chooses those in its own: the host's end
    has to lead back to this very namespace.
    """
    if inner.kind != "veth" or inner.link_netnsid is None:
        return None
    outer = link.find(host, inner.link)
    if outer is None or outer.kind != "veth" or outer.link != inner.index:
        return None
    leads_to = outer.link_netnsid
    if leads_to is None or leads_to != namespace.id_seen_from(host, space):
        return None
    return outer


def _namespaces(paths: Iterable[str] = ()) -> Iterator[tuple[str, Namespace, NetlinkSocket]]:
    """Each namespace once, by a path, with a route netlink socket inside."""
    seen: set[tuple[int, int]] = set()
    for path in (OWN, *paths, *_named(), *_mounted(), *_of_processes()):
        try:
            status = posix.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            space = namespace.open_path(path)
        except OSError:
            # Gone in the meantime, or none. A process that root may not look into has more rights
            # than this one, so it is in no container of this host.
            continue
        with space:
            seen.add((status.st_dev, status.st_ino))
            with space.netlink() as netlink:
                yield path, space, netlink


def exists(path: str) -> bool:
    """Whether there is a namespace at a path, as this process or the machine's first one sees it.

    The caller may have mounts of its own, in which a runtime's namespaces do not appear.
    """
    for seen_as in (path, f"/proc/1/root{path}"):
        try:
            namespace.open_path(seen_as).close()
        except OSError:
            continue
        return True
    return False


def _named() -> list[str]:
    try:
        return [f"{NAMED}/{name}" for name in sorted(posix.listdir(NAMED))]
    except OSError:
        return []


def _mounted() -> Iterator[str]:
    """Where namespaces are mounted: runtimes keep them so, whether or not a process is inside."""
    for process, root in (("self", ""), ("1", "/proc/1/root")):
        try:
            with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        for line in lines:
            # 36 35 0:4 net:[4026532] /run/netns/a rw shared:1 - nsfs nsfs rw
            fields = line.split(" ")
            if fields[3].startswith("net:["):
                yield root + fields[4].replace("\\040", " ")


def _of_processes() -> Iterator[str]:
    for name in posix.listdir("/proc"):
        if name.isdigit():
            yield f"/proc/{name}/ns/net"
