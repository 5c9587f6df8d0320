"""macvlan: an interface with a hardware address of its own on top of one of the host's.

What it makes for an attachment stands in `ChildPlugin.plan`, in order. All of it is in the
sandbox; nothing is left on the host.
"""

from __future__ import annotations

from pycni.plan.steps import ChildLink
from pycni.plugins.shared.child_link import ChildKeys, ChildPlugin
from pycni.sdk.mac import MACConf, requested_mac
from pycni.spec.errors import invalid_config
from pycni.spec.schema import Integer, MACAddress, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.sdk.request import Request

MODES = ("bridge", "private", "vepa", "passthru")


class MacvlanConfig(ChildKeys, MACConf):
    """The keys of macvlan."""

    mode: str = field(
        "mode", Text(), "", doc="`bridge`, `private`, `vepa` or `passthru`", default_doc="`bridge`"
    )
    mac: str = field(
        "mac",
        MACAddress(),
        "",
        doc="the container's MAC address",
        default_doc="the kernel's choice",
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


class MacvlanPlugin(ChildPlugin):
    """A macvlan in the sandbox."""

    type: ClassVar[str] = "macvlan"
    config = MacvlanConfig

    def child(self, request: Request, config: MacvlanConfig) -> ChildLink:
        mac = requested_mac(config, request.args) or config.mac
        if mac and config.mode == "passthru" and request.command == "ADD":
            raise invalid_config(
                f"a macvlan in mode passthru cannot have the MAC address {mac}",
                f"it has that of its master {config.master}, whose frames are all its own: ask for "
                "no MAC address, or choose another mode",
            )
        return ChildLink(
            request.ifname,
            "macvlan",
            config.master,
            config.master_in,
            mode=config.mode or "bridge",
            mtu=config.mtu,
            mac=mac,
            broadcast_queue=config.bc_queue_len,
        )


plugin = MacvlanPlugin()
