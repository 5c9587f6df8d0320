"""DEL of a plugin with a plan: remove what its steps name, and at last release its addresses."""

from __future__ import annotations

from pycni.plan.plan import Plan
from pycni.sdk.ipam import have_ipam, needs_link
from pycni.sdk.netns import find_sandbox, plugin_type, without_others
from pycni.sdk.request import prev_result_or_empty
from pycni.spec.errors import CNIError, join_errors
from pycni.spec.owner import Owners
from pycni.state.attachments import remove_files
from pycni.steps import executor, ownership

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.sdk.planned import PlannedPlugin
    from pycni.sdk.request import Request
    from pycni.steps.namespaces import HostAndSandbox


def delete(plugin: PlannedPlugin, request: Request) -> None:
    """Remove what an attachment has, whatever is missing of it. Raises CNIError: what failed."""
    # Faults of what asks for something are no reason to leak what was made.
    config = plugin.config.read_lenient(request.document, "", [])
    with find_sandbox(request) as kernel:
        known = without_others(kernel, request.owner, prev_result_or_empty(request))
        plan = plugin.plan(request.replace(args=""), config, plugin.fill_in_gateways(config, known))
        # Addresses are released last, when nothing names them any more; but while the interface
        # is there, if releasing takes that. What could not be removed keeps them reserved.
        interface, rest = plan.split() if needs_link(request) else (Plan(), plan)
        failures = ownership.problems(kernel)
        left = _left_over(plugin, kernel, plan, request.ifname)
        failures += executor.remove(rest, kernel)
        identity = kernel.identity
        if left:
            if identity is None:
                addresses = tuple(str(entry.address.address) for entry in known.ips)
            else:
                addresses = identity.addresses
            noted = dict.fromkeys(left, addresses)
            owner = request.owner
            owners = Owners(owner.network, (owner.attachment,), addresses=noted)
            failures += executor.collect(left, kernel, owners)
        if plugin.makes_link:
            failures += remove_files(identity, plugin_type(request))
        is_released = not failures
        if is_released:
            failures += have_ipam(request, "DEL")
        failures += executor.remove(interface, kernel)
        if not failures:
            ownership.forget(kernel, with_interface=plugin.makes_link)
        else:
            try:
                ownership.note_failed_delete(kernel)
            except CNIError as error:
                failures.append(error)
    if failures:
        raise join_errors(failures) if is_released else _not_released(failures, request)


def _left_over(
    plugin: PlannedPlugin, kernel: HostAndSandbox, plan: Plan, ifname: str
) -> tuple[str, ...]:
    """The kinds of steps that this DEL has to sweep by owner, since its plan has none of them.

    The configuration may have been another at ADD: of a plugin's own kinds, those that are
    noted. With the interface, whatever is noted goes: a later plugin that made it has been
    dropped from the list, or has failed. Where nothing is noted but there is a result, or the
    interface, all that the plugin can make is looked for, and with the interface what others
    can.
    """
    claim = kernel.claim
    identity = kernel.identity
    if identity is not None:
        kinds = identity.kinds
        if not plugin.makes_link:
            kinds = tuple(kind for kind in kinds if kind in plugin.kinds)
    elif claim is None:
        kinds = ()
    elif plugin.makes_link and (claim.previous() or ownership.own_link(kernel, ifname)) is not None:
        kinds = executor.MARKED_KINDS
    elif claim.previous() is not None:
        kinds = plugin.kinds
    else:
        kinds = ()
    planned = {step.kind for step in plan.steps}
    return tuple(kind for kind in kinds if kind not in planned)


def _not_released(failures: list[CNIError], request: Request) -> CNIError:
    error = join_errors(failures)
    if request.ipam_type:
        hint = "its addresses stay reserved until DEL has removed that"
        error.details = f"{error.details}; {hint}" if error.details else hint
    return error
