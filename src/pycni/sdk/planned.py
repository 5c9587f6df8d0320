"""Plugins whose work is a plan: base of those that make an interface and of those chained to one.

Such a plugin says one thing only, in `plan`: what should exist for an attachment, as data. All
operations follow from it. ADD makes it, CHECK compares it, DEL removes it, GC removes what steps
left behind that outlive an interface, repair makes again what is missing of it.
"""

from __future__ import annotations

from pycni.kernel import executor
from pycni.kernel.context import Kernel
from pycni.plan.plan import Plan
from pycni.sdk.ipam import delegate_ipam, needs_link
from pycni.sdk.plugin import Plugin
from pycni.sdk.sandbox import find_sandbox, open_sandbox
from pycni.spec.errors import CHECK_FAILED, INVALID_CONFIG, CNIError, join_errors
from pycni.spec.result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from pycni.plan.difference import Difference, Part
    from pycni.sdk.request import Request
    from pycni.spec.config import Attachment
    from pycni.spec.fields import Fault

LOOPBACK = "lo"


class PlannedPlugin(Plugin):
    """Base of plugins that declare a plan.

    kinds: the kinds of steps in its plans that can outlive the attachment's interface, for GC;
    unchained: what to say where a previous result is needed and missing.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    unchained: ClassVar[str] = "Required prevResult missing"

    def plan(self, request: Request, config: Any, network: Result) -> Plan:
        """What should exist for the request's attachment. Pure: asks nothing of the kernel.

        network: what is known of addresses and interfaces. At ADD it is what `complete` returned,
        at CHECK and DEL the same from prevResult, which at DEL may be empty. It lists the
        attachment's interface only if that is there already.
        """
        raise NotImplementedError

    def resolve(self, config: Any) -> Any:
        """The configuration with what its plan depends on and only the host knows; raises CNIError.

        Called before an ADD or CHECK. DEL does without: what the host knew may have gone.
        """
        return config

    def complete(self, config: Any, network: Result) -> Result:
        """Addresses, routes and DNS as the result shall tell them.

        Called for CHECK and DEL with a prevResult that went through it before, so doing it twice
        must change nothing more.
        """
        return network

    def concern(self, request: Request, previous: Result) -> Result:
        """The part of a previous result that this plugin's plan is made from."""
        return previous

    def ready(self, config: Any, kernel: Kernel) -> None:
        """Raise a CNIError (code 50) if an ADD could not be served now."""

    def check(self, request: Request) -> None:
        config = self.resolve(self.config.decode(request.document))
        previous = require_prev_result(request, self.unchained)
        delegate_ipam(request, "CHECK")
        network = self.complete(config, self.concern(request, previous))
        with open_sandbox(request) as kernel:
            plan = self.plan(request, config, network)
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

    def inspect(self, request: Request) -> list[Part]:
        from pycni.sdk.repair import inspect_planned

        return inspect_planned(self, request)

    def delete(self, request: Request) -> None:
        faults: list[Fault] = []
        # Faults of what asks for something are no reason to leak what was made.
        config = self.config.read(request.document, "", faults)
        plan = self.plan(
            request.replace(args=""), config, self.complete(config, known_part(request))
        )
        # Addresses are released when no rule speaks of them any more, so that nobody gets one too
        # early; but while the interface is there, if releasing takes that.
        if needs_link(request):
            interface, rest = plan.split()
        else:
            interface, rest = Plan(), plan
        with find_sandbox(request) as kernel:
            failures = executor.remove(rest, kernel)
            failures += _have_ipam(request, "DEL")
            failures += executor.remove(interface, kernel)
        if failures:
            raise join_errors(failures)

    def gc(self, request: Request, keep: frozenset[Attachment]) -> None:
        failures: list[CNIError] = []
        early = needs_link(request)
        if early:
            failures += _have_ipam(request, "GC")
        with Kernel(None) as kernel:
            failures += executor.collect(self.kinds, kernel, request.network, keep)
        if not early:
            failures += _have_ipam(request, "GC")
        if failures:
            raise join_errors(failures)

    def status(self, request: Request) -> None:
        config = self.config.decode(request.document)
        with Kernel(None) as kernel:
            self.ready(config, kernel)
        delegate_ipam(request, "STATUS")


def require_prev_result(request: Request, message: str = PlannedPlugin.unchained) -> Result:
    """The previous result, for operations that cannot do without. Raises CNIError (code 7)."""
    previous = request.prev_result
    if previous is None:
        raise CNIError(
            INVALID_CONFIG,
            message,
            f"{request.command} works on the result of the plugins before it, "
            "which the runtime hands on as prevResult",
        )
    return previous


def known_part(request: Request) -> Result:
    """What DEL knows of the attachment; a missing or unreadable prevResult is no obstacle."""
    try:
        previous = request.prev_result
    except CNIError:
        return Result()
    if previous is None:
        return Result()
    return own_part(request, previous)


def own_part(request: Request, previous: Result) -> Result:
    """A previous result with the addresses of the attachment's own interface only.

    Where it lists other interfaces of the sandbox, the routes are those by the own one's gateways
    and neighbours: what leaves its gateway open may be another's.
    """
    own = []
    alone = True
    for index, interface in enumerate(previous.interfaces):
        if interface.name == request.ifname and interface.sandbox:
            own.append(index)
        elif interface.sandbox and interface.name != LOOPBACK:
            alone = False
    ips = tuple(entry for entry in previous.ips if entry.interface in own)
    if not ips:
        ips = tuple(entry for entry in previous.ips if entry.interface is None)
    if alone:
        return previous.replace(ips=ips)
    gateways = {entry.gateway for entry in ips}
    routes = tuple(
        route
        for route in previous.routes
        if route.gw is not None
        and (route.gw in gateways or any(entry.address.contains(route.gw) for entry in ips))
    )
    return previous.replace(ips=ips, routes=routes)


def check_interfaces(kernel: Kernel, plan: Plan, previous: Result) -> list[str]:
    """How the interfaces that a plan reports differ from those that the previous result lists."""
    differences = []
    for reported in plan.interfaces:
        if not reported.in_kernel:
            continue
        site = kernel.site(reported.where)
        link = site.find(reported.name)
        if link is None:
            differences.append(f"interface {reported.name} is missing in the {reported.where}")
            continue
        for interface in previous.interfaces:
            if (interface.name, interface.sandbox) != (reported.name, site.path):
                continue
            if interface.mac and interface.mac != link.mac:
                differences.append(
                    f"interface {link.name} has the MAC address {link.mac}, "
                    f"prevResult has {interface.mac}"
                )
    return differences


def _have_ipam(request: Request, command: str) -> list[CNIError]:
    """Have the address plugin do its part, whatever else failed. Returns what failed."""
    try:
        delegate_ipam(request, command)
    except CNIError as error:
        return [error]
    except OSError as error:
        return [executor.translate(error)]
    return []
