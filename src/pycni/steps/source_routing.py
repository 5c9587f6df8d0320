"""Routing by source address, a table for each (`plan.steps.SourceRouting`).

    rule: from 10.1.0.5 lookup 100
    table 100: the interface's routes that belong to 10.1.0.5, and a default route

The main table loses the interface's routes, so that what has no source yet leaves by another
interface. Link-local ones stay: their packets name the interface anyway. Removing moves the routes
back.
"""

from __future__ import annotations

import errno

from pycni.kernel import address as addresses
from pycni.kernel import route as routes
from pycni.kernel import rule as rules
from pycni.kernel.netlink.constants import RT_SCOPE_LINK, RT_SCOPE_UNIVERSE
from pycni.kernel.netlink.errors import NetlinkError
from pycni.kernel.route import KernelRoute
from pycni.kernel.rule import Rule
from pycni.plan.steps import SANDBOX
from pycni.spec.ip import default_network, host_network
from pycni.steps import ownership
from pycni.steps.returned_routes import restore_to_main
from pycni.steps.unused_table import unused_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.netlink.codec import NetlinkRequest
    from pycni.plan.steps import Source, SourceRouting
    from pycni.spec.ip import IPAddress
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox, Netns

FIRST_TABLE = 100


def apply(step: SourceRouting, kernel: HostAndSandbox) -> Undo:
    site = kernel.netns(SANDBOX)
    changes = Changes(site)
    try:
        with kernel.lock_sandbox():
            if step.table is None:
                _separate(step, site, changes)
            else:
                for source in step.sources:
                    lead_to(source, step.table, changes)
    except BaseException:
        changes.take_back()
        raise
    return changes.take_back


def check(step: SourceRouting, kernel: HostAndSandbox) -> list[str]:
    site = kernel.netns(SANDBOX)
    index = site.index(step.link)
    differences = []
    for source in step.sources:
        address = source.address.address
        tables = [rule.table for rule in rules_from(site, address)]
        if step.table is not None:
            if step.table not in tables:
                differences.append(f"rule from {address} lookup {step.table} is missing")
            continue
        if not tables:
            differences.append(f"no rule leads packets from {address} to a table of their own")
            continue
        found = [
            route
            for table in tables
            for route in routes.dump(site.netlink, address.family, table=table)
            if route.by(index) is not None
        ]
        if not found:
            differences.append(f"the table for packets from {address} has no routes")
        elif source.gateway is not None and not any(
            route.dst.is_default and source.gateway in route.gateways for route in found
        ):
            differences.append(f"packets from {address} have no default route via {source.gateway}")
    if step.table is None:
        differences += routes.astray(site.netlink, index, step.link)
    return differences


def repair(step: SourceRouting, kernel: HostAndSandbox) -> None:
    site = kernel.netns(SANDBOX)
    index = site.index(step.link)
    changes = Changes(site)
    with kernel.lock_sandbox():
        if step.table is not None:
            for source in step.sources:
                if not _leads(site, source, step.table):
                    lead_to(source, step.table, changes)
            return
        whole, present = _in_main(site, index)
        for source in step.sources:
            table = _own_table(site, source, index) or unused_table(site.netlink, FIRST_TABLE)
            there = routes.dump(site.netlink, source.address.family, table=table)
            known = [item.dst for item in there if item.by(index) is not None]
            for item in routes_of(step, source, present, index):
                if item.dst not in known:
                    site.request(routes.append(item.replace(table=table)))
            if not _leads(site, source, table):
                lead_to(source, table, changes)
        hinted = [hint_of(source, present, index, changes) for source in step.sources if step.hints]
        _take_out(step, whole, hinted, index, changes)


def _leads(site: Netns, source: Source, table: int) -> bool:
    return any(rule.table == table for rule in rules_from(site, source.address.address))


def _own_table(site: Netns, source: Source, index: int) -> int:
    """The table that the source's rule leads to; without, one that was left with its routes."""
    for rule in rules_from(site, source.address.address):
        if rule.table not in routes.SYSTEM_TABLES:
            return int(rule.table)
    family = source.address.family
    used = {rule.table for rule in rules.dump(site.netlink, family)} | set(routes.SYSTEM_TABLES)
    for item in routes.dump(site.netlink, family, table=0, index=index):
        marks = _marks(item)
        if item.table not in used and (not marks or any(map(source.address.contains, marks))):
            return int(item.table)
    return 0


def remove(step: SourceRouting, kernel: HostAndSandbox) -> None:
    """Delete the rules for the step's addresses, and for those that the interface has.

    If that is still there, the routes of their tables go back into the main one.
    """
    site = kernel.sandbox
    if site is None:
        return
    link = ownership.own_link(kernel, step.link)
    sources = {source.address.address for source in step.sources}
    if link is not None:
        sources |= {found.network.address for found in addresses.dump(site.netlink, link.index)}
    moved: list[KernelRoute] = []
    for address in sorted(sources):
        for rule in rules_from(site, address):
            if step.table not in (None, rule.table):
                continue
            _delete(site, rules.delete(rule))
            if step.table is None and link is not None and rule.table not in routes.SYSTEM_TABLES:
                for route in routes.dump(site.netlink, address.family, table=rule.table):
                    part = route.by(link.index)
                    if part is not None:
                        _delete(site, routes.take_out(route, link.index)[0])
                        moved.append(part)
    if link is not None and moved:
        _put_back(step, site, link.index, moved)


