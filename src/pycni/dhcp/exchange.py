"""The conversations a client has with servers (RFC 2131, section 4.4), each bounded in time.

Every function opens no socket of its own and keeps nothing: `keeper` decides which conversation
comes when. A message without an answer is sent again after one, two, four seconds and so on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from pycni.dhcp.lease import Lease, now
from pycni.dhcp.message import DHCPRequest, MessageType, Option, Reply, options
from pycni.dhcp.wire import Wire

_FIRST_PAUSE = 1.0
_ANSWERS = (MessageType.ACK, MessageType.NAK)


class NoAnswer(Exception):
    """No server answered in time."""


class Refused(Exception):
    """A server said no: its words, or what it offered instead."""


@dataclass(frozen=True)
class Client:
    """What stays the same in all messages of an attachment.

    identifier: option 61; wanted: codes to request; provided: options to send; broadcast: ask
    servers to answer by broadcast; timeout: seconds that a message waits for its answer.
    """

    identifier: bytes
    wanted: tuple[int, ...]
    provided: dict[int, bytes] = field(default_factory=dict)
    broadcast: bool = False
    timeout: float = 10.0

    async def acquire(self, wire: Wire, address: str = "") -> Lease:
        """DISCOVER to ACK. address: accept this one only. Raises NoAnswer, Refused."""
        began = now()
        xid = _xid()
        wish = {"requested": IPv4Address(address)} if address else {}
        discover = self._request(MessageType.DISCOVER, xid, wire, wish)
        offers: list[str] = []

        def suits(reply: Reply) -> bool:
            if reply.kind != MessageType.OFFER:
                return False
            offers.append(str(reply.yiaddr))
            return address in ("", offers[-1])

        try:
            offer, _ = await self._converse(wire, discover, began, suits)
        except NoAnswer as error:
            if offers:
                raise Refused(f"offered is {', '.join(set(offers))}, not {address}") from error
            raise
        wish = {"requested": offer.yiaddr}
        if offer.server is not None:
            wish["server"] = offer.server
        request = self._request(MessageType.REQUEST, xid, wire, wish)
        asked_at = now()
        try:
            ack, server_mac = await self._converse(
                wire,
                request,
                began,
                lambda reply: reply.kind in _ANSWERS and reply.server == offer.server,
            )
            return self._lease(ack, server_mac, asked_at)
        except (asyncio.CancelledError, ValueError) as error:
            # It may have been granted, but will not be used.
            if offer.server is not None:
                wire.send(self._release(xid, wire.mac, offer.yiaddr, offer.server).encode())
            if isinstance(error, ValueError):
                raise Refused(str(error)) from error
            raise

    async def confirm(self, wire: Wire, lease: Lease) -> Lease:
        """INIT-REBOOT: ask whether a lease remembered still holds. Raises NoAnswer, Refused."""
        wish = {"requested": IPv4Address(lease.address)}
        request = self._request(MessageType.REQUEST, _xid(), wire, wish)
        return await self._extend(wire, request, lease, None)

    async def renew(self, wire: Wire, lease: Lease, *, broadcast: bool) -> Lease:
        """RENEWING: ask the server that granted a lease; broadcast (REBINDING): ask any.

        Raises NoAnswer, Refused.
        """
        address = IPv4Address(lease.address)
        request = self._request(MessageType.REQUEST, _xid(), wire, {}, address)
        to = None if broadcast else (lease.server_mac, IPv4Address(lease.server))
        return await self._extend(wire, request, lease, to)

    def release(self, mac: str, lease: Lease) -> DHCPRequest:
        """The message that releases a lease; it has no answer."""
        address, server = IPv4Address(lease.address), IPv4Address(lease.server)
        return self._release(_xid(), mac, address, server)

    async def _extend(
        self, wire: Wire, request: DHCPRequest, lease: Lease, to: tuple[str, IPv4Address] | None
    ) -> Lease:
        asked_at = now()
        ack, server_mac = await self._converse(
            wire, request, asked_at, lambda reply: reply.kind in _ANSWERS, to
        )
        try:
            extended = self._lease(ack, server_mac, asked_at)
        except ValueError as error:
            raise Refused(str(error)) from error
        if extended.address != lease.address:
            raise Refused(f"{ack.server} answers with {ack.yiaddr} and not {lease.address}")
        return extended

    async def _converse(
        self,
        wire: Wire,
        request: DHCPRequest,
        began: float,
        accept: Callable[[Reply], bool],
        to: tuple[str, IPv4Address] | None = None,
    ) -> tuple[Reply, str]:
        """Send a message until an answer is accepted; returns it and the MAC it came from."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.timeout
        pause = _FIRST_PAUSE
        while True:
            wire.send(request.encode(int(now() - began)), request.ciaddr, to)
            again = min(end, loop.time() + pause * random.uniform(0.75, 1.25))  # noqa: S311
            while (received := await wire.receive(again)) is not None:
                if received[0].xid == request.xid and accept(received[0]):
                    return received
            if loop.time() >= end:
                raise NoAnswer(f"no answer to {request.kind.name}")
            pause *= 2

    def _lease(self, answer: Reply, server_mac: str, asked_at: float) -> Lease:
        if answer.kind == MessageType.NAK:
            raise Refused(f"{answer.server} refused: {answer.message or 'no reason given'}")
        return Lease.from_ack(answer, server_mac, asked_at)

    def _request(
        self,
        kind: MessageType,
        xid: int,
        wire: Wire,
        wish: dict[str, IPv4Address],
        ciaddr: IPv4Address = IPv4Address(0),  # noqa: B008 - immutable
    ) -> DHCPRequest:
        sent = options(self.identifier, self.wanted, self.provided, **wish)
        # A server may answer to the MAC address that it knows.
        broadcast = self.broadcast or wire.mac != wire.own_mac
        return DHCPRequest(kind, xid, wire.mac, ciaddr, broadcast, sent)

    def _release(
        self, xid: int, mac: str, address: IPv4Address, server: IPv4Address
    ) -> DHCPRequest:
        # RFC 2131, table 5: of the options only these. The identifier is what the lease is under.
        identifier = self.provided.get(Option.CLIENT_ID, self.identifier)
        sent = {Option.SERVER_ID: server.packed, Option.CLIENT_ID: identifier}
        return DHCPRequest(MessageType.RELEASE, xid, mac, address, options=dict(sent))


def _xid() -> int:
    return random.getrandbits(32)
