"""bandwidth: limits the rate of what the container receives (ingress) and sends (egress).

The limits are token buckets on the host end of the container's veth. What the container sends is
redirected to an ifb first, since only what a link sends can be queued. DEL takes all of it away.
"""

from __future__ import annotations

from pycni.plan.plan import Plan
from pycni.plan.steps import Limit, Shaping
from pycni.sdk.chained import ChainedPlugin
from pycni.spec import versions
from pycni.spec.config import NetConf
from pycni.spec.errors import invalid_config
from pycni.spec.result import Interface
from pycni.spec.schema import CIDR, Config, Integer, ListOf, Object, field
from pycni.steps import shaping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pycni.sdk.request import Request
    from pycni.spec.ip import IPNetwork
    from pycni.spec.result import Result
    from pycni.steps.namespaces import HostAndSandbox

MAX_BURST = (1 << 32) - 1  # bytes
MAX_U64 = (1 << 64) - 1
MIN_RATE = 8  # bits a second: the kernel counts bytes


class Limits(Config):
    """The limits of both directions; None and 0 stand for no limit."""

    ingress_rate: int | None = field(
        "ingressRate",
        Integer(0, MAX_U64),
        None,
        doc="towards the container, bits a second; 0 for no limit",
        default_doc="no limit",
    )
    ingress_burst: int | None = field(
        "ingressBurst",
        Integer(0, MAX_U64),
        None,
        doc="bits that may exceed that rate at once",
        default_doc="required with the rate",
    )
    egress_rate: int | None = field(
        "egressRate",
        Integer(0, MAX_U64),
        None,
        doc="from the container, bits a second; 0 for no limit",
        default_doc="no limit",
    )
    egress_burst: int | None = field(
        "egressBurst",
        Integer(0, MAX_U64),
        None,
        doc="bits that may exceed that rate at once",
        default_doc="required with the rate",
    )
    shaped_subnets: tuple[IPNetwork, ...] = field(
        "shapedSubnets",
        ListOf(CIDR()),
        (),
        doc="limit only traffic with these networks",
        default_doc="all",
    )
    unshaped_subnets: tuple[IPNetwork, ...] = field(
        "unshapedSubnets",
        ListOf(CIDR()),
        (),
        doc="limit all traffic but that with these; not together with `shapedSubnets`",
    )

    def validate(self) -> None:
        for direction, rate, burst in (
            ("ingress", self.ingress_rate or 0, self.ingress_burst or 0),
            ("egress", self.egress_rate or 0, self.egress_burst or 0),
        ):
            keys = f'"{direction}Rate" is {rate}, "{direction}Burst" is {burst}'
            if rate and not burst:
                raise invalid_config("if rate is set, burst must also be set", keys)
            if burst and not rate:
                raise invalid_config("if burst is set, rate must also be set", keys)
            if burst // 8 >= MAX_BURST:
                raise invalid_config("burst cannot be more than 4GB", keys)
            if 0 < rate < MIN_RATE or 0 < burst < MIN_RATE:
                raise invalid_config("rate and burst must be 8 bits at least", keys)
        if self.shaped_subnets and self.unshaped_subnets:
            raise invalid_config(
                "unshapedSubnets and shapedSubnets cannot be both specified, "
                "one of them should be discarded",
                "the one says what is limited, the other what is not",
            )


class BandwidthRuntimeConfig(Config):
    """What the runtime gives for capability bandwidth."""

    bandwidth: Limits | None = field(
        "bandwidth",
        Object(Limits),
        None,
        doc="the limits, for capability `bandwidth`; not used where the configuration has a rate "
        "or burst, even 0",
    )


class BandwidthConfig(Limits, NetConf):
    """The keys of bandwidth."""

    runtime_config: BandwidthRuntimeConfig = field(
        "runtimeConfig",
        Object(BandwidthRuntimeConfig),
        BandwidthRuntimeConfig(),
        doc="what the runtime gives",
    )

    @property
    def limits(self) -> Limits:
        """The configuration's own limits if it has any, even zero; else the runtime's."""
        given = self.runtime_config.bandwidth
        rates = (self.ingress_rate, self.ingress_burst, self.egress_rate, self.egress_burst)
        if given is None or any(value is not None for value in rates):
            return self
        if given.shaped_subnets or given.unshaped_subnets:
            return given
        return given.replace(
            shaped_subnets=self.shaped_subnets, unshaped_subnets=self.unshaped_subnets
        )

    def validate(self) -> None:
        Limits.validate(self.limits)


class Bandwidth(ChainedPlugin):
    """Token buckets for a veth."""

    type: ClassVar[str] = "bandwidth"
    versions: ClassVar[tuple[str, ...]] = versions.since("0.3.0")
    config = BandwidthConfig
    kinds: ClassVar[tuple[str, ...]] = ("shaping",)
    unchained = "must be called as chained plugin"

    def plan(self, request: Request, config: BandwidthConfig, network: Result) -> Plan:
        limits = config.limits
        if request.command != "DEL" and not (limits.ingress_rate or limits.egress_rate):
            return Plan()
        return Plan(
            (
                Shaping(
                    request.owner,
                    request.ifname,
                    tuple(found.name for found in network.interfaces if not found.sandbox),
                    ingress=_limit(limits.ingress_rate, limits.ingress_burst),
                    egress=_limit(limits.egress_rate, limits.egress_burst),
                    shaped=limits.shaped_subnets,
                    unshaped=limits.unshaped_subnets,
                ),
            )
        )

    def result(
        self, request: Request, config: BandwidthConfig, previous: Result, kernel: HostAndSandbox
    ) -> Result:
        """The previous result, and the ifb."""
        ifb = shaping.find_ifb(request.owner, kernel) if config.limits.egress_rate else None
        if ifb is None:
            return previous
        interface = Interface(name=ifb.name, mac=ifb.mac)
        return previous.replace(interfaces=(*previous.interfaces, interface))


def _limit(rate: int | None, burst: int | None) -> Limit | None:
    return Limit(rate, burst or 0) if rate else None


plugin = Bandwidth()
