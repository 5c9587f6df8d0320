"""Host interfaces that hand on all they receive have no IPv6 of their own: bridge ports, ifbs.

They would have no use for it, and so nothing that a container advertises reaches the host by them.
With it, the kernel keeps a multicast route for each, and walks all of these when one of the links
changes: with 1,000 containers, more than a millisecond of each ADD.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.steps.namespaces import Netns


def disable_ipv6(site: Netns, name: str) -> None:
    """Disable IPv6 on an interface that is still down."""
    try:
        site.write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
    except OSError:
        pass  # there is no IPv6, or nobody may say; all works with it too
