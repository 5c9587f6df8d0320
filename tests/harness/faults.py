"""Have the kernel, the file system or a program refuse things, one at a time."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any
from unittest import mock

from harness.plugin import PluginRun
from pycni.kernel import process, sysctl
from pycni.kernel.netfilter import nftables
from pycni.kernel.netlink import socket
from pycni.kernel.netlink.codec import NetlinkRequest
from pycni.kernel.netlink.errors import NetlinkError
from pycni.state import leases

# Where a change leaves this process, besides netlink, and how each of them refuses.
DOORS: tuple[tuple[ModuleType, str, OSError], ...] = (
    (sysctl, "write", OSError(errno.EROFS, "refused by the test")),
    (nftables, "run", nftables.NftError(errno.EIO, "refused by the test")),
    (process, "run", OSError(errno.EAGAIN, "refused by the test")),
    (leases, "create_file", OSError(errno.ENOSPC, "refused by the test")),
)


def each_request_failing(call: Callable[[], PluginRun]) -> Iterator[str]:
    """Repeat a call made in this process, with one more of its netlink requests let through.

    Yields after each failed call what was refused in it, until a call is not disturbed any more,
    which must succeed. A plugin that undoes its work may do so: only one request is refused.
    """
    for what, _ in _each_refused(call, ()):
        yield what


def each_change_failing(call: Callable[[], PluginRun]) -> Iterator[tuple[str, PluginRun]]:
    """The same for whatever the call does: netlink, sysctls, nftables, programs, lease files.

    Yields also how the call ended: what is not vital may be refused and the call succeed.
    """
    yield from _each_refused(call, DOORS)


def _each_refused(
    call: Callable[[], PluginRun], doors: tuple[tuple[ModuleType, str, OSError], ...]
) -> Iterator[tuple[str, PluginRun]]:
    position = 0
    while True:
        counter = _Counter(position)
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(socket, "before_send", counter.netlink))
            for module, name, error in doors:
                real = getattr(module, name)
                stack.enter_context(
                    mock.patch.object(module, name, counter.door(name, real, error))
                )
            run = call()
        if not counter.refused:
            assert run.code == 0, run.stdout
            return
        yield counter.refused, run
        position += 1


class _Counter:
    """Lets `allowed` things pass, refuses the next one, and lets all others pass again."""

    def __init__(self, allowed: int) -> None:
        self._left = allowed
        self.refused = ""

    def netlink(self, request: NetlinkRequest) -> None:
        if self._refuses(request.what):
            raise NetlinkError(errno.EIO, "refused by the test", request.what)

    def door(self, name: str, real: Callable[..., Any], error: OSError) -> Callable[..., Any]:
        def guarded(*arguments: Any, **keywords: Any) -> Any:
            if self._refuses(f"{name} {arguments[0] if arguments else ''}"):
                raise error
            return real(*arguments, **keywords)

        return guarded

    def _refuses(self, what: str) -> bool:
        self._left -= 1
        if self._left != -1:
            return False
        self.refused = what
        return True
