"""One call of a plugin: the operation, the attachment, the configuration. Plain data.

A request is the same whether it came by environment and stdin, from the agent, or from a Python
program; a plugin cannot tell. It is made by `dispatch` (from a process's environment) or by the
runtime, both of which have checked names and versions before a plugin sees it.
"""

from __future__ import annotations

from pycni.spec.config import config_version, ipam_type, network_name, valid_attachments
from pycni.spec.jsontext import lookup
from pycni.spec.owner import Owner
from pycni.spec.record import Record
from pycni.spec.result import parse_prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pycni.sdk.log import Log
    from pycni.sdk.plugin import Plugin
    from pycni.spec.config import Attachment
    from pycni.spec.result import Result


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
