"""The executor's verb `repair`: make again what is missing of a plan, and leave the rest alone.

A step in which CHECK finds nothing wrong is not touched. Others are made again, most of them by
what an ADD does, which keeps what is there; a kind has a `repair` of its own where an ADD would be
in its own way. What was made stays when a later step fails: each is good to have by itself. Apart
from the executor since no operation of the specification needs it; called by `pycni.sdk.repair`.
"""

from __future__ import annotations

import time

from pycni.kernel import link as links
from pycni.plan.difference import AGAIN, FAILED, REPAIRED, Difference
from pycni.plan.steps import HOST, SANDBOX, VethPair
from pycni.spec.errors import CHECK_FAILED, CNIError, is_shortage
from pycni.spec.owner import tag_of
from pycni.steps import ownership
from pycni.steps.executor import handler, has, translate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pycni.plan.plan import Plan
    from pycni.plan.steps import Step
    from pycni.steps.namespaces import HostAndSandbox

    # The MAC addresses that interfaces had, by (HOST or SANDBOX, name).
    Macs = Mapping[tuple[str, str], str]

_TIMEOUT = 3.0  # seconds for a pair to carry traffic


def repair(
    plan: Plan, kernel: HostAndSandbox, macs: Macs, *, dry_run: bool = False
) -> list[Difference]:
    """Make again what is missing of a plan. Returns what was missing, and what became of it.

    macs: what an interface that has to be made again is given. dry_run: look only.
    """
    found: list[Difference] = []
    changed = False
    for step in plan.steps:
        absent = is_absent(step, kernel)
        what = [_absence(step)] if absent else _look(step, kernel)
        if dry_run:
            found += map(Difference, what)
            if absent:
                return found  # the rest shows only when it is there
            found += map(Difference, _wrong_macs(step, kernel, macs))
            continue
        if what:
            repaired = _repair(step, kernel, what)
            found += repaired
            made = any(item.state == REPAIRED for item in repaired)
            changed |= made and (step.follows_link or step.makes_link or _is_shared_link(step))
            if absent and not made:
                return found
        elif changed and step.repeated:
            found += _repair(step, kernel, [])
        found += _restore_macs(step, kernel, macs, made=bool(what))
    if changed:
        _await_carrier(plan, kernel)
    return found


def _await_carrier(plan: Plan, kernel: HostAndSandbox) -> None:
    """Wait until a pair that is up carries traffic: after some ups and downs that takes a while."""
    deadline = time.monotonic() + _TIMEOUT
    for step in plan.steps:
        if not isinstance(step, VethPair):
            continue
        inner = kernel.netns(SANDBOX).find(step.name)
        outer = ownership.peer_on_host(kernel, inner)
        if inner is None or outer is None or not (inner.is_up and outer.is_up):
            continue
        try:
            links.wait_running(kernel.host.netlink, outer.index, deadline)
            links.wait_running(kernel.netns(SANDBOX).netlink, inner.index, deadline)
        except OSError:
            continue  # it is up, and what is missing is not ours to give


def require_own(step: VethPair, kernel: HostAndSandbox, *, marked: bool) -> None:
    """Raise a CNIError if the sandbox's interface was made for another attachment.

    marked: or by another project's plugin, which does not mark it.
    """
    path = kernel.netns(SANDBOX).path
    outer = ownership.peer_on_host(kernel, kernel.netns(SANDBOX).find(step.name))
    if outer is None:
        return
    tag = tag_of(outer.alias)
    if tag not in ("", step.owner.tag):
        raise CNIError(
            CHECK_FAILED,
            f"{step.name} of {path} belongs to another attachment",
            f"{outer.name} is marked {outer.alias}: the namespace is not that of "
            f"{step.owner.container_id} any more",
        )
    if not tag and ownership.own_link(kernel, step.name) is None:
        raise CNIError(
            CHECK_FAILED,
            f"{step.name} of {path} is not the interface that prevResult lists",
            f"the namespace is not that of {step.owner.container_id} any more",
        )
    if marked and not tag:
        raise CNIError(
            CHECK_FAILED,
            f"{step.name} of {path} was made by a plugin that is not pycni's",
            "whose DEL would leave what pycni puts back: name the directory that the runtime takes "
            "its plugins from, such as --plugin-dir /opt/cni/bin",
        )