def _put_back(step: SourceRouting, site: Netns, index: int, moved: list[KernelRoute]) -> None:
    """Have routes in the main table again: those to neighbours first, others go through them."""
    for source in step.sources if step.hints else ():
        subnet = source.address.network
        _delete(site, routes.delete(KernelRoute(subnet, index, source=source.address.address)))
    for route in sorted(moved, key=lambda route: bool(route.gateways)):
        if route.dst.is_default and route.dst.family not in step.defaults:
            continue
        restore_to_main(site, route)


class Changes:
    """Requests carried out, with what takes them back."""

    def __init__(self, site: Netns) -> None:
        self.site = site
        self._back: list[NetlinkRequest] = []

    def make(self, request: NetlinkRequest, back: NetlinkRequest) -> None:
        self.site.request(request)
        self._back.append(back)

    def take_back(self) -> None:
        while self._back:
            try:
                self.site.request(self._back.pop())
            except OSError:
                continue  # it went by itself, or will with the interface


def _separate(step: SourceRouting, site: Netns, changes: Changes) -> None:
    """Give each source a table with the interface's routes, and take these out of main."""
    index = site.index(step.link)
    whole, present = _in_main(site, index)
    for source in step.sources:
        table = unused_table(site.netlink, FIRST_TABLE)
        for route in routes_of(step, source, present, index):
            copy = route.replace(table=table)
            changes.make(routes.append(copy), routes.delete(copy))
        lead_to(source, table, changes)
    hinted = [hint_of(source, present, index, changes) for source in step.sources if step.hints]
    _take_out(step, whole, hinted, index, changes)


def _in_main(site: Netns, index: int) -> tuple[list[KernelRoute], list[KernelRoute]]:
    """Routes of the main table that leave by a link, and of each the ways that do.

    IPv6 joins routes that several interfaces have to one destination, such as default routes.
    """
    whole = [route for route in routes.dump(site.netlink) if index in route.indexes]
    # Routes to neighbours come back first, should it come to that: others need them.
    whole.sort(key=lambda route: not route.gateways)
    return whole, [part for route in whole if (part := route.by(index)) is not None]


def _take_out(
    step: SourceRouting,
    whole: list[KernelRoute],
    hinted: list[KernelRoute | None],
    index: int,
    changes: Changes,
) -> None:
    """Have the interface's routes leave the main table."""
    for route in whole:
        if route in hinted or route.dst.address.is_link_local:
            continue
        if not (step.hints and is_on_link(route)):
            changes.make(*routes.take_out(route, index))


def lead_to(source: Source, table: int, changes: Changes) -> None:
    """Have what leaves by an address routed by a table."""
    rule = Rule(source.address.family, table, src=host_network(source.address.address))
    changes.make(rules.add(rule), rules.delete(rule))


def routes_of(
    step: SourceRouting, source: Source, present: list[KernelRoute], index: int
) -> list[KernelRoute]:
    """What belongs into a source's table: routes to neighbours first, the default route last."""
    own = [route for route in present if belongs_to(route, source, step.sources)]
    if source.gateway is not None:
        default = KernelRoute(default_network(source.address.family), index, source.gateway)
        if not (source.address.contains(source.gateway) or source.gateway.is_link_local):
            default = default.replace(onlink=True)  # as clouds have it
        for route in own:
            if route.dst.is_default and route.gateway == source.gateway:
                default = route
        own = [*(route for route in own if not route.dst.is_default), default]
    return sorted(own, key=lambda route: bool(route.gateways))


def belongs_to(route: KernelRoute, source: Source, sources: tuple[Source, ...]) -> bool:
    """Whether a route is the source's: by its own source or gateway, or as these are no source's.

    Those are link-local gateways, and such that are outside the subnets.
    """
    if route.dst.family != source.address.family:
        return False
    marks = _marks(route)
    owners = [one for one in sources if any(map(one.address.contains, marks))]
    return not owners or source in owners


def _marks(route: KernelRoute) -> list[IPAddress]:
    return [mark for mark in (route.source, *route.gateways) if mark is not None]


def hint_of(
    source: Source, present: list[KernelRoute], index: int, changes: Changes
) -> KernelRoute | None:
    """Have main's route to the source's subnet choose it; returns the route this replaces."""
    subnet = source.address.network
    scope = RT_SCOPE_LINK if subnet.is_ipv4 else RT_SCOPE_UNIVERSE
    hint = KernelRoute(subnet, index, source=source.address.address, scope=scope)
    for route in present:
        if route.dst == subnet and is_on_link(route):
            hint = hint.replace(priority=route.priority)
            changes.make(routes.replace(hint), routes.replace(route))
            return route
    changes.make(routes.append(hint), routes.delete(hint))
    return None


def is_on_link(route: KernelRoute) -> bool:
    """Whether a route leads to neighbours. IPv6 has no scope to go by."""
    if route.dst.is_ipv4:
        return route.scope == RT_SCOPE_LINK
    return not route.gateways and not route.dst.is_default


def rules_from(site: Netns, source: IPAddress) -> list[Rule]:
    """The rules that match this source address and nothing else."""
    return [
        rule
        for rule in rules.dump(site.netlink, source.family)
        if rule.src is not None
        and rule.src.address == source
        and (rule.dst, rule.iif, rule.oif, rule.mark) == (None, "", "", None)
    ]


def _delete(site: Netns, request: NetlinkRequest) -> None:
    try:
        site.request(request)
    except NetlinkError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH):  # gone in the meantime
            raise
