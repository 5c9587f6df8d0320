"""Many attachments at once: a bounded pool of threads, and one outcome for each.

Called by `Network.add_many` and `Network.delete_many`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pycni.runtime.call import Cancellation, with_cancel
from pycni.spec.errors import CNIError
from pycni.spec.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pycni.runtime.call import Options
    from pycni.runtime.endpoint import Endpoint
    from pycni.runtime.network import Network
    from pycni.spec.result import Result

# The kernel lets a deletion wait some 20 ms, in which others can go on; more than this many only
# wait for its one lock on interfaces.
WORKERS = 16
# What an ADD does in this process is Python's work for the most part, of which one thread at a time
# has its turn; a second one goes on while the kernel makes an interface.
ADD_WORKERS = 2


class Outcome(Record):
    """How one attachment of many went: the result of its ADD, or why it failed.

    For a deletion there is no result; `ok` tells.
    """

    endpoint: Endpoint
    result: Result | None = None
    error: CNIError | None = None

    @property
    def ok(self) -> bool:
        """Whether it went well."""
        return self.error is None


def add_many(
    network: Network, endpoints: Iterable[Endpoint], workers: int, options: Options
) -> list[Outcome]:
    """Attach many containers; the outcomes are in the order of `endpoints`.

    One that fails is undone, and the others go on. If the whole is interrupted (Ctrl-C), what it
    had attached is detached again before the interruption is passed on.
    """

    def add(endpoint: Endpoint, options: Options) -> Outcome:
        return Outcome(endpoint, network.add_endpoint(endpoint, **options))

    def undo(outcome: Outcome) -> None:
        network.delete_endpoint(outcome.endpoint, **with_cancel(options, None))

    return _each(add, endpoints, workers, options, undo)


def delete_many(
    network: Network, endpoints: Iterable[Endpoint], workers: int, options: Options
) -> list[Outcome]:
    """Detach many containers; the outcomes are in the order of `endpoints`."""

    def delete(endpoint: Endpoint, options: Options) -> Outcome:
        network.delete_endpoint(endpoint, **options)
        return Outcome(endpoint)

    return _each(delete, endpoints, workers, options)


def _each(
    do: Callable[[Endpoint, Options], Outcome],
    endpoints: Iterable[Endpoint],
    workers: int,
    options: Options,
    undo: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    given = options.get("cancel")
    cancel = given or Cancellation()
    stoppable = with_cancel(options, cancel)

    def one(endpoint: Endpoint) -> Outcome:
        try:
            return do(endpoint, stoppable)
        except CNIError as error:
            return Outcome(endpoint, error=error)

    # The pool's threads start in the network namespace of this one, which is the host to plugins.
    with ThreadPoolExecutor(workers, "pycni") as pool:
        running = [pool.submit(one, endpoint) for endpoint in endpoints]
        try:
            return [future.result() for future in running]
        except BaseException:
            cancel.cancel()
            pool.shutdown(cancel_futures=True)
            if undo is not None:
                for future in running:
                    if future.done() and not future.cancelled() and future.exception() is None:
                        outcome = future.result()
                        if outcome.ok:
                            _undo(undo, outcome)
            raise


def _undo(undo: Callable[[Outcome], None], outcome: Outcome) -> None:
    try:
        undo(outcome)
    except CNIError:
        pass  # the cache still has it, for the next delete or gc
