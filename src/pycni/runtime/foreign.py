"""Plugin objects of the program's own: what they do wrong is reported as theirs, and harms no
others.

A process can neither return what is no JSON nor change its caller, and what it raises ends itself
only. In process a guard stands between: it looks at what a plugin returns, makes a CNIError of
whatever it raises, puts back what it may not change, and gives it a configuration of its own.
pycni's own plugins are called without. Called by `pycni.runtime.engine`.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from types import AsyncGeneratorType, GeneratorType

import pycni
from pycni.runtime import operation
from pycni.runtime.returned import copied, what
from pycni.runtime.untouched import Untouched
from pycni.sdk.dispatch import is_pycnis
from pycni.sdk.plugin import Plugin
from pycni.spec.errors import INTERNAL, IO_FAILURE, CNIError
from pycni.spec.result import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycni.sdk.request import Request
    from pycni.spec.config import Attachment
    from pycni.spec.schema import Fault

_OURS = f"{os.path.dirname(pycni.__file__)}/"
# By their flag, of inspect: functions that do nothing when they are called.
_UNRUN = {0x20: "a generator function", 0x80: "an async function", 0x200: "an async generator"}
_ATTACHING = ("add", "delete")  # what cannot be undone is not done


def guarded(plugin: Any, kind: str) -> Plugin:
    """A plugin object, guarded if it is not one of pycni's. kind: its type in configurations."""
    if is_pycnis(plugin):
        own: Plugin = plugin
        return own
    return Foreign(plugin, kind)


