"""podman and buildah with CNI networks, in folders of the test's own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from harness.clients import IMAGE, SERVE, Plugins, output, root_filesystem, runtime

# The limits are for machines whose root may not raise them (no CAP_SYS_RESOURCE).
CONTAINERS = """\
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{plugins}"]
network_config_dir = "{networks}"
"""

STORAGE = """\
[storage]
driver = "vfs"
graphroot = "{folder}/graph"
runroot = "{folder}/run"
"""


class Podman:
    """Call it with a command's words; returns what the command prints."""

    def __init__(self, folder: Path, plugins: Plugins) -> None:
        self.folder = folder
        self.plugins = plugins
        self.runtime = runtime(folder)
        networks = folder / "net.d"
        networks.mkdir()
        (folder / "containers.conf").write_text(
            CONTAINERS.format(plugins=plugins.folder, networks=networks)
        )
        (folder / "storage.conf").write_text(STORAGE.format(folder=folder))
        self.environ = {
            "CONTAINERS_CONF": f"{folder}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
            "TMPDIR": os.fspath(folder),
        }
        self("import", os.fspath(root_filesystem(folder)), IMAGE)

    def __call__(self, *words: str) -> str:
        return output("podman", "--tmpdir", self.folder / "tmp", *words, **self.environ)

    def serve(self, name: str, *options: str) -> str:
        """Run a container that serves the page; returns its id."""
        return self("run", "--detach", "--name", name, *options, IMAGE, *SERVE)

    def inspect(self, name: str) -> Any:
        return json.loads(self("inspect", name))[0]

    def remove(self, *names: str) -> None:
        self("rm", "--force", "--time", "0", *names)

    def buildah(self, *words: str) -> str:
        return output("buildah", *words, **self.environ)
