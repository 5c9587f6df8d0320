"""An attachment's lease for as long as the container has it: one task, asleep nearly always.

    BOUND -> RENEWING (the server) -> REBINDING (any server) -> BOUND

A lease that runs out or is refused is first requested once more, with its address. Where that fails
the address comes off the interface, since it may be another's by now, and is requested until a
server grants it again; then it is put back, with the routes it took along. Another address is of no
use: the runtime has this one in its result.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from socket import AF_INET
from typing import Any

from pycni.dhcp.exchange import Client, NoAnswer, Refused
from pycni.dhcp.lease import Lease, LeaseRecord, now
from pycni.dhcp.wire import LinkGone, Sandbox, Wire, send_routed
from pycni.kernel import address as addresses
from pycni.kernel import route as routes
from pycni.kernel.netlink.constants import RTN_UNICAST, RTPROT_KERNEL
from pycni.kernel.netlink.socket import NetlinkSocket
from pycni.spec.ip import IPNetwork, parse_address, parse_network

LOG = logging.getLogger(__name__)

_LONGEST_SLEEP = 60.0  # the loop's clock stands still while a machine is suspended
_LONGEST_PAUSE = 64.0  # seconds between two tries to get a lost address back
_SHORTEST_PAUSE = 1.0
_GRACE = 4.0


class Keeper:
    """Keeps one lease.

    save: called with each record that differs from the last; ended: when the interface has gone
    and the lease has run out; slots: how many may confirm their leases at the same time.
    """

    def __init__(
        self,
        record: LeaseRecord,
        client: Client,
        sandbox: Sandbox,
        save: Callable[[LeaseRecord], None],
        ended: Callable[[Keeper], None],
        slots: asyncio.Semaphore,
    ) -> None:
        self.record = record
        self.client = client
        self.sandbox = sandbox
        self.state = "bound"
        self._save = save
        self._ended = ended
        self._slots = slots
        self._task: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        record = self.record
        return f"{record.container_id} {record.ifname} ({record.network}) {record.lease.address}"

    @property
    def lease(self) -> Lease:
        return self.record.lease

    @property
    def expired(self) -> bool:
        """Whether the lease has run out by the clock."""
        return self.lease.expires_at is not None and now() >= self.lease.expires_at

    def start(self, *, restored: bool = False) -> None:
        """Begin to keep the lease; restored: it is from before this daemon was started."""
        self._task = asyncio.create_task(self._keep(restored))

    async def stop(self) -> None:
        """Leave the lease alone from now on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def release(self) -> None:
        """Release the lease, on the interface or, where that has gone, from the host.

        A release has no answer, so it never fails: what cannot be sent is logged.
        """
        await self.stop()
        if not self.lease.server or self.record.withheld is not None or self.expired:
            return
        message = self.client.release(self.record.mac, self.lease)
        server = IPv4Address(self.lease.server)
        try:
            with await Wire.open(self.sandbox) as wire:
                wire.send(message.encode(), message.ciaddr, (self.lease.server_mac, server))
            LOG.info("%s: released to %s", self, server)
            return
        except (LinkGone, OSError) as error:
            reason = error
        try:
            send_routed(message, server)
            LOG.info("%s: released to %s from the host: %s", self, server, reason)
        except OSError as error:
            LOG.warning("%s: not released (%s, and from the host: %s)", self, reason, error)

    # --- the task ----------------------------------------------------------------------------

    async def _keep(self, restored: bool) -> None:
        try:
            if self.record.withheld is not None:
                await self._regain()
            elif restored:
                await self._settle(self._confirm)
            while self.lease.renew_at is not None:
                await _sleep_until(self.lease.renew_at)
                await self._settle(self._extend)
        except LinkGone as error:
            LOG.info("%s: no longer renewed: %s", self, error)
            self.state = "gone"
            if self.lease.expires_at is not None:
                await _sleep_until(self.lease.expires_at)
                self._ended(self)
        except Exception:
            LOG.exception("%s: no longer renewed, by a fault of the daemon", self)
            self.state = "failed"

    async def _settle(self, step: Callable[[], Any]) -> None:
        """Do a step that may lose the lease, and get it back if it does."""
        try:
            await step()
        except Refused as error:
            LOG.warning("%s: lost: %s", self, error)
            await self._regain()

    async def _confirm(self) -> None:
        """After a restart: is it still ours? Without an answer it is, until it runs out."""
        self.state = "rebooting"
        try:
            async with self._slots:
                with await Wire.open(self.sandbox) as wire:
                    self._bound(await self.client.confirm(wire, self.lease))
        except (NoAnswer, OSError) as error:
            LOG.warning("%s: not confirmed after the restart: %s", self, error)
            self.state = "bound"

    async def _extend(self) -> None:
        """Renew until T2, then rebind until the end. Raises Refused when that has come."""
        lease = self.lease
        assert lease.expires_at is not None
        assert lease.rebind_at is not None
        length = lease.expires_at - lease.obtained
        while (left := lease.expires_at - now()) > 0:
            broadcast = now() >= lease.rebind_at or not lease.server
            end = lease.expires_at if broadcast else lease.rebind_at
            self.state = "rebinding" if broadcast else "renewing"
            tried_at = now()
            client = replace(
                self.client, timeout=max(min(self.client.timeout, end - tried_at), 0.1)
            )
            try:
                with await Wire.open(self.sandbox) as wire:
                    self._bound(await client.renew(wire, lease, broadcast=broadcast))
                return
            except (NoAnswer, OSError) as error:
                LOG.warning("%s: %s, %d s left: %s", self, self.state, left, error)
            # RFC 2131, section 4.4.5: half of what remains, but at least a minute. Leases that
            # are shorter than that takes get their share.
            pause = max((end - tried_at) / 2, min(60.0, length / 8))
            await _sleep_until(min(tried_at + pause, end))
        raise Refused("no server extended it before it ran out")

    async def _regain(self) -> None:
        """Ask for the same address until a server grants it; it is off the interface meanwhile."""
        self.state = "lost"
        pause = _SHORTEST_PAUSE
        # The container works on while the first, short try may set it right.
        client = replace(self.client, timeout=min(self.client.timeout, _GRACE))
        while True:
            try:
                with await Wire.open(self.sandbox) as wire:
                    lease = await client.acquire(wire, self.lease.address)
                self._put_back()
                break
            except (NoAnswer, Refused, OSError) as error:
                LOG.warning("%s: not regained: %s", self, error)
            try:
                self._withhold()
            except OSError as error:
                LOG.warning("%s: could not be taken off the interface: %s", self, error)
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311
            pause = min(pause * 2, _LONGEST_PAUSE)
            client = self.client
        LOG.info("%s: regained", self)
        self._bound(lease)

    def _bound(self, lease: Lease) -> None:
        self.record = replace(self.record, lease=lease, withheld=None)
        self._save(self.record)
        self.state = "bound"
        LOG.debug("%s: bound until %s", self, lease.expires_at)

    # --- the address on the interface ----------------------------------------------------------

    @property
    def _network(self) -> IPNetwork:
        return parse_network(f"{self.lease.address}/{self.lease.prefix}")

    def _withhold(self) -> None:
        """Take the address off the interface, and note the routes that go with it.

        The note is first: a daemon that ends between the two finds what it had begun.
        """
        with self.sandbox.open() as space:
            found = self.sandbox.find(space)
            with space.netlink() as netlink:
                address = parse_address(self.lease.address)
                mine = [
                    item.network
                    for item in addresses.dump(netlink, found.index, address.family)
                    if item.network.address == address
                ]
                if self.record.withheld is None:
                    kept = _ways(netlink, found.index)
                    self.record = replace(self.record, withheld=tuple(map(_to_json, kept)))
                    self._save(self.record)
                if mine:
                    netlink.batch([addresses.delete(found.index, network) for network in mine])
                    LOG.warning("%s: taken off the interface", self)

    def _put_back(self) -> None:
        if self.record.withheld is None:
            return
        with self.sandbox.open() as space:
            found = self.sandbox.find(space)
            with space.netlink() as netlink:
                netlink.batch([addresses.add(found.index, self._network, replace=True)])
                kept = [_from_json(item, found.index) for item in self.record.withheld]
                present = _ways(netlink, found.index)
                requests = [
                    routes.delete(route) for route in present if _belongs_elsewhere(route, kept)
                ]
                # Routes on the link first: others lead through gateways they make reachable.
                requests += [
                    routes.prepend(route)
                    for route in sorted(kept, key=lambda route: bool(route.gateways))
                    if route not in present
                ]
                for request in requests:
                    try:
                        netlink.batch([request])
                    except OSError as error:
                        if error.errno != errno.EEXIST:
                            LOG.warning("%s: a route could not be put back: %s", self, error)


