"""vlan and ipvlan beside the reference's, whose programs run in the lab as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import Attachment, Host, Sandbox, ip_json, run_in
from harness.reference import VERSIONS, exchange

V4 = {"address": "192.0.2.5/24", "gateway": "192.0.2.1"}
KEYS: dict[str, dict[str, Any]] = {
    "vlan": {"master": "lan0", "vlanId": 7, "mtu": 1400},
    "ipvlan": {"master": "lan0", "mode": "l3"},
}


@pytest.mark.parametrize("plugin", ["vlan", "ipvlan"])
def test_exchange(
    host: Host,
    sandbox: Sandbox,
    plugin_dir: Path,
    reference_dir: Path,
    plugin: str,
) -> None:
    # A dummy has its carrier at once, and no address that would settle while we compare.
    run_in(None, ["ip", "link", "add", "lan0", "type", "dummy"])
    run_in(None, ["ip", "link", "set", "lan0", "addrgenmode", "none", "up"])
    ipam = {"type": "static", "addresses": [V4], "routes": [{"dst": "0.0.0.0/0"}]}
    for version in VERSIONS:
        config = {"cniVersion": version, "name": "net", "type": plugin, "ipam": ipam}
        one = Attachment(plugin_dir / plugin, {**config, **KEYS[plugin]}, sandbox())
        seen: list[Any] = []

        def effect(one: Attachment = one, seen: list[Any] = seen) -> None:
            (link,) = ip_json("-d", "link", "show", "dev", "eth0", netns=one.sandbox)
            routes = {(r["dst"], r.get("gateway")) for r in ip_json("route", netns=one.sandbox)}
            seen.append((link["mtu"], link["flags"], link["linkinfo"], routes))

        exchange(one, reference_dir, effect)
        assert seen[0] == seen[1]
