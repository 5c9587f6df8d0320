"""Many attachments at once: a bounded pool of threads, and one outcome for each.

Called by `Network.add_many` and `Network.delete_many`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pycni.runtime import operation
from pycni.runtime.endpoint import Endpoint
from pycni.runtime.options import Options, with_cancel
from pycni.spec.errors import CNIError
from pycni.spec.record import Record
from pycni.spec.result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycni.runtime.network import Network


# The kernel lets a deletion wait some 20 ms, in which others can go on; more than this many only
# wait for its one lock on interfaces.
WORKERS = 16
# What an ADD does in this process is Python's work for the most part, of which one thread at a time
# has its turn; a second one goes on while the kernel makes an interface.
ADD_WORKERS = 2


class Outcome(Record):
    """How one attachment of many went: the result of its ADD, or why it failed.

    For a deletion there is no result; see `ok`.
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

    def undo(outcomes: list[Outcome]) -> None:
        done = [outcome.endpoint for outcome in outcomes if outcome.ok]
        # What cannot be undone the cache still has, for the next delete or gc.
        delete_many(network, done, workers, with_cancel(options, None))

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
    undo: Callable[[list[Outcome]], object] | None = None,
) -> list[Outcome]:
    wanted = _checked(endpoints, workers)
    timeout = options.get("timeout")

    def work(options: Options) -> list[Outcome]:
        def one(endpoint: Endpoint) -> Outcome:
            try:
                return do(endpoint, {**options, "timeout": timeout})
            except CNIError as error:
                return Outcome(endpoint, error=error)

        return operation.each(one, wanted, workers)

    return operation.run(work, {**options, "timeout": None}, undo)


def _checked(endpoints: Iterable[Endpoint], workers: int) -> list[Endpoint]:
    """All of them, before anything is done with the first. Raises TypeError, ValueError."""
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, not {workers}")
    wanted = list(endpoints)
    for endpoint in wanted:
        if not isinstance(endpoint, Endpoint):
            raise TypeError(f"expected Endpoint objects, not {endpoint!r}")
    return wanted
