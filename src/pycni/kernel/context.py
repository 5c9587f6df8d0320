"""The two places a plugin works in, for the length of one request: the host and the sandbox.

The host is the network namespace of the calling thread. A netlink socket is opened inside each
once and then used from outside, so that a thread is in the sandbox only while it opens that, or
writes a sysctl.
"""

from __future__ import annotations

import errno

from pycni.kernel import link, namespace
from pycni.kernel.netlink.errors import NetlinkError
from pycni.kernel.netlink.socket import NetlinkSocket
from pycni.plan.steps import SANDBOX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from select import poll
    from typing import Self

    from pycni.kernel.link import Link
    from pycni.kernel.namespace import Entered, Namespace
    from pycni.kernel.netlink.codec import Request
    from pycni.kernel.nfnetlink import NetfilterSocket


class Site:
    """One network namespace with what is open in it.

    path: its name in results; home: the calling thread's namespace, None if this is it.
    """

    def __init__(self, space: Namespace, path: str = "", home: Namespace | None = None) -> None:
        self.namespace = space
        self.path = path
        self._home = home
        self._netlink: NetlinkSocket | None = None
        self._netfilter: NetfilterSocket | None = None
        self._known: dict[str, Link] = {}

    def enter(self) -> Entered | Here:
        """A context manager: the calling thread is in the namespace during the block."""
        return _HERE if self._home is None else self.namespace.enter(self._home)

    @property
    def netlink(self) -> NetlinkSocket:
        """A route netlink socket of this namespace, opened when first asked for."""
        if self._netlink is None:
            with self.enter():
                self._netlink = NetlinkSocket()
        return self._netlink

    @property
    def netfilter(self) -> NetfilterSocket:
        """A netfilter netlink socket of this namespace, opened when first asked for."""
        if self._netfilter is None:
            from pycni.kernel import nfnetlink

            with self.enter():
                self._netfilter = nfnetlink.borrow(self.namespace)
        return self._netfilter

    def read_sysctl(self, key: str) -> str:
        """The value of a kernel parameter: see `sysctl.read`."""
        from pycni.kernel import sysctl  # DEL does without

        with self.enter():
            return sysctl.read(key, self._kept)

    def write_sysctl(self, key: str, value: str) -> str:
        """Set a kernel parameter and return what it was: see `sysctl.write`."""
        from pycni.kernel import sysctl

        with self.enter():
            return sysctl.write(key, value, self._kept)

    @property
    def _kept(self) -> Namespace | None:
        """The namespace, if it is the host's, which is worked in again."""
        return self.namespace if self._home is None else None

    def link(self, name: str | int) -> Link:
        """An interface by name or index, as it is now. Raises NetlinkError (ENODEV)."""
        return self.remember(link.get(self.netlink, name))

    def find(self, name: str | int) -> Link | None:
        """An interface by name or index as it is now, None if there is none."""
        found = link.find(self.netlink, name)
        return None if found is None else self.remember(found)

    def known(self, name: str) -> Link:
        """An interface as this request last saw it: good for what does not change in between."""
        return self._known.get(name) or self.link(name)

    def remember(self, seen: Link) -> Link:
        """Note an interface for `known`; returns it."""
        self._known[seen.name] = seen
        return seen

    def forget(self, name: str) -> None:
        """Have `known` look again at an interface that may have changed, or has gone."""
        self._known.pop(name, None)

    def index(self, name: str) -> int:
        """The index of an interface, which it keeps for life."""
        return self.known(name).index

    def request(self, *requests: Request) -> None:
        """Have changes carried out, in order, sent together. Raises NetlinkError."""
        self.netlink.batch(requests)

    def discard(self, target: Link | str) -> None:
        """Delete an interface; one that has gone already is no error. Raises NetlinkError."""
        try:
            self.request(link.delete(target))
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise

    def close(self) -> None:
        if self._netlink is not None:
            self._netlink.close()
        if self._netfilter is not None:
            from pycni.kernel import nfnetlink

            nfnetlink.give_back(self._netfilter, self.namespace)
        self.namespace.close()


def _poller(descriptor: int) -> poll:
    from select import POLLIN, poll  # only the agent's calls can be given up

    poller = poll()
    poller.register(descriptor, POLLIN)
    return poller


class Here:
    """A context manager for a namespace that the thread is in already."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


_HERE = Here()


class Kernel:
    """Host and sandbox of one request; `sandbox` is None where there is no namespace (left).

    cancel: a descriptor that can be read once whoever asked has given up, None if they never do.
    """

    def __init__(
        self, sandbox: Namespace | None, sandbox_path: str = "", cancel: int | None = None
    ) -> None:
        self._cancel = None if cancel is None else _poller(cancel)
        home = namespace.current()
        self.host = Site(home)
        self.sandbox = None if sandbox is None else Site(sandbox, sandbox_path, home)

    @property
    def cancelled(self) -> bool:
        """Whether whoever asked has given up."""
        return self._cancel is not None and bool(self._cancel.poll(0))

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
