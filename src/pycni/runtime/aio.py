"""The same operations for programs that run on asyncio: awaited, the loop goes on meanwhile.

    network = AsyncNetwork(Network.load("lab"))
    async with network.attached("web-1", "/run/netns/web-1") as result:
        ...

Each operation runs in a thread of its own. When the task that awaits it is cancelled, the operation
is cancelled too, and no other: a plugin's process is killed, what an ADD had done is undone, and
only then is the cancellation passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar, Unpack
from weakref import WeakKeyDictionary

from pycni.runtime.bulk import WORKERS, Outcome
from pycni.runtime.config import NetworkConfig
from pycni.runtime.endpoint import IFNAME, Args, Endpoint, Path
from pycni.runtime.errors import ConfigError
from pycni.runtime.garbage import Garbage
from pycni.runtime.network import Network
from pycni.runtime.operation import Operation
from pycni.runtime.options import Options, checked, with_cancel
from pycni.runtime.report import AttachmentReport
from pycni.spec.config import Attachment
from pycni.spec.result import Result

T = TypeVar("T")

# At most so many operations of one loop at once; more would only wait for each other.
_PLACES = 32
_places: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


class AsyncNetwork:
    """A `Network` whose operations are awaited. See there for what they do and raise."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def __repr__(self) -> str:
        return f"<AsyncNetwork of {self.network!r}>"

    @property
    def name(self) -> str:
        """The network's name."""
        return self.network.name

    @property
    def config(self) -> NetworkConfig:
        """The network's configuration."""
        return self.network.config

    @property
    def skipped(self) -> tuple[ConfigError, ...]:
        """Files that were in the way of finding the network and could not be used."""
        return self.network.skipped

    async def add(
        self,
        container_id: str,
        netns: Path,
        ifname: str = IFNAME,
        *,
        args: Args | None = None,
        capabilities: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Result:
        """Attach a container. Cancelled, it leaves nothing attached."""
        endpoint = Endpoint(container_id, netns, ifname, args, capabilities)
        return await self.add_endpoint(endpoint, **options)

    async def add_endpoint(self, endpoint: Endpoint, **options: Unpack[Options]) -> Result:
        """`add`, with its arguments in one object."""

        def undo(_: Result) -> None:
            self.network.delete_endpoint(endpoint)

        return await _run(partial(self.network.add_endpoint, endpoint), options, undo)

    async def delete(
        self,
        container_id: str,
        netns: Path | None = None,
        ifname: str = IFNAME,
        *,
        args: Args | None = None,
        capabilities: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Detach a container."""
        endpoint = Endpoint(container_id, netns, ifname, args, capabilities)
        await self.delete_endpoint(endpoint, **options)

    async def delete_endpoint(self, endpoint: Endpoint, **options: Unpack[Options]) -> None:
        """`delete`, with its arguments in one object."""
        await _run(partial(self.network.delete_endpoint, endpoint), options)

    async def check(
        self,
        container_id: str,
        netns: Path | None = None,
        ifname: str = IFNAME,
        *,
        args: Args | None = None,
        capabilities: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Check that a container is still attached as ADD left it."""
        check = partial(
            self.network.check, container_id, netns, ifname, args=args, capabilities=capabilities
        )
        await _run(check, options)

    async def repair(
        self,
        container_id: str = "",
        ifname: str = "",
        *,
        dry_run: bool = False,
        remake: bool = True,
        **options: Unpack[Options],
    ) -> list[AttachmentReport]:
        """Put back what others took from the network's attachments."""
        repair = partial(self.network.repair, container_id, ifname, dry_run=dry_run, remake=remake)
        return await _run(repair, options)

    def attached(
        self,
        container_id: str,
        netns: Path,
        ifname: str = IFNAME,
        *,
        args: Args | None = None,
        capabilities: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> AsyncAttached:
        """An async context manager: the container is attached during the block."""
        endpoint = Endpoint(container_id, netns, ifname, args, capabilities)
        return AsyncAttached(self, endpoint, options)

    async def add_many(
        self,
        endpoints: Iterable[Endpoint],
        *,
        workers: int | None = None,
        **options: Unpack[Options],
    ) -> list[Outcome]:
        """Attach many containers at once. Cancelled, it leaves none of them attached."""

        def undo(outcomes: list[Outcome]) -> None:
            self.network.delete_many([outcome.endpoint for outcome in outcomes if outcome.ok])

        add = partial(self.network.add_many, list(endpoints), workers=workers)
        return await _run(add, options, undo)

    async def delete_many(
        self,
        endpoints: Iterable[Endpoint],
        *,
        workers: int = WORKERS,
        **options: Unpack[Options],
    ) -> list[Outcome]:
        """Detach many containers at once."""
        delete = partial(self.network.delete_many, list(endpoints), workers=workers)
        return await _run(delete, options)

    async def attachments(self) -> list[Endpoint]:
        """What is attached to this network, as the cache has it."""
        return await _read(self.network.attachments)

    async def result(self, container_id: str, ifname: str = IFNAME) -> Result | None:
        """What ADD returned for an attachment, from the cache; None if it is not attached."""
        return await _read(partial(self.network.result, container_id, ifname))

    async def gc(
        self,
        keep: Iterable[Attachment | Endpoint | tuple[str, str]] | None,
        *,
        dry_run: bool = False,
        force: bool = False,
        **options: Unpack[Options],
    ) -> list[Endpoint]:
        """Remove what is left of attachments that are not alive any more."""
        return await _run(partial(self.network.gc, keep, dry_run=dry_run, force=force), options)

    async def garbage(
        self, keep: Iterable[Attachment | Endpoint | tuple[str, str]] | None
    ) -> Garbage:
        """What `gc` would find, with what is alive and in no list."""
        return await _read(partial(self.network.garbage, keep))

    async def status(self, **options: Unpack[Options]) -> tuple[str, ...]:
        """Ask each plugin whether it could serve an ADD now; the types of those that could not be
        asked."""
        return await _run(self.network.status, options)

    async def versions(self, **options: Unpack[Options]) -> dict[str, tuple[str, ...]]:
        """The versions of the specification that each plugin speaks, by its type."""
        return await _run(self.network.versions, options)

    async def validate(self, **options: Unpack[Options]) -> frozenset[str]:
        """Check that all plugins are there and speak the network's version."""
        return await _run(self.network.validate, options)


class AsyncAttached:
    """A container's attachment during an `async with` block; see `AsyncNetwork.attached`."""

    def __init__(self, network: AsyncNetwork, endpoint: Endpoint, options: Options) -> None:
        self._network = network
        self._endpoint = endpoint
        self._options = options

    async def __aenter__(self) -> Result:
        return await self._network.add_endpoint(self._endpoint, **self._options)

    async def __aexit__(self, *_: object) -> None:
        # Cancelled or not, this must be done, and to its end.
        options = with_cancel(self._options, None)
        deleting = asyncio.ensure_future(self._network.delete_endpoint(self._endpoint, **options))
        try:
            await asyncio.shield(deleting)
        except asyncio.CancelledError:
            await _insist(deleting)
            raise


async def _run(
    work: Callable[..., T], options: Options, undo: Callable[[T], object] | None = None
) -> T:
    """Await an operation; if the task is cancelled, stop it, undo it, then raise."""
    options = checked(options)
    own = options.get("timeout")  # the operation's business, which has a thread for that
    async with _place():
        awaited = _Awaited(
            lambda given: work(**{**given, "timeout": own}), {**options, "timeout": None}
        )
        try:
            return await awaited.result()
        except asyncio.CancelledError:
            awaited.operation.cancel()
            await _insist(awaited.over)
            if awaited.operation.error is None and undo is not None:
                back = _Awaited(lambda _: undo(awaited.operation.value), {})
                await _insist(back.over)
            raise


async def _read(work: Callable[[], T]) -> T:
    return await _run(lambda **_: work(), {})


class _Awaited(Generic[T]):
    """An operation with a future that is done when it is over."""

    def __init__(self, work: Callable[[Options], T], options: Options) -> None:
        loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = loop.create_future()

        def report() -> None:
            with suppress(RuntimeError):  # the loop has ended without it
                loop.call_soon_threadsafe(self.over.set_result, None)

        self.operation = Operation(work, options, report)
        self.operation.start()

    async def result(self) -> T:
        """What it returns or raises."""
        await asyncio.shield(self.over)
        error, self.operation.error = self.operation.error, None
        if error is None:
            return self.operation.value
        try:
            raise error
        finally:
            del error


async def _insist(future: asyncio.Future[Any]) -> None:
    """Wait until something is done, however often the task is cancelled meanwhile."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()  # looked at, or asyncio complains; the cancellation says enough


def _place() -> asyncio.Semaphore:
    return _places.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(_PLACES))
