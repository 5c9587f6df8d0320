"""The two places a plugin works in, for the length of one request: the host and the sandbox.

The host is the network namespace of the calling thread. A netlink socket is opened inside each
once and then used from outside, so that a thread is in the sandbox only while it opens that, or
writes a sysctl.
"""

from __future__ import annotations

from pycni.kernel import link, namespace
from pycni.plan.steps import SANDBOX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from pycni.kernel.link import Link
    from pycni.kernel.namespace import Namespace
    from pycni.kernel.netlink.codec import Request
    from pycni.kernel.netlink.socket import NetlinkSocket
    from pycni.kernel.nfnetlink import NetfilterSocket


class Site:
    """One network namespace with what is open in it; `path` is its name in results."""

    def __init__(self, space: Namespace, path: str = "") -> None:
        self.namespace = space
        self.path = path
        self._netlink: NetlinkSocket | None = None
        self._netfilter: NetfilterSocket | None = None
        self._indexes: dict[str, int] = {}

    @property
    def netlink(self) -> NetlinkSocket:
        """A route netlink socket of this namespace, opened when first asked for."""
        if self._netlink is None:
            self._netlink = self.namespace.netlink()
        return self._netlink

    @property
    def netfilter(self) -> NetfilterSocket:
        """A netfilter netlink socket of this namespace, opened when first asked for."""
        if self._netfilter is None:
            from pycni.kernel.nfnetlink import NetfilterSocket

            with self.namespace.enter():
                self._netfilter = NetfilterSocket()
        return self._netfilter

    def link(self, name: str | int) -> Link:
        """An interface by name or index. Raises NetlinkError (ENODEV)."""
        return link.get(self.netlink, name)

    def find(self, name: str | int) -> Link | None:
        """An interface by name or index, None if there is none."""
        return link.find(self.netlink, name)

    def index(self, name: str) -> int:
        """The index of an interface, remembered for the rest of the request."""
        if name not in self._indexes:
            self._indexes[name] = self.link(name).index
        return self._indexes[name]

    def request(self, *requests: Request) -> None:
        """Have changes carried out, in order, sent together. Raises NetlinkError."""
        self.netlink.batch(requests)

    def close(self) -> None:
        if self._netlink is not None:
            self._netlink.close()
        if self._netfilter is not None:
            self._netfilter.close()
        self.namespace.close()


class Kernel:
    """Host and sandbox of one request; `sandbox` is None where there is no namespace (left)."""

    def __init__(self, sandbox: Namespace | None, sandbox_path: str = "") -> None:
        self.host = Site(namespace.current())
        self.sandbox = Site(sandbox, sandbox_path) if sandbox is not None else None

    def site(self, where: str) -> Site:
        """The site that a step's `where` names."""
        if where != SANDBOX:
            return self.host
        if self.sandbox is None:
            raise LookupError("there is no sandbox")
        return self.sandbox

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.host.close()
        if self.sandbox is not None:
            self.sandbox.close()
