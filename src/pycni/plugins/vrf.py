"""vrf: puts the interface into a VRF of the sandbox, so that it routes by a table of its own.

The VRF is made for its first interface and goes with the last one.
"""

from __future__ import annotations

from pycni.plan.plan import Plan
from pycni.plan.steps import VRFMember
from pycni.sdk.chained import ChainedPlugin
from pycni.spec import versions
from pycni.spec.config import NetConf
from pycni.spec.errors import invalid_config
from pycni.spec.names import check_interface_name
from pycni.spec.schema import Integer, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.sdk.request import Request
    from pycni.spec.result import Result


class VRFConfig(NetConf):
    """The keys of vrf."""

    vrfname: str = field(
        "vrfname",
        Text(),
        "",
        doc="name of the VRF, an interface in the container",
        default_doc="required",
    )
    table: int = field(
        "table",
        Integer(0, (1 << 32) - 1),
        0,
        doc="its routing table, which all members of a VRF share",
        default_doc="a free one",
    )

    def validate(self) -> None:
        if not self.vrfname:
            raise invalid_config(
                "configuration is expected to have a valid vrf name", 'give "vrfname"'
            )
        check_interface_name(self.vrfname)


class VRF(ChainedPlugin):
    """Membership in a VRF."""

    type: ClassVar[str] = "vrf"
    versions: ClassVar[tuple[str, ...]] = versions.since("0.3.1")
    config = VRFConfig
    unchained = "missing prevResult from earlier plugin"

    def plan(self, request: Request, config: VRFConfig, network: Result) -> Plan:
        return Plan((VRFMember(config.vrfname, request.ifname, config.table),))


plugin = VRF()
