"""A program that runs with `python -X dev -W error`: no warning of pycni's, to the very end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness import Host, Sandbox

PROGRAM = """
import asyncio, sys
from pycni.runtime import Endpoint, Network, namespaces
from pycni.runtime.aio import AsyncNetwork

folder, plugins, engine, *paths = sys.argv[1:]
ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
document = {"cniVersion": "1.1.0", "name": "n", "plugins": [
    {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True, "ipam": {
        "type": "host-local", "subnet": "10.66.0.0/24", "dataDir": folder + "/leases"}},
    {"type": "tuning", "dataDir": folder + "/tuning",
     "sysctl": {"net.ipv4.conf.IFNAME.forwarding": "1"}},
    {"type": "portmap", "capabilities": {"portMappings": True}},
]}
keys = {"plugin_dirs": plugins} if plugins else {}
network = Network.from_dict(document, cache_dir=folder + "/cni", engine=engine, **keys)
network.validate(timeout=20)
network.status()
network.versions()
endpoints = [Endpoint(f"c{number}", path) for number, path in enumerate(paths)]
endpoints[0] = endpoints[0].replace(capabilities={"portMappings": ports})
assert all(outcome.ok for outcome in network.add_many(endpoints))
for endpoint in endpoints:
    network.check(endpoint.container_id)
assert all(one.is_sound for one in network.repair())
assert network.gc([endpoints[0]], force=True)
assert all(outcome.ok for outcome in network.delete_many(endpoints))
with network.attached("one", paths[0], timeout=20):
    pass
try:
    network.add("one", "/run/netns/nonesuch")
except Exception as error:
    str(error)

async def main():
    alike = AsyncNetwork(network)
    async with alike.attached("one", paths[0]):
        await alike.check("one", paths[0])
    task = asyncio.ensure_future(alike.add("two", paths[1]))
    await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await alike.delete("two", paths[1])

asyncio.run(main())
with namespaces.temporary() as path:
    network.add("three", path)
    network.delete("three", path)
"""


@pytest.mark.parametrize("engine", ["auto", "exec"])
def test_no_warning(
    host: Host, sandbox: Sandbox, tmp_path: Path, plugin_dir: Path, engine: str
) -> None:
    plugins = str(plugin_dir) if engine == "exec" else ""
    paths = [sandbox().path for _ in range(3)]
    arguments = [str(tmp_path), plugins, engine, *paths]
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
