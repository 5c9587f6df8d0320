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
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from select import poll
    from typing import Self

    from pycni.kernel.link import Link
    from pycni.kernel.namespace import Entered, Namespace
    from pycni.kernel.netfilter.nfnetlink import NetfilterSocket
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.spec.identity import Identity
    from pycni.spec.ip import IPAddress
    from pycni.steps.ownership import Claim


class Netns:
    """One network namespace with what is open in it.

    path: its name in results; host_ns: the calling thread's namespace, None if this is it.
    """

    def __init__(self, space: Namespace, path: str = "", host_ns: Namespace | None = None) -> None:
        self.namespace = space
        self.path = path
        self._host_ns = host_ns
        self._netlink: NetlinkSocket | None = None
        self._netfilter: NetfilterSocket | None = None
        self._known: dict[str, Link] = {}

    def enter(self) -> Entered | Here:
        """A context manager: the calling thread is in the namespace during the block."""
        return _HERE if self._host_ns is None else self.namespace.enter(self._host_ns)

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
            from pycni.kernel.netfilter import nfnetlink

            with self.enter():
                self._netfilter = nfnetlink.acquire(self.namespace)
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

    def disable_ipv6(self, name: str) -> None:
        """Have no IPv6 on an interface that is still down and hands on all it receives.

        Such are bridge ports and ifbs: nothing that a container advertises then reaches the host by
        them. With IPv6 the kernel keeps a multicast route for each, and walks all of these when one
        of the links changes: with 1,000 containers, more than a millisecond of each ADD.
        """
        try:
            self.write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
        except OSError:
            pass  # there is no IPv6, or it cannot be seen; all works with it too

    @property
    def _kept(self) -> Namespace | None:
        """The namespace, if it is the host's, which is worked in again."""
        return self.namespace if self._host_ns is None else None

    def link(self, name: str | int, *, altnames: bool = False) -> Link:
        """An interface by name or index, as it is now. Raises NetlinkError (ENODEV).

        altnames: here and below, also by an alternative name. That is for what a configuration
        names and whose owner does not matter: bridges, masters, devices.
        """
        return self.remember(link.get(self.netlink, name, altnames=altnames))

    def find(self, name: str | int, *, altnames: bool = False) -> Link | None:
        """An interface by name or index as it is now, None if there is none."""
        found = link.find(self.netlink, name, altnames=altnames)
        return None if found is None else self.remember(found)

    def known(self, name: str, *, altnames: bool = False) -> Link:
        """An interface as this request last saw it: good for what does not change in between."""
        return self._known.get(name) or self.link(name, altnames=altnames)

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

    def request(self, *requests: NetlinkRequest) -> None:
        """Have changes carried out, in order, sent together. Raises NetlinkError."""
        self.netlink.batch(requests)

    def discard(self, target: Link | str) -> None:
        """Delete an interface; one that has gone already is no error. Raises NetlinkError."""
        found = self.find(target) if isinstance(target, str) else target
        if found is None:
            return
        try:
            self.request(link.delete(found))
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise

    def close(self) -> None:
        if self._netlink is not None:
            self._netlink.close()
        if self._netfilter is not None:
            from pycni.kernel.netfilter import nfnetlink

            nfnetlink.release(self._netfilter, self.namespace)
        self.namespace.close()


def _poller(descriptor: int) -> poll:
    from select import POLLIN, poll  # only the agent's calls can be given up

    poller = poll()
    poller.register(descriptor, POLLIN)
    return poller


class Here:
    """A context manager that does nothing, such as for a namespace the thread is in already."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


_HERE = Here()


def _not_noted(_kernel: HostAndSandbox, _tag: str) -> None:
    return None


class HostAndSandbox:
    """Host and sandbox of one request.

    sandbox: None where there is no namespace (left), or a function that finds the attachment's own
    when it is first needed; cancel: a descriptor that can be read once the caller has given up,
    None if it never does; claim: what the request says of its attachment, for `ownership`, None for
    a request about no attachment; is_attached: whether an attachment, by its owner's tag, is there,
    None if nothing says. without_flows: the addresses whose flows have been forgotten during the
    request; leaves: whether a step that failed left something of what it had made; inodes: in
    sysfs, of links that were made in the sandbox, by name.
    """

    def __init__(
        self,
        sandbox: Namespace | Callable[[Namespace], Netns | None] | None,
        sandbox_path: str = "",
        cancel: int | None = None,
        claim: Claim | None = None,
        is_attached: Callable[[HostAndSandbox, str], bool | None] = _not_noted,
    ) -> None:
        self.claim = claim
        self.without_flows: set[IPAddress] = set()
        self.leaves = False
        self.inodes: dict[str, int] = {}
        self._is_attached = is_attached
        self._cancel = None if cancel is None else _poller(cancel)
        try:
            host_ns = namespace.current()
        except BaseException:
            if isinstance(sandbox, namespace.Namespace):
                sandbox.close()
            raise
        self.host = Netns(host_ns)
        self._find: Callable[[Namespace], Netns | None] | None = None
        self._sandbox: Netns | None = None
        if isinstance(sandbox, namespace.Namespace):
            self._sandbox = Netns(sandbox, sandbox_path, host_ns)
        else:
            self._find = sandbox

    @property
    def sandbox(self) -> Netns | None:
        """The sandbox; None where there is none (left) that is the attachment's own."""
        if self._find is not None:
            self._sandbox = self._find(self.host.namespace)
            self._find = None
        return self._sandbox

    @property
    def identity(self) -> Identity | None:
        """What is noted of the attachment, None for nothing."""
        return None if self.claim is None else self.claim.identity

    def is_attached(self, tag: str) -> bool | None:
        """Whether the attachment with an owner's tag is there; None if nothing is noted of it."""
        return self._is_attached(self, tag)

    def lock_sandbox(self) -> AbstractContextManager[object]:
        """A context manager: other attachments' steps find nothing free in the sandbox meanwhile.

        Entering it raises CNIError (code 11) if the lock stays taken.
        """
        if self.claim is None or self.sandbox is None:
            return _HERE
        space = self.sandbox.namespace
        return self.claim.notes.lock_sandbox(space.device, space.inode)

    @property
    def cancelled(self) -> bool:
        """Whether the caller has given up."""
        return self._cancel is not None and bool(self._cancel.poll(0))

    def netns(self, where: str) -> Netns:
        """The namespace that a step's `where` names."""
        if where != SANDBOX:
            return self.host
        if self.sandbox is None:
            raise LookupError("there is no sandbox")
        return self.sandbox

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(failed=kind is not None)

    def close(self, *, failed: bool = False) -> None:
        """Close what is open, and let the attachment's next operation in.

        failed: note of it again what was noted before.
        """
        try:
            self.host.close()
            if self._sandbox is not None:
                self._sandbox.close()
        finally:
            if self.claim is not None:
                if failed:
                    self.claim.notes.revert()
                self.claim.notes.close()
