"""Which paths network configurations may have root write to and read from.

Who writes a network configuration decides what a network is, not what becomes of the host's files:
where Multus serves tenants, that is any of them. So a key that is a path leads into directories
that are CNI's own (`DEFAULTS`), or into those that the host's administrator has added:

  # /etc/cni/pycni/allowed-paths.conf: a key, and a directory or file
  host-local.dataDir  /srv/leases
  logFile             /var/log/kubernetes

It is a file, since all runtimes of a host must go by it; for a runtime with other rights
PYCNI_ALLOWED_PATHS in its environment, which no configuration can set, names another one. The file
counts only if none but root, or this user, may write to it. What lies below an allowed directory is
allowed, no matter who may write there: so allow none that others may write to.

Loaded only by calls whose configuration names a path. Used by the log, plugins, `pycni ipam`.
"""

from __future__ import annotations

import posix
from _stat import S_IWGRP, S_IWOTH

from pycni.spec.errors import INVALID_CONFIG, IO_FAILURE, CNIError
from pycni.spec.versions import quote
from pycni.state.files import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pycni.sdk.request import Request

FILE = "/etc/cni/pycni/allowed-paths.conf"
VARIABLE = "PYCNI_ALLOWED_PATHS"

# By key, `<plugin>.<key>` for a plugin's own. The first directory is that of plain names.
DEFAULTS: dict[str, tuple[str, ...]] = {
    "logFile": ("/var/log/pycni", "/var/log/cni"),
    "host-local.dataDir": ("/var/lib/cni", "/run/cni", "/run/cni-ipam-state"),
    "host-local.resolvConf": (
        "/etc/resolv.conf",
        "/run/systemd/resolve",
        "/run/NetworkManager",
        "/run/resolvconf",
        "/etc/cni",
    ),
    "tuning.dataDir": ("/run/cni/tuning", "/var/lib/cni/tuning"),
    "flannel.dataDir": ("/var/lib/cni/flannel", "/run/cni/flannel"),
    "flannel.subnetFile": ("/run/flannel", "/etc/cni"),
    "dhcp.daemonSocketPath": ("/run/cni",),
    "debug.cniOutput": ("/var/log/pycni",),
    "debug.hooks": (),
    "noop.debugFile": ("/run/cni/noop",),
    "noop.commandLog": ("/run/cni/noop",),
}


class PathNotAllowed(CNIError):
    """A configuration names a path that it may not (code 7)."""


def require(key: str, path: str, environ: Mapping[str, str]) -> str:
    """The path, if a configuration may have it in a key of `DEFAULTS`.

    environ: the runtime's. Raises PathNotAllowed; CNIError (code 5, 7) if the administrator's file
    cannot be read.
    """
    normal = _normal(path)
    if normal and _is_below(normal, DEFAULTS[key]):
        return path
    added = directories(key, environ)
    if normal and _is_below(normal, added):
        return path
    allowed = " and ".join((*DEFAULTS[key], *added)) or "none"
    raise PathNotAllowed(
        INVALID_CONFIG,
        f"{key.rpartition('.')[2]}: {quote(path)} is not where a configuration may lead",
        f"allowed are {allowed}, and what lies there; "
        + (
            way_out(key, normal, environ)
            if normal
            else "a path is absolute, without '.', '..' and unprintable characters"
        ),
    )


def require_or(request: Request, key: str, path: str, default: str) -> str:
    """`require`; DEL and GC, which go on whatever a configuration says, get the default instead.

    No ADD has made anything at a path that is not allowed.
    """
    try:
        return require(key, path, request.environ)
    except CNIError as error:
        if request.command not in ("DEL", "GC"):
            raise
        report_refused(request, error)
        return default


def report_refused(request: Request, error: CNIError) -> None:
    """Say on stderr that a path is not used, where the operation goes on without it."""
    from pycni.sdk.execute import write_or_give_up

    text = f"{request.document.get('type', 'plugin')}: {request.command} without it: {error}"
    write_or_give_up(request.stderr, quote(text)[1:-1].encode("utf-8", "replace") + b"\n")


def way_out(key: str, path: str, environ: Mapping[str, str]) -> str:
    """How the administrator allows a path."""
    return f'the administrator of this host allows it by a line "{key} {path}" in {_file(environ)}'


def directories(key: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What the administrator has added for a key. Raises CNIError (code 5, 7)."""
    file = _file(environ)
    try:
        text = read_file(file, own=True).decode("utf-8", "replace")
        others = posix.stat(file).st_mode & (S_IWGRP | S_IWOTH)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise CNIError(
            IO_FAILURE,
            f"cannot read {file}: {error.strerror}",
            "it says which paths network configurations may use, and must be a file of root's",
        ) from None
    if others:
        raise CNIError(
            INVALID_CONFIG,
            f"{file} is not believed: others than its owner may write to it",
            f"chmod go-w {file}",
        )
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split(None, 1)
        if not words or words[0].startswith("#"):
            continue
        directory = _normal(words[1].strip()) if len(words) > 1 else ""
        if words[0] not in DEFAULTS or not directory:
            raise CNIError(
                INVALID_CONFIG,
                f"{file}, line {number}: {quote(line)} is no key and directory",
                f"expected one of {', '.join(DEFAULTS)}, and an absolute path",
            )
        if words[0] == key:
            found.append(directory)
    return tuple(found)


def _file(environ: Mapping[str, str]) -> str:
    return environ.get(VARIABLE) or FILE


def _normal(path: str) -> str:
    """An absolute path without what could lead elsewhere than it seems, "" for any other."""
    parts = [part for part in path.split("/") if part]
    if not path.startswith("/") or not path.isprintable() or not {".", ".."}.isdisjoint(parts):
        return ""
    if parts[:2] == ["var", "run"]:  # a link to /run, by the Filesystem Hierarchy Standard
        del parts[0]
    return "/" + "/".join(parts)


def _is_below(path: str, directories: tuple[str, ...]) -> bool:
    return any(path == one or path.startswith(f"{one.rstrip('/')}/") for one in directories)
