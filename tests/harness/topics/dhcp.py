"""What the tests of dhcp share: a network with servers, the daemon, and attachments to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Sandbox, ip_json
from harness.dhcp import Daemon, Kea, Network

Leased = Callable[..., AbstractContextManager[tuple[Kea, Attachment]]]


@pytest.fixture
def lan(sandbox: Sandbox) -> Network:
    """A network with no one on it, bridged to the host as br-lan."""
    return Network(sandbox(), "br-lan")


@pytest.fixture
def daemon(host: object, tmp_path: Path) -> Iterator[Daemon]:
    quick = ("-timeout", "3s", "-resendmax", "2s", "-resendtimeout", "30s")
    with Daemon(tmp_path / "daemon", *quick) as running:
        yield running


@pytest.fixture
def attach(plugin_dir: Path, sandbox: Sandbox, daemon: Daemon) -> Attach:
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
    return [f"{item['local']}/{item['prefixlen']}" for link in shown for item in link["addr_info"]]


def address(attachment: Attachment) -> str:
    """The address that ADD returned, without its prefix."""
    text: str = attachment.result["ips"][0]["address"]
    return text.partition("/")[0]


def assert_put_back(attachment: Attachment, routes: list[dict[str, Any]]) -> None:
    """The interface has the address that ADD returned again, and these IPv4 routes."""
    assert inner(attachment) == [f"{address(attachment)}/24"]
    assert ip_json("-4", "route", netns=attachment.sandbox) == routes


@pytest.fixture
def leased(attach: Attach, lan: Network, tmp_path: Path) -> Leased:
    """An attachment that has an address from Kea, which runs during the block."""

    @contextmanager
    def make(**options: Any) -> Iterator[tuple[Kea, Attachment]]:
        with Kea(lan, tmp_path / "kea", **options) as kea:
            one = attach()
            one.add()
            yield kea, one

    return make
