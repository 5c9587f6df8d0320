"""The daemon as a process: its socket, its pidfile, and the lock that keeps it the only one."""

from __future__ import annotations

import errno
import os
import socket

from pycni.dhcp import daemon
from pycni.spec.errors import INVALID_CONFIG, CNIError
from pycni.state.files import Lock, make_directories, remove_file, write_file

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)


def run(
    *,
    socketpath: str,
    pidfile: str,
    hostprefix: str,
    statedir: str,
    broadcast: bool,
    timeout: float,
    resendmax: float,
    resendtimeout: float,
) -> None:
    """Serve until SIGINT or SIGTERM. Times in seconds. Raises OSError, CNIError."""
    if pidfile and not pidfile.startswith("/"):
        raise CNIError(
            INVALID_CONFIG,
            f"Error writing pidfile {pidfile}: path not absolute",
            "give a full path",
        )
    path = hostprefix + socketpath
    settings = daemon.Settings(
        hostprefix + statedir, hostprefix, broadcast, timeout, resendmax, resendtimeout
    )
    make_directories(settings.state_dir, 0o700)
    # Two daemons that renew and release the same leases would undo each other's work.
    with Lock(os.path.join(settings.state_dir, "lock"), timeout=1.0, mode=0o600):
        listener = inherited_listener()
        made = listener is None
        if listener is None:
            listener = listen(path)
        try:
            if pidfile:
                write_file(pidfile, f"{os.getpid()}".encode(), 0o644, sync=False)
            daemon.run(settings, listener)
        finally:
            if pidfile:
                remove_file(pidfile)
            if made:
                remove_file(path)


def listen(path: str) -> socket.socket:
    """A listening socket at a path; one without a listener is replaced.

    Raises OSError: EADDRINUSE if there is a listener.
    """
    make_directories(os.path.dirname(path), 0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
            raise OSError(errno.EADDRINUSE, "another daemon listens there", path)
        except ConnectionRefusedError:
            os.unlink(path)
        except FileNotFoundError:
            pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen()
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, path) from error
    return listener


def inherited_listener() -> socket.socket | None:
    """The socket that systemd passed to this process, if it did. Raises CNIError for several."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = int(os.environ.get("LISTEN_FDS", "0"))
    if count > 1:
        raise CNIError(
            INVALID_CONFIG,
            f"Too many ({count}) FDs passed through socket activation",
            "the socket unit must name one socket",
        )
    if count < 1:
        return None
    os.set_inheritable(_FIRST_DESCRIPTOR, False)
    return socket.socket(fileno=_FIRST_DESCRIPTOR)
