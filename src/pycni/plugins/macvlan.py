"""macvlan: an interface with a hardware address of its own on top of one of the host's.

What it makes for an attachment stands in `MacvlanPlugin.plan`, in order. All of it is in the
sandbox; nothing is left on the host.
"""

from __future__ import annotations

from pycni.plan.plan import Plan, Reported
from pycni.plan.steps import HOST, SANDBOX, ChildLink
from pycni.plugins.shared.master import require_master
from pycni.sdk.addressing import announce, configure, settle
from pycni.sdk.interface import InterfacePlugin
from pycni.sdk.mac import MACConf, requested_mac
from pycni.spec.errors import invalid_config
from pycni.spec.schema import Flag, Integer, MACAddress, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.plan.steps import Step
    from pycni.sdk.request import Request
    from pycni.spec.result import Result
    from pycni.steps.namespaces import HostAndSandbox

MODES = ("bridge", "private", "vepa", "passthru")


class MacvlanConfig(MACConf):
    """The keys of macvlan."""

    master: str = field(
        "master", Text(), "", doc="the interface below", default_doc="that of the default route"
    )
    mode: str = field(
        "mode", Text(), "", doc="`bridge`, `private`, `vepa` or `passthru`", default_doc="`bridge`"
    )
    mtu: int = field(
        "mtu", Integer(), 0, doc="bytes, up to the master's", default_doc="the master's"
    )
    mac: str = field(
        "mac",
        MACAddress(),
        "",
        doc="the container's MAC address",
        default_doc="the kernel's choice",
    )
    link_in_container: bool = field(
        "linkInContainer", Flag(), False, doc="the master is in the container's namespace"
    )
    bc_queue_len: int = field(
        "bcqueuelen",
        Integer(0, (1 << 32) - 1),
        0,
        doc="broadcasts that may wait",
        default_doc="the kernel's choice",
    )

    def validate(self) -> None:
        if self.mode and self.mode not in MODES:
            raise invalid_config(
                f'unknown macvlan mode: "{self.mode}"',
                f'expected {", ".join(MODES)} in "mode"',
            )


class MacvlanPlugin(InterfacePlugin):
    """A macvlan in the sandbox."""

    type: ClassVar[str] = "macvlan"
    config = MacvlanConfig

    def check_status(self, config: MacvlanConfig, kernel: HostAndSandbox) -> None:
        if not config.link_in_container:
            require_master(kernel, config.master)

    def plan(self, request: Request, config: MacvlanConfig, network: Result) -> Plan:
        ifname = request.ifname
        mac = requested_mac(config, request.args) or config.mac
        if mac and config.mode == "passthru" and request.command == "ADD":
            raise invalid_config(
                f"a macvlan in mode passthru cannot have the MAC address {mac}",
                f"it has that of its master {config.master}, whose frames are all its own: ask for "
                "no MAC address, or choose another mode",
            )
        steps: list[Step] = [
            ChildLink(
                ifname,
                "macvlan",
                config.master,
                SANDBOX if config.link_in_container else HOST,
                mode=config.mode or "bridge",
                mtu=config.mtu,
                mac=mac,
                broadcast_queue=config.bc_queue_len,
            )
        ]
        if config.ipam_type:
            steps += announce(ifname)
        steps += configure(ifname, network, dad=True)
        steps += settle(ifname, network)
        return Plan(tuple(steps), (Reported(SANDBOX, ifname),))


plugin = MacvlanPlugin()
