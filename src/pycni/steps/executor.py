"""The executor of plans: make, check, remove, collect. Called by plugins through `pycni.sdk`.

Invariants: making is all or nothing, what was done is taken back in reverse when a later step
fails; removing goes on after a failure and reports all of them at the end; the kernel's errors
become `CNIError` here and nowhere else.
"""

from __future__ import annotations

import errno

from pycni.bundle import module
from pycni.kernel import namespace
from pycni.plan.plan import Plan
from pycni.plan.steps import HOST, SANDBOX
from pycni.spec.errors import TRY_AGAIN_LATER, CNIError, is_shortage, short_of
from pycni.spec.owner import Owners
from pycni.steps import ownership
from pycni.steps.namespaces import HostAndSandbox

# What carries its owner's mark on the host, in the order in which it is swept.
MARKED_KINDS = ("port_map", "firewall", "masquerade", "spoof_guard", "shaping", "veth")

# What is made inside a sandbox, and goes with it. A device of the host's is given back instead.
_VIRTUAL = ("macvlan", "ipvlan", "vlan", "dummy", "tun")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Self, TypeVar

    from pycni.plan.steps import Step
    from pycni.spec.identity import Identity, OwnLink
    from pycni.steps.handler import Handler

    Undo = Callable[[], object]

    T = TypeVar("T")


class Transaction:
    """Steps made so far and how to take them back.

        with Transaction(kernel) as transaction:
            transaction.apply(plan)
            ...                        # whatever else must succeed with it

    Leaving it by an exception takes them back.
    """

    def __init__(self, kernel: HostAndSandbox) -> None:
        self._kernel = kernel
        self._plan = Plan()
        self._undo: list[Undo] = []

    def apply(self, plan: Plan) -> None:
        """Make the steps of a plan in order. Raises CNIError; what was made is then taken back."""
        self._plan = plan
        for step in plan.steps:
            if self._kernel.cancelled:
                raise CNIError(
                    TRY_AGAIN_LATER,
                    "cancelled: the caller that asked for the attachment has gone",
                    "nothing of it is left",
                )
            try:
                undo = handler(step.kind).apply(step, self._kernel)
            except OSError as error:
                if error.errno == errno.ENOBUFS and not step.follows_link:
                    remove(Plan((step,)), self._kernel)  # the answer was lost: it may be there
                raise translate(error) from error
            if undo is not None:
                self._undo.append(undo)
        if self._kernel.claim is not None:
            try:
                ownership.note(self._kernel, plan, lasting(plan.steps))
            except OSError as error:
                raise translate(error) from error

    def undo(self) -> None:
        """Take back what was made, in reverse; a part that cannot be taken back is left to DEL."""
        if not take_back(self._undo) or self._kernel.leaves:
            self._kernel.leaves = True
            ownership.note_for_delete(self._kernel, self._plan, lasting(self._plan.steps))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.undo()


def take_back(undos: list[Undo]) -> bool:
    """Do `undo_all`; whether all was taken back, instead of what that raises."""
    try:
        undo_all(undos)
    except (OSError, CNIError):
        return False
    return True


def undo_all(undos: list[Undo]) -> None:
    """Undo what was made, in reverse and once; what cannot be taken back does not keep the rest.

    Raises in the end what the first one to fail did: OSError or CNIError.
    """
    failure: OSError | CNIError | None = None
    while undos:
        try:
            undos.pop()()
        except (OSError, CNIError) as error:
            failure = failure or error
    if failure is not None:
        raise failure


def give_up(undos: list[Undo], kernel: HostAndSandbox) -> None:
    """Undo what a step made before it failed. What is left is noted; its own failure is raised."""
    if not take_back(undos):
        kernel.leaves = True


def check(plan: Plan, kernel: HostAndSandbox) -> list[str]:
    """How the kernel differs from a plan: a sentence for each difference.

    Raises CNIError if it could not look.
    """
    differences: list[str] = []
    for step in plan.steps:
        try:
            differences += handler(step.kind).check(step, kernel)
        except OSError as error:
            if is_shortage(error):
                raise translate(error) from error
            differences.append(translate(error).message)
        except CNIError as error:
            if is_shortage(error):
                raise
            differences.append(str(error))
    return differences


def remove(plan: Plan, kernel: HostAndSandbox) -> list[CNIError]:
    """Remove what a plan names, in reverse; what is missing is no error. Returns what failed."""
    steps = [step for step in reversed(plan.steps) if not (step.follows_link or step.shared)]
    return _each(lambda step: handler(step.kind).remove(step, kernel), steps)


