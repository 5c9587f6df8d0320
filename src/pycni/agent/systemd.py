"""A service's dealings with systemd: the socket it gets, the notices it gives (sd_notify(3))."""

from __future__ import annotations

import os
import socket

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


def inherited_listener() -> socket.socket | None:
    """The listening socket that systemd passed to this process, if any (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    if int(os.environ.get("LISTEN_FDS", "0")) < 1:
        return None
    os.set_inheritable(_FIRST_DESCRIPTOR, False)
    return socket.socket(fileno=_FIRST_DESCRIPTOR)


def notify(state: str) -> None:
    """Send systemd a state, such as READY=1; nothing where there is no systemd."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), address)
        except OSError:
            pass  # it is systemd's loss, and no reason to stop serving


def watchdog_interval() -> float | None:
    """Seconds between the signs of life that systemd wants, None if it wants none."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    return microseconds / 2e6 if microseconds else None
