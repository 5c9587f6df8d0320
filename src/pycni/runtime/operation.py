"""Operations in threads of their own: what reaches the caller's thread harms none of them.

A program's signals, and so Ctrl-C and time-outs by SIGALRM, are handled in its main thread, and
what raises exceptions in other threads does so in those that it knows. Here such a thread only
waits. If an exception ends that, or the time is over, the operation is cancelled and takes back
what it has done; then the exception goes on.

The threads start in the caller's namespaces and with its context variables. Called by
`pycni.runtime.network`, `many` and `aio`.
"""

from __future__ import annotations

import _thread
import contextvars
from contextlib import suppress
from typing import Generic, TypeVar

from pycni.runtime.options import Cancellation, checked
from pycni.spec.errors import is_shortage, short_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from pycni.runtime.options import Options

T = TypeVar("T")
Item = TypeVar("Item")

_STACK = (
    1 << 20
)  # bytes at least; a program may have set its threads' stacks smaller than fits here
_LOOK_AGAIN = 0.05  # seconds; only once an operation is being given up
_mine = _thread._local()


def run(
    work: Callable[[Options], T], options: Options, undo: Callable[[T], object] | None = None
) -> T:
    """Carry out an operation and return or raise what it does.

    undo: takes back what it returned, if the caller is interrupted while it gets that. Options are
    checked: TypeError, ValueError. Raises what interrupts the caller, once all is taken back.
    """
    options = checked(options)
    if is_own_thread() and options.get("timeout") is None:
        return work(options)
    operation = Operation(work, options)
    try:
        operation.start()
        operation.wait()
        if operation.error is None:
            return operation.value
    except BaseException:
        operation.give_up(undo)
        raise
    error, operation.error = operation.error, None
    try:
        raise error
    finally:
        # Its traceback leads here, and to the operation: what it has open would wait for gc.
        del error


def is_own_thread() -> bool:
    """Whether the calling thread is one of these."""
    return getattr(_mine, "is_own", False)


def is_in_new_thread() -> bool:
    """The same, but for one that the system had no thread for: that runs in the caller's."""
    return getattr(_mine, "is_new", False)


class Operation(Generic[T]):
    """One operation: `value` or `error` once it is over.

    on_over: called in the operation's thread when it is over.
    """

    value: T
    error: BaseException | None = None
    is_over = False

    def __init__(
        self,
        work: Callable[[Options], T],
        options: Options,
        on_over: Callable[[], object] | None = None,
    ) -> None:
        self._work = work
        self._cancellation = Cancellation(options.get("cancel"))
        self._timeout = options.get("timeout")
        self._options: Options = {**options, "cancel": self._cancellation, "timeout": None}
        self._on_over = on_over
        self._begun = _thread.allocate_lock()  # taken once, by who begins it or by who gives it up
        self._over = _thread.allocate_lock()
        self._over.acquire()

    def start(self) -> None:
        """Begin, in a new thread; in the calling one if the system has no thread to give."""
        run = contextvars.copy_context().run
        try:
            _start_thread(run, (self._run, True))
        except RuntimeError:
            run(self._run)

    def _run(self, in_new_thread: bool = False) -> None:
        if not self._begun.acquire(blocking=False):
            return
        was_own = is_own_thread()
        _mine.is_own = True
        if in_new_thread:
            _mine.is_new = True
        try:
            self.value = self._work(self._options)
        except BaseException as error:  # noqa: BLE001 - raised where the operation was asked for
            self.error = error
            if isinstance(error, OSError) and is_shortage(error):
                self.error = short_of(error)  # wherever it comes, as when a module is loaded
        finally:
            _mine.is_own = was_own
            self._cancellation.close()
            self.is_over = True
            self._over.release()
            if self._on_over is not None:
                self._on_over()

    def wait(self) -> None:
        """Wait until it is over, or has been taken back since its time was."""
        if self._timeout is None:
            self._over.acquire()
        elif not self._over.acquire(timeout=min(self._timeout, _thread.TIMEOUT_MAX)):
            self._cancellation.expire(self._timeout)
            self._over.acquire()

    def cancel(self) -> None:
        """Have it stop, and take back what it has done."""
        self._cancellation.cancel()

    def give_up(self, undo: Callable[[T], object] | None = None) -> None:
        """Have it stop, and wait for that, whatever interrupts; undo it if it has come too far."""
        self.cancel()
        if self._begun.acquire(blocking=False):
            self._cancellation.close()  # it never will
        else:
            _insist(self)
            if self.error is None and undo is not None:
                back = Operation(lambda _: undo(self.value), {})
                back.start()
                _insist(back)


def _insist(operation: Operation[Any]) -> None:
    while not operation.is_over:
        with suppress(BaseException):  # the first one is raised in the end
            operation._over.acquire(timeout=_LOOK_AGAIN)


def each(do: Callable[[Item], T], items: Iterable[Item], workers: int) -> list[T]:
    """What `do` returns for each item, in order; up to `workers` at once, in threads like these.

    Called in an operation's thread. Raises in the end what the first one to fail did.
    """
    todo = list(enumerate(items))
    done: dict[int, T] = {}
    failures: dict[int, BaseException] = {}
    todo.reverse()

    def work(_: Options) -> None:
        while True:
            try:
                number, item = todo.pop()
            except IndexError:
                return
            try:
                done[number] = do(item)
            except BaseException as error:  # noqa: BLE001 - raised below
                failures[number] = error

    operations = [Operation(work, {}) for _ in range(min(workers, len(todo)))]
    for operation in operations:
        operation.start()
    for operation in operations:
        operation.wait()
    if failures:
        raise failures[min(failures)]
    return [done[number] for number in range(len(done))]


def _start_thread(function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    size = _thread.stack_size()
    if not 0 < size < _STACK:
        _thread.start_new_thread(function, arguments)
        return
    _thread.stack_size(_STACK)
    try:
        _thread.start_new_thread(function, arguments)
    finally:
        _thread.stack_size(size)
