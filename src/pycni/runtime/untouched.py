"""What a plugin object of the program's own may not change, found changed and put back.

That is the thread's network namespace, working directory, umask, environment variables, and in the
main thread the handlers of signals. Only what the thread itself changed is noticed: a program's
other threads go on meanwhile, and other plugins. So threads of operations have a directory and
umask of their own here, and changes of `os.environ` are noted by thread. Called by
`pycni.runtime.foreign`.
"""

from __future__ import annotations

import _thread
import os
from contextlib import suppress

from pycni.kernel import namespace
from pycni.runtime import operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Any

    Variables = dict[bytes, bytes | None]
    _Environ = MutableMapping[str, str]
else:
    _Environ = os._Environ

_mine = _thread._local()


class Untouched:
    """How things are in the calling thread when a plugin is called; `changes` ends it.

    Raises OSError if there is no descriptor to be had.
    """

    def __init__(self) -> None:
        if operation.is_in_new_thread() and not hasattr(_mine, "is_apart"):
            with suppress(OSError):  # where it is refused, they are the process's
                namespace.leave_shared_directory()
            _mine.is_apart = True
        self._home = namespace.current()
        try:
            self._directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._home.close()
            raise
        self._umask = _umask()
        self._handlers = _handlers()
        self._environ = os.environ
        self._outer: Variables | None = getattr(_mine, "variables", None)
        self._variables: Variables = {}
        _watch_environ()
        _mine.variables = self._variables

    def changes(self) -> list[str]:
        """Put back what has been changed; returns what that was, in words."""
        try:
            return [*self._namespace(), *self._paths(), *self._environment(), *self._signals()]
        finally:
            self._home.close()
            os.close(self._directory)

    def _namespace(self) -> list[str]:
        here = os.stat(namespace.OWN)
        if (here.st_dev, here.st_ino) == (self._home.device, self._home.inode):
            return []
        namespace.bring_back(self._home)
        return ["the thread's network namespace"]

    def _paths(self) -> list[str]:
        found = []
        before = os.stat(self._directory)
        try:
            now = os.stat(".")
        except OSError:  # a directory that may not be searched
            now = None
        if now is None or (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
            os.fchdir(self._directory)
            found.append("the working directory")
        if self._umask is not None and _umask() != self._umask:
            os.umask(self._umask)
            found.append("the umask")
        return found

    def _environment(self) -> list[str]:
        _mine.variables = self._outer
        found = []
        if os.environ is not self._environ:
            os.environ = self._environ  # noqa: B003 - it is the one that was there
            found.append("os.environ")
        names = []
        for name, before in self._variables.items():
            if os.environb.get(name) != before:
                names.append(os.fsdecode(name))
                if before is None:
                    del os.environb[name]
                else:
                    os.environb[name] = before
        return [*found, f"os.environ ({', '.join(names)})"] if names else found

    def _signals(self) -> list[str]:
        if not self._handlers:
            return []
        import signal

        found = []
        for number, before in self._handlers.items():
            if before is not None and signal.getsignal(number) is not before:
                signal.signal(number, before)
                found.append(f"the handler of {_name(number)}")
        return found


class _Watched(_Environ):
    """`os.environ`, which notes what a thread changes while it calls a plugin."""

    def __setitem__(self, key: str, value: str) -> None:
        _note(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        _note(key)
        super().__delitem__(key)


def _note(key: str) -> None:
    variables: Variables | None = getattr(_mine, "variables", None)
    if variables is not None:
        name = os.fsencode(key)
        variables.setdefault(name, os.environb.get(name))


def _watch_environ() -> None:
    # The class, for the object is everybody's; and for good, since other calls may need it.
    for environ in (os.environ, os.environb):
        if type(environ) is _Environ:
            environ.__class__ = _Watched  # type: ignore[assignment]


def _umask() -> int | None:
    """The thread's; None where the kernel does not say. To ask os.umask would change it."""
    try:
        with open("/proc/thread-self/status", "rb", buffering=0) as file:
            _, _, rest = file.read(256).partition(b"\nUmask:")
    except OSError:
        return None
    words = rest.split(maxsplit=1)
    return int(words[0], 8) if words else None


def _handlers() -> dict[int, Any]:
    """The handlers of signals, which only the main thread can set."""
    import threading

    if threading.current_thread() is not threading.main_thread():
        return {}
    import signal

    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
