"""Calls of a program's `on_call` where a failure of one may not keep plugins from their part.

Called by `pycni.runtime.chain` for DEL, GC and undo.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Notifier:
    """An `on_call` in a `with` block: the first exception that it raises is raised at the end."""

    def __init__(self, on_call: Callable[[str, str], None] | None) -> None:
        self._on_call = on_call
        self._error: BaseException | None = None

    def __call__(self, command: str, plugin_type: str) -> None:
        if self._on_call is None:
            return
        try:
            self._on_call(command, plugin_type)
        except BaseException as error:  # noqa: BLE001 - raised at the end
            self._error = self._error or error

    def __enter__(self) -> Notifier:
        return self

    def __exit__(self, *_: object) -> None:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback leads here: without this they would wait for gc
