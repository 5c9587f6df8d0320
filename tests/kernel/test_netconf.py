"""Forwarding as netlink says it, against /proc/sys."""

from __future__ import annotations

from collections.abc import Iterator
from socket import AF_INET, AF_INET6

import pytest

from harness import enter_new_netns, run_in
from pycni.kernel.forwarding_events import forwards
from pycni.kernel.netlink.socket import NetlinkSocket


@pytest.fixture
def netlink() -> Iterator[NetlinkSocket]:
    with enter_new_netns(), NetlinkSocket() as netlink:
        yield netlink


@pytest.mark.parametrize(
    ("family", "name"), [(AF_INET, "ipv4/ip_forward"), (AF_INET6, "ipv6/conf/all/forwarding")]
)
def test_forwarding(netlink: NetlinkSocket, family: int, name: str) -> None:
    for value in ("1", "0"):
        run_in(None, ["sh", "-c", f"echo {value} > /proc/sys/net/{name}"])
        assert forwards(netlink, family) is (value == "1")
