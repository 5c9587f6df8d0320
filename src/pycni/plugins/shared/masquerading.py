"""What the plugins share whose containers reach other networks through the host: bridge and ptp."""

from __future__ import annotations

from _socket import AF_INET, AF_INET6

from pycni.plan.steps import Forwarding
from pycni.spec.errors import invalid_config
from pycni.spec.schema import Flag, Text, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

    from pycni.plan.steps import Step


# The keys of masquerading, for the configuration of each.
IP_MASQ = field(
    "ipMasq", Flag(), False, doc="what leaves the container's subnet has the host's address"
)
IP_MASQ_BACKEND = field(
    "ipMasqBackend",
    Text(),
    "",
    doc="`nftables` or `iptables`",
    default_doc="nftables where the host has it",
)


def check_backend(name: str) -> None:
    """Refuse a backend that is not known (code 7)."""
    if name not in ("", "nftables", "iptables"):
        raise invalid_config(
            f'unknown ipmasq backend "{name}"',
            'expected "nftables" or "iptables" in "ipMasqBackend"',
        )


def forwarding(families: Container[int]) -> list[Step]:
    """The host's forwarding for address families: last in a plan, since it is the one thing that
    cannot be taken back once others rely on it."""
    return [Forwarding(family) for family in (AF_INET, AF_INET6) if family in families]
