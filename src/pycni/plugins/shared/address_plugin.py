"""What host-local and static share: the keys by which a call asks for addresses, and a rule."""

from __future__ import annotations

from pycni.spec.config import NetConf
from pycni.spec.errors import invalid_config
from pycni.spec.schema import Config, ListOf, Object, Text, field
from pycni.spec.versions import at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class RequestedIPs(Config):
    """Addresses that a call asks for, in runtimeConfig or args.cni."""

    ips: tuple[str, ...] = field("ips", ListOf(Text()), (), doc="addresses to give")


class IPArgs(Config):
    """`args`, by the conventions of the specification."""

    cni: RequestedIPs = field("cni", Object(RequestedIPs), RequestedIPs(), doc="ips")


class AddressConf(NetConf):
    """Keys for an address plugin whose addresses can be chosen; the base of its config."""

    args: IPArgs = field("args", Object(IPArgs), IPArgs(), doc="free arguments; args.cni.ips")

    def require_room(self, families: Iterable[int]) -> None:
        """Refuse two addresses of a family where the result has no room for them (code 7)."""
        listed = list(families)
        if len(set(listed)) < len(listed) and not at_least(self.version, "0.3.0"):
            raise invalid_config(
                f"CNI version {self.version} does not support more than 1 address per family",
                'use "cniVersion": "0.3.0" or newer',
            )
