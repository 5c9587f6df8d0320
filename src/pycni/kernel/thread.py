"""Work in a thread that ends with it, and with it all that the work unshares."""

from __future__ import annotations

import _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")


def run_apart(work: Callable[[], T]) -> T:
    """Call `work` in a thread of its own and wait for it; return or raise what it does.

    The thread starts in the caller's namespaces.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    finished = _thread.allocate_lock()
    finished.acquire()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)
        finally:
            finished.release()

    _thread.start_new_thread(run, ())
    finished.acquire()
    if errors:
        raise errors[0]
    return results[0]
