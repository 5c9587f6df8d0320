"""my-wire: a veth pair between the container and the host, which routes to it."""

from __future__ import annotations

from pycni.sdk import (
    HOST,
    SANDBOX,
    Integer,
    InterfacePlugin,
    IPAddress,
    IPNetwork,
    NetConf,
    Plan,
    Reported,
    Request,
    Result,
    Step,
    field,
    steps,
)
from pycni.sdk.addressing import configure
from pycni.sdk.veth_name import host_end


class MyWireConfig(NetConf):
    """The keys of my-wire, besides those that all plugins have."""

    mtu: int = field("mtu", Integer(0, 65535), 0, doc="bytes; 0 for the kernel's choice")


class MyWire(InterfacePlugin):
    """A plan says what should exist. ADD makes it, CHECK compares it, DEL removes it.

    The addresses come from the plugin that "ipam" names, and go back to it.
    """

    type = "my-wire"
    config = MyWireConfig
    needs_ipam = True
    kinds = ("veth",)  # what GC looks for: it may outlive the container

    def plan(self, request: Request, config: MyWireConfig, network: Result) -> Plan:
        inner, outer = request.ifname, host_end(request, network)
        plan: list[Step] = [steps.VethPair(request.owner, inner, outer, config.mtu)]
        for entry in network.ips:
            if entry.gateway is not None:  # else it is one that a plugin after this one added
                plan.append(steps.Address(HOST, outer, alone(entry.gateway)))
                plan.append(steps.Route(HOST, outer, alone(entry.address.address)))
        plan += configure(inner, network)
        return Plan(tuple(plan), (Reported(HOST, outer), Reported(SANDBOX, inner)))


def alone(address: IPAddress) -> IPNetwork:
    """The network of one address."""
    return IPNetwork(address, address.bits)


plugin = MyWire()
