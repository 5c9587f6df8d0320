"""What the tests of tuning share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import Attach, Attachment, Host, Namespace, Sandbox, run_in
from harness.chained import make_veth, previous_result

MAC = "0a:58:0a:01:02:03"


ALL = {"mac": MAC, "mtu": 1400, "promisc": True, "allmulti": True, "txQLen": 500}


@pytest.fixture
def attach(host: Host, sandbox: Sandbox, plugin_dir: Path, tmp_path: Path) -> Attach:
    """Makes an attachment of a veth in a sandbox of its own, not yet added."""
    count = 0

    def make(
        *, netns: Namespace | None = None, ifname: str = "eth0", version: str = "1.1.0", **keys: Any
    ) -> Attachment:
        nonlocal count
        inside, host_name = netns or sandbox(), f"veth{count}"
        count += 1
        make_veth(inside, f"10.1.{count}.2/24", ifname=ifname, host_name=host_name)
        address = (f"10.1.{count}.2/24", None)
        config = {
            "cniVersion": version,
            "name": "net",
            "type": "tuning",
            "dataDir": str(tmp_path / "tuning"),
            "prevResult": previous_result(
                version, inside, address, ifname=ifname, host_name=host_name
            ),
        }
        return Attachment(plugin_dir / "tuning", {**config, **keys}, inside, ifname=ifname)

    return make


def attributes(one: Attachment) -> dict[str, Any]:
    found = one.link()
    return {
        "mac": found["address"],
        "mtu": found["mtu"],
        "promisc": "PROMISC" in found["flags"],
        "allmulti": "ALLMULTI" in found["flags"],
        "txQLen": found.get("txqlen", 0),
    }


def sysctl(one: Attachment, path: str) -> str:
    return run_in(one.sandbox, ["cat", f"/proc/sys/{path}"]).stdout.strip()


def backup(tmp_path: Path, name: str = "pycni-test_eth0.json") -> Path:
    return tmp_path / "tuning" / name
