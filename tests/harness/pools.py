"""What a pool's processes do: they import it by its name."""

from __future__ import annotations

from pycni.runtime import Network


def attach_by_no_plugin(folder: str) -> None:
    """An ADD by a plugin that is not there. Raises PluginError."""
    document = {"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "nonesuch"}]}
    Network.from_dict(document, cache_dir=folder).add("c", "/run/netns/none")


def attach_and_detach(folder: str, path: str, times: int) -> list[str]:
    """An ADD, CHECK and DEL of one container, again and again; returns its addresses."""
    ipam = {"type": "host-local", "subnet": "10.66.0.0/24", "dataDir": f"{folder}/networks"}
    bridge = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipMasq": True, "ipam": ipam}
    document = {"cniVersion": "1.1.0", "name": "n", "plugins": [bridge]}
    network = Network.from_dict(document, cache_dir=folder)
    found = []
    container = path.rpartition("/")[2]
    for _ in range(times):
        result = network.add(container, path)
        network.check(container)
        network.delete(container)
        found += [str(entry.address) for entry in result.ips]
    return found
