"""Plugins whose work is a plan: base of those that make an interface and of those chained to one.

Such a plugin says one thing only, in `plan`: what should exist for an attachment, as data. All
operations follow from it. ADD makes it, CHECK compares it, DEL removes it, GC removes what steps
left behind that outlive an interface, repair makes again what is missing of it.
"""

from __future__ import annotations

from pycni.plan.plan import Plan
from pycni.plan.steps import HOST
from pycni.sdk.ipam import delegate_ipam, have_ipam, needs_link
from pycni.sdk.netns import find_sandbox, open_sandbox, plugin_type, without_others
from pycni.sdk.plugin import Plugin
from pycni.sdk.request import NO_PREV_RESULT, prev_result_or_empty, require_prev_result
from pycni.spec.args import valid_args
from pycni.spec.errors import CHECK_FAILED, CNIError, join_errors
from pycni.spec.owner import Owners
from pycni.state.attachments import remove_files
from pycni.steps import executor, ownership
from pycni.steps.namespaces import HostAndSandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from pycni.plan.difference import Difference, StepReport
    from pycni.sdk.request import Request
    from pycni.spec.config import Attachment
    from pycni.spec.result import Result
    from pycni.spec.schema import Fault


class PlannedPlugin(Plugin):
    """Base of plugins that declare a plan.

    kinds: the kinds of steps in its plans that can outlive the attachment's interface, for GC;
    makes_link: whether it makes that interface, and so comes last when an attachment is removed;
    unchained: what to say where a previous result is needed and missing.
    """

    gives_addresses: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ()
    makes_link: ClassVar[bool] = False
    unchained: ClassVar[str] = NO_PREV_RESULT

    def plan(self, request: Request, config: Any, network: Result) -> Plan:
        """What should exist for the request's attachment. Pure: asks nothing of the kernel.

        network: what is known of addresses and interfaces. At ADD it is what `fill_in_gateways`
        returned, at CHECK and DEL the same from prevResult, which at DEL may be empty. It lists the
        attachment's interface only if that is there already.
        """
        raise NotImplementedError

    def resolve(self, config: Any) -> Any:
        """The configuration with what its plan depends on and only the host knows; raises CNIError.

        Called before an ADD or CHECK. DEL does without: what the host knew may have gone.
        """
        return config

    def fill_in_gateways(self, config: Any, network: Result) -> Result:
        """Addresses, routes and DNS as the result shall list them.

        Called for CHECK and DEL with a prevResult that went through it before, so doing it twice
        must change nothing more.
        """
        return network

    def own_result(self, request: Request, previous: Result) -> Result:
        """The part of a previous result that this plugin's plan is made from."""
        return previous

    def check_status(self, config: Any, kernel: HostAndSandbox) -> None:
        """Raise a CNIError (code 50) if an ADD could not be served now."""

    def as_checked(self, request: Request) -> Request:
        """The request to compare with the kernel, for CHECK and repair."""
        return request.replace(args=valid_args(request.args))

    def check(self, request: Request) -> None:
        checked = self.as_checked(request)
        config = self.resolve(self.config.decode(checked.document))
        previous = require_prev_result(checked, self.unchained)
        delegate_ipam(request, "CHECK")
        network = self.fill_in_gateways(config, self.own_result(checked, previous))
        with open_sandbox(request) as kernel:
            plan = self.plan(checked, config, network)
            differences = check_interfaces(kernel, plan, previous)
            differences += executor.check(plan, kernel)
        if differences:
            raise CNIError(
                CHECK_FAILED,
                "; ".join(differences),
                f"the attachment of {request.container_id} is not as ADD left it; "
                f"pycni repair {request.network} puts it back, or delete and add it again",
            )

    def repair(
        self, request: Request, *, dry_run: bool = False, remake: bool = True
    ) -> list[Difference]:
        from pycni.sdk.repair import repair_planned

        return repair_planned(self, request, dry_run=dry_run, remake=remake)

    def inspect(self, request: Request) -> list[StepReport]:
        from pycni.sdk.repair import inspect_planned

        return inspect_planned(self, request)

    def delete(self, request: Request) -> None:
        faults: list[Fault] = []
        # Faults of what asks for something are no reason to leak what was made.
        config = self.config.read_lenient(request.document, "", faults)
        with find_sandbox(request) as kernel:
            known = without_others(kernel, request.owner, prev_result_or_empty(request))
            plan = self.plan(request.replace(args=""), config, self.fill_in_gateways(config, known))
            # Addresses are released last, when nothing names them any more; but while the interface
            # is there, if releasing takes that. What could not be removed keeps them reserved.
            interface, rest = plan.split() if needs_link(request) else (Plan(), plan)
            failures = ownership.problems(kernel)
            left = self._left_over(kernel, plan, request.ifname)
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
            if self.makes_link:
                failures += remove_files(identity, plugin_type(request))
            is_released = not failures
            if is_released:
                failures += have_ipam(request, "DEL")
            failures += executor.remove(interface, kernel)
            if not failures:
                ownership.forget(kernel, with_interface=self.makes_link)
            else:
                try:
                    ownership.note_failed_delete(kernel)
                except CNIError as error:
                    failures.append(error)
        if failures:
            raise join_errors(failures) if is_released else _not_released(failures, request)

    def _left_over(self, kernel: HostAndSandbox, plan: Plan, ifname: str) -> tuple[str, ...]:
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
            if not self.makes_link:
                kinds = tuple(kind for kind in kinds if kind in self.kinds)
        elif claim is None:
            kinds = ()
        elif (
            self.makes_link and (claim.previous() or ownership.own_link(kernel, ifname)) is not None
        ):
            kinds = executor.MARKED_KINDS
        elif claim.previous() is not None:
            kinds = self.kinds
        else:
            kinds = ()
        planned = {step.kind for step in plan.steps}
        return tuple(kind for kind in kinds if kind not in planned)

    def gc(self, request: Request, keep: frozenset[Attachment]) -> None:
        from pycni.sdk.collection import collect

        collect(self, request, keep)

    def status(self, request: Request) -> None:
        config = self.config.decode(request.document)
        with HostAndSandbox(None) as kernel:
            self.check_status(config, kernel)
        delegate_ipam(request, "STATUS")


def check_interfaces(kernel: HostAndSandbox, plan: Plan, previous: Result) -> list[str]:
    """How the interfaces that a plan reports differ from those that the previous result lists."""
    differences = []
    for reported in plan.interfaces:
        if not reported.in_kernel:
            continue
        site = kernel.netns(reported.where)
        link = site.find(reported.name, altnames=reported.where == HOST)
        if link is None:
            differences.append(f"interface {reported.name} is missing in the {reported.where}")
            continue
        for interface in previous.interfaces:
            if interface.name not in (reported.name, link.name) or interface.sandbox != site.path:
                continue
            if interface.mac and interface.mac != link.mac:
                differences.append(
                    f"interface {link.name} has the MAC address {link.mac}, "
                    f"prevResult has {interface.mac}"
                )
    return differences


def _not_released(failures: list[CNIError], request: Request) -> CNIError:
    error = join_errors(failures)
    if request.ipam_type:
        hint = "its addresses stay reserved until DEL has removed that"
        error.details = f"{error.details}; {hint}" if error.details else hint
    return error
