"""The same operations for programs that run on asyncio: awaited, the loop goes on meanwhile.

    network = AsyncNetwork(Network.load("lab"))
    async with network.attached("web-1", "/run/netns/web-1") as result:
        ...

Each operation runs in a thread of the loop's default executor. When the task that awaits it is
cancelled, the operation is cancelled too: a plugin's process is killed, what an ADD had done is
undone, and only then is the cancellation passed on.
"""

from __future__ import annotations

import asyncio
from functools import partial

from pycni.runtime.call import Cancellation
from pycni.runtime.endpoint import IFNAME, Endpoint
from pycni.runtime.many import WORKERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeVar, Unpack

    from pycni.runtime.call import Options
    from pycni.runtime.endpoint import Args
    from pycni.runtime.many import Outcome
    from pycni.runtime.network import Network
    from pycni.spec.config import Attachment
    from pycni.spec.result import Result

    T = TypeVar("T")
    Path = str | os.PathLike[str]


class AsyncNetwork:
    """A `Network` whose operations are awaited. See there for what they do and raise."""

    def __init__(self, network: Network) -> None:
        self.network = network

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
        return await self._add(Endpoint(container_id, netns, ifname, args, capabilities), options)

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
        await self._delete(Endpoint(container_id, netns, ifname, args, capabilities), options)

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
        check = partial(self.network.check, args=args, capabilities=capabilities)
        await _run(check, options, container_id, netns, ifname)

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
        endpoints = list(endpoints)

        def undo(outcomes: list[Outcome]) -> None:
            done = [outcome.endpoint for outcome in outcomes if outcome.ok]
            self.network.delete_many(done)

        add = partial(self.network.add_many, endpoints, workers=workers)
        return await _run(add, options, undo=undo)

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

    async def status(self, **options: Unpack[Options]) -> tuple[str, ...]:
        """Ask each plugin whether it could serve an ADD now; the types of those that could not be
        asked."""
        return await _run(self.network.status, options)

    async def _add(self, endpoint: Endpoint, options: Options) -> Result:
        def undo(_: Result) -> None:
            self.network.delete_endpoint(endpoint)

        return await _run(self.network.add_endpoint, options, endpoint, undo=undo)

    async def _delete(self, endpoint: Endpoint, options: Options) -> None:
        await _run(self.network.delete_endpoint, options, endpoint)


class AsyncAttached:
    """A container's attachment during an `async with` block; see `AsyncNetwork.attached`."""

    def __init__(self, network: AsyncNetwork, endpoint: Endpoint, options: Options) -> None:
        self._network = network
        self._endpoint = endpoint
        self._options = options

    async def __aenter__(self) -> Result:
        return await self._network._add(self._endpoint, self._options)

    async def __aexit__(self, *_: object) -> None:
        # Cancelled or not, this must be done.
        deleting = asyncio.ensure_future(self._network._delete(self._endpoint, self._options))
        try:
            await asyncio.shield(deleting)
        except asyncio.CancelledError:
            await _finish(deleting)
            raise


async def _run(
    operation: Callable[..., T],
    options: Options,
    *arguments: Any,
    undo: Callable[[T], None] | None = None,
) -> T:
    """Run an operation in a thread; if the task is cancelled, stop it, undo it, then tell."""
    cancel = options.get("cancel") or Cancellation()
    call = partial(operation, *arguments, **{**options, "cancel": cancel})
    loop = asyncio.get_running_loop()
    running = loop.run_in_executor(None, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        cancel.cancel()
        await _finish(running)
        if undo is not None and not running.cancelled() and running.exception() is None:
            await _finish(loop.run_in_executor(None, partial(undo, running.result())))
        raise


async def _finish(running: asyncio.Future[Any]) -> None:
    """Wait until a thread is done, however often the task is cancelled meanwhile."""
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            continue
    if not running.cancelled():
        running.exception()  # looked at, or asyncio complains; the cancellation tells enough