def _ways(netlink: NetlinkSocket, index: int) -> list[routes.KernelRoute]:
    """The IPv4 routes that leave by an interface, in all tables: sbr and vrf have their own."""
    found = [route.by(index) for route in routes.dump(netlink, AF_INET, table=0, index=index)]
    return [route for route in found if route is not None and route.type == RTN_UNICAST]


def _belongs_elsewhere(route: routes.KernelRoute, kept: list[routes.KernelRoute]) -> bool:
    """Whether the kernel made a route with the address that had been moved to another table."""
    same = [one.table for one in kept if one.dst == route.dst]
    return route.protocol == RTPROT_KERNEL and bool(same) and route.table not in same


async def _sleep_until(when: float) -> None:
    while (left := when - now()) > 0:
        await asyncio.sleep(min(left, _LONGEST_SLEEP))


def _to_json(route: routes.KernelRoute) -> dict[str, Any]:
    return {
        "dst": str(route.dst),
        "gateway": str(route.gateway) if route.gateway else "",
        "source": str(route.source) if route.source else "",
        "ways": [[str(hop.gateway or ""), hop.weight, hop.flags] for hop in route.multipath],
        **{name: getattr(route, name) for name in _ROUTE_NUMBERS},
    }


_ROUTE_NUMBERS = ("priority", "table", "scope", "protocol", "type", "onlink", "mtu", "advmss")


def _from_json(item: dict[str, Any], index: int) -> routes.KernelRoute:
    return routes.KernelRoute(
        dst=parse_network(item["dst"]),
        index=0 if item.get("ways") else index,
        gateway=parse_address(item["gateway"]) if item["gateway"] else None,
        source=parse_address(item["source"]) if item["source"] else None,
        # A daemon before this one has noted none.
        multipath=tuple(
            routes.NextHop(index, parse_address(gateway) if gateway else None, weight, flags)
            for gateway, weight, flags in item.get("ways", ())
        ),
        **{name: item[name] for name in _ROUTE_NUMBERS},
    )
