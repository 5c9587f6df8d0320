"""A route (`plan.steps.Route`)."""

from __future__ import annotations

import errno

from pycni.kernel import route as routes
from pycni.kernel.netlink.constants import RT_SCOPE_LINK, RT_SCOPE_UNIVERSE, RT_TABLE_MAIN
from pycni.kernel.netlink.errors import NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.plan.steps import Route
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox, Netns


def apply(step: Route, kernel: HostAndSandbox) -> Undo | None:
    site = kernel.netns(step.where)
    route = routes.KernelRoute(
        dst=step.dst,
        index=site.index(step.link),
        gateway=step.gw,
        source=step.src,
        priority=step.priority,
        table=RT_TABLE_MAIN if step.table is None else step.table,
        scope=RT_SCOPE_UNIVERSE if step.scope is None else step.scope,
        mtu=step.mtu,
        advmss=step.advmss,
    )
    try:
        site.request(routes.prepend(route))
    except NetlinkError as error:
        if error.errno == errno.EEXIST:  # exactly this route: of the address, or listed twice
            return None
        raise
    return lambda: site.request(routes.delete(route))


def check(step: Route, kernel: HostAndSandbox) -> list[str]:
    site = kernel.netns(step.where)
    found = routes.dump(site.netlink, step.dst.family, table=step.table or RT_TABLE_MAIN)
    if step.table is None:
        # A plugin later in the chain may have moved it to a table of the interface's own.
        index = site.index(step.link)
        found += routes.dump(site.netlink, step.dst.family, table=0, index=index)
    dst = step.dst.network
    same = [route for route in found if route.dst == dst]
    # A default route may have been replaced by a plugin later in the chain.
    if step.gw is not None and not step.dst.is_default:
        same = [route for route in same if step.gw in route.gateways]
    if same:
        return []
    via = f" via {step.gw}" if step.gw is not None else ""
    return [f"route {step.dst}{via} is missing in the {step.where}"]


def repair(step: Route, kernel: HostAndSandbox) -> None:
    site = kernel.netns(step.where)
    if step.table is None:
        step = step.replace(table=_own_table(step, site))
    try:
        apply(step, kernel)
    except NetlinkError as error:
        # Its gateway cannot be reached: the kernel's own route to the neighbours has gone too.
        if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH) or step.gw is None:
            raise
        from pycni.kernel import address as addresses

        index = site.index(step.link)
        found = [item.network for item in addresses.dump(site.netlink, index, step.gw.family)]
        neighbours = next((network for network in found if network.contains(step.gw)), None)
        if neighbours is None:
            raise
        own = routes.KernelRoute(
            neighbours.network,
            index,
            source=neighbours.address,
            table=step.table or RT_TABLE_MAIN,
            scope=RT_SCOPE_LINK if neighbours.is_ipv4 else RT_SCOPE_UNIVERSE,
        )
        site.request(routes.append(own))
        apply(step, kernel)


def _own_table(step: Route, site: Netns) -> int | None:
    """The table of the VRF that the interface is in, which the main one may not lead around."""
    master = site.link(step.link).master
    found = site.find(master) if master else None
    return found.vrf_table if found is not None and found.kind == "vrf" else None
