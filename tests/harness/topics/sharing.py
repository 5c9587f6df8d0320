"""Networks that share containers, addresses and ports."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.lan import Lan
from harness.machines import Machines

both_families = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def lan(machines: Machines, tmp_path: Path) -> Lan:
    """Networks n, m and o, and a container `a` that answers on port 80."""
    lan = Lan(machines, tmp_path)
    lan.network("n")
    for number, name in enumerate("mo", 1):
        lan.network(
            name,
            bridge=f"br{number}",
            subnets=(f"10.3{number}.0.0/24", f"fd00:3{number}::/64"),
        )
    return lan


def delete(lan: Lan, network: str, ifname: str) -> None:
    lan.network(network).delete("a", ifname=ifname)


def collect(lan: Lan, network: str, ifname: str) -> None:
    del ifname
    lan.network(network).gc([], force=True)


leaving = pytest.mark.parametrize("leave", [delete, collect])


TWO = {4: ("10.30.0.2/24", "10.30.0.2/16"), 6: ("fd00:30::2/64", "fd00:30::2/48")}
