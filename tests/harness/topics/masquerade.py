"""What the tests of masquerading share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness import Host
from harness.kernel_state import iptables_saved
from pycni.plan.steps import Masquerade
from pycni.spec.ip import parse_network
from pycni.spec.owner import Owner
from pycni.steps.namespaces import HostAndSandbox


@pytest.fixture
def kernel(host: Host) -> Iterator[HostAndSandbox]:
    with HostAndSandbox(None) as kernel:
        yield kernel


def step(
    container: str = "one", *addresses: str, backend: str = "", net: str = "net"
) -> Masquerade:
    owner = Owner(net, container, "eth0")
    return Masquerade(owner, tuple(map(parse_network, addresses)), backend)


def saved() -> list[str]:
    return [line for line in iptables_saved("nat") if "CNI" in line]
