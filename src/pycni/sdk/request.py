"""One call of a plugin: the operation, the attachment, the configuration. Plain data.

A request is the same whether it came by environment and stdin, from the agent, or from a Python
program. It is made by `dispatch` (from a process's environment) or by the runtime, both of which
have checked names and versions before a plugin sees it.
"""

from __future__ import annotations

from pycni.spec.config import config_version, ipam_type, network_name, valid_attachments
from pycni.spec.errors import INVALID_CONFIG, CNIError
from pycni.spec.jsontext import lookup
from pycni.spec.owner import Owner
from pycni.spec.record import Record
from pycni.spec.result import Result, parse_prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pycni.sdk.log import Log
    from pycni.sdk.plugin import Plugin
    from pycni.spec.config import Attachment

NO_PREV_RESULT = "Required prevResult missing"
_LOOPBACK = "lo"


def _no_builtin(_path: str) -> None:
    return None


class Request(Record):
    """The arguments of one operation.

    netns: the sandbox's path as the runtime gave it, "" for none (DEL); netns_fd: the same already
    opened, where the path may mean something else to this process. document: the configuration as
    decoded JSON. path: the directories to find delegated plugins in. environ: what a delegated
    process inherits. resolve: gives the plugin object for an executable's path that is one of ours,
    so that delegating to it needs no process; without directories it is asked for the plugin by its
    type. cancel: a descriptor that can be read once the caller has given up: waits end then, and an
    ADD takes back what it did. stderr: the descriptor for what delegated processes say.
    """

    command: str
    document: Mapping[str, Any]
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: str = ""
    path: tuple[str, ...] = ()
    netns_fd: int | None = None
    environ: Mapping[str, str] = {}
    resolve: Callable[[str], Plugin | None] = _no_builtin
    cancel: int | None = None
    stderr: int = 2

    @property
    def network(self) -> str:
        """The network's name."""
        return network_name(self.document)

    @property
    def version(self) -> str:
        """The specification's version that the configuration is written for."""
        return config_version(self.document)

    @property
    def owner(self) -> Owner:
        """The key that everything made for this attachment carries."""
        return Owner(self.network, self.container_id, self.ifname)

    @property
    def prev_result(self) -> Result | None:
        """The result handed on by the runtime, None if there is none. Raises CNIError."""
        return parse_prev_result(self.document, self.version)

    def allowed_path(self, key: str, path: str, default: str = "") -> str:
        """The path that a key of the configuration has, if configurations may have it there.

        key, and what DEL and GC get otherwise: see `pycni.sdk.allowed_paths`. Raises CNIError.
        """
        if path in ("", default):
            return default
        from pycni.sdk.allowed_paths import require_or  # most configurations name none

        return require_or(self, key, path, default)

    @property
    def log(self) -> Log:
        """Where the plugin may write what it does: see `pycni.sdk.log`."""
        from pycni.sdk.log import log_of

        return log_of(self)

    @property
    def valid_attachments(self) -> frozenset[Attachment] | None:
        """What GC must keep; None where the runtime did not say."""
        return valid_attachments(self.document)

    @property
    def ipam_type(self) -> str:
        """The address plugin that the configuration names, "" for none."""
        return ipam_type(lookup(self.document, "ipam"))


def require_prev_result(request: Request, message: str = NO_PREV_RESULT) -> Result:
    """The previous result, for operations that cannot do without. Raises CNIError (code 7)."""
    previous = request.prev_result
    if previous is None:
        raise CNIError(
            INVALID_CONFIG,
            message,
            f"{request.command} works on the result of the plugins before it, "
            "which the runtime hands on as prevResult",
        )
    return previous


def prev_result_or_empty(request: Request) -> Result:
    """What DEL knows of the attachment; a missing or unreadable prevResult is no obstacle."""
    try:
        previous = request.prev_result
    except CNIError:
        return Result()
    if previous is None:
        return Result()
    return own_addresses(request, previous)


def own_addresses(request: Request, previous: Result) -> Result:
    """A previous result with the addresses of the attachment's own interface only.

    Where it lists other interfaces of the sandbox, the routes are those by the own one's gateways
    and neighbours: what leaves its gateway open may be another's.
    """
    own = []
    alone = True
    for index, interface in enumerate(previous.interfaces):
        if interface.name == request.ifname and interface.sandbox:
            own.append(index)
        elif interface.sandbox and interface.name != _LOOPBACK:
            alone = False
    ips = tuple(entry for entry in previous.ips if entry.interface in own)
    if not ips:
        ips = tuple(entry for entry in previous.ips if entry.interface is None)
    if alone:
        return previous.replace(ips=ips)
    gateways = {entry.gateway for entry in ips}
    routes = tuple(
        route
        for route in previous.routes
        if route.gw is not None
        and (route.gw in gateways or any(entry.address.contains(route.gw) for entry in ips))
    )
    return previous.replace(ips=ips, routes=routes)
