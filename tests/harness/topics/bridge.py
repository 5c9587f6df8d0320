"""What the tests of bridge share: attachments to bridge0, and looking at them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Host, Namespace, Sandbox, nft_list, run_in
from harness.configs import host_local
from harness.kernel_state import addresses

V4 = [{"subnet": "10.1.2.0/24"}]


V6 = [{"subnet": "2001:db8:1::/64"}]


OTHER_V6 = [{"subnet": "2001:db8:2::/64"}]


@pytest.fixture
def attach(host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path) -> Attach:
    """Makes an attachment, not yet added, of a container of its own; `keys` are of the network.

    ranges: for host-local; () for a network without addresses.
    """
    count = 0

    def make(
        ranges: tuple[Any, ...] = (V4,),
        *,
        netns: Namespace | None = None,
        container: str = "",
        ifname: str = "eth0",
        cni_args: str | None = None,
        ipam: dict[str, Any] | None = None,
        **keys: Any,
    ) -> Attachment:
        nonlocal count
        count += 1
        config = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "bridge0"}
        if ranges:
            keys["ipam"] = host_local(tmp_path / "leases", ranges=list(ranges), **ipam or {})
        return Attachment(
            plugin_dir / "bridge",
            {**config, **keys},
            netns or sandbox(),
            container or f"container-{count}",
            ifname,
            cni_args,
        )

    return make


@pytest.fixture
def leases(tmp_path: Path) -> Callable[[], set[str]]:
    """The addresses that are taken in network `net`."""
    folder = tmp_path / "leases" / "net"

    def taken() -> set[str]:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        return {name for name in names if name[0].isdigit()}

    return taken


def setting(name: str, netns: Namespace | None = None) -> str:
    return run_in(netns, ["cat", f"/proc/sys/{name}"]).stdout.strip()


def owned() -> list[str]:
    """The comments of all nftables elements that name an attachment."""
    found = []
    for entry in nft_list():
        for kind in ("map", "set"):
            for element in entry.get(kind, {}).get("elem", []):
                item = element[0] if isinstance(element, list) else element
                found.append(item["elem"]["comment"])
    return found


def wait_for_local(netns: Namespace | None) -> list[str]:
    """The link-local address of eth0, once the kernel has made it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = [key for key, item in addresses("eth0", netns).items() if item["scope"] == "link"]
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("no link-local address")


FULL: dict[str, Any] = {"isDefaultGateway": True, "ipMasq": True, "macspoofchk": True}
