"""An interface's membership in a VRF of the sandbox (`plan.steps.VRFMember`).

Joining sets the interface down and up again, and so does leaving: the kernel drops its routes, and
IPv6 addresses unless set to keep them. Both are put back, the routes in the table that holds then.
"""

from __future__ import annotations

import errno
import time
from _socket import AF_INET6

from pycni.kernel import address as addresses
from pycni.kernel import link as links
from pycni.kernel import link_kinds
from pycni.kernel import route as routes
from pycni.kernel.netlink.constants import (
    IFA_F_PERMANENT,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_LOCAL,
    RT_TABLE_MAIN,
    RTM_NEWROUTE,
    RTN_LOCAL,
    RTNLGRP_IPV6_ROUTE,
    RTPROT_KERNEL,
    RTPROT_RA,
)
from pycni.kernel.netlink.errors import EventsLost, NetlinkError
from pycni.plan.steps import SANDBOX
from pycni.spec.errors import ALREADY_EXISTS, INVALID_CONFIG, TRY_AGAIN_LATER, CNIError
from pycni.steps import ownership
from pycni.steps.child_link import require_free
from pycni.steps.returned_routes import restore_to_main
from pycni.steps.unused_table import unused_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.kernel.link import Link
    from pycni.kernel.route import KernelRoute
    from pycni.plan.steps import VRFMember
    from pycni.spec.ip import IPAddress
    from pycni.steps.executor import Undo
    from pycni.steps.namespaces import HostAndSandbox, Netns

TIMEOUT = 5.0  # seconds for IPv6 addresses to be usable again, longer than their detection takes


def apply(step: VRFMember, kernel: HostAndSandbox) -> Undo:
    site = kernel.netns(SANDBOX)
    with kernel.lock_sandbox():
        link = site.link(step.link)
        if link.master:
            master = site.find(link.master)
            raise CNIError(
                ALREADY_EXISTS,
                f"interface {step.link} has already a master set: {master.name if master else '?'}",
                "an interface can be in one VRF, bridge or bond only",
            )
        load = Load(site, link, RT_TABLE_MAIN)
        vrf, made = _find_or_create(step, site)

        def undo() -> None:
            try:
                if site.link(link.name).master == vrf.index:
                    load.move(master=0, table=RT_TABLE_MAIN)
            finally:
                if made:
                    _remove_unused(site, vrf)

        try:
            load.move(master=vrf.index, table=vrf.vrf_table or 0)
        except BaseException:
            undo()
            raise
    return undo


def check(step: VRFMember, kernel: HostAndSandbox) -> list[str]:
    site = kernel.netns(SANDBOX)
    vrf = site.find(step.vrf)
    if vrf is None or vrf.kind != "vrf":
        return [f"there is no VRF {step.vrf} in the sandbox"]
    differences = []
    if not vrf.is_up:
        differences.append(f"VRF {step.vrf} is down")
    if step.table not in (0, vrf.vrf_table):
        differences.append(
            f"VRF {step.vrf} has the routing table {vrf.vrf_table}, expected {step.table}"
        )
    if site.link(step.link).master != vrf.index:
        differences.append(f"failed to find {step.link} associated to vrf {step.vrf}")
    return differences + routes.astray(site.netlink, site.index(step.link), step.link)


def repair(step: VRFMember, kernel: HostAndSandbox) -> None:
    site = kernel.netns(SANDBOX)
    found = site.find(step.vrf)
    if found is not None and found.kind == "vrf" and not found.is_up:
        site.request(links.update(found, up=True))
    if found is None or site.link(step.link).master != found.index:
        apply(step, kernel)
        return
    with kernel.lock_sandbox():
        _take_home(site, site.index(step.link), found.vrf_table or 0)


def _take_home(site: Netns, index: int, table: int) -> None:
    """Have default routes of the main table that leave by a member leave it for the VRF's."""
    for route in routes.dump(site.netlink, index=index):
        part = route.by(index)
        if part is None or not route.dst.is_default or route.protocol == RTPROT_RA:
            continue
        _append(site, part.replace(table=table))
        site.request(routes.take_out(route, index)[0])


def _append(site: Netns, route: KernelRoute) -> None:
    try:
        site.request(routes.append(route))
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise


def remove(step: VRFMember, kernel: HostAndSandbox) -> None:
    """Release the interface, with its routes; the last one to go takes the VRF with it."""
    site = kernel.sandbox
    if site is None or not step.vrf:
        return
    with kernel.lock_sandbox():
        vrf = site.find(step.vrf)
        if vrf is None or vrf.kind != "vrf":
            return
        link = ownership.own_link(kernel, step.link)
        try:
            if link is not None and link.master == vrf.index:
                Load(site, link, vrf.vrf_table or 0).move(master=0, table=RT_TABLE_MAIN)
        finally:
            _remove_unused(site, vrf)


