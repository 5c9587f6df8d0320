"""vlan: one VLAN (802.1Q) of an interface of the host, as an interface of the sandbox.

What it makes for an attachment stands in `ChildPlugin.plan`, in order. All of it is in the sandbox;
nothing is left on the host.
"""

from __future__ import annotations

from pycni.plan.steps import ChildLink
from pycni.plugins.shared.child_link import ChildKeys, ChildPlugin
from pycni.spec.config import NetConf
from pycni.spec.errors import invalid_config
from pycni.spec.schema import Integer, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.sdk.request import Request

MAX_VLAN = 4094


class VlanConfig(ChildKeys, NetConf):
    """The keys of vlan."""

    master: str = field(
        "master", Text(), "", doc="the interface below; it must be up", default_doc="required"
    )
    vlan_id: int = field("vlanId", Integer(), 0, doc="the VLAN, 0 to 4094; a master has each once")

    def validate(self) -> None:
        if not self.master:
            raise invalid_config(
                '"master" field is required. '
                "It specifies the host interface name to create the VLAN for",
                'give "master": "eth1", say',
            )
        if not 0 <= self.vlan_id <= MAX_VLAN:
            raise invalid_config(
                f"invalid VLAN ID {self.vlan_id} (must be between 0 and {MAX_VLAN})", 'see "vlanId"'
            )


class VlanPlugin(ChildPlugin):
    """A vlan in the sandbox."""

    type: ClassVar[str] = "vlan"
    config = VlanConfig
    needs_ipam: ClassVar[bool] = True

    def child(self, request: Request, config: VlanConfig) -> ChildLink:
        return ChildLink(
            request.ifname,
            "vlan",
            config.master,
            config.master_in,
            vlan_id=config.vlan_id,
            mtu=config.mtu,
        )


plugin = VlanPlugin()
