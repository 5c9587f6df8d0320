"""vlan: one VLAN (802.1Q) of an interface of the host, as an interface of the sandbox.

What it makes for an attachment stands in `VlanPlugin.plan`, in order. All of it is in the sandbox;
nothing is left on the host.
"""

from __future__ import annotations

from pycni.plan.plan import Plan, Reported
from pycni.plan.steps import HOST, SANDBOX, ChildLink
from pycni.plugins.shared.master import require_master
from pycni.sdk.addressing import announce, configure, settle
from pycni.sdk.interface import InterfacePlugin
from pycni.spec.config import NetConf
from pycni.spec.errors import invalid_config
from pycni.spec.schema import Flag, Integer, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.plan.steps import Step
    from pycni.sdk.request import Request
    from pycni.spec.result import Result
    from pycni.steps.namespaces import HostAndSandbox

MAX_VLAN = 4094


class VlanConfig(NetConf):
    """The keys of vlan."""

    master: str = field(
        "master", Text(), "", doc="the interface below; it must be up", default_doc="required"
    )
    vlan_id: int = field("vlanId", Integer(), 0, doc="the VLAN, 0 to 4094; a master has each once")
    mtu: int = field(
        "mtu", Integer(), 0, doc="bytes, up to the master's", default_doc="the master's"
    )
    link_in_container: bool = field(
        "linkInContainer", Flag(), False, doc="the master is in the container's namespace"
    )

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


class VlanPlugin(InterfacePlugin):
    """A vlan in the sandbox."""

    type: ClassVar[str] = "vlan"
    config = VlanConfig
    needs_ipam: ClassVar[bool] = True

    def check_status(self, config: VlanConfig, kernel: HostAndSandbox) -> None:
        if not config.link_in_container:
            require_master(kernel, config.master)

    def plan(self, request: Request, config: VlanConfig, network: Result) -> Plan:
        ifname = request.ifname
        steps: list[Step] = [
            ChildLink(
                ifname,
                "vlan",
                config.master,
                SANDBOX if config.link_in_container else HOST,
                vlan_id=config.vlan_id,
                mtu=config.mtu,
            )
        ]
        steps += announce(ifname)
        steps += configure(ifname, network, dad=True)
        steps += settle(ifname, network)
        return Plan(tuple(steps), (Reported(SANDBOX, ifname),))


plugin = VlanPlugin()
