"""The plugins that make an interface in the sandbox: bridge, ptp, macvlan, and yours.

Addresses come from the address plugin that the configuration names; they are released when anything
fails. An MTU that it gives the interface is in the result, and so belongs to the attachment. See
`pycni.sdk.planned` for what such a plugin declares.
"""

from __future__ import annotations

from pycni.plan.plan import Plan
from pycni.plan.steps import HOST, SANDBOX
from pycni.sdk.addressing import listed_mtu
from pycni.sdk.planned import PlannedPlugin
from pycni.sdk.request import own_addresses
from pycni.spec.errors import CHECK_FAILED, INVALID_CONFIG, CNIError
from pycni.spec.result import FAMILIES, Interface, Result, merge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.sdk.request import Request
    from pycni.spec.config import NetConf
    from pycni.steps.namespaces import HostAndSandbox


class InterfacePlugin(PlannedPlugin):
    """Base of plugins that make an interface.

    needs_ipam: whether the configuration must name an address plugin.
    """

    needs_ipam: ClassVar[bool] = False
    makes_link: ClassVar[bool] = True

    def add(self, request: Request) -> Result:
        from pycni.sdk.ipam import Allocation
        from pycni.sdk.netns import evict, open_sandbox, supersede_if_gone
        from pycni.steps import executor

        config = self.resolve(self.config.decode(request.document))
        previous = request.prev_result
        inherited = Result()
        if previous is not None and not request.ipam_type:
            inherited = self.inherited(previous)
        if not inherited.ips:
            self._require_ipam(request)
        with open_sandbox(request) as kernel, executor.Transaction(kernel) as interface:
            supersede_if_gone(kernel, request.ifname)
            made, mtu = Plan(), 0
            allocation = Allocation(request, kernel=kernel)
            if allocation.needs_link():
                made = self.plan(request, config, Result()).before_addresses()
                interface.apply(made)
                allocation.fresh = bool(made.steps)
                mtu = _mtu(kernel, request)
            with allocation as addresses, executor.Transaction(kernel) as transaction:
                evict(kernel, addresses)
                known = addresses if request.ipam_type else inherited
                network = override_dns(request, config, self.fill_in_gateways(config, known))
                if made.steps:
                    now = _mtu(kernel, request)
                    there = Interface(
                        name=request.ifname, mtu=now if now != mtu else 0, sandbox=request.netns
                    )
                    network = network.replace(interfaces=(there,))
                plan = self.plan(request, config, network)
                transaction.apply(plan.without(made))
                result = report(kernel, request, plan, network)
        # Before 0.3.0 there was no prevResult, and a result has no room for two interfaces.
        if previous is None or request.version in FAMILIES[0]:
            return result
        if inherited.ips:  # they are this interface's now
            previous = Result(interfaces=previous.interfaces)
        return merge(previous, result)

    def inherited(self, previous: Result) -> Result:
        """Of the result of the plugins before, the addresses to use where the configuration names
        no address plugin: by default none."""
        return Result()

    def own_result(self, request: Request, previous: Result) -> Result:
        """Of a previous result, the addresses of the attachment's own interface."""
        listed = [(interface.name, interface.sandbox) for interface in previous.interfaces]
        if listed and (request.ifname, request.netns) not in listed:
            raise CNIError(
                CHECK_FAILED,
                f"Sandbox in prevResult doesn't match configured netns: {request.netns}",
                f"prevResult lists no interface {request.ifname} in that sandbox",
            )
        from pycni.sdk.ipam import needs_link

        own = own_addresses(request, previous)
        if any(item.mtu for item in own.interfaces) and not needs_link(request):
            # Then the interface's own plugin lists it, as the reference's do, and tuning may have
            # changed it since.
            own = own.replace(interfaces=tuple(item.replace(mtu=0) for item in own.interfaces))
        return own

    def _require_ipam(self, request: Request) -> None:
        """Refuse, before any work, a configuration that cannot do without addresses."""
        if request.ipam_type:
            return
        if self.needs_ipam:
            raise CNIError(
                INVALID_CONFIG,
                f"{self.type} interface requires an IPAM configuration",
                'give "ipam" with a "type", such as host-local or static',
            )
        if request.version in FAMILIES[0]:
            raise CNIError(
                INVALID_CONFIG,
                "cannot convert: no valid IP addresses",
                "a network without addresses needs cniVersion 0.3.0 or newer, "
                f"not {request.version}",
            )


def _mtu(kernel: HostAndSandbox, request: Request) -> int:
    """The MTU of the attachment's interface now, 0 if it is not there."""
    try:
        found = kernel.netns(SANDBOX).find(request.ifname)
    except OSError as error:
        from pycni.steps.executor import translate

        raise translate(error) from error
    return 0 if found is None else found.mtu


def report(kernel: HostAndSandbox, request: Request, plan: Plan, network: Result) -> Result:
    """The result of an ADD: the plan's interfaces as the kernel has them, and the addresses."""
    from pycni.steps.executor import translate

    interfaces = []
    container = None
    for index, reported in enumerate(plan.interfaces):
        site = kernel.netns(reported.where)
        name, mac, mtu = reported.name, "", 0
        if reported.in_kernel:
            try:
                found = site.known(reported.name, altnames=reported.where == HOST)
            except OSError as error:
                raise translate(error) from error
            # Later plugins have netfilter match this name, which knows no alternative ones.
            name, mac = found.name, found.mac
        if reported.where == SANDBOX and reported.name == request.ifname:
            container, mtu = index, listed_mtu(network, reported.name)
        interfaces.append(Interface(name=name, mac=mac, mtu=mtu, sandbox=site.path))
    return Result(
        interfaces=tuple(interfaces),
        ips=tuple(entry.replace(interface=container) for entry in network.ips),
        routes=network.routes,
        dns=network.dns,
    )


def override_dns(request: Request, config: NetConf, network: Result) -> Result:
    """DNS of the configuration in place of the address plugin's, if it says anything at all."""
    given = request.document.get("dns")
    if config.dns is None or not isinstance(given, dict):
        return network
    if not any(isinstance(value, list) or value for value in given.values()):
        return network
    return network.replace(dns=config.dns)
