"""A program that attaches and detaches for weeks: nothing of it grows.

PYCNI_CYCLES is how many cycles are run (`make interrupts` runs more).
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness import Host, Sandbox
from harness.process import of_this_process
from harness.ways import Way, notes, ports_of
from pycni.runtime import Endpoint, Network
from pycni.runtime.aio import AsyncNetwork
from pycni.spec.errors import CNIError

CYCLES = int(os.environ.get("PYCNI_CYCLES", "120"))
WARM = 40  # cycles, after which caches are full
BYTES_A_CYCLE = 512
_NOISE = 2 << 20  # bytes that the allocator keeps or gives back as it likes
MAPPED = ports_of((8080, 80))


class Used(NamedTuple):
    threads: int
    descriptors: int
    children: int
    files: int
    memory: int


def used(folder: Path) -> Used:
    descriptors, children = of_this_process()
    status = Path("/proc/self/status").read_text()
    (resident,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return Used(
        threading.active_count(),
        descriptors,
        children,
        sum(1 for _ in folder.rglob("*")) + len(notes()),
        int(resident) * 1024,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in process", "cold"])
def test_nothing_grows(
    host: Host, sandbox: Sandbox, tmp_path: Path, plugin_dir: Path, name: str
) -> None:
    way = Way(name, tmp_path, plugin_dir)
    bridge: dict[str, Any] = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True}
    network: Network = way.network(
        "n",
        {**bridge, "ipam": way.host_local("10.66.0.0/24")},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
    )
    boxes = [sandbox() for _ in range(3)]
    endpoints = [Endpoint(f"c{number}", box.path) for number, box in enumerate(boxes)]

    async def awaited() -> None:
        async with AsyncNetwork(network).attached("c0", boxes[0].path):
            pass

    def cycle(number: int) -> None:
        if number % 8 == 0:
            assert all(outcome.ok for outcome in network.add_many(endpoints))
            network.gc(endpoints[:1], force=True)
            assert all(outcome.ok for outcome in network.delete_many(endpoints))
        elif number % 8 == 1:
            asyncio.run(awaited())
        elif number % 8 == 2:
            with pytest.raises(CNIError):
                network.add("c0", "/run/netns/nonesuch")
        else:
            network.add("c0", boxes[0].path, capabilities=MAPPED)
            network.check("c0")
            network.repair("c0")
            network.delete("c0")

    cycles = CYCLES if name == "in process" else CYCLES // 4
    for number in range(WARM):
        cycle(number)
    before = used(tmp_path)
    for number in range(cycles):
        cycle(number)
    after = used(tmp_path)
    for field in ("threads", "descriptors", "children", "files"):
        assert getattr(after, field) <= getattr(before, field), field
    grown = after.memory - before.memory
    assert grown <= _NOISE + BYTES_A_CYCLE * cycles, f"{grown} bytes in {cycles} cycles"
