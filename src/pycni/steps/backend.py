"""What has several backends: the protocol that each of them fits, and how they fall back.

A backend is a module of the package of a kind of steps. That imports each when it is first needed,
in one function, and names them in the order in which they are tried: a new one is a module, and its
name in both. One that is named by the configuration is taken, or the ADD fails.

    nftables, iptables   port_map, masquerade: iptables where the host lacks nftables
    firewalld, ipset, iptables, nftables   firewall: by who decides on the host, see `firewall`
    reference            what the reference's own backend nftables made: read and removed only
"""

from __future__ import annotations

from pycni.spec.record import Record
from pycni.steps.executor import undo_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Protocol, TypeVar

    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import Firewall, Masquerade, PortMap
    from pycni.spec.owner import Owners
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox

    S = TypeVar("S")
    Addressed = TypeVar("Addressed", bound=Firewall | Masquerade | PortMap)
    Gone = TypeVar("Gone")
    S_contra = TypeVar("S_contra", contravariant=True)
    Gone_contra = TypeVar("Gone_contra", contravariant=True)

    class Readable(Protocol[S_contra, Gone_contra]):
        """What a step may have been made by: its kind, and what goes with a removal."""

        def check(self, step: S_contra, kernel: HostAndSandbox, /) -> list[str]:
            """How what is there differs from what `apply` makes, a sentence each."""

        def made(self, step: S_contra, kernel: HostAndSandbox, /) -> bool:
            """Whether this backend has made something of the step, so that its CHECK counts."""

        def leftovers(
            self,
            owners: Owners,
            kernel: HostAndSandbox,
            gone: Gone_contra,
            step: S_contra | None,
            /,
        ) -> Leftovers:
            """What removes all that is the owners'.

            step: what DEL knows of the only one of them, None for GC. gone: what has had an effect
            until now is entered there, for what must end with it. Asked again if others change
            something meanwhile.
            """

    class Backend(Readable[S_contra, Gone_contra], Protocol[S_contra, Gone_contra]):
        """What makes a step as well."""

        def apply(
            self, step: S_contra, kernel: HostAndSandbox, /, *, thorough: bool = False
        ) -> Applied:
            """Make what is missing, or nothing.

            thorough: look also for what an ADD that is the first to know of something need not.
            Raises OSError, CNIError.
            """


# Of port_map and masquerade: what an ADD tries, and all that a removal looks at.
NFTABLES_OR_IPTABLES = ("nftables", "iptables")
EVERY = ("nftables", "reference", "iptables")
_ACCEPTED = {"": EVERY, "nftables": ("nftables", "reference")}


def tried(named: str) -> tuple[str, ...]:
    """The backends by which an ADD tries to make something, in order. named: "" for none."""
    return (named,) if named else NFTABLES_OR_IPTABLES


def accepted(named: str) -> tuple[str, ...]:
    """The backends that CHECK accepts; what the reference's nftables backend made is nftables."""
    return _ACCEPTED.get(named, (named,))


class Applied(Record):
    """What `Backend.apply` has done.

    undo: None if there was nothing to do; has_written: whether rules for all were missing;
    has_replaced: whether an earlier holder of an address had left something.
    """

    undo: Undo | None = None
    has_written: bool = False
    has_replaced: bool = False


class Leftovers(Record):
    """What removes something: requests, of one transaction for all backends, then the rest."""

    requests: Sequence[NetlinkRequest] = ()
    then: Callable[[], object] | None = None


def apply(
    step: Addressed,
    kernel: HostAndSandbox,
    names: Sequence[str],
    load: Callable[[str], Backend[Addressed, Gone]],
    *,
    thorough: bool = False,
) -> Applied:
    """Make a step by the first of some backends that the host can do. Raises OSError, CNIError."""
    *others, last = names
    for name in others:
        try:
            return load(name).apply(step, kernel, thorough=thorough)
        except OSError as error:
            if not _is_unable(error, step):
                raise
        thorough = True  # the attempt may have left something
    return load(last).apply(step, kernel, thorough=thorough)


def check(
    step: S,
    kernel: HostAndSandbox,
    names: Sequence[str],
    load: Callable[[str], Readable[S, Gone]],
) -> list[str]:
    """How what is there differs from a step: as the first backend makes it, or as another has."""
    first, *others = names
    differences = load(first).check(step, kernel)
    for name in others:
        if not differences:
            break
        backend = load(name)
        if backend.made(step, kernel):
            differences = backend.check(step, kernel)
    return differences


def remove(
    backends: Iterable[Readable[S, Gone]],
    owners: Owners,
    kernel: HostAndSandbox,
    gone: Gone,
    step: S | None = None,
) -> None:
    """Remove what owners have in any of some backends. gone, step: see `Readable.leftovers`."""
    known = [*backends]
    rest: list[Callable[[], object]] = []

    def left() -> list[NetlinkRequest]:
        rest.clear()
        requests: list[NetlinkRequest] = []
        for backend in known:
            found = backend.leftovers(owners, kernel, gone, step)
            requests += found.requests
            if found.then is not None:
                rest.append(found.then)
        return requests

    kernel.host.netfilter.update(left)
    for each in rest:
        each()


def applied(undos: list[Undo]) -> Applied:
    """What can be taken back, as `Backend.apply` returns it."""
    return Applied((lambda: undo_all(undos)) if undos else None)


def _is_unable(error: OSError, step: Firewall | Masquerade | PortMap) -> bool:
    """Whether a refusal says that the host cannot do a backend, so that the next one may do.

    A program of iptables can lack a match, or the right to look for a set (CAP_NET_RAW).
    """
    from pycni.kernel.netfilter import iptables

    families = {one.family for one in step.addresses}
    return isinstance(error, iptables.IPTablesError) or iptables.can_replace_nftables(
        error, families
    )