class Foreign(Plugin):
    """A guarded plugin."""

    def __init__(self, plugin: Any, kind: str) -> None:
        self._plugin = plugin
        self.__dict__["type"] = kind
        for name in ("versions", "needs_link", "gives_addresses"):
            if hasattr(plugin, name):
                self.__dict__[name] = getattr(plugin, name)
        self._faults = []
        if not _are_versions(self.versions):
            self._faults.append(f"its versions are {self.versions!r}, not a tuple of strings")
            del self.__dict__["versions"]

    def require_sound(self) -> None:
        """Raise a CNIError for an object that cannot be a plugin, before any is called."""
        faults = [*self._faults, *self._unusable(*_ATTACHING)]
        if faults:
            raise self._error(self._defined(*_ATTACHING), "; ".join(faults), _EXPECTED)

    def add(self, request: Request) -> Result:
        self.require_sound()
        returned = self._call("add", request)
        faults: list[Fault] = []
        if isinstance(returned, Result):
            result = copied(returned, faults)
            if not faults:
                return result
            words = "; ".join(map(str, faults))
            expected = "; ".join(dict.fromkeys(fault.expected for fault in faults))
            raise self._error(self._defined("add"), f"add returned a Result with {words}", expected)
        raise self._error(
            self._defined("add"),
            f"add returned {what(returned)}",
            "expected a Result of pycni.sdk, such as request.prev_result where there is one",
        )

    def check(self, request: Request) -> None:
        self._call("check", request)

    def delete(self, request: Request) -> None:
        self._call("delete", request)

    def gc(self, request: Request, keep: frozenset[Attachment]) -> None:
        self._call("gc", request, keep)

    def status(self, request: Request) -> None:
        self._call("status", request)

    def repair(self, request: Request, *, dry_run: bool = False, remake: bool = True) -> list[Any]:
        if not hasattr(self._plugin, "repair"):
            return super().repair(request, dry_run=dry_run, remake=remake)
        returned = self._call("repair", request, dry_run=dry_run, remake=remake)
        return self._list("repair", returned, "Difference", ("what", "state", "reason"))

    def inspect(self, request: Request) -> list[Any]:
        if not hasattr(self._plugin, "inspect"):
            return super().inspect(request)
        returned = self._call("inspect", request)
        return self._list("inspect", returned, "StepReport", ("kind", "what", "differences"))

    def _list(self, name: str, returned: Any, kind: str, fields: tuple[str, ...]) -> list[Any]:
        wrong: list[object] = [returned]
        if isinstance(returned, (list, tuple)):
            wrong = [one for one in returned if not all(hasattr(one, field) for field in fields)]
            if not wrong:
                return [*returned]
        words = f"{name} returned {what(returned)}"
        if wrong[0] is not returned:
            words += f" with {what(wrong[0])}"
        raise self._error(self._defined(name), words, f"expected a list, each item a {kind}")

    def _call(self, name: str, request: Request, *arguments: Any, **named: Any) -> Any:
        """What a method returns. Raises CNIError, and what may be the caller's own interrupt."""
        if self._unusable(name):
            faults = self._unusable(*(_ATTACHING if name in _ATTACHING else (name,)))
            raise self._error(self._defined(name), "; ".join(faults), _EXPECTED)
        request = request.replace(document=_copy(request.document), environ={**request.environ})
        untouched = Untouched()
        failure: CNIError | None = None
        returned = None
        try:
            returned = getattr(self._plugin, name)(request, *arguments, **named)
        except KeyboardInterrupt as error:
            if not operation.is_in_new_thread():
                raise
            failure = self._failure(error, name)
        except BaseException as error:  # noqa: BLE001 - a SystemExit ends a plugin's process only
            failure = self._failure(error, name)
        finally:
            changes = untouched.changes()
        if failure is None and _is_unrun(returned):
            words = f"{name} returned {what(returned)}, which is never awaited or run"
            failure = self._error(self._defined(name), words, _EXPECTED)
        if changes:
            failure = self._changed(name, changes, failure)
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # its traceback leads here: without this they would wait for gc
        return returned

    def _failure(self, error: BaseException, name: str) -> CNIError:
        """The error for an exception of the plugin: one that it may raise stays as it is."""
        if isinstance(error, CNIError) and _is_sound(error):
            return error
        try:
            words = f"{type(error).__name__}: {error}"
        except Exception:  # noqa: BLE001 - of a class that cannot say it
            words = type(error).__name__
        code = IO_FAILURE if isinstance(error, OSError) else INTERNAL
        failure = self._error(self._place(error, name), words, _BY_CNIERROR, code)
        failure.__cause__ = error
        return failure

    def _changed(self, name: str, changes: list[str], failure: CNIError | None) -> CNIError:
        words = f"{name} changed {', '.join(changes)}"
        if failure is None:
            return self._error(self._defined(name), words, _SHARED)
        details = [failure.details, f"the plugin of type {self.type}: {words}", _SHARED]
        joined = CNIError(failure.code, failure.message, "; ".join(filter(None, details)))
        joined.__cause__ = failure
        return joined

    def _error(self, place: str, problem: str, expected: str, code: int = INTERNAL) -> CNIError:
        message = f"fault of the plugin of type {self.type} at {place}: {problem}"
        return CNIError(code, message, expected)

    def _unusable(self, *names: str) -> list[str]:
        """What keeps methods from being called, in words."""
        if isinstance(self._plugin, type):
            return [f"it is {what(self._plugin)}, not an object of it"]
        found = []
        for name in names:
            method = getattr(self._plugin, name, None)
            if not callable(method):
                found.append(f"{what(self._plugin)} has no method {name}")
                continue
            flags = getattr(getattr(method, "__code__", None), "co_flags", 0)
            found += [f"{name} is {kind}" for flag, kind in _UNRUN.items() if flags & flag]
        return found

    def _place(self, error: BaseException, name: str) -> str:
        """Where an exception comes from: the last line in the plugin's file, else not in pycni."""
        defined = self._defined(name)
        place, is_own = defined, False
        trace = error.__traceback__
        while trace is not None:
            file = trace.tb_frame.f_code.co_filename
            in_own = defined.startswith(f"{file}:") or file == self._file
            if in_own or not (is_own or file.startswith(_OURS)):
                place, is_own = f"{file}:{trace.tb_lineno}", in_own
            trace = trace.tb_next
        return place

    def _defined(self, *names: str) -> str:
        """Where the first method that is not inherited from pycni's classes is, else the class."""
        for name in names:
            method = getattr(self._plugin, name, None)
            code = getattr(method, "__code__", None)
            if code is not None and not code.co_filename.startswith(_OURS):
                return f"{code.co_filename}:{code.co_firstlineno}"
        return f"{self._file} ({self._class.__qualname__})"

    @property
    def _class(self) -> type:
        return self._plugin if isinstance(self._plugin, type) else type(self._plugin)

    @property
    def _file(self) -> str:
        module = sys.modules.get(self._class.__module__)
        return getattr(module, "__file__", None) or self._class.__module__


_EXPECTED = (
    "expected an object with the methods of pycni.sdk.Plugin, which do what they do before they "
    "return"
)
_BY_CNIERROR = "a plugin reports what fails by raising a CNIError"
_SHARED = "it was put back: what a program and all plugins share is not a plugin's to change"


def _are_versions(value: object) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(one, str) for one in value)


def _is_sound(error: CNIError) -> bool:
    values = getattr(error, "code", None), getattr(error, "message", None)
    kinds = *map(type, values), type(getattr(error, "details", None))
    return issubclass(kinds[0], int) and issubclass(kinds[1], str) and issubclass(kinds[2], str)


def _is_unrun(returned: Any) -> bool:
    """Whether what was returned would still have to be run. It is closed: it never will be."""
    if hasattr(returned, "__await__") and not isinstance(returned, type):
        pass
    elif not isinstance(returned, (GeneratorType, AsyncGeneratorType)):
        return False
    with suppress(Exception):
        returned.close()
    return True


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
