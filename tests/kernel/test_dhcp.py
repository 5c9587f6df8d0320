"""dhcp: leases from real servers, through real interfaces, for as long as they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Namespace, ip_json, run_in, run_plugin
from harness.dhcp import SERVER, SUBNET, Daemon, Dhcpd, Dnsmasq, Kea, Network, eventually

Attach = Callable[..., Attachment]


@pytest.fixture
def lan(sandbox: Callable[[], Namespace]) -> Network:
    """A network with nobody on it, bridged to the host as br-lan."""
    return Network(sandbox(), "br-lan")


@pytest.fixture
def daemon(host: object, tmp_path: Path) -> Iterator[Daemon]:
    quick = ("-timeout", "3s", "-resendmax", "2s", "-resendtimeout", "30s")
    with Daemon(tmp_path / "daemon", *quick) as running:
        yield running


@pytest.fixture
def attach(
    plugin_dir: Path, sandbox: Callable[[], Namespace], daemon: Daemon
) -> Callable[..., Attachment]:
    """Makes attachments to br-lan: keys of `ipam`, then fields of Attachment."""

    def make(ipam: dict[str, Any] | None = None, **fields: Any) -> Attachment:
        config = {
            "cniVersion": "1.1.0",
            "name": "lan",
            "type": "bridge",
            "bridge": "br-lan",
            "ipam": {"type": "dhcp", "daemonSocketPath": str(daemon.socket), **(ipam or {})},
        }
        plugin = fields.pop("plugin", plugin_dir / "bridge")
        space = fields.pop("sandbox", None) or sandbox()
        return Attachment(plugin, {**config, **fields.pop("config", {})}, space, **fields)

    return make


def inner(attachment: Attachment) -> list[str]:
    """The IPv4 addresses of the container's interface."""
    shown = ip_json("-4", "addr", "show", attachment.ifname, netns=attachment.sandbox)
    return [f"{item['local']}/{item['prefixlen']}" for item in shown[0]["addr_info"]]


def address(attachment: Attachment) -> str:
    """The address that ADD returned, without its prefix."""
    text: str = attachment.result["ips"][0]["address"]
    return text.partition("/")[0]


@pytest.mark.parametrize("server", [Kea, Dnsmasq, Dhcpd])
def test_a_lease_and_its_release(
    server: type[Kea | Dnsmasq | Dhcpd], attach: Attach, lan: Network, tmp_path: Path, daemon: Daemon
) -> None:
    with server(lan, tmp_path / "server") as running:
        one = attach()
        result = one.add()
        assert result["ips"] == [
            {"address": f"{address(one)}/24", "gateway": SERVER, "interface": 2}
        ]
        assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": SERVER}]
        assert inner(one) == [f"{address(one)}/24"]
        run_in(one.sandbox, ["ping", "-c1", "-W5", SERVER])
        one.check()
        one.delete()
        eventually(lambda: running.released(address(one)), "the server saw no RELEASE")
        assert daemon.leases() == []
        assert list(daemon.state.glob("*.json")) == []
        one.delete()
