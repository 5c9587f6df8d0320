"""What the tests of firewall share."""

from __future__ import annotations

from typing import Any

import pytest

from harness import Attachment
from harness.kernel_state import iptables_saved
from harness.machines import Machines, addresses

BACKENDS = ("iptables", "nftables", "")  # "": chosen, which here are sets that iptables looks into


each_backend = pytest.mark.parametrize(
    "backend", BACKENDS, ids=[backend or "chosen" for backend in BACKENDS]
)


def saved() -> list[str]:
    return [line for line in iptables_saved("filter") if line.startswith("-A")]


def in_sets(*containers: Attachment) -> list[str]:
    """What `ipset_elements` gives where these containers are let through."""
    return sorted(
        f"add CNI-FORWARD{version} {address}"
        for container in containers
        for version, address in addresses(container).items()
    )


def attached(
    machines: Machines, name: str, bridge: str = "br0", **keys: Any
) -> tuple[Attachment, Attachment]:
    """A container, and firewall after ADD."""
    container = machines.container(name, bridge)
    firewall = machines.chained("firewall", container, **keys)
    assert firewall.add() == container.result
    firewall.check()
    return container, firewall
