"""Have the kernel refuse things, one at a time, where a plugin asks for them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from harness.plugin import PluginRun
from pycni.kernel.netlink import socket
from pycni.kernel.netlink.codec import Request
from pycni.kernel.netlink.errors import NetlinkError


def each_request_failing(call: Callable[[], PluginRun]) -> Iterator[str]:
    """Repeat a call made in this process, with one more of its netlink requests let through.

    Yields after each failed call what was refused in it, until a call is not disturbed any more,
    which must succeed. A plugin that undoes its work may do so: only one request is refused.
    """
    position = 0
    while True:
        refused: list[str] = []
        sent = 0

        def before(request: Request, refused: list[str] = refused, last: int = position) -> None:
            nonlocal sent
            sent += 1
            if sent == last + 1:
                refused.append(request.what)
                raise NetlinkError(errno.EIO, "refused by the test", request.what)

        socket.before_send = before
        try:
            run = call()
        finally:
            socket.before_send = None
        if not refused:
            assert run.code == 0, run.stdout
            return
        yield refused[0]
        position += 1
