"""What a pool's processes do: they import it by its name."""

from __future__ import annotations

from pycni.runtime import Network


def attach_by_no_plugin(folder: str) -> None:
    """An ADD by a plugin that is not there. Raises PluginError."""
    document = {"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "nonesuch"}]}
    Network.from_dict(document, cache_dir=folder).add("c", "/run/netns/none")
