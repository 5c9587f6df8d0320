"""dummy: an interface that leads nowhere, to hold addresses.

What it makes for an attachment stands in `DummyPlugin.plan`, in order. All of it is in the sandbox;
nothing is left on the host.
"""

from __future__ import annotations

from pycni.plan.plan import Plan, Reported
from pycni.plan.steps import SANDBOX, ChildLink
from pycni.sdk.addressing import configure
from pycni.sdk.interface import InterfacePlugin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.plan.steps import Step
    from pycni.sdk.request import Request
    from pycni.spec.config import NetConf
    from pycni.spec.result import Result


class DummyPlugin(InterfacePlugin):
    """A dummy in the sandbox. It has no keys of its own."""

    type: ClassVar[str] = "dummy"
    needs_ipam: ClassVar[bool] = True

    def plan(self, request: Request, config: NetConf, network: Result) -> Plan:
        ifname = request.ifname
        steps: list[Step] = [ChildLink(ifname, "dummy"), *configure(ifname, network)]
        return Plan(tuple(steps), (Reported(SANDBOX, ifname),))


plugin = DummyPlugin()
