"""What the plugins share that put an interface on top of another: macvlan, vlan, ipvlan."""

from __future__ import annotations

from pycni.plan.plan import Plan, Reported
from pycni.plan.steps import HOST, SANDBOX
from pycni.sdk.addressing import configure_announced
from pycni.sdk.interface import InterfacePlugin
from pycni.spec.errors import UNAVAILABLE, CNIError
from pycni.spec.schema import Config, Flag, Integer, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycni.plan.steps import ChildLink
    from pycni.sdk.request import Request
    from pycni.spec.result import Result
    from pycni.steps.namespaces import HostAndSandbox


class ChildKeys(Config):
    """The keys that they have in common."""

    master: str = field(
        "master", Text(), "", doc="the interface below", default_doc="that of the default route"
    )
    mtu: int = field(
        "mtu", Integer(), 0, doc="bytes, up to the master's", default_doc="the master's"
    )
    link_in_container: bool = field(
        "linkInContainer", Flag(), False, doc="the master is in the container's namespace"
    )

    @property
    def master_in(self) -> str:
        """Where the master is: HOST or SANDBOX."""
        return SANDBOX if self.link_in_container else HOST


class ChildPlugin(InterfacePlugin):
    """Base of plugins whose interface has a master."""

    def child(self, request: Request, config: Any) -> ChildLink:
        """The step that makes the interface."""
        raise NotImplementedError

    def check_status(self, config: Any, kernel: HostAndSandbox) -> None:
        from pycni.steps.child_link import find_master  # no other operation needs it here

        if config.link_in_container:
            return
        try:
            find_master(kernel.host, config.master)
        except CNIError as error:
            raise CNIError(UNAVAILABLE, error.message, error.details) from None

    def plan(self, request: Request, config: Any, network: Result) -> Plan:
        ifname = request.ifname
        announced = bool(config.ipam_type) or self.needs_ipam
        addresses = configure_announced(ifname, network, announced=announced)
        return Plan((self.child(request, config), *addresses), (Reported(SANDBOX, ifname),))
