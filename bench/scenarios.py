"""The pieces of work that are measured: a configuration each, and what is there beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

V4 = {"subnet": "10.200.0.0/16"}
V6 = {"subnet": "fd00:c0de::/64"}
DEFAULT_ROUTES = {4: {"dst": "0.0.0.0/0"}, 6: {"dst": "::/0"}}


@dataclass(frozen=True)
class Scenario:
    """A plugin's configuration, attached and detached once a round by every contender."""

    name: str
    config: dict[str, Any] = field(hash=False)

    def configured(self, contender: str) -> dict[str, Any]:
        """The configuration with a network, bridge and lease directory of the contender's own."""
        tag = "".join(word[0] for word in f"{self.name} {contender}".split() if word[0].isalnum())
        config = {"cniVersion": "1.0.0", "name": f"bench-{tag}", **self.config}
        if config["type"] == "bridge":
            config["bridge"] = f"br-{tag}"
        if "ipam" in config:
            config["ipam"] = {**config["ipam"], "dataDir": f"/run/pycni-bench/{tag}"}
        return config


def _host_local(*families: int) -> dict[str, Any]:
    ranges = [[{4: V4, 6: V6}[family]] for family in families]
    routes = [DEFAULT_ROUTES[family] for family in families]
    return {"type": "host-local", "ranges": ranges, "routes": routes}


def _bridge(*families: int, **keys: Any) -> dict[str, Any]:
    return {"type": "bridge", "isGateway": True, "ipam": _host_local(*families), **keys}


SCENARIOS = (
    Scenario("loopback", {"type": "loopback"}),
    Scenario("bridge", _bridge(4)),
    Scenario("bridge + ipMasq", _bridge(4, ipMasq=True)),
    Scenario("bridge dual stack", _bridge(4, 6)),
    Scenario("bridge dual stack + ipMasq", _bridge(4, 6, ipMasq=True)),
)