def collect(kinds: Iterable[str], kernel: HostAndSandbox, owners: Owners) -> list[CNIError]:
    """Remove what attachments left, of some kinds of steps. Returns what failed."""
    return _each(lambda kind: handler(kind).collect(kernel, owners), kinds)


def lasting(steps: Iterable[Step]) -> tuple[str, ...]:
    """The kinds of steps that can outlive an interface, and leave something to collect."""
    kinds = dict.fromkeys(step.kind for step in steps if not (step.follows_link or step.shared))
    return tuple(kind for kind in kinds if has(kind, "collect"))


def retire(kernel: HostAndSandbox, identity: Identity) -> list[CNIError]:
    """Remove what is left of an attachment that is gone, but for what IPAM knows of it."""
    owner = identity.owner
    noted = dict.fromkeys(identity.kinds, identity.addresses)
    owners = Owners(owner.network, (owner.attachment,), addresses=noted)
    failures = collect(reversed(identity.kinds), kernel, owners)
    return failures + _put_back_devices(identity)


def remove_own_links(
    identity: Identity, others: Callable[[], Iterator[Identity]] = ownership.no_others
) -> list[CNIError]:
    """Remove the links of an attachment that have no other end on the host.

    A device of the host's is given back. others: gives the identities of all attachments.
    """
    if any(link.where == HOST for link in identity.links):
        return []
    try:
        kernel = HostAndSandbox(namespace.open_path(identity.path), identity.path)
    except (namespace.NamespaceNotFound, namespace.NotANamespace):
        return _put_back_devices(identity)
    except OSError as error:
        return [*_put_back_devices(identity), translate(error)]
    with kernel:
        sandbox = kernel.netns(SANDBOX)
        if identity.netns is None or not ownership.is_own_namespace(identity, sandbox):
            return _put_back_devices(identity)
        if identity.devices:
            return _put_back_devices(identity, kernel)
        from pycni.steps import noted_links

        def remove_noted(noted: OwnLink) -> None:
            found = noted_links.find(kernel, identity, noted)
            if found is None:
                noted_links.remove_hidden(kernel, identity, noted, others)
            elif found.kind in _VIRTUAL:
                sandbox.discard(found)

        return _each(remove_noted, identity.links)


def _put_back_devices(identity: Identity, kernel: HostAndSandbox | None = None) -> list[CNIError]:
    """Give the host the devices back that an attachment had from it.

    kernel: with its sandbox, None where that has gone.
    """
    if not identity.devices:
        return []
    from pycni.steps import own_device

    if kernel is None:
        with HostAndSandbox(None) as kernel:
            return _put_back_devices(identity, kernel)
    indexes = {link.name: link.index for link in identity.links if link.where == SANDBOX}
    return _each(
        lambda device: own_device.put_back(kernel, device, indexes.get(device.inside, 0)),
        identity.devices,
    )


def current(plan: Plan, kernel: HostAndSandbox) -> Plan:
    """The steps of a plan that set a value, with the values the kernel has now.

    What has no value yet is left out. Raises CNIError.
    """
    steps: list[Step] = []
    for step in plan.steps:
        try:
            found = handler(step.kind).current(step, kernel)
        except OSError as error:
            raise translate(error) from error
        if found is not None:
            steps.append(found)
    return plan.replace(steps=tuple(steps))


def handler(kind: str) -> Handler[Any]:
    """The module that knows a kind of step; imported when first needed.

    Where this package has none of that name, it is the whole name of a module: of a step that
    others declare.
    """
    found = _handlers.get(kind)
    if found is None:
        found = _handlers[kind] = _load(kind)
    return found


def has(kind: str, verb: str) -> bool:
    """Whether a kind of step has one of the verbs that it may do without."""
    return hasattr(handler(kind), verb)


def _load(kind: str) -> Any:
    if "." not in kind:
        ours = f"{__package__}.{kind}"
        try:
            return module(ours)
        except ModuleNotFoundError as error:
            if error.name != ours:
                raise
    return module(kind)


_handlers: dict[str, Handler[Any]] = {}


def translate(error: OSError) -> CNIError:
    """The kernel's refusal as an error for people: what was asked, why not, what to do."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return short_of(error)  # without what can be had for files only
    from pycni.steps import refusals

    return refusals.translate(error)


def _each(action: Callable[[T], None], items: Iterable[T]) -> list[CNIError]:
    failures: list[CNIError] = []
    for item in items:
        try:
            action(item)
        except OSError as error:
            failures.append(translate(error))
        except CNIError as error:
            failures.append(error)
    return failures
