"""Host interfaces that we make accept no router advertisements.

A container could otherwise send one, and have the host route through it (CVE-2020-10749).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.context import Site


def refuse(site: Site, name: str) -> str:
    """Set an interface's accept_ra to 0; returns what it was, "" if nobody knows.

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


def restore(site: Site, name: str, before: str) -> None:
    """Set an interface's accept_ra to what `refuse` found."""
    site.write_sysctl(f"net/ipv6/conf/{name}/accept_ra", before)
