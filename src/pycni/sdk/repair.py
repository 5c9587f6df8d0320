"""Repair and inspect of a plugin with a plan: what is missing is put back, or shown.

Not operations of the specification: there is no CNI_COMMAND for them, so they are done in process,
by `Plugin.repair` and `Plugin.inspect`, which load this when they are called. No address is
allocated, released or changed.
"""

from __future__ import annotations

from pycni.plan.difference import AGAIN, FAILED, REPAIRED, Difference, StepReport, described
from pycni.plan.plan import Plan
from pycni.plan.steps import HOST, SANDBOX, VethPair
from pycni.sdk.ipam import delegate_ipam
from pycni.sdk.netns import open_sandbox
from pycni.sdk.request import require_prev_result
from pycni.spec import versions
from pycni.spec.errors import CHECK_FAILED, CNIError
from pycni.steps import executor, ownership
from pycni.steps.repair import is_absent, is_in_place, require_own
from pycni.steps.repair import repair as repair_plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pycni.sdk.planned import PlannedPlugin
    from pycni.sdk.plugin import Plugin
    from pycni.sdk.request import Request
    from pycni.spec.result import Result
    from pycni.steps.namespaces import HostAndSandbox


def repair_planned(
    plugin: PlannedPlugin, request: Request, *, dry_run: bool, remake: bool
) -> list[Difference]:
    """Repair what a plan declares. Raises CNIError where the attachment is better left alone.

    That is: its address is not its own any more, its interface cannot be put back, or the
    namespace is another container's by now.
    """
    request = request.replace(command="CHECK")
    previous = require_prev_result(request, plugin.unchained)
    with open_sandbox(request) as kernel:
        _require_current(kernel, previous)
        _require_address(request)
        plan = _plan(plugin, request, previous)
        if plugin.makes_link:
            _require_living(plan, kernel, request, remake)
        elif not is_in_place(request.ifname, kernel):
            raise _missing(request, f"nothing is put back for what is not there: {AGAIN}")
        try:
            found = repair_plan(plan, kernel, _macs(request, previous), dry_run=dry_run)
            if not (dry_run or any(is_absent(step, kernel) for step in plan.steps)):
                _note_again(kernel, plan)
        except OSError as error:
            raise executor.translate(error) from error
        return found


def inspect_planned(plugin: PlannedPlugin, request: Request) -> list[StepReport]:
    """The plan of an attachment, each step with how the kernel differs from it. Changes nothing."""
    request = request.replace(command="CHECK")
    plan = _plan(plugin, request, require_prev_result(request, plugin.unchained))
    with open_sandbox(request) as kernel:
        return [
            StepReport(step.kind, described(step), tuple(executor.check(Plan((step,)), kernel)))
            for step in plan.steps
        ]


def _plan(plugin: PlannedPlugin, request: Request, previous: Result) -> Plan:
    request = plugin.as_checked(request)
    config = plugin.resolve(plugin.config.decode(request.document))
    network = plugin.fill_in_gateways(config, plugin.own_result(request, previous))
    return plugin.plan(request, config, network)


def _note_again(kernel: HostAndSandbox, plan: Plan) -> None:
    """Note an interface that was made again: it has other indexes. Raises CNIError, OSError.

    Where none is noted, none was made, and what the reference made stays the reference's.
    """
    identity = None if kernel.claim is None else kernel.claim.identity
    if identity is not None and identity.has_made_links:
        ownership.note(kernel, plan, executor.lasting(plan.steps))


def check_only(
    plugin: Plugin,
    request: Request,
    *,
    dry_run: bool = False,
    repair: Callable[[], object] | None = None,
) -> list[Difference]:
    """Repair by a function if CHECK finds something; without one, only report that."""
    request = request.replace(command="CHECK")
    if not versions.at_least(request.version, versions.SINCE["CHECK"]):
        return []
    try:
        plugin.check(request)
    except CNIError as error:
        what = str(error)
    else:
        return []
    if dry_run:
        return [Difference(what)]
    if repair is None:
        return [Difference(what, FAILED, f"{plugin.type} cannot be repaired: {AGAIN}")]
    try:
        repair()
        plugin.check(request)
    except CNIError as error:
        return [Difference(what, FAILED, f"{error}; {AGAIN}")]
    return [Difference(what, REPAIRED)]


def _macs(request: Request, previous: Result) -> dict[tuple[str, str], str]:
    macs: dict[tuple[str, str], str] = {}
    for interface in previous.interfaces:
        if interface.sandbox in ("", request.netns):
            where = SANDBOX if interface.sandbox else HOST
            macs[where, interface.name] = interface.mac
    return macs


def _require_address(request: Request) -> None:
    """Raise a CNIError if the address plugin does not know the address as the attachment's."""
    if not versions.at_least(request.version, versions.SINCE["CHECK"]):
        return
    try:
        delegate_ipam(request, "CHECK")
    except CNIError as error:
        raise CNIError(
            error.code,
            str(error),
            f"its address may be another container's by now, so nothing is put back: {AGAIN}",
        ) from error


def _require_current(kernel: HostAndSandbox, previous: Result) -> None:
    """Raise a CNIError if the attachment is on its way out, or is not that of the result any more.

    The runtime may have read the result before the container was detached and attached again.
    """
    identity = None if kernel.claim is None else kernel.claim.identity
    if identity is None:
        return
    if identity.detaching:
        raise CNIError(
            CHECK_FAILED,
            "its DEL has begun, and has failed",
            "nothing is put back; complete it: delete the attachment",
        )
    listed = {str(entry.address.address) for entry in previous.ips}
    if previous.ips and not listed.issuperset(identity.addresses):
        raise CNIError(
            CHECK_FAILED,
            f"it has been attached again since, with {', '.join(identity.addresses)}",
            f"the result lists {', '.join(sorted(listed))}; nothing is put back",
        )


def _require_living(plan: Plan, kernel: HostAndSandbox, request: Request, remake: bool) -> None:
    """Raise a CNIError unless the sandbox is still the attachment's."""
    for step in plan.steps:
        if isinstance(step, VethPair):
            # Without directories it is not known whose the runtime's plugins are.
            require_own(step, kernel, marked=not request.path)
        if not is_absent(step, kernel):
            if step.makes_link and not is_in_place(request.ifname, kernel):
                raise _missing(request, f"what has its name there now is another one; {AGAIN}")
            continue
        if kernel.claim is None or kernel.claim.identity is None:
            why = f"{request.netns} may be another container's by now, nothing says whose; {AGAIN}"
        elif not remake:
            why = "it may be on its way out, so nothing is put back; `pycni repair` does, if asked"
        elif request.netns.startswith("/proc/"):
            why = f"{request.netns} may be another container's by now; {AGAIN}"
        else:
            continue
        raise _missing(request, why)


def _missing(request: Request, why: str) -> CNIError:
    return CNIError(CHECK_FAILED, f"interface {request.ifname} is missing in the sandbox", why)
