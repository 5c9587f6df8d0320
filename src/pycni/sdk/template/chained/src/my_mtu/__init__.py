"""my-mtu: sets the MTU of the container's interface."""

from __future__ import annotations

from pycni.sdk import SANDBOX, ChainedPlugin, Integer, NetConf, Plan, Request, Result, field, steps


class MyMtuConfig(NetConf):
    """The keys of my-mtu, besides those that all plugins have."""

    mtu: int = field("mtu", Integer(68, 65535), required=True, doc="bytes")


class MyMtu(ChainedPlugin):
    """A plan says what should exist. ADD makes it, CHECK compares it with the kernel."""

    type = "my-mtu"
    config = MyMtuConfig

    def plan(self, request: Request, config: MyMtuConfig, network: Result) -> Plan:
        return Plan((steps.LinkSettings(SANDBOX, request.ifname, mtu=config.mtu),))


plugin = MyMtu()