def _find_or_create(step: VRFMember, site: Netns) -> tuple[Link, bool]:
    """The VRF, and whether it was us that made it."""
    found = site.find(step.vrf)
    if found is None:
        require_free(step.vrf, site, f'VRF name ("{step.vrf}")')
        table = step.table or unused_table(site.netlink, 1)
        return links.create(site.netlink, link_kinds.vrf(step.vrf, table, up=True)), True
    if found.kind != "vrf":
        raise CNIError(
            INVALID_CONFIG,
            f"interface {step.vrf} is no VRF",
            f'it is {found.kind or "a hardware interface"}; name another VRF in "vrfname"',
        )
    if step.table not in (0, found.vrf_table):
        raise CNIError(
            INVALID_CONFIG,
            f"VRF {step.vrf} already exist with different routing table {found.vrf_table}",
            f'"table" is {step.table}; all members of a VRF share its table',
        )
    if not found.is_up:
        site.request(links.update(found, up=True))
    return found, False


class Load:
    """What an interface carries, routes in a table, and would lose on the way to another master."""

    def __init__(self, site: Netns, link: Link, table: int) -> None:
        self._site = site
        self._link = link
        self._addresses = [
            found.network
            for found in addresses.dump(site.netlink, link.index, AF_INET6)
            if found.scope == RT_SCOPE_UNIVERSE and found.flags & IFA_F_PERMANENT
        ]
        # The kernel makes those of addresses itself. Its filter is for what leaves by the link.
        found = [
            route
            for route in routes.dump(site.netlink, table=table, index=link.index)
            if route.protocol != RTPROT_KERNEL
        ]
        # Those to neighbours first: others go through them.
        found.sort(key=lambda route: bool(route.gateways))
        self._routes = [part for route in found if (part := route.by(link.index)) is not None]
        # Those that others' ways are in keep this link's while that is down.
        self._shared = [route for route in found if route.without(link.index) is not None]

    def move(self, *, master: int, table: int) -> None:
        """Give the interface a master, 0 for none, and put everything back, routes in a table."""
        site, index = self._site, self._link.index
        site.request(links.update(index, master=master))
        present = [found.network for found in addresses.dump(site.netlink, index, AF_INET6)]
        missing = [one for one in self._addresses if one not in present]
        # They have been checked for duplicates before.
        site.request(*(addresses.add(index, one, no_dad=True) for one in missing))
        if self._addresses and any(not route.dst.is_ipv4 for route in self._routes):
            local = RT_TABLE_LOCAL if table == RT_TABLE_MAIN else table
            _wait_usable(site, self._link, {one.address for one in self._addresses}, local)
        together = [route for route in self._shared if route.table == table and route.dst.is_ipv4]
        alone = [
            route for route in self._routes if route not in [one.by(index) for one in together]
        ]
        for route in alone:
            if table == RT_TABLE_MAIN:
                restore_to_main(site, route)
            else:
                _append(site, route.replace(table=table))
        site.request(*map(routes.replace, together))
        for route in self._shared:
            if route.table != table:
                self._part(route)

    def _part(self, route: KernelRoute) -> None:
        """Leave others a route that they share with this interface."""
        try:
            self._site.request(routes.take_out(route, self._link.index)[0])
        except NetlinkError as error:
            if error.errno != errno.ESRCH:  # IPv6: the kernel has seen to it
                raise


def _wait_usable(site: Netns, link: Link, missing: set[IPAddress], table: int) -> None:
    """Wait until a table has the local routes of IPv6 addresses: until then none can use them."""
    if not link.is_up or link.operstate in ("down", "lower-layer-down"):
        return  # the kernel waits for a carrier, and so would we
    deadline = time.monotonic() + TIMEOUT
    netlink = site.netlink
    netlink.subscribe((RTNLGRP_IPV6_ROUTE,))
    try:
        _strike_off(missing, routes.dump(netlink, AF_INET6, table=table), table)
        while missing:
            try:
                events = netlink.events(deadline)
            except EventsLost:
                _strike_off(missing, routes.dump(netlink, AF_INET6, table=table), table)
                continue
            if not events:
                raise CNIError(
                    TRY_AGAIN_LATER,
                    f"failed getting local/host addresses for {link.name}: "
                    f"{', '.join(map(str, sorted(missing)))}",
                    f"the addresses did not come back within {TIMEOUT:g} s after {link.name} "
                    "joined the VRF",
                )
            parsed = [routes.parse(event) for event in events if event.kind == RTM_NEWROUTE]
            _strike_off(missing, [route for route in parsed if route is not None], table)
    finally:
        netlink.unsubscribe()


def _strike_off(missing: set[IPAddress], found: list[KernelRoute], table: int) -> None:
    for route in found:
        if route.type == RTN_LOCAL and route.table == table:
            missing.discard(route.dst.address)


def _remove_unused(site: Netns, vrf: Link) -> None:
    if not links.dump(site.netlink, vrf.index):
        site.discard(vrf)
