"""Plugins whose work is a plan: base of those that make an interface and of those chained to one.

Such a plugin says one thing only, in `plan`: what should exist for an attachment, as data. All
operations follow from it. ADD makes it, CHECK compares it, DEL removes it, GC removes what steps
left behind that outlive an interface, repair makes again what is missing of it. Operations load
what they are done with, which VERSION does without.
"""

from __future__ import annotations

from pycni.plan.plan import Plan
from pycni.plan.steps import HOST
from pycni.sdk.plugin import Plugin
from pycni.sdk.request import NO_PREV_RESULT, require_prev_result
from pycni.spec.args import valid_args
from pycni.spec.errors import CHECK_FAILED, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from pycni.plan.difference import Difference, StepReport
    from pycni.sdk.request import Request
    from pycni.spec.config import Attachment
    from pycni.spec.result import Result
    from pycni.steps.namespaces import HostAndSandbox


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
        from pycni.sdk.ipam import delegate_ipam
        from pycni.sdk.netns import open_sandbox
        from pycni.steps import executor

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
        from pycni.sdk.deletion import delete

        delete(self, request)

    def gc(self, request: Request, keep: frozenset[Attachment]) -> None:
        from pycni.sdk.collection import collect

        collect(self, request, keep)

    def status(self, request: Request) -> None:
        from pycni.sdk.ipam import delegate_ipam
        from pycni.steps.namespaces import HostAndSandbox

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
