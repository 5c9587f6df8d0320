"""All network namespaces of the machine, and the addresses that are set in them.

What is set somewhere is in use, whatever files say: the answer to whether an address may be given
to someone else. Namespaces are found by the processes in them, by their names in /run/netns, and by
the mounts that hold them. Used by `pycni ipam reclaim`.
"""

from __future__ import annotations

import posix

from pycni.kernel import address, namespace
from pycni.kernel.namespace import NAMED, OWN, Namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pycni.spec.ip import IPAddress


def addresses(paths: Iterable[str] = ()) -> dict[IPAddress, str]:
    """Every address of every namespace, with a path of one that has it.

    paths: further ones to look at; what is no namespace is passed over. For root: others do not
    see them all.
    """
    found: dict[IPAddress, str] = {}
    seen: set[tuple[int, int]] = set()
    for path in (OWN, *paths, *_named(), *_mounted(), *_of_processes()):
        try:
            status = posix.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            space = namespace.open_path(path)
        except OSError:
            # Gone in the meantime, or none. What root may not look into has more rights than this
            # process, so it is no container of this host.
            continue
        with space:
            seen.add((status.st_dev, status.st_ino))
            for one in _addresses(space):
                found.setdefault(one, path)
    return found


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


def _addresses(space: Namespace) -> list[IPAddress]:
    with space.netlink() as netlink:
        return [found.network.address for found in address.dump(netlink)]


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