def is_absent(step: Step, kernel: HostAndSandbox) -> bool:
    """Whether a step makes the attachment's interface, and that is not there."""
    return step.makes_link and kernel.netns(SANDBOX).find(_name(step)) is None


def is_in_place(ifname: str, kernel: HostAndSandbox) -> bool:
    """Whether the attachment's interface is there under its name."""
    own = ownership.own_link(kernel, ifname)
    return own is not None and own.name == ifname


def _absence(step: Step) -> str:
    return f"interface {_name(step)} is missing in the sandbox"


def _name(step: Step) -> str:
    """The name of the interface that a step makes."""
    name: str = getattr(step, "name", "")
    return name


def _is_shared_link(step: Step) -> bool:
    """Whether a step makes an interface of the host for several attachments."""
    return step.shared and bool(_name(step))


def _look(step: Step, kernel: HostAndSandbox) -> list[str]:
    """What is wrong with a step, a sentence each."""
    try:
        found = handler(step.kind).check(step, kernel)
        if has(step.kind, "repairable"):
            found += handler(step.kind).repairable(step, kernel)
    except (OSError, CNIError) as error:
        if not is_shortage(error):
            return [str(error)]
        if isinstance(error, OSError):
            raise translate(error) from error
        raise
    return found


def _repair(step: Step, kernel: HostAndSandbox, what: list[str]) -> list[Difference]:
    """Make a step again; what it lacked, and what became of that."""
    reason = ""
    try:
        if has(step.kind, "repair"):
            handler(step.kind).repair(step, kernel)
        else:
            handler(step.kind).apply(step, kernel)
    except OSError as error:
        reason = _explained(translate(error))
    except CNIError as error:
        reason = _explained(error)
    if reason and not what:
        return [Difference(f"{step.kind} could not be done again", FAILED, reason)]
    left = _look(step, kernel) if what else []
    reason = reason or f"it was made again, and is still so; {AGAIN}"
    return [
        *(Difference(text, REPAIRED) for text in what if text not in left),
        *(Difference(text, FAILED, reason) for text in left),
    ]


def _explained(error: CNIError) -> str:
    return "; ".join(part for part in (error.message, error.details) if part)


# --- MAC addresses ---------------------------------------------------------------------------


def _names(step: Step) -> list[tuple[str, str]]:
    """The interfaces that a step makes."""
    if _is_shared_link(step):
        return [(HOST, _name(step))]
    if not step.makes_link:
        return []
    names = [(SANDBOX, _name(step))]
    if isinstance(step, VethPair):
        names.append((HOST, step.host_name))
    return names


def _differing(step: Step, kernel: HostAndSandbox, macs: Macs) -> list[tuple[str, links.Link, str]]:
    found = []
    for where, name in _names(step):
        mac = macs.get((where, name), "")
        altnames = _is_shared_link(step)
        link = kernel.netns(where).find(name, altnames=altnames) if mac else None
        if link is not None and link.mac != mac:
            found.append((where, link, mac))
    return found


def _wrong_macs(step: Step, kernel: HostAndSandbox, macs: Macs) -> list[str]:
    return [
        f"interface {link.name} has the MAC address {link.mac}, prevResult has {mac}"
        for _, link, mac in _differing(step, kernel, macs)
    ]


def _restore_macs(
    step: Step, kernel: HostAndSandbox, macs: Macs, *, made: bool
) -> list[Difference]:
    """Give interfaces the MAC address back that neighbours know."""
    found = []
    for where, link, mac in _differing(step, kernel, macs):
        what = f"interface {link.name} has the MAC address {link.mac}, prevResult has {mac}"
        if _is_shared_link(step) and not made:
            reason = f"others were attached since and know it so; {AGAIN}"
            found.append(Difference(what, FAILED, reason))
            continue
        site = kernel.netns(where)
        try:
            site.request(links.update(link, mac=mac))
        except OSError as error:
            found.append(Difference(what, FAILED, _explained(translate(error))))
            continue
        site.forget(link.name)
        if not made:
            found.append(Difference(what, REPAIRED))
    return found
