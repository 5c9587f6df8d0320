"""STATUS of a network whose addresses are all taken, by all three ways of calling plugins."""

from __future__ import annotations

from typing import Any

import pytest

from harness import Sandbox
from harness.ways import Way
from pycni.runtime import Network, PluginError


def network(way: Way, **keys: Any) -> Network:
    ipam = way.host_local("10.61.0.0/30", **keys)
    return way.network("n", {"type": "bridge", "bridge": "br1", "isGateway": True, "ipam": ipam})


def test_a_full_pool(way: Way, sandbox: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    """It succeeds, so that runtimes go on to the GC that frees what has leaked."""
    found = network(way)
    found.add("a", sandbox().path)
    capfd.readouterr()
    found.status()
    said = capfd.readouterr().err
    assert "no IP addresses available in range set: 10.61.0.1-10.61.0.2" in said
    assert "1 address held by 1 container," in said
    found.gc([])
    found.status()
    assert capfd.readouterr().err == ""
    found.add("b", sandbox().path)


def test_a_full_pool_where_that_shall_count(way: Way, sandbox: Sandbox) -> None:
    found = network(way, strictStatus=True)
    found.status()
    found.add("a", sandbox().path)
    with pytest.raises(PluginError, match="no IP addresses available") as caught:
        found.status()
    assert caught.value.code == 50
