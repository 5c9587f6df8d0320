"""ipvlan: an interface that shares the hardware address of one of the host's.

What it makes for an attachment stands in `ChildPlugin.plan`, in order. All of it is in the
sandbox; nothing is left on the host. Behind another plugin it can take that one's interface as
master, and that one's addresses.
"""

from __future__ import annotations

from pycni.plan.steps import ChildLink
from pycni.plugins.shared.child_link import ChildKeys, ChildPlugin
from pycni.spec.config import NetConf
from pycni.spec.errors import invalid_config
from pycni.spec.result import Result
from pycni.spec.schema import Anything, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from pycni.sdk.request import Request
    from pycni.steps.namespaces import HostAndSandbox

MODES = ("l2", "l3", "l3s")


class IpvlanConfig(ChildKeys, NetConf):
    """The keys of ipvlan."""

    master: str = field(
        "master",
        Text(),
        "",
        doc="the interface below",
        default_doc="the only one of prevResult, else that of the default route",
    )
    mode: str = field("mode", Text(), "", doc="`l2`, `l3` or `l3s`", default_doc="`l2`")
    ipam: Any = field(
        "ipam",
        Anything(),
        None,
        doc="the address plugin, by its `type`, and its settings",
        default_doc="required, unless prevResult has addresses",
    )

    def validate(self) -> None:
        if self.mode and self.mode not in MODES:
            raise invalid_config(
                f'unknown ipvlan mode: "{self.mode}"', f'expected {", ".join(MODES)} in "mode"'
            )


class IpvlanPlugin(ChildPlugin):
    """An ipvlan in the sandbox."""

    type: ClassVar[str] = "ipvlan"
    config = IpvlanConfig
    needs_ipam: ClassVar[bool] = True

    def check_status(self, config: IpvlanConfig, kernel: HostAndSandbox) -> None:
        # Without a master it may be a plugin before this one that makes it.
        if config.master:
            super().check_status(config, kernel)

    def inherited(self, previous: Result) -> Result:
        """The addresses of the plugin before, whose interface is to be the master."""
        return previous

    def child(self, request: Request, config: IpvlanConfig) -> ChildLink:
        return ChildLink(
            request.ifname,
            "ipvlan",
            config.master or _chained_master(request),
            config.master_in,
            mode=config.mode or "l2",
            mtu=config.mtu,
        )


def _chained_master(request: Request) -> str:
    """The only interface of the plugin before; "" if there is none before.

    At CHECK and DEL prevResult is the attachment's own, so the master is not known.
    """
    if request.command != "ADD":
        return ""
    previous = request.prev_result
    if previous is None:
        return ""
    names = [interface.name for interface in previous.interfaces]
    if len(names) != 1 or not names[0]:
        raise invalid_config(
            "chained master failure. PrevResult lacks a single named interface",
            f'it has {", ".join(names) or "none"}; name the interface in "master"',
        )
    return names[0]


plugin = IpvlanPlugin()
