"""buildah, whose build steps run on a CNI network with `--isolation oci`."""

from __future__ import annotations

import pytest

from harness.clients import IMAGE, PAGE, leases, links, mentions, page
from harness.podman import Podman


@pytest.mark.parametrize("plugins", ["ours", "reference"], indirect=True)
def test_step_on_a_network(podman: Podman) -> None:
    podman("network", "create", "--subnet", "10.89.0.0/24", "lab")
    podman.serve("web", "--network", "lab")
    assert page("10.89.0.2") == PAGE
    podman.buildah("from", "--pull-never", "--name", "work", IMAGE)

    def step(*command: str) -> str:
        return podman.buildah(
            "run", "--isolation", "oci", "--runtime", str(podman.runtime), "--network", "lab",
            "work", "--", *command,
        )  # fmt: skip

    assert step("wget", "-q", "-O", "-", "http://10.89.0.2/") == PAGE.strip()
    assert "inet 10.89.0.4/24 " in step("ip", "address", "show", "dev", "eth0")
    assert leases() == ["10.89.0.2"]
    assert mentions("10.89.0.3", "10.89.0.4") == []
    assert page("10.89.0.2") == PAGE
    podman.buildah("rm", "work")
    podman.remove("web")
    podman("network", "rm", "lab")
    assert links() == []
