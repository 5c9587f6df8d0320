"""tap: an interface of the sandbox whose other end a program there holds, such as a VM.

What it makes for an attachment stands in `TapPlugin.plan`, in order. All of it is in the sandbox;
nothing is left on the host.
"""

from __future__ import annotations

from pycni.plan.plan import Plan, Reported
from pycni.plan.steps import SANDBOX, Tap
from pycni.sdk.addressing import announce, configure
from pycni.sdk.interface import InterfacePlugin
from pycni.sdk.mac import MACConf, requested_mac
from pycni.spec.schema import Flag, Integer, MACAddress, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.plan.steps import Step
    from pycni.sdk.request import Request
    from pycni.spec.result import Result

_ID = Integer(0, (1 << 32) - 2)  # the last one stands for none


class TapConfig(MACConf):
    """The keys of tap."""

    multi_queue: bool = field(
        "multiQueue", Flag(), False, doc="it may be opened several times, with a queue each"
    )
    mtu: int = field("mtu", Integer(0, 65521), 0, doc="bytes", default_doc="the kernel's choice")
    mac: str = field(
        "mac",
        MACAddress(),
        "",
        doc="the interface's MAC address",
        default_doc="the kernel's choice",
    )
    owner: int | None = field("owner", _ID, None, doc="user id that may open it", default_doc="any")
    group: int | None = field(
        "group", _ID, None, doc="group id that may open it", default_doc="any"
    )
    selinux_context: str = field(
        "selinuxContext",
        Text(),
        "",
        doc="SELinux context of the tap; needs `ip` of iproute2",
        default_doc="the plugin's own",
    )
    bridge: str = field(
        "bridge",
        Text(),
        "",
        doc="bridge in the container's namespace to plug it into; must be there",
    )


class TapPlugin(InterfacePlugin):
    """A tap in the sandbox."""

    type: ClassVar[str] = "tap"
    config = TapConfig

    def plan(self, request: Request, config: TapConfig, network: Result) -> Plan:
        ifname = request.ifname
        steps: list[Step] = [
            Tap(
                ifname,
                config.mtu,
                requested_mac(config, request.args) or config.mac,
                config.owner,
                config.group,
                config.multi_queue,
                config.selinux_context,
                config.bridge,
            )
        ]
        if config.ipam_type:
            steps += announce(ifname)
        # No program has the other end yet, so no one could answer a probe for duplicates.
        steps += configure(ifname, network)
        return Plan(tuple(steps), (Reported(SANDBOX, ifname),))


plugin = TapPlugin()
