"""my-wire on the real kernel; as root."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from my_wire import plugin
from pycni.sdk import testing

IPAM = {
    "type": "static",
    "addresses": [{"address": "192.0.2.2/24", "gateway": "192.0.2.1"}],
    "routes": [{"dst": "0.0.0.0/0"}],
}


@pytest.fixture
def lab() -> Iterator[testing.Lab]:
    with testing.lab() as lab:
        yield lab


def test_host_and_container_reach_each_other(lab: testing.Lab) -> None:
    attachment = lab.attach(plugin, {"ipam": IPAM})
    result = attachment.add()
    assert [item["name"] for item in result["interfaces"]][1:] == ["eth0"]
    lab.run("ping", "-c1", "-W2", "192.0.2.1", netns=attachment.container)
    lab.run("ping", "-c1", "-W2", "192.0.2.2")
    attachment.check()
    lab.ip("address", "delete", "192.0.2.2/24", "dev", "eth0", netns=attachment.container)
    assert "192.0.2.2/24 is missing" in attachment.drift()
    attachment.delete()
    attachment.delete()
    assert [link["ifname"] for link in lab.show("link")] == ["lo"]


def test_addresses_are_needed(lab: testing.Lab) -> None:
    error = lab.attach(plugin, {}).refused()
    assert error["code"] == 7
    assert "IPAM" in error["msg"]
