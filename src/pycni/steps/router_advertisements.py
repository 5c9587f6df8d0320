"""Whose router advertisements the host accepts.

None on interfaces that we make: a container could otherwise send one, and have the host route
through it (CVE-2020-10749). Where the host has learned from a router, it goes on to do so.
"""

from __future__ import annotations

from _socket import AF_INET6

from pycni.kernel import link as links
from pycni.kernel import route as routes
from pycni.kernel.netlink.constants import RTPROT_RA
from pycni.spec.owner import tag_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.link import Link
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import Netns


def refuse(site: Netns, name: str) -> str:
    """Set an interface's accept_ra to 0; returns what it was, "" if not known.

    Raises OSError where it fails and IPv6 is in use there.
    """
    conf = f"net/ipv6/conf/{name}"
    try:
        return site.write_sysctl(f"{conf}/accept_ra", "0")
    except FileNotFoundError:
        pass  # no IPv6, nothing to accept
    except OSError:
        if site.read_sysctl(f"{conf}/disable_ipv6") != "1":
            raise
    return ""


def restore(site: Netns, name: str, before: str) -> None:
    """Set an interface's accept_ra to what `refuse` found."""
    site.write_sysctl(f"net/ipv6/conf/{name}/accept_ra", before)


def has_other_ports(site: Netns, bridge: Link) -> bool:
    """Whether a bridge has ports that no attachment of ours is behind, such as an uplink."""
    return any(not tag_of(port.alias) for port in links.dump(site.netlink, bridge.index))


def keep_learned(site: Netns) -> Undo | None:
    """Have interfaces that routes were learned by go on learning when the host forwards.

    A router that does not say so (2 in accept_ra, Documentation/networking/ip-sysctl.rst) drops
    what it has learned, and believes no router any more. Returns what takes that back.
    """
    found = routes.dump(site.netlink, AF_INET6, table=0, protocol=RTPROT_RA)
    changed: list[str] = []
    for index in {index for route in found for index in route.indexes}:
        link = site.find(index)
        if link is None:
            continue
        key = f"net/ipv6/conf/{link.name}/accept_ra"
        if site.read_sysctl(key) == "1":  # 0: another program learns by itself
            site.write_sysctl(key, "2")
            changed.append(key)

    def undo() -> None:
        for key in changed:
            site.write_sysctl(key, "1")

    return undo if changed else None
